// The text that a model is calibrated on: files, cut into windows of tokens.
#ifndef WHIT_CONTROLLER_CALIBRATE_CALIBRATION_TEXT_H_
#define WHIT_CONTROLLER_CALIBRATE_CALIBRATION_TEXT_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "runtime/text/tokenizer.h"

namespace whit {

struct CalibrationText {
  std::string name;  // of the file, without its folder
  std::vector<int32_t> tokens;
};

// Reads and tokenizes the beginning of a UTF-8 file, at most kMaxTextBytes. A name that ends in
// .jsonl means chats, one JSON object a line, {"messages": [{"role": "user", "content": "…"}, …]}:
// they are written out as the model's chat template does, as the server would see them.
//
// NOT_FOUND, INVALID_ARGUMENT (empty, not UTF-8, a bad line), UNIMPLEMENTED (chats, but a template
// that is not supported). Messages begin with the path.
absl::StatusOr<CalibrationText> ReadCalibrationText(const std::string& path,
                                                    const Tokenizer& tokenizer);

inline constexpr size_t kMaxTextBytes = size_t{4} << 20;

// Consecutive tokens of one text, run through the model as a sequence of their own.
struct TextWindow {
  int text = 0;                 // index
  int context = 0;              // the length asked for, which the window may fall short of
  std::vector<int32_t> tokens;  // after the begin-of-text token, if the model wants one
  bool held_out = false;        // measured on, not learned from
};

struct WindowOptions {
  int tokens = 0;   // about so many in all, if the texts have them; more if none were held out yet
  int context = 0;  // tokens of a window; the rest at the end of a text makes a shorter one
  uint64_t seed = 0;
  int32_t bos_id = -1;  // the first token of every window, or -1 for none
};

// Draws windows by the seed, without overlap, as evenly from the texts as their lengths allow. Of
// each text's windows the second and then every eighth is held out. INVALID_ARGUMENT if the texts
// are too short for both kinds of windows.
absl::StatusOr<std::vector<TextWindow>> DrawWindows(absl::Span<const CalibrationText> texts,
                                                    const WindowOptions& options);

// The shortest window.
inline constexpr int kMinWindowTokens = 64;

struct MixedWindowOptions {
  std::vector<int> contexts = {};  // lengths of windows, rising
  int tokens = 0;                  // of each length, about so many to learn from
  uint64_t seed = 0;
  int32_t bos_id = -1;  // as in WindowOptions
};

// Draws windows of several lengths, the longest first; each length has the same tokens, a quarter
// as many again held out, and at least one window of both kinds. What is held out is the last fifth
// of each text, so windows of one length may overlap those of another, but never across the kinds.
// Lengths that no text has are left out; of the shortest one, windows of kMinMixedWindowTokens
// will do. INVALID_ARGUMENT if the texts are too short even for these.
absl::StatusOr<std::vector<TextWindow>> DrawMixedWindows(absl::Span<const CalibrationText> texts,
                                                         const MixedWindowOptions& options);

// So that tokens leave the shortest ring (32 tokens and a page) and many queries come after it.
inline constexpr int kMinMixedWindowTokens = 192;

}  // namespace whit

#endif  // WHIT_CONTROLLER_CALIBRATE_CALIBRATION_TEXT_H_
