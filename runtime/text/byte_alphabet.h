// GPT-2's spelling of bytes: vocabularies and merges are files of text, so each of the 256 bytes is
// written as one printable character (a space as "Ġ", most of ASCII as itself).
#ifndef WHIT_RUNTIME_TEXT_BYTE_ALPHABET_H_
#define WHIT_RUNTIME_TEXT_BYTE_ALPHABET_H_

#include <cstdint>
#include <string>
#include <string_view>

namespace whit {

// The character that stands for a byte, in UTF-8.
std::string SpellByte(uint8_t byte);

// Appends the bytes that `spelling` stands for; false, and nothing appended, if some character of
// it stands for no byte.
bool AppendSpelledBytes(std::string_view spelling, std::string& bytes);

}  // namespace whit

#endif  // WHIT_RUNTIME_TEXT_BYTE_ALPHABET_H_
