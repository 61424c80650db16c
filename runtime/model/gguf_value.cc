#include "runtime/model/gguf_value.h"

#include <iterator>

#include "absl/strings/str_cat.h"

namespace whit {
namespace {

struct ValueTraits {
  const char* name;
  size_t bytes;  // 0: of varying size
};

// Indexed by GgufValueType.
constexpr ValueTraits kValueTypes[] = {{"uint8", 1},  {"int8", 1},  {"uint16", 2},  {"int16", 2},
                                       {"uint32", 4}, {"int32", 4}, {"float32", 4}, {"bool", 1},
                                       {"string", 0}, {"array", 0}, {"uint64", 8},  {"int64", 8},
                                       {"float64", 8}};

const ValueTraits& Traits(GgufValueType type) { return kValueTypes[static_cast<size_t>(type)]; }

absl::Status ReadType(ByteCursor& cursor, GgufValueType& type) {
  uint32_t number = 0;
  if (absl::Status s = cursor.Read(number, "value type"); !s.ok()) return s;
  if (number >= std::size(kValueTypes)) {
    return cursor.Error(
        absl::StrCat("value type ", number, " is not one of 0 to ", std::size(kValueTypes) - 1));
  }
  type = static_cast<GgufValueType>(number);
  return absl::OkStatus();
}

template <typename T>
GgufValue::Integer LoadInteger(const std::byte* p) {
  const T value = LoadUnaligned<T>(p);
  return {.bits = static_cast<uint64_t>(value), .negative = value < T{0}};
}

}  // namespace

absl::Status GgufValue::Read(ByteCursor& cursor, GgufValue& value) {
  if (absl::Status s = ReadType(cursor, value.type); !s.ok()) return s;
  value.is_array = value.type == GgufValueType::kArray;
  if (value.is_array) {
    if (absl::Status s = ReadType(cursor, value.type); !s.ok()) return s;
    if (value.type == GgufValueType::kArray) {
      return absl::UnimplementedError("an array of arrays is not supported");
    }
    if (absl::Status s = cursor.Read(value.count, "array length"); !s.ok()) return s;
  }
  value.data = cursor.data();
  if (!value.IsString()) return cursor.Skip(value.count, Traits(value.type).bytes, "value");
  std::string_view ignored;
  for (uint64_t i = 0; i < value.count; ++i) {
    if (absl::Status s = cursor.ReadString(ignored, "string"); !s.ok()) return s;
  }
  return absl::OkStatus();
}

bool GgufValue::IsBool() const { return type == GgufValueType::kBool; }
bool GgufValue::IsString() const { return type == GgufValueType::kString; }
bool GgufValue::IsFloat() const {
  return type == GgufValueType::kF32 || type == GgufValueType::kF64;
}
bool GgufValue::IsInteger() const { return Traits(type).bytes != 0 && !IsBool() && !IsFloat(); }

std::string GgufValue::TypeName() const {
  return absl::StrCat(is_array ? "array of " : "", Traits(type).name);
}

GgufValue::Integer GgufValue::IntegerAt(uint64_t index) const {
  const std::byte* p = data + index * Traits(type).bytes;
  switch (type) {
    case GgufValueType::kU8:
      return LoadInteger<uint8_t>(p);
    case GgufValueType::kI8:
      return LoadInteger<int8_t>(p);
    case GgufValueType::kU16:
      return LoadInteger<uint16_t>(p);
    case GgufValueType::kI16:
      return LoadInteger<int16_t>(p);
    case GgufValueType::kU32:
      return LoadInteger<uint32_t>(p);
    case GgufValueType::kI32:
      return LoadInteger<int32_t>(p);
    case GgufValueType::kI64:
      return LoadInteger<int64_t>(p);
    default:
      return LoadInteger<uint64_t>(p);
  }
}

double GgufValue::FloatAt(uint64_t index) const {
  const std::byte* p = data + index * Traits(type).bytes;
  return type == GgufValueType::kF32 ? double{LoadUnaligned<float>(p)} : LoadUnaligned<double>(p);
}

}  // namespace whit
