#include "runtime/model/gguf.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <iterator>
#include <limits>

#include "absl/cleanup/cleanup.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "runtime/model/byte_cursor.h"
#include "runtime/model/gguf_value.h"

namespace whit {
namespace {

static_assert(std::endian::native == std::endian::little, "GGUF is read as it lies in memory");

// GGUF: magic, version, counts, metadata entries (key, type, value), tensor directory (name,
// dimensions, type, offset), padding to the alignment, tensor data. Little-endian; strings are a
// 64-bit length and bytes.
constexpr uint32_t kMagic = 0x46554747;  // "GGUF"
constexpr uint32_t kMinVersion = 2;      // 1 had 32-bit counts
constexpr uint32_t kMaxVersion = 3;
constexpr uint64_t kDefaultAlignment = 32;
constexpr uint64_t kMinAlignment = 8;
constexpr uint64_t kMaxAlignment = 1 << 20;
constexpr uint32_t kMaxDimensions = 4;
// The least that one entry can take: what bounds the counts in the header.
constexpr size_t kMinMetadataBytes = 8 + 4 + 1;
constexpr size_t kMinTensorBytes = 8 + 4 + 8 + 4 + 8;

// Every tensor type the format knows, by number; most are not supported.
constexpr const char* kTensorTypeNames[] = {
    "F32",   "F16",        "Q4_0",       "Q4_1",       "Q4_2",     "Q4_3",     "Q5_0",
    "Q5_1",  "Q8_0",       "Q8_1",       "Q2_K",       "Q3_K",     "Q4_K",     "Q5_K",
    "Q6_K",  "Q8_K",       "IQ2_XXS",    "IQ2_XS",     "IQ3_XXS",  "IQ1_S",    "IQ4_NL",
    "IQ3_S", "IQ2_S",      "IQ4_XS",     "I8",         "I16",      "I32",      "I64",
    "F64",   "IQ1_M",      "BF16",       "Q4_0_4_4",   "Q4_0_4_8", "Q4_0_8_8", "TQ1_0",
    "TQ2_0", "IQ4_NL_4_4", "IQ4_NL_4_8", "IQ4_NL_8_8", "MXFP4"};

struct Block {
  int elements = 0;  // 0: the type is not supported
  size_t bytes = 0;
};

Block BlockOf(TensorType type) {
  switch (type) {
    case TensorType::kF32:
      return {1, 4};
    case TensorType::kF16:
    case TensorType::kBF16:
      return {1, 2};
    case TensorType::kQ4_0:
      return {32, 2 + 16};
    case TensorType::kQ4_1:
      return {32, 2 + 2 + 16};
    case TensorType::kQ5_0:
      return {32, 2 + 4 + 16};
    case TensorType::kQ5_1:
      return {32, 2 + 2 + 4 + 16};
    case TensorType::kQ8_0:
      return {32, 2 + 32};
    case TensorType::kQ4_K:
      return {256, 2 + 2 + 12 + 128};
    case TensorType::kQ5_K:
      return {256, 2 + 2 + 12 + 32 + 128};
    case TensorType::kQ6_K:
      return {256, 128 + 64 + 16 + 2};
  }
  return {};
}

// A name from the file, fit for an error message.
std::string Quoted(std::string_view name) {
  constexpr size_t kMaxShown = 64;
  return absl::StrCat(
      "'", absl::CHexEscape(absl::string_view(name.data(), std::min(name.size(), kMaxShown))),
      name.size() > kMaxShown ? "…'" : "'");
}

// One directory entry. `offset` counts from the start of the tensor data.
absl::Status ReadTensor(ByteCursor& cursor, GgufTensor& tensor, uint64_t& offset) {
  if (absl::Status s = cursor.ReadString(tensor.name, "tensor name"); !s.ok()) return s;
  const auto error = [&](absl::string_view message) {
    return cursor.Error(absl::StrCat("tensor ", Quoted(tensor.name), " ", message));
  };
  uint32_t num_dimensions = 0;
  if (absl::Status s = cursor.Read(num_dimensions, "number of dimensions"); !s.ok()) return s;
  if (num_dimensions < 1 || num_dimensions > kMaxDimensions) {
    return error(absl::StrCat("has ", num_dimensions, " dimensions; the format allows 1 to ",
                              kMaxDimensions));
  }
  uint64_t elements = 1;
  for (uint32_t i = 0; i < num_dimensions; ++i) {
    uint64_t size = 0;
    if (absl::Status s = cursor.Read(size, "dimension"); !s.ok()) return s;
    if (size == 0) return error(absl::StrCat("has dimension ", i, " of size 0"));
    if (size > static_cast<uint64_t>(std::numeric_limits<int64_t>::max()) / elements) {
      return error(absl::StrCat("has dimension ", i, " of size ", size,
                                ", and more than 2^63 elements in all"));
    }
    elements *= size;
    if (i == 0) tensor.cols = size;
  }
  tensor.rows = elements / tensor.cols;

  uint32_t type = 0;
  if (absl::Status s = cursor.Read(type, "tensor type"); !s.ok()) return s;
  tensor.type = static_cast<TensorType>(type);
  const Block block = BlockOf(tensor.type);
  if (block.elements == 0) {
    return absl::UnimplementedError(
        absl::StrCat("tensor ", Quoted(tensor.name), " has type ", type, " (",
                     type < std::size(kTensorTypeNames) ? kTensorTypeNames[type] : "unknown",
                     "), which is not supported"));
  }
  if (tensor.cols % block.elements != 0) {
    return error(absl::StrCat("has rows of ", tensor.cols, " elements, not a multiple of the ",
                              block.elements, " of a ", kTensorTypeNames[type], " block"));
  }
  const uint64_t blocks = elements / block.elements;
  if (blocks > std::numeric_limits<uint64_t>::max() / block.bytes) {
    return error(absl::StrCat("of ", elements, " elements takes more than 2^64 bytes"));
  }
  tensor.bytes = blocks * block.bytes;
  return cursor.Read(offset, "tensor offset");
}

// Of each tensor, for the fingerprint.
constexpr size_t kFingerprintBytes = 64;

// Names a model across machines and versions, so not absl::Hash.
uint64_t Hash(uint64_t seed, absl::Span<const std::byte> bytes) {
  uint64_t hash = seed ^ bytes.size();
  for (size_t i = 0; i < bytes.size(); i += 8) {
    uint64_t word = 0;
    std::memcpy(&word, bytes.data() + i, std::min<size_t>(8, bytes.size() - i));
    hash = (hash ^ word) * 0x9E3779B97F4A7C15;
    hash ^= hash >> 32;
  }
  return hash;
}

absl::Status WrongType(std::string_view key, const GgufValue& value, absl::string_view wanted) {
  return absl::InvalidArgumentError(
      absl::StrCat("metadata key ", Quoted(key), " has type ", value.TypeName(), ", not ", wanted));
}

}  // namespace

std::string_view TensorTypeName(TensorType type) {
  return kTensorTypeNames[static_cast<size_t>(type)];
}
int TensorBlockElements(TensorType type) { return BlockOf(type).elements; }
size_t TensorBlockBytes(TensorType type) { return BlockOf(type).bytes; }

struct GgufFile::Impl {
  ~Impl() {
    if (mapping != nullptr) munmap(mapping, bytes.size());
  }

