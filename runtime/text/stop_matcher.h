// Stop strings over a stream of text.
#ifndef WHIT_RUNTIME_TEXT_STOP_MATCHER_H_
#define WHIT_RUNTIME_TEXT_STOP_MATCHER_H_

#include <string>
#include <string_view>
#include <vector>

namespace whit {

// Holds back the text that may still become a stop string, so that none ever leaks its beginning.
class StopMatcher {
 public:
  explicit StopMatcher(std::vector<std::string> stops);  // none empty

  struct Result {
    std::string text;      // safe to show now
    bool stopped = false;  // a stop string is complete; `text` ends before the earliest one
  };
  Result Push(std::string_view text);
  // The end without a stop: the text held back.
  std::string Flush();

 private:
  std::vector<std::string> stops_;
  std::string held_;
};

}  // namespace whit

#endif  // WHIT_RUNTIME_TEXT_STOP_MATCHER_H_
