#include "controller/policy_file.h"

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "controller/policy_sections.h"

namespace whit {
namespace {

static_assert(std::endian::native == std::endian::little, "fields are copied as they are");

constexpr std::string_view kMagic = "whitpol\n";
constexpr uint32_t kVersion = 1;

// Far above what calibration writes, and little enough to read at once.
constexpr size_t kMaxFileBytes = size_t{64} << 20;
constexpr uint32_t kMaxExtent = 1 << 16;  // of layers, KV heads, head_dim
constexpr uint32_t kMaxSections = 64;
constexpr size_t kNameBytes = 16, kChecksumBytes = 8;

struct Header {
  char magic[8];
  uint32_t version;
  uint32_t num_sections;
  uint64_t file_bytes;
  uint64_t fingerprint;
  uint32_t num_layers, num_kv_heads, head_dim;
  uint32_t zero;
};
static_assert(sizeof(Header) == 48);

struct SectionHeader {
  char name[kNameBytes];
  uint64_t bytes;
};
static_assert(sizeof(SectionHeader) == kNameBytes + 8);

// FNV-1a: every change of one byte changes it.
uint64_t Checksum(std::string_view bytes) {
  uint64_t hash = 0xCBF29CE484222325;
  for (char byte : bytes) hash = (hash ^ static_cast<unsigned char>(byte)) * 0x100000001B3;
  return hash;
}

template <typename T>
T Load(std::string_view bytes) {
  T value;
  std::memcpy(&value, bytes.data(), sizeof(value));
  return value;
}

template <typename T>
void Append(std::string& bytes, const T& value) {
  bytes.append(reinterpret_cast<const char*>(&value), sizeof(value));
}

void AppendSection(std::string& bytes, std::string_view name, std::string_view content) {
  SectionHeader header = {};
  std::copy(name.begin(), name.end(), header.name);
  header.bytes = content.size();
  Append(bytes, header);
  bytes.append(content);
}

// A name out of the file, fit for a message.
std::string Printable(std::string_view name) {
  std::string text(name);
  for (char& c : text) {
    if (c < 0x20 || c > 0x7E) c = '?';
  }
  return text;
}

// Whether these are the whole and undamaged bytes of a file of this version.
absl::Status CheckIntegrity(std::string_view bytes) {
  if (bytes.substr(0, kMagic.size()) != kMagic) {
    return absl::InvalidArgumentError("not a policy file: it does not begin with 'whitpol'");
  }
  if (bytes.size() < sizeof(Header) + kChecksumBytes) {
    return absl::DataLossError(absl::StrCat("truncated: ", bytes.size(),
                                            " bytes are fewer than the smallest policy file has"));
  }
  const auto header = Load<Header>(bytes);
  if (header.version != kVersion) {
    return absl::UnimplementedError(absl::StrCat("policy file version ", header.version,
                                                 " is not supported; version ", kVersion, " is"));
  }
  if (header.file_bytes != bytes.size()) {
    return absl::DataLossError(
        absl::StrCat(bytes.size() < header.file_bytes ? "truncated" : "damaged", ": the file has ",
                     bytes.size(), " bytes, but was written with ", header.file_bytes));
  }
  const std::string_view body = bytes.substr(0, bytes.size() - kChecksumBytes);
  const auto stored = Load<uint64_t>(bytes.substr(body.size()));
  if (const uint64_t checksum = Checksum(body); checksum != stored) {
    return absl::DataLossError(absl::StrFormat(
        "damaged: the checksum is %016x, but was written as %016x", checksum, stored));
  }
  return absl::OkStatus();
}

absl::StatusOr<ModelIdentity> ParseModel(const Header& header) {
  for (uint32_t extent : {header.num_layers, header.num_kv_heads, header.head_dim}) {
    if (extent >= 1 && extent <= kMaxExtent) continue;
    return absl::InvalidArgumentError(absl::StrCat("the model's shape, ", header.num_layers, " x ",
                                                   header.num_kv_heads, " x ", header.head_dim,
                                                   ", is not within [1, ", kMaxExtent, "]"));
  }
  return ModelIdentity{.fingerprint = header.fingerprint,
                       .num_layers = static_cast<int>(header.num_layers),
                       .num_kv_heads = static_cast<int>(header.num_kv_heads),
                       .head_dim = static_cast<int>(header.head_dim)};
}

using Section = std::pair<std::string_view, std::string_view>;  // name, content

absl::StatusOr<std::vector<Section>> SplitSections(std::string_view bytes, uint32_t count) {
  if (count > kMaxSections) {
    return absl::InvalidArgumentError(
        absl::StrCat(count, " sections are more than ", kMaxSections));
  }
  std::vector<Section> sections;
  for (uint32_t i = 0; i < count; ++i) {
    if (bytes.size() < sizeof(SectionHeader)) {
      return absl::InvalidArgumentError(
          absl::StrCat("section ", i + 1, " of ", count, " begins outside the file"));
    }
    const std::string_view padded = bytes.substr(0, kNameBytes);
    const std::string_view name = padded.substr(0, padded.find('\0'));
    const auto size = Load<SectionHeader>(bytes).bytes;
    bytes.remove_prefix(sizeof(SectionHeader));
    if (size > bytes.size()) {
      return absl::InvalidArgumentError(absl::StrCat("section '", Printable(name), "' of ", size,
                                                     " bytes does not fit into the ", bytes.size(),
                                                     " bytes left"));
    }
    for (const Section& other : sections) {
      if (other.first != name) continue;
      return absl::InvalidArgumentError(
          absl::StrCat("section '", Printable(name), "' occurs twice"));
    }
    sections.emplace_back(name, bytes.substr(0, size));
    bytes.remove_prefix(size);
  }
  if (!bytes.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(bytes.size(), " bytes follow the last of ", count, " sections"));
  }
  return sections;
}

absl::Status Annotated(const absl::Status& status, const std::string& path) {
  return absl::Status(status.code(), absl::StrCat(path, ": ", status.message()));
}

absl::StatusOr<std::string> ReadBytes(const std::string& path) {
  std::error_code error;
  if (!std::filesystem::exists(path, error)) return absl::NotFoundError("no such file");
  if (!std::filesystem::is_regular_file(path, error)) {
    return absl::InvalidArgumentError("not a regular file");
  }
  const uintmax_t size = std::filesystem::file_size(path, error);
  if (error) return absl::PermissionDeniedError(error.message());
  if (size > kMaxFileBytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        "not a policy file: it has ", size, " bytes, and none has more than ", kMaxFileBytes));
  }
  std::string bytes(size, '\0');
  std::ifstream in(path, std::ios::binary);
  if (!in) return absl::PermissionDeniedError(absl::StrCat("cannot open: ", std::strerror(errno)));
  in.read(bytes.data(), static_cast<std::streamsize>(size));
  bytes.resize(static_cast<size_t>(in.gcount()));
  return bytes;
}

}  // namespace

