#include "runtime/text/utf8.h"

#include <cstdint>
#include <cstring>
#include <utility>

namespace whit {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD

// The longest start of `text` (not empty) that is a character or the beginning of one; if it is
// neither, the first byte alone.
struct Subpart {
  size_t length;
  enum { kCharacter, kCut, kInvalid } kind;
};

Subpart FirstSubpart(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[i]); };
  const uint8_t lead = byte(0);
  if (lead < 0x80) return {1, Subpart::kCharacter};
  if (lead < 0xC2 || lead > 0xF4) return {1, Subpart::kInvalid};
  const size_t size = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  // The second byte's range keeps out overlong forms, surrogates and what lies above U+10FFFF.
  uint8_t low = 0x80, high = 0xBF;
  if (lead == 0xE0) low = 0xA0;
  if (lead == 0xED) high = 0x9F;
  if (lead == 0xF0) low = 0x90;
  if (lead == 0xF4) high = 0x8F;
  for (size_t i = 1; i < size; ++i) {
    if (i == text.size()) return {i, Subpart::kCut};
    if (byte(i) < low || byte(i) > high) return {i, Subpart::kInvalid};
    low = 0x80;
    high = 0xBF;
  }
  return {size, Subpart::kCharacter};
}

size_t CountLeadingAscii(std::string_view text) {
  size_t i = 0;
  for (; i + sizeof(uint64_t) <= text.size(); i += sizeof(uint64_t)) {
    uint64_t word;
    std::memcpy(&word, text.data() + i, sizeof(word));
    if (word & 0x8080808080808080u) break;
  }
  while (i < text.size() && static_cast<uint8_t>(text[i]) < 0x80) ++i;
  return i;
}

}  // namespace

size_t FindInvalidUtf8(std::string_view text) {
  size_t offset = 0;
  while (true) {
    offset += CountLeadingAscii(text.substr(offset));
    if (offset == text.size()) return std::string_view::npos;
    const Subpart part = FirstSubpart(text.substr(offset));
    if (part.kind != Subpart::kCharacter) return offset;
    offset += part.length;
  }
}

std::string Utf8Stream::Push(std::string_view bytes) {
  pending_ += bytes;
  std::string_view rest = pending_;
  std::string text;
  text.reserve(rest.size());
  while (!rest.empty()) {
    const size_t ascii = CountLeadingAscii(rest);
    text += rest.substr(0, ascii);
    rest.remove_prefix(ascii);
    if (rest.empty()) break;
    const Subpart part = FirstSubpart(rest);
    if (part.kind == Subpart::kCut) break;
    text += part.kind == Subpart::kCharacter ? rest.substr(0, part.length) : kReplacement;
    rest.remove_prefix(part.length);
  }
  pending_.erase(0, pending_.size() - rest.size());
  return text;
}

std::string Utf8Stream::Flush() {
  return std::exchange(pending_, {}).empty() ? std::string() : std::string(kReplacement);
}

}  // namespace whit
