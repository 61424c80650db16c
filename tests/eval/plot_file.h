// Plots as a JSON text says: how scripts draw what they put together of several runs.
#ifndef WHIT_TESTS_EVAL_PLOT_FILE_H_
#define WHIT_TESTS_EVAL_PLOT_FILE_H_

#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace whit::eval {

// An SVG picture of {"title": …, "panels": [PlotPanel]}, with svg_plot.h's names; of a point all
// but x and y may be absent, of the rest everything. INVALID_ARGUMENT names what is of another
// type.
absl::StatusOr<std::string> RenderJson(std::string_view json);

}  // namespace whit::eval

#endif  // WHIT_TESTS_EVAL_PLOT_FILE_H_
