#include "tests/eval/progress.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace whit::eval {
namespace {

constexpr int kBarWidth = 24;
constexpr auto kBarInterval = std::chrono::milliseconds(200);
constexpr auto kLineInterval = std::chrono::seconds(10);

volatile std::sig_atomic_t interrupted = 0;

void OnInterrupt(int) { interrupted = 1; }

std::string Duration(double seconds) {
  const long s = std::lround(seconds);
  return s < 60 ? absl::StrCat(s, " s") : absl::StrFormat("%d:%02d min", s / 60, s % 60);
}

}  // namespace

void CatchInterrupt() {
  struct sigaction action = {};
  action.sa_handler = OnInterrupt;
  action.sa_flags = SA_RESTART | SA_RESETHAND;
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
}

bool Interrupted() { return interrupted != 0; }

Progress::Progress(std::string label, int64_t total)
    : label_(std::move(label)),
      total_(std::max<int64_t>(total, 1)),
      terminal_(isatty(STDERR_FILENO) != 0),
      start_(Clock::now()),
      shown_(start_) {}

Progress::~Progress() {
  if (terminal_) std::fputs("\r\033[K", stderr);
}

void Progress::Update(int64_t done, const std::string& detail) {
  const Clock::time_point now = Clock::now();
  if (terminal_ ? now - shown_ < kBarInterval : now - shown_ < kLineInterval) return;
  shown_ = now;
  const double share = static_cast<double>(done) / static_cast<double>(total_);
  const double elapsed = std::chrono::duration<double>(now - start_).count();
  const std::string left =
      done > 0 ? absl::StrCat(Duration(elapsed * (1 / share - 1)), " left") : std::string();
  const std::string text = absl::StrCat(absl::StrFormat("%3.0f %%  ", 100 * share), left,
                                        detail.empty() ? "" : "  ", detail);
  if (!terminal_) {
    absl::FPrintF(stderr, "%s: %s\n", label_, text);
    return;
  }
  std::string bar;
  for (int i = 0; i < kBarWidth; ++i) bar += i < share * kBarWidth ? "█" : "░";
  absl::FPrintF(stderr, "\r\033[K%s %s %s", label_, bar, text);
  std::fflush(stderr);
}

}  // namespace whit::eval
