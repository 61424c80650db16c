#include "runtime/model/gguf.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "tests/unit/support/gguf_writer.h"
#include "tests/unit/support/process_temp_dir.h"

namespace whit {
namespace {

using absl::StatusCode;
using testing::ElementsAre;
using testing::HasSubstr;

using Bytes = std::vector<std::byte>;

std::vector<std::byte> Zeros(size_t size) { return std::vector<std::byte>(size); }

GgufWriter MakeFile() {
  GgufWriter file;
  file.Set("u8", uint8_t{200});
  file.Set("i8", int8_t{-3});
  file.Set("u16", uint16_t{60000});
  file.Set("i16", int16_t{5});
  file.Set("u32", uint32_t{4000000000});
  file.Set("i32", int32_t{-7});
  file.Set("u64", std::numeric_limits<uint64_t>::max());
  file.Set("i64", int64_t{9});
  file.Set("f32", 0.5f);
  file.Set("f64", 1e100);
  file.Set("yes", true);
  file.Set("no", false);
  file.Set("string", std::string("two\0parts", 9));
  file.Set("strings", GgufWriter::Array(std::vector<std::string>{"a", "", "bcd"}));
  file.Set("ints", GgufWriter::Array(std::vector<int16_t>{-1, 2}));
  file.Set("floats", GgufWriter::Array(std::vector<float>{0.5f, -2.0f}));
  file.Set("doubles", GgufWriter::Array(std::vector<double>{0.25}));
  file.Set("empty", GgufWriter::Array(std::vector<uint32_t>{}));
  file.tensors = {
      {.name = "vector", .dimensions = {3}, .data = Zeros(12)},
      {.name = "matrix", .type = TensorType::kQ4_1, .dimensions = {64, 2}, .data = Zeros(80)},
      {.name = "stack", .type = TensorType::kF16, .dimensions = {2, 3, 4, 1}, .data = Zeros(48)}};
  return file;
}

// The bytes outlive the file.
struct Parsed {
  explicit Parsed(Bytes b) : bytes(std::move(b)), file(GgufFile::Parse(bytes)) {}
  explicit Parsed(const GgufWriter& writer) : Parsed(writer.Build()) {}
  const GgufFile* operator->() const { return file->get(); }

