#ifndef WHIT_CONTROLLER_CALIBRATE_PROGRESS_BAR_H_
#define WHIT_CONTROLLER_CALIBRATE_PROGRESS_BAR_H_

#include <cstddef>
#include <string>

#include "absl/time/time.h"

namespace whit {

// "measuring [=======>            ]  37 %  1,620 tokens/s  0:13 left"
std::string FormatProgress(const std::string& label, const std::string& unit, size_t done,
                           size_t total, absl::Duration elapsed);

// Shows progress on standard error: in place on a terminal, else as a line every ten seconds.
class ProgressBar {
 public:
  // `unit` is what is counted: "tokens".
  ProgressBar(std::string label, std::string unit, size_t total);
  ~ProgressBar();  // clears it from the terminal

  void Update(size_t done);

 private:
  const std::string label_, unit_;
  const size_t total_;
  const bool terminal_;
  const absl::Time start_;
  absl::Time shown_;
};

}  // namespace whit

#endif  // WHIT_CONTROLLER_CALIBRATE_PROGRESS_BAR_H_
