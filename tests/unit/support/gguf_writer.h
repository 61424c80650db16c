// GgufWriter: writes GGUF files for tests, valid ones and, on purpose, others.
#ifndef WHIT_TESTS_UNIT_SUPPORT_GGUF_WRITER_H_
#define WHIT_TESTS_UNIT_SUPPORT_GGUF_WRITER_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "runtime/model/gguf.h"

namespace whit {

class GgufWriter {
 public:
  // Alternatives stand at the number of their value type in the format.
  using Array =
      std::variant<std::vector<uint8_t>, std::vector<int8_t>, std::vector<uint16_t>,
                   std::vector<int16_t>, std::vector<uint32_t>, std::vector<int32_t>,
                   std::vector<float>, std::monostate, std::vector<std::string>, std::monostate,
                   std::vector<uint64_t>, std::vector<int64_t>, std::vector<double>>;
  using Value = std::variant<uint8_t, int8_t, uint16_t, int16_t, uint32_t, int32_t, float, bool,
                             std::string, Array, uint64_t, int64_t, double>;
  struct Tensor {
    std::string name;
    TensorType type = TensorType::kF32;
    std::vector<uint64_t> dimensions;  // fastest first
    std::vector<std::byte> data;
  };

  // In the order in which they are written.
  std::vector<std::pair<std::string, Value>> metadata;
  std::vector<Tensor> tensors;
  uint32_t version = 3;
  uint64_t alignment = 32;  // of the data; the metadata key is the caller's

  // Replaces the value of a key that exists, or appends one.
  void Set(std::string_view key, Value value);
  void Remove(std::string_view key);
  // The tensor of that name, which must exist.
  Tensor& FindTensor(std::string_view name);
  void RemoveTensor(std::string_view name);

  std::vector<std::byte> Build() const;
};

}  // namespace whit

#endif  // WHIT_TESTS_UNIT_SUPPORT_GGUF_WRITER_H_
