#include "runtime/text/byte_alphabet.h"

#include <array>
#include <cstddef>

namespace whit {
namespace {

constexpr bool StandsForItself(int byte) {
  return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
}

// The other bytes are spelled, in their order, by the code points from 256 on.
constexpr int kFirstStandIn = 256;
constexpr int kNumCodePoints = 324;

struct Alphabet {
  std::array<uint16_t, 256> code_point_of_byte{};
  std::array<int16_t, kNumCodePoints> byte_of_code_point{};
};

constexpr Alphabet MakeAlphabet() {
  Alphabet alphabet;
  for (int16_t& byte : alphabet.byte_of_code_point) byte = -1;
  int stand_in = kFirstStandIn;
  for (int byte = 0; byte < 256; ++byte) {
    const int code_point = StandsForItself(byte) ? byte : stand_in++;
    alphabet.code_point_of_byte[byte] = static_cast<uint16_t>(code_point);
    alphabet.byte_of_code_point[code_point] = static_cast<int16_t>(byte);
  }
  return alphabet;
}

constexpr Alphabet kAlphabet = MakeAlphabet();

}  // namespace

std::string SpellByte(uint8_t byte) {
  const int code_point = kAlphabet.code_point_of_byte[byte];
  if (code_point < 0x80) return std::string(1, static_cast<char>(code_point));
  return {static_cast<char>(0xC0 | (code_point >> 6)),
          static_cast<char>(0x80 | (code_point & 0x3F))};
}

bool AppendSpelledBytes(std::string_view spelling, std::string& bytes) {
  const size_t old_size = bytes.size();
  for (size_t i = 0; i < spelling.size();) {
    // All characters of the alphabet lie below U+0144: one or two bytes of UTF-8.
    const auto lead = static_cast<uint8_t>(spelling[i]);
    int code_point = kNumCodePoints;
    if (lead < 0x80) {
      code_point = lead;
      i += 1;
    } else if (lead >= 0xC2 && lead <= 0xC5 && i + 1 < spelling.size() &&
               (static_cast<uint8_t>(spelling[i + 1]) & 0xC0) == 0x80) {
      code_point = (lead & 0x1F) << 6 | (static_cast<uint8_t>(spelling[i + 1]) & 0x3F);
      i += 2;
    }
    if (code_point >= kNumCodePoints || kAlphabet.byte_of_code_point[code_point] < 0) {
      bytes.resize(old_size);
      return false;
    }
    bytes += static_cast<char>(kAlphabet.byte_of_code_point[code_point]);
  }
  return true;
}

}  // namespace whit
