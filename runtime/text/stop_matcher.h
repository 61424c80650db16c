// Stop strings over a stream of text.
#ifndef WHIT_RUNTIME_TEXT_STOP_MATCHER_H_
#define WHIT_RUNTIME_TEXT_STOP_MATCHER_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace whit {

// Holds back the text that may still become a stop string, so that none ever leaks its beginning.
// The result does not depend on how the text is cut into pieces. Each byte costs amortized
// O(stops).
class StopMatcher {
 public:
  explicit StopMatcher(std::vector<std::string> stops);  // empty ones stop nothing

  struct Result {
    std::string text;      // safe to show now
    bool stopped = false;  // a stop string is complete; `text` ends before it
  };
  // The stop string that is complete first ends the text; if several are at the same byte, the
  // longest. Not to be called after a stop.
  Result Push(std::string_view text);
  // The end without a stop: the text held back.
  std::string Flush();

 private:
  // One stop string as a Knuth-Morris-Pratt automaton.
  struct Stop {
    std::string text;
    // borders[n]: the length of the longest proper suffix of the first n bytes that is also a
    // prefix.
    std::vector<uint32_t> borders;
    size_t matched = 0;  // bytes of `text` that the stream ends with

    void Advance(char byte);
  };

  std::vector<Stop> stops_;
  std::string held_;  // as long as the longest `matched`
};

}  // namespace whit

#endif  // WHIT_RUNTIME_TEXT_STOP_MATCHER_H_