  absl::Status Parse();
  absl::Status ReadMetadata(ByteCursor& cursor, uint64_t count);
  absl::Status ReadTensors(ByteCursor& cursor, uint64_t count);
  absl::Status PlaceTensors(size_t directory_end, absl::Span<const uint64_t> offsets);
  absl::Status CheckOverlaps() const;

  // The value of a key that must exist and be an array or not, of a type that `accepts` says yes
  // to.
  absl::StatusOr<GgufValue> Find(std::string_view key, bool array,
                                 bool (GgufValue::*accepts)() const,
                                 absl::string_view wanted) const;

  absl::StatusOr<uint64_t> GetUint(std::string_view key) const;

  void* mapping = nullptr;
  absl::Span<const std::byte> bytes;
  absl::flat_hash_map<std::string_view, GgufValue> metadata;
  std::vector<GgufTensor> tensors;
  absl::flat_hash_map<std::string_view, size_t> tensor_index;
  uint64_t fingerprint = 0;
};

absl::Status GgufFile::Impl::Parse() {
  ByteCursor cursor(bytes);
  uint32_t magic = 0, version = 0;
  uint64_t num_tensors = 0, num_metadata = 0;
  if (absl::Status s = cursor.Read(magic, "magic number"); !s.ok()) return s;
  if (magic != kMagic) return cursor.Error("not a GGUF file: it does not begin with 'GGUF'");
  if (absl::Status s = cursor.Read(version, "version"); !s.ok()) return s;
  if (version < kMinVersion || version > kMaxVersion) {
    return absl::UnimplementedError(absl::StrCat("GGUF version ", version, " is not supported; ",
                                                 kMinVersion, " to ", kMaxVersion,
                                                 ", little-endian, are"));
  }
  if (absl::Status s = cursor.Read(num_tensors, "number of tensors"); !s.ok()) return s;
  if (absl::Status s = cursor.Read(num_metadata, "number of metadata entries"); !s.ok()) return s;
  if (absl::Status s = ReadMetadata(cursor, num_metadata); !s.ok()) return s;
  if (absl::Status s = ReadTensors(cursor, num_tensors); !s.ok()) return s;
  fingerprint = Hash(0xCBF29CE484222325, bytes.first(cursor.offset()));
  for (const GgufTensor& tensor : tensors) {
    fingerprint = Hash(fingerprint, {tensor.data, std::min(tensor.bytes, kFingerprintBytes)});
  }
  return absl::OkStatus();
}

absl::Status GgufFile::Impl::ReadMetadata(ByteCursor& cursor, uint64_t count) {
  if (count > cursor.remaining() / kMinMetadataBytes) {
    return cursor.Error(absl::StrCat(count, " metadata entries do not fit into the ",
                                     cursor.remaining(), " bytes left"));
  }
  for (uint64_t i = 0; i < count; ++i) {
    std::string_view key;
    GgufValue value;
    absl::Status s = cursor.ReadString(key, "key");
    if (s.ok()) s = GgufValue::Read(cursor, value);
    if (s.ok() && !metadata.emplace(key, value).second) s = cursor.Error("the key occurs twice");
    if (!s.ok()) {
      return absl::Status(s.code(), absl::StrCat("metadata entry ", i + 1, " of ", count, ", key ",
                                                 Quoted(key), ": ", s.message()));
    }
  }
  return absl::OkStatus();
}

absl::Status GgufFile::Impl::ReadTensors(ByteCursor& cursor, uint64_t count) {
  if (count > cursor.remaining() / kMinTensorBytes) {
    return cursor.Error(
        absl::StrCat(count, " tensors do not fit into the ", cursor.remaining(), " bytes left"));
  }
  std::vector<uint64_t> offsets;
  for (uint64_t i = 0; i < count; ++i) {
    absl::Status s = ReadTensor(cursor, tensors.emplace_back(), offsets.emplace_back());
    if (s.ok() && !tensor_index.emplace(tensors[i].name, i).second) {
      s = cursor.Error(absl::StrCat("the name ", Quoted(tensors[i].name), " occurs twice"));
    }
    if (!s.ok()) {
      return absl::Status(s.code(),
                          absl::StrCat("tensor ", i + 1, " of ", count, ": ", s.message()));
    }
  }
  if (absl::Status s = PlaceTensors(cursor.offset(), offsets); !s.ok()) return s;
  return CheckOverlaps();
}

absl::Status GgufFile::Impl::PlaceTensors(size_t directory_end,
                                          absl::Span<const uint64_t> offsets) {
  uint64_t alignment = kDefaultAlignment;
  if (metadata.contains("general.alignment")) {
    const absl::StatusOr<uint64_t> value = GetUint("general.alignment");
    if (!value.ok()) return value.status();
    alignment = *value;
  }
  if (!std::has_single_bit(alignment) || alignment < kMinAlignment || alignment > kMaxAlignment) {
    return absl::InvalidArgumentError(absl::StrCat("general.alignment is ", alignment,
                                                   ", not a power of two from ", kMinAlignment,
                                                   " to ", kMaxAlignment));
  }
  const size_t begin = (directory_end + alignment - 1) / alignment * alignment;
  const size_t size = bytes.size() > begin ? bytes.size() - begin : 0;
  for (size_t i = 0; i < tensors.size(); ++i) {
    GgufTensor& tensor = tensors[i];
    if (offsets[i] % alignment != 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("tensor ", Quoted(tensor.name), " has offset ", offsets[i],
                       ", not a multiple of the alignment ", alignment));
    }
    if (offsets[i] > size || tensor.bytes > size - offsets[i]) {
      return absl::InvalidArgumentError(absl::StrCat(
          "tensor ", Quoted(tensor.name), " of ", tensor.bytes, " bytes at offset ", offsets[i],
          " runs past the end of the tensor data, which has ", size, " bytes"));
    }
    tensor.data = bytes.data() + begin + offsets[i];
  }
  return absl::OkStatus();
}

