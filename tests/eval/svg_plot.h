// Scatter plots as SVG text: panels side by side, points of a series joined by a line.
#ifndef WHIT_TESTS_EVAL_SVG_PLOT_H_
#define WHIT_TESTS_EVAL_SVG_PLOT_H_

#include <optional>
#include <string>
#include <vector>

#include "absl/types/span.h"

namespace whit::eval {

struct PlotPoint {
  std::string series;  // its colour, and the line it lies on
  std::string label;   // written beside it
  double x = 0;
  double y = 0;
  double low = 0, high = 0;  // error bar; NaN: none
};

struct PlotPanel {
  std::string title = {}, x_label = {}, y_label = {};
  bool log_y = false;                    // points with y <= 0 are then left out
  std::optional<double> reference = {};  // a dashed horizontal line
  std::string reference_label = {};
  std::vector<PlotPoint> points = {};
};

std::string RenderSvg(const std::string& title, absl::Span<const PlotPanel> panels);

}  // namespace whit::eval

#endif  // WHIT_TESTS_EVAL_SVG_PLOT_H_