  Bytes bytes;
  absl::StatusOr<std::unique_ptr<GgufFile>> file;
};

void ExpectRefused(Bytes bytes, StatusCode code, const std::string& message) {
  const Parsed parsed(std::move(bytes));
  EXPECT_EQ(parsed.file.status().code(), code) << parsed.file.status();
  EXPECT_THAT(std::string(parsed.file.status().message()), HasSubstr(message));
}

void ExpectInvalid(const GgufWriter& writer, const std::string& message) {
  ExpectRefused(writer.Build(), StatusCode::kInvalidArgument, message);
}

template <typename T>
void ExpectError(const absl::StatusOr<T>& value, StatusCode code, const std::string& message) {
  EXPECT_EQ(value.status().code(), code) << value.status();
  EXPECT_THAT(std::string(value.status().message()), HasSubstr(message));
}

template <typename T>
void Patch(Bytes& bytes, size_t offset, T value) {
  std::memcpy(bytes.data() + offset, &value, sizeof(value));
}

// Where the bytes after a name (a key, a tensor's name) begin.
size_t After(const Bytes& bytes, std::string_view name) {
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  return text.find(name) + name.size();
}

TEST(GgufTest, ReadsScalars) {
  const Parsed file(MakeFile());
  ASSERT_TRUE(file.file.ok()) << file.file.status();
  EXPECT_EQ(file->GetUint("u8").value(), 200);
  EXPECT_EQ(file->GetUint("u16").value(), 60000);
  EXPECT_EQ(file->GetUint("i16").value(), 5);
  EXPECT_EQ(file->GetUint("u32").value(), 4000000000);
  EXPECT_EQ(file->GetUint("u64").value(), std::numeric_limits<uint64_t>::max());
  EXPECT_EQ(file->GetUint("i64").value(), 9);
  EXPECT_EQ(file->GetFloat("f32").value(), 0.5);
  EXPECT_EQ(file->GetFloat("f64").value(), 1e100);
  EXPECT_TRUE(file->GetBool("yes").value());
  EXPECT_FALSE(file->GetBool("no").value());
  EXPECT_EQ(file->GetString("string").value(), std::string_view("two\0parts", 9));
  EXPECT_TRUE(file->Has("no"));
  EXPECT_FALSE(file->Has("nothing"));
}

TEST(GgufTest, ReadsArrays) {
  const Parsed file(MakeFile());
  EXPECT_THAT(file->GetStringArray("strings").value(), ElementsAre("a", "", "bcd"));
  EXPECT_THAT(file->GetIntArray("ints").value(), ElementsAre(-1, 2));
  EXPECT_THAT(file->GetIntArray("empty").value(), ElementsAre());
  EXPECT_THAT(file->GetFloatArray("floats").value(), ElementsAre(0.5f, -2.0f));
  EXPECT_THAT(file->GetFloatArray("doubles").value(), ElementsAre(0.25f));
}

TEST(GgufTest, NamesTheKeyThatIsMissing) {
  const Parsed file(MakeFile());
  ExpectError(file->GetUint("nothing"), StatusCode::kNotFound, "'nothing'");
  ExpectError(file->GetFloat("nothing"), StatusCode::kNotFound, "'nothing'");
  ExpectError(file->GetBool("nothing"), StatusCode::kNotFound, "'nothing'");
  ExpectError(file->GetString("nothing"), StatusCode::kNotFound, "'nothing'");
  ExpectError(file->GetStringArray("nothing"), StatusCode::kNotFound, "'nothing'");
  ExpectError(file->GetIntArray("nothing"), StatusCode::kNotFound, "'nothing'");
  ExpectError(file->GetFloatArray("nothing"), StatusCode::kNotFound, "'nothing'");
}

TEST(GgufTest, NamesTheTypeThatIsWrong) {
  const Parsed file(MakeFile());
  const auto invalid = StatusCode::kInvalidArgument;
  ExpectError(file->GetUint("f32"), invalid, "'f32' has type float32, not an integer");
  ExpectError(file->GetUint("yes"), invalid, "bool");
  ExpectError(file->GetUint("ints"), invalid, "array of int16");
  ExpectError(file->GetFloat("u8"), invalid, "uint8");
  ExpectError(file->GetBool("u8"), invalid, "uint8");
  ExpectError(file->GetString("strings"), invalid, "array of string");
  ExpectError(file->GetStringArray("string"), invalid, "string");
  ExpectError(file->GetStringArray("ints"), invalid, "array of int16");
  ExpectError(file->GetIntArray("floats"), invalid, "array of float32");
  ExpectError(file->GetFloatArray("ints"), invalid, "array of int16");
}

TEST(GgufTest, NamesTheValueThatDoesNotFit) {
  GgufWriter writer = MakeFile();
  writer.Set("large", GgufWriter::Array(std::vector<uint64_t>{1, uint64_t{1} << 63}));
  Bytes bytes = writer.Build();
  Patch(bytes, After(bytes, "yes") + 4, uint8_t{2});
  const Parsed file(std::move(bytes));
  ExpectError(file->GetUint("i8"), StatusCode::kInvalidArgument, "'i8' is -3");
  ExpectError(file->GetBool("yes"), StatusCode::kInvalidArgument, "value 2");
  ExpectError(file->GetIntArray("large"), StatusCode::kInvalidArgument,
              "element 1 = 9223372036854775808");
}

TEST(GgufTest, FindsTensors) {
  const Parsed file(MakeFile());
  ASSERT_EQ(file->tensors().size(), 3);
  const GgufTensor* vector = file->FindTensor("vector");
  EXPECT_EQ(vector->cols, 3);
  EXPECT_EQ(vector->rows, 1);
  const GgufTensor* matrix = file->FindTensor("matrix");
  EXPECT_EQ(matrix->type, TensorType::kQ4_1);
  EXPECT_EQ(matrix->cols, 64);
  EXPECT_EQ(matrix->rows, 2);
  EXPECT_EQ(matrix->row_bytes(), 40);
  EXPECT_EQ(matrix->data, vector->data + 32);
  EXPECT_EQ(file->FindTensor("stack")->rows, 12);
  EXPECT_EQ(file->FindTensor("stack")->data + 48, file.bytes.data() + file.bytes.size());
  EXPECT_EQ(file->FindTensor("other"), nullptr);
}

TEST(GgufTest, HonoursTheAlignment) {
  for (uint32_t alignment : {8, 64, 4096}) {
    GgufWriter writer = MakeFile();
    writer.alignment = alignment;
    writer.Set("general.alignment", alignment);
    const Parsed file(writer);
    ASSERT_TRUE(file.file.ok()) << file.file.status();
    EXPECT_EQ((file->FindTensor("vector")->data - file.bytes.data()) % alignment, 0);
    EXPECT_EQ(file->FindTensor("stack")->data + 48, file.bytes.data() + file.bytes.size());
  }
}

TEST(GgufTest, FingerprintNamesDirectoryMetadataAndWeights) {
  GgufWriter writer = MakeFile();
  const uint64_t fingerprint = Parsed(writer)->fingerprint();
  const std::byte weight = std::exchange(writer.tensors[1].data[5], std::byte{1});
  ASSERT_NE(weight, std::byte{1});
  EXPECT_NE(Parsed(writer)->fingerprint(), fingerprint);
  writer.tensors[1].data[5] = weight;
  EXPECT_EQ(Parsed(writer)->fingerprint(), fingerprint);
  writer.Set("i64", int64_t{10});
  EXPECT_NE(Parsed(writer)->fingerprint(), fingerprint);
  writer.Set("i64", int64_t{9});
  EXPECT_EQ(Parsed(writer)->fingerprint(), fingerprint);
  writer.tensors[1].name = "Matrix";
  EXPECT_NE(Parsed(writer)->fingerprint(), fingerprint);
}

TEST(GgufTest, RefusesOtherFormatsAndVersions) {
  ExpectRefused(Bytes(100, std::byte{'x'}), StatusCode::kInvalidArgument, "not a GGUF file");
  ExpectRefused({}, StatusCode::kInvalidArgument, "magic number");
  for (uint32_t version : {0u, 1u, 4u, 0x03000000u}) {  // the last is a big-endian 3
    GgufWriter writer = MakeFile();
    writer.version = version;
    ExpectRefused(writer.Build(), StatusCode::kUnimplemented, "version " + std::to_string(version));
  }
  GgufWriter writer = MakeFile();
  writer.version = 2;
  EXPECT_TRUE(Parsed(writer).file.ok());
}

TEST(GgufTest, RefusesATruncationAtAnyByte) {
  const Bytes whole = MakeFile().Build();
  for (size_t size = 0; size < whole.size(); ++size) {
    const Bytes part(whole.begin(), whole.begin() + size);  // its own allocation: overreads show
    const auto file = GgufFile::Parse(part);
    ASSERT_EQ(file.status().code(), StatusCode::kInvalidArgument) << size << " " << file.status();
  }
}

TEST(GgufTest, BoundsCounts) {
  constexpr size_t kTensors = 8, kMetadata = 16;  // offsets in the header
  for (uint64_t count : {uint64_t{1} << 20, uint64_t{1} << 62, ~uint64_t{0}}) {
    Bytes bytes = MakeFile().Build();
    Patch(bytes, kTensors, count);
    ExpectRefused(bytes, StatusCode::kInvalidArgument, std::to_string(count) + " tensors");
    bytes = MakeFile().Build();
    Patch(bytes, kMetadata, count);
    ExpectRefused(bytes, StatusCode::kInvalidArgument, std::to_string(count) + " metadata entries");
  }
}

TEST(GgufTest, BoundsStringsAndArrays) {
  // Lengths that overflow when 8 or the element size is added or multiplied among them.
  for (uint64_t length : {uint64_t{1} << 16, uint64_t{1} << 62, ~uint64_t{0} - 7, ~uint64_t{0}}) {
    Bytes bytes = MakeFile().Build();
    Patch(bytes, After(bytes, "string") + 4, length);
    ExpectRefused(bytes, StatusCode::kInvalidArgument, std::to_string(length) + " bytes");
    for (const char* key : {"ints", "strings", "doubles"}) {
      bytes = MakeFile().Build();
      Patch(bytes, After(bytes, key) + 8, length);
      ExpectRefused(bytes, StatusCode::kInvalidArgument, "key '");
    }
    bytes = MakeFile().Build();
    Patch(bytes, After(bytes, "no") - 2 - 8, length);  // a key's own length
    ExpectRefused(bytes, StatusCode::kInvalidArgument, "metadata entry 12");
    bytes = MakeFile().Build();
    Patch(bytes, After(bytes, "matrix") - 6 - 8, length);
    ExpectRefused(bytes, StatusCode::kInvalidArgument, "tensor 2 of 3");
  }
}

TEST(GgufTest, RefusesUnknownValueTypes) {
  Bytes bytes = MakeFile().Build();
  Patch(bytes, After(bytes, "u16"), uint32_t{13});
  ExpectRefused(bytes, StatusCode::kInvalidArgument, "key 'u16': byte");
  bytes = MakeFile().Build();
  Patch(bytes, After(bytes, "ints") + 4, uint32_t{99});
  ExpectRefused(bytes, StatusCode::kInvalidArgument, "value type 99");
  bytes = MakeFile().Build();
  Patch(bytes, After(bytes, "ints") + 4, uint32_t{9});
  ExpectRefused(bytes, StatusCode::kUnimplemented, "array of arrays");
}

TEST(GgufTest, RefusesDuplicates) {
  GgufWriter writer = MakeFile();
  writer.metadata.emplace_back("u8", uint8_t{1});
  ExpectInvalid(writer, "key 'u8': byte");
  writer = MakeFile();
  writer.tensors[2].name = "vector";
  ExpectInvalid(writer, "'vector' occurs twice");
}

TEST(GgufTest, RefusesBadAlignments) {
  for (uint32_t alignment : {0u, 1u, 4u, 48u, 1u << 21, 1u << 31}) {
    GgufWriter writer = MakeFile();
    writer.Set("general.alignment", alignment);
    ExpectInvalid(writer, "general.alignment is " + std::to_string(alignment));
  }
  GgufWriter writer = MakeFile();
  writer.Set("general.alignment", std::string("32"));
  ExpectInvalid(writer, "'general.alignment' has type string");
}

TEST(GgufTest, RefusesBadDimensions) {
  const auto with = [](std::vector<uint64_t> dimensions) {
    GgufWriter writer = MakeFile();
    writer.FindTensor("matrix").dimensions = std::move(dimensions);
    return writer;
  };
  ExpectInvalid(with({}), "'matrix' has 0 dimensions");
  ExpectInvalid(with({64, 2, 1, 1, 1}), "'matrix' has 5 dimensions");
  ExpectInvalid(with({64, 0}), "dimension 1 of size 0");
  ExpectInvalid(with({0, 64}), "dimension 0 of size 0");
  ExpectInvalid(with({48, 2}), "not a multiple of the 32 of a Q4_1 block");
  ExpectInvalid(with({64, uint64_t{1} << 58}), "more than 2^63 elements");
  ExpectInvalid(with({~uint64_t{0}, ~uint64_t{0}}), "more than 2^63 elements");
  ExpectInvalid(with({uint64_t{1} << 32, uint64_t{1} << 30}), "runs past the end");
  ExpectInvalid(with({64, 30}), "'matrix' of 1200 bytes at offset 32 runs past the end");
  GgufWriter floats = MakeFile();
  floats.FindTensor("vector").dimensions = {uint64_t{1} << 62};
  ExpectInvalid(floats, "more than 2^64 bytes");
}

TEST(GgufTest, RefusesUnsupportedTensorTypes) {
  for (const auto& [type, name] :
       {std::pair(10u, "type 10 (Q2_K)"), std::pair(23u, "type 23 (IQ4_XS)"),
        std::pair(4u, "type 4 (Q4_2)"), std::pair(39u, "type 39 (MXFP4)"),
        std::pair(40u, "type 40 (unknown)"), std::pair(~0u, "type 4294967295 (unknown)")}) {
    GgufWriter writer = MakeFile();
    writer.FindTensor("matrix").type = static_cast<TensorType>(type);
    ExpectRefused(writer.Build(), StatusCode::kUnimplemented, name);
  }
}

TEST(GgufTest, RefusesBadOffsets) {
  const auto with_offset = [](uint64_t offset) {
    Bytes bytes = MakeFile().Build();
    Patch(bytes, After(bytes, "matrix") + 4 + 2 * 8 + 4, offset);
    return bytes;
  };
  const auto invalid = StatusCode::kInvalidArgument;
  ExpectRefused(with_offset(33), invalid, "offset 33, not a multiple of the alignment 32");
  ExpectRefused(with_offset(1024), invalid, "runs past the end");
  ExpectRefused(with_offset(~uint64_t{31}), invalid, "runs past the end");
  ExpectRefused(with_offset(64), invalid, "'matrix' and 'stack' overlap");
  ExpectRefused(with_offset(0), invalid, "overlap");
}

// Whatever a flipped bit makes of the file: a status, or a file that keeps within its bytes.
TEST(GgufTest, SurvivesEveryBitFlip) {
  const Bytes whole = MakeFile().Build();
  for (size_t bit = 0; bit < 8 * whole.size(); ++bit) {
    Bytes bytes = whole;
    bytes[bit / 8] ^= std::byte{1} << (bit % 8);
    const auto file = GgufFile::Parse(bytes);
    if (!file.ok()) {
      ASSERT_FALSE(file.status().message().empty());
      continue;
    }
    for (const GgufTensor& tensor : (*file)->tensors()) {
      ASSERT_GE(tensor.data, bytes.data());
      ASSERT_LE(tensor.data + tensor.bytes, bytes.data() + bytes.size());
    }
    for (const auto& [key, value] : MakeFile().metadata) {
      (void)(*file)->GetUint(key);
      (void)(*file)->GetFloat(key);
      (void)(*file)->GetBool(key);
      (void)(*file)->GetString(key);
      (void)(*file)->GetStringArray(key);
      (void)(*file)->GetIntArray(key);
      (void)(*file)->GetFloatArray(key);
    }
  }
}

TEST(GgufTest, ShowsNamesFromTheFileEscapedAndShortened) {
  GgufWriter writer = MakeFile();
  const std::string name = "\x1b[31m\n\xff" + std::string(1000, 'x');
  writer.metadata.emplace_back(name, uint8_t{1});
  writer.metadata.emplace_back(name, uint8_t{1});
  const Parsed parsed(writer);
  const std::string message(parsed.file.status().message());
  EXPECT_THAT(message, HasSubstr("'\\x1b[31m\\n\\xff"));
  EXPECT_LT(message.size(), 300);
}

class GgufOpenTest : public testing::Test {
 protected:
  GgufOpenTest() : path_(std::filesystem::path(ProcessTempDir()) / "gguf_open_test.gguf") {}
  ~GgufOpenTest() override { std::filesystem::remove(path_); }

  void Write(const Bytes& bytes) {
    std::ofstream(path_, std::ios::binary)
        .write(reinterpret_cast<const char*>(bytes.data()),
               static_cast<std::streamsize>(bytes.size()));
  }

  const std::filesystem::path path_;
};

TEST_F(GgufOpenTest, MapsAFile) {
  const Bytes bytes = MakeFile().Build();
  Write(bytes);
  const auto file = GgufFile::Open(path_);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ((*file)->file_bytes(), bytes.size());
  EXPECT_EQ((*file)->GetUint("u8").value(), 200);
  EXPECT_EQ((*file)->fingerprint(), Parsed(bytes)->fingerprint());
}

TEST_F(GgufOpenTest, NamesThePathInErrors) {
  ExpectError(GgufFile::Open(path_), StatusCode::kNotFound, path_);
  Write({});
  ExpectError(GgufFile::Open(path_), StatusCode::kInvalidArgument,
              path_.string() + ": the file is empty");
  Write(Bytes(50, std::byte{7}));
  ExpectError(GgufFile::Open(path_), StatusCode::kInvalidArgument, path_);
  ExpectError(GgufFile::Open(ProcessTempDir()), StatusCode::kInvalidArgument, "not a regular file");
}

}  // namespace
}  // namespace whit
