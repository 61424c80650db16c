#include "runtime/text/stop_matcher.h"

#include <algorithm>
#include <utility>

namespace whit {
namespace {

std::vector<uint32_t> ComputeBorders(std::string_view text) {
  std::vector<uint32_t> borders(text.size() + 1, 0);
  for (size_t n = 1; n < text.size(); ++n) {
    uint32_t border = borders[n];
    while (border > 0 && text[border] != text[n]) border = borders[border];
    borders[n + 1] = text[border] == text[n] ? border + 1 : 0;
  }
  return borders;
}

}  // namespace

void StopMatcher::Stop::Advance(char byte) {
  while (matched > 0 && text[matched] != byte) matched = borders[matched];
  if (text[matched] == byte) ++matched;
}

StopMatcher::StopMatcher(std::vector<std::string> stops) {
  stops_.reserve(stops.size());
  for (std::string& stop : stops) {
    if (stop.empty()) continue;
    std::vector<uint32_t> borders = ComputeBorders(stop);
    stops_.push_back({std::move(stop), std::move(borders)});
  }
}

StopMatcher::Result StopMatcher::Push(std::string_view text) {
  size_t longest = held_.size();
  for (char byte : text) {
    held_ += byte;
    longest = 0;
    size_t longest_complete = 0;
    for (Stop& stop : stops_) {
      stop.Advance(byte);
      longest = std::max(longest, stop.matched);
      if (stop.matched == stop.text.size()) {
        longest_complete = std::max(longest_complete, stop.matched);
      }
    }
    if (longest_complete > 0) {
      held_.resize(held_.size() - longest_complete);
      return {std::exchange(held_, {}), true};
    }
  }
  const size_t safe = held_.size() - longest;
  Result result{held_.substr(0, safe), false};
  held_.erase(0, safe);
  return result;
}

std::string StopMatcher::Flush() { return std::exchange(held_, {}); }

}  // namespace whit