std::string ModelIdentity::ToString() const {
  return absl::StrFormat("%016x, %d layers x %d KV heads x %d", fingerprint, num_layers,
                         num_kv_heads, head_dim);
}

std::string SerializePolicyFile(const PolicyFile& file) {
  std::string bytes_of_sections;
  const auto sections = WritePolicySections(file);
  for (const auto& [name, content] : sections) AppendSection(bytes_of_sections, name, content);

  Header header = {.magic = {},
                   .version = kVersion,
                   .num_sections = static_cast<uint32_t>(sections.size()),
                   .file_bytes = sizeof(Header) + bytes_of_sections.size() + kChecksumBytes,
                   .fingerprint = file.model.fingerprint,
                   .num_layers = static_cast<uint32_t>(file.model.num_layers),
                   .num_kv_heads = static_cast<uint32_t>(file.model.num_kv_heads),
                   .head_dim = static_cast<uint32_t>(file.model.head_dim),
                   .zero = 0};
  std::copy(kMagic.begin(), kMagic.end(), header.magic);
  std::string bytes;
  Append(bytes, header);
  bytes += bytes_of_sections;
  Append(bytes, Checksum(bytes));
  return bytes;
}

absl::StatusOr<PolicyFile> ParsePolicyFile(std::string_view bytes) {
  if (absl::Status status = CheckIntegrity(bytes); !status.ok()) return status;
  // Undamaged is not yet sane: anyone can write a checksum.
  const auto header = Load<Header>(bytes);
  PolicyFile file;
  absl::StatusOr<ModelIdentity> model = ParseModel(header);
  if (!model.ok()) return model.status();
  file.model = *model;
  absl::StatusOr<std::vector<Section>> sections =
      SplitSections(bytes.substr(sizeof(Header), bytes.size() - sizeof(Header) - kChecksumBytes),
                    header.num_sections);
  if (!sections.ok()) return sections.status();

  for (const auto& [name, content] : *sections) {
    if (absl::Status s = ReadPolicySection(name, content, file); !s.ok()) return s;
  }
  if (file.key_means.empty()) {
    return absl::InvalidArgumentError("there is no section 'key_means'");
  }
  return file;
}

absl::Status WritePolicyFile(const std::string& path, const PolicyFile& file) {
  const std::string bytes = SerializePolicyFile(file);
  const std::string temporary = path + ".tmp";
  std::ofstream out(temporary, std::ios::binary | std::ios::trunc);
  out.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  out.close();
  if (out && std::rename(temporary.c_str(), path.c_str()) == 0) return absl::OkStatus();
  const absl::Status status =
      absl::UnavailableError(absl::StrCat(path, ": cannot write: ", std::strerror(errno)));
  std::remove(temporary.c_str());
  return status;
}

absl::StatusOr<PolicyFile> LoadPolicyFile(const std::string& path, const ModelIdentity& model) {
  absl::StatusOr<std::string> bytes = ReadBytes(path);
  if (!bytes.ok()) return Annotated(bytes.status(), path);
  absl::StatusOr<PolicyFile> file = ParsePolicyFile(*bytes);
  if (!file.ok()) return Annotated(file.status(), path);
  if (file->model == model) return file;
  return absl::FailedPreconditionError(absl::StrCat(
      path, ": made for another model (", file->model.ToString(), ") than the one that is loaded (",
      model.ToString(), "); make one with whit-calibrate"));
}

std::optional<uint64_t> PeekFingerprint(const std::string& path) {
  std::string bytes(sizeof(Header), '\0');
  std::ifstream in(path, std::ios::binary);
  in.read(bytes.data(), sizeof(Header));
  if (!in || !std::string_view(bytes).starts_with(kMagic)) return std::nullopt;
  return Load<Header>(bytes).fingerprint;
}

}  // namespace whit
