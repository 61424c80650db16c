// UTF-8 at stream boundaries.
#ifndef WHIT_RUNTIME_TEXT_UTF8_H_
#define WHIT_RUNTIME_TEXT_UTF8_H_

#include <cstddef>
#include <string>
#include <string_view>

namespace whit {

// Offset of the first byte that is not part of well-formed UTF-8, or npos.
size_t FindInvalidUtf8(std::string_view text);

// Turns a stream of byte pieces (tokens) into whole characters. A sequence that is cut is held back
// until it is complete; bytes that can never become UTF-8 come out as U+FFFD, one per maximal
// invalid prefix (Unicode 15, 3.9, "substitution of maximal subparts").
class Utf8Stream {
 public:
  // Adds bytes, returns the text that has become certain.
  std::string Push(std::string_view bytes);
  // The end: what is held back can no longer be completed.
  std::string Flush();

 private:
  std::string pending_;  // at most 3 bytes: the start of a character
};

}  // namespace whit

#endif  // WHIT_RUNTIME_TEXT_UTF8_H_
