// ByteCursor: bounds-checked reading of untrusted bytes, front to back.
#ifndef WHIT_RUNTIME_MODEL_BYTE_CURSOR_H_
#define WHIT_RUNTIME_MODEL_BYTE_CURSOR_H_

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/types/span.h"

namespace whit {

template <typename T>
T LoadUnaligned(const std::byte* p) {
  T value;
  std::memcpy(&value, p, sizeof(value));
  return value;
}

// Every error is INVALID_ARGUMENT and begins with the offset; `what` names the thing being read. A
// failed read moves nothing.
class ByteCursor {
 public:
  explicit ByteCursor(absl::Span<const std::byte> bytes) : bytes_(bytes) {}

  size_t offset() const { return offset_; }
  size_t remaining() const { return bytes_.size() - offset_; }
  const std::byte* data() const { return bytes_.data() + offset_; }

  template <typename T>
  absl::Status Read(T& value, absl::string_view what) {
    if (remaining() < sizeof(T)) return TooLong(what, sizeof(T), remaining());
    value = LoadUnaligned<T>(data());
    offset_ += sizeof(T);
    return absl::OkStatus();
  }

  // A 64-bit length and as many bytes.
  absl::Status ReadString(std::string_view& value, absl::string_view what) {
    uint64_t length = 0;
    if (remaining() < sizeof(length)) return TooLong(what, sizeof(length), remaining());
    length = LoadUnaligned<uint64_t>(data());
    const size_t available = remaining() - sizeof(length);
    if (length > available) return TooLong(what, length, available);
    value = {reinterpret_cast<const char*>(data()) + sizeof(length), length};
    offset_ += sizeof(length) + length;
    return absl::OkStatus();
  }

  // `element_bytes` > 0.
  absl::Status Skip(uint64_t count, size_t element_bytes, absl::string_view what) {
    if (count > remaining() / element_bytes) {
      return Error(absl::StrCat(what, " of ", count, " elements of ", element_bytes,
                                " bytes does not fit into the ", remaining(), " bytes left"));
    }
    offset_ += count * element_bytes;
    return absl::OkStatus();
  }

  absl::Status Error(absl::string_view message) const {
    return absl::InvalidArgumentError(absl::StrCat("byte ", offset_, ": ", message));
  }

 private:
  absl::Status TooLong(absl::string_view what, uint64_t needed, size_t available) const {
    return Error(absl::StrCat(what, " of ", needed, " bytes does not fit into the ", available,
                              " bytes left"));
  }

  absl::Span<const std::byte> bytes_;
  size_t offset_ = 0;
};

}  // namespace whit

#endif  // WHIT_RUNTIME_MODEL_BYTE_CURSOR_H_