// Tensors that share bytes would let a small file ask for any amount of memory.
absl::Status GgufFile::Impl::CheckOverlaps() const {
  std::vector<const GgufTensor*> sorted;
  sorted.reserve(tensors.size());
  for (const GgufTensor& tensor : tensors) sorted.push_back(&tensor);
  std::sort(sorted.begin(), sorted.end(),
            [](const GgufTensor* a, const GgufTensor* b) { return a->data < b->data; });
  for (size_t i = 1; i < sorted.size(); ++i) {
    if (sorted[i - 1]->data + sorted[i - 1]->bytes > sorted[i]->data) {
      return absl::InvalidArgumentError(absl::StrCat("tensors ", Quoted(sorted[i - 1]->name),
                                                     " and ", Quoted(sorted[i]->name), " overlap"));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<GgufValue> GgufFile::Impl::Find(std::string_view key, bool array,
                                               bool (GgufValue::*accepts)() const,
                                               absl::string_view wanted) const {
  const auto it = metadata.find(key);
  if (it == metadata.end()) {
    return absl::NotFoundError(absl::StrCat("metadata key ", Quoted(key), " is missing"));
  }
  const GgufValue& value = it->second;
  if (value.is_array != array || !(value.*accepts)()) return WrongType(key, value, wanted);
  return value;
}

GgufFile::GgufFile() : impl_(std::make_unique<Impl>()) {}
GgufFile::~GgufFile() = default;

absl::StatusOr<std::unique_ptr<GgufFile>> GgufFile::Open(const std::string& path) {
  const auto error = [&path] { return absl::ErrnoToStatus(errno, path); };
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return error();
  const absl::Cleanup close_fd = [fd] { close(fd); };
  struct stat info;
  if (fstat(fd, &info) != 0) return error();
  if (!S_ISREG(info.st_mode)) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": not a regular file"));
  }
  if (info.st_size == 0) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": the file is empty"));
  }

  std::unique_ptr<GgufFile> file(new GgufFile());
  const auto size = static_cast<size_t>(info.st_size);
  void* mapping = mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd, 0);
  if (mapping == MAP_FAILED) return error();
  madvise(mapping, size, MADV_WILLNEED);  // the disk reads while the directory is parsed
  file->impl_->mapping = mapping;
  file->impl_->bytes = absl::MakeConstSpan(static_cast<const std::byte*>(mapping), size);
  if (absl::Status s = file->impl_->Parse(); !s.ok()) {
    return absl::Status(s.code(), absl::StrCat(path, ": ", s.message()));
  }
  return file;
}

