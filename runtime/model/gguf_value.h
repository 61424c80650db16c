// GgufValue: one metadata value of a GGUF file, checked and left where it lies.
#ifndef WHIT_RUNTIME_MODEL_GGUF_VALUE_H_
#define WHIT_RUNTIME_MODEL_GGUF_VALUE_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "runtime/model/byte_cursor.h"

namespace whit {

// Numbers are the file format's own.
enum class GgufValueType : uint32_t {
  kU8,
  kI8,
  kU16,
  kI16,
  kU32,
  kI32,
  kF32,
  kBool,
  kString,
  kArray,
  kU64,
  kI64,
  kF64,
};

// Scalars are arrays of one element for the accessors.
struct GgufValue {
  GgufValueType type = GgufValueType::kU8;  // of the elements, if it is an array
  bool is_array = false;
  uint64_t count = 1;
  const std::byte* data = nullptr;

  // Reads type and value, checking every length against the bytes left.
  static absl::Status Read(ByteCursor& cursor, GgufValue& value);

  bool IsBool() const;
  bool IsString() const;
  bool IsFloat() const;
  bool IsInteger() const;
  std::string TypeName() const;

  // Element `index` < count of a value of that kind. Integers are sign-extended to 64 bits.
  struct Integer {
    uint64_t bits = 0;
    bool negative = false;
  };
  Integer IntegerAt(uint64_t index) const;
  double FloatAt(uint64_t index) const;

  // Calls fn(std::string_view) for each string in turn.
  template <typename Fn>
  void ForEachString(Fn fn) const {
    const std::byte* next = data;
    for (uint64_t i = 0; i < count; ++i) {
      const auto length = LoadUnaligned<uint64_t>(next);
      fn(std::string_view(reinterpret_cast<const char*>(next) + sizeof(length), length));
      next += sizeof(length) + length;
    }
  }
};

}  // namespace whit

#endif  // WHIT_RUNTIME_MODEL_GGUF_VALUE_H_
