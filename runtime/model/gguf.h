// GgufFile: a model file, mapped and checked. The file is untrusted input.
#ifndef WHIT_RUNTIME_MODEL_GGUF_H_
#define WHIT_RUNTIME_MODEL_GGUF_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace whit {

// Numbers are the file format's own.
enum class TensorType : uint32_t {
  kF32 = 0,
  kF16 = 1,
  kQ4_0 = 2,
  kQ4_1 = 3,
  kQ5_0 = 6,
  kQ5_1 = 7,
  kQ8_0 = 8,
  kQ4_K = 12,
  kQ5_K = 13,
  kQ6_K = 14,
  kBF16 = 30,
};

std::string_view TensorTypeName(TensorType type);
// Elements and bytes of one block of the type.
int TensorBlockElements(TensorType type);
size_t TensorBlockBytes(TensorType type);

// A tensor as a matrix: dimensions beyond the second are folded into the rows. Points into the
// mapped file.
struct GgufTensor {
  std::string_view name;
  TensorType type = TensorType::kF32;
  size_t cols = 0;  // elements of a row: the fastest dimension, GGUF's ne[0]
  size_t rows = 0;
  const std::byte* data = nullptr;
  size_t bytes = 0;
  size_t row_bytes() const { return bytes / rows; }
};

// Threads: immutable after Open; any thread may read.
class GgufFile {
 public:
  // NOT_FOUND (no such file), INVALID_ARGUMENT (not GGUF, truncated, inconsistent; the message says
  // where and which bound), UNIMPLEMENTED (a version or tensor type that is not supported).
  static absl::StatusOr<std::unique_ptr<GgufFile>> Open(const std::string& path);
  // The same checks on bytes in memory, for tests and the fuzzer. `bytes` outlives the result.
  static absl::StatusOr<std::unique_ptr<GgufFile>> Parse(absl::Span<const std::byte> bytes);
  ~GgufFile();

  // Metadata. NOT_FOUND if the key is absent, INVALID_ARGUMENT if it has another type or does not
  // fit.
  absl::StatusOr<uint64_t> GetUint(std::string_view key) const;  // any integer type, not negative
  absl::StatusOr<double> GetFloat(std::string_view key) const;   // any float type
  absl::StatusOr<bool> GetBool(std::string_view key) const;
  absl::StatusOr<std::string_view> GetString(std::string_view key) const;
  absl::StatusOr<std::vector<std::string_view>> GetStringArray(std::string_view key) const;
  absl::StatusOr<std::vector<int64_t>> GetIntArray(std::string_view key) const;
  absl::StatusOr<std::vector<float>> GetFloatArray(std::string_view key) const;
  bool Has(std::string_view key) const;

  // nullptr if absent.
  const GgufTensor* FindTensor(std::string_view name) const;
  absl::Span<const GgufTensor> tensors() const;

  size_t file_bytes() const;
  // A hash of the metadata, the tensor directory and each tensor's first bytes: names a model
  // without reading all of its weights.
  uint64_t fingerprint() const;

 private:
  GgufFile();
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace whit

#endif  // WHIT_RUNTIME_MODEL_GGUF_H_