absl::StatusOr<std::unique_ptr<GgufFile>> GgufFile::Parse(absl::Span<const std::byte> bytes) {
  std::unique_ptr<GgufFile> file(new GgufFile());
  file->impl_->bytes = bytes;
  if (absl::Status s = file->impl_->Parse(); !s.ok()) return s;
  return file;
}

absl::StatusOr<uint64_t> GgufFile::Impl::GetUint(std::string_view key) const {
  absl::StatusOr<GgufValue> value = Find(key, /*array=*/false, &GgufValue::IsInteger, "an integer");
  if (!value.ok()) return value.status();
  const GgufValue::Integer integer = value->IntegerAt(0);
  if (integer.negative) {
    return absl::InvalidArgumentError(absl::StrCat("metadata key ", Quoted(key), " is ",
                                                   static_cast<int64_t>(integer.bits),
                                                   "; it must not be negative"));
  }
  return integer.bits;
}

absl::StatusOr<uint64_t> GgufFile::GetUint(std::string_view key) const {
  return impl_->GetUint(key);
}

absl::StatusOr<double> GgufFile::GetFloat(std::string_view key) const {
  absl::StatusOr<GgufValue> value =
      impl_->Find(key, /*array=*/false, &GgufValue::IsFloat, "a float");
  if (!value.ok()) return value.status();
  return value->FloatAt(0);
}

