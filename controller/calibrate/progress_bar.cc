#include "controller/calibrate/progress_bar.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <utility>

#include "absl/strings/str_format.h"
#include "absl/time/clock.h"

namespace whit {

std::string FormatProgress(const std::string& label, const std::string& unit, size_t done,
                           size_t total, absl::Duration elapsed) {
  constexpr size_t kWidth = 30;
  const double share = total == 0 ? 1 : static_cast<double>(done) / static_cast<double>(total);
  const auto filled = std::min(kWidth, static_cast<size_t>(share * kWidth));
  const double seconds = absl::ToDoubleSeconds(elapsed);
  std::string text = absl::StrFormat("%s [%s%s] %3.0f %%", label, std::string(filled, '#'),
                                     std::string(kWidth - filled, '.'), 100 * share);
  if (done == 0 || seconds <= 0) return text;
  const auto left = static_cast<int64_t>(seconds * (1 - share) / share + 0.5);
  return text + absl::StrFormat("  %.0f %s/s  %d:%02d left", static_cast<double>(done) / seconds,
                                unit, left / 60, left % 60);
}

ProgressBar::ProgressBar(std::string label, std::string unit, size_t total)
    : label_(std::move(label)),
      unit_(std::move(unit)),
      total_(total),
      terminal_(isatty(STDERR_FILENO) == 1),
      start_(absl::Now()),
      shown_(start_) {
  if (terminal_) Update(0);
}

ProgressBar::~ProgressBar() {
  if (terminal_) std::fputs("\r\033[K", stderr);
}

void ProgressBar::Update(size_t done) {
  const absl::Time now = absl::Now();
  const absl::Duration pause = terminal_ ? absl::Milliseconds(100) : absl::Seconds(10);
  if (done > 0 && done < total_ && now - shown_ < pause) return;
  shown_ = now;
  const std::string text = FormatProgress(label_, unit_, done, total_, now - start_);
  std::fprintf(stderr, terminal_ ? "\r%s\033[K" : "%s\n", text.c_str());
  std::fflush(stderr);
}

}  // namespace whit