absl::StatusOr<bool> GgufFile::GetBool(std::string_view key) const {
  absl::StatusOr<GgufValue> value = impl_->Find(key, /*array=*/false, &GgufValue::IsBool, "a bool");
  if (!value.ok()) return value.status();
  const auto byte = LoadUnaligned<uint8_t>(value->data);
  if (byte > 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("metadata key ", Quoted(key), " is a bool of value ", byte, ", not 0 or 1"));
  }
  return byte == 1;
}

absl::StatusOr<std::string_view> GgufFile::GetString(std::string_view key) const {
  absl::StatusOr<GgufValue> value =
      impl_->Find(key, /*array=*/false, &GgufValue::IsString, "a string");
  if (!value.ok()) return value.status();
  std::string_view string;
  value->ForEachString([&string](std::string_view s) { string = s; });
  return string;
}

absl::StatusOr<std::vector<std::string_view>> GgufFile::GetStringArray(std::string_view key) const {
  absl::StatusOr<GgufValue> value =
      impl_->Find(key, /*array=*/true, &GgufValue::IsString, "an array of strings");
  if (!value.ok()) return value.status();
  std::vector<std::string_view> strings;
  strings.reserve(value->count);
  value->ForEachString([&strings](std::string_view s) { strings.push_back(s); });
  return strings;
}

absl::StatusOr<std::vector<int64_t>> GgufFile::GetIntArray(std::string_view key) const {
  absl::StatusOr<GgufValue> value =
      impl_->Find(key, /*array=*/true, &GgufValue::IsInteger, "an array of integers");
  if (!value.ok()) return value.status();
  std::vector<int64_t> integers;
  integers.reserve(value->count);
  for (uint64_t i = 0; i < value->count; ++i) {
    const GgufValue::Integer integer = value->IntegerAt(i);
    if (!integer.negative && integer.bits > uint64_t{std::numeric_limits<int64_t>::max()}) {
      return absl::InvalidArgumentError(absl::StrCat("metadata key ", Quoted(key), " has element ",
                                                     i, " = ", integer.bits,
                                                     ", more than 2^63 - 1"));
    }
    integers.push_back(static_cast<int64_t>(integer.bits));
  }
  return integers;
}

absl::StatusOr<std::vector<float>> GgufFile::GetFloatArray(std::string_view key) const {
  absl::StatusOr<GgufValue> value =
      impl_->Find(key, /*array=*/true, &GgufValue::IsFloat, "an array of floats");
  if (!value.ok()) return value.status();
  std::vector<float> floats;
  floats.reserve(value->count);
  for (uint64_t i = 0; i < value->count; ++i) {
    floats.push_back(static_cast<float>(value->FloatAt(i)));
  }
  return floats;
}

bool GgufFile::Has(std::string_view key) const { return impl_->metadata.contains(key); }

const GgufTensor* GgufFile::FindTensor(std::string_view name) const {
  const auto it = impl_->tensor_index.find(name);
  return it == impl_->tensor_index.end() ? nullptr : &impl_->tensors[it->second];
}

absl::Span<const GgufTensor> GgufFile::tensors() const { return impl_->tensors; }

size_t GgufFile::file_bytes() const { return impl_->bytes.size(); }

uint64_t GgufFile::fingerprint() const { return impl_->fingerprint; }

}  // namespace whit
