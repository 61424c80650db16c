#include "tests/eval/svg_plot.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <map>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"

namespace whit::eval {
namespace {

// All in pixels.
constexpr double kPanelWidth = 460, kPanelHeight = 400;
constexpr double kLeft = 70, kRight = 20, kTop = 40, kBottom = 55;  // around a panel's axes
constexpr double kHeading = 70;                                     // above the panels
constexpr double kCharacterWidth = 5.8, kLineHeight = 12;           // of a point's label

// Okabe & Ito 2008, and a grey: told apart by the colour-blind too.
constexpr const char* kColours[] = {"#0072B2", "#D55E00", "#009E73", "#CC79A7",
                                    "#E69F00", "#56B4E9", "#000000", "#999999"};

std::string Escape(const std::string& text) {
  return absl::StrReplaceAll(text,
                             {{"&", "&amp;"}, {"<", "&lt;"}, {">", "&gt;"}, {"\"", "&quot;"}});
}

std::string Text(double x, double y, const std::string& text, const std::string& attributes) {
  return absl::StrFormat("<text x=\"%.1f\" y=\"%.1f\" %s>%s</text>\n", x, y, attributes,
                         Escape(text));
}

std::string Line(double x1, double y1, double x2, double y2, const std::string& attributes) {
  return absl::StrFormat("<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" %s/>\n", x1, y1, x2,
                         y2, attributes);
}

// An axis maps values to pixels.
struct Axis {
  bool logarithmic = false;
  double from = 0, to = 1;  // values, or their logarithms
  double pixel_from = 0, pixel_to = 1;

  double Pixel(double value) const {
    const double v = logarithmic ? std::log10(value) : value;
    return pixel_from + (v - from) / (to - from) * (pixel_to - pixel_from);
  }
};

Axis MakeAxis(bool logarithmic, double low, double high, double pixel_from, double pixel_to) {
  Axis axis = {.logarithmic = logarithmic,
               .from = logarithmic ? std::log10(low) : low,
               .to = logarithmic ? std::log10(high) : high,
               .pixel_from = pixel_from,
               .pixel_to = pixel_to};
  // Room around the outermost points; a single value gets some as well.
  const double margin =
      std::max((axis.to - axis.from) * 0.08, axis.to == axis.from ? std::abs(axis.to) * 0.05 : 0);
  axis.from -= margin > 0 ? margin : 0.5;
  axis.to += margin > 0 ? margin : 0.5;
  return axis;
}

// Round values on the axis: 1, 2 and 5 times powers of ten.
std::vector<double> Ticks(const Axis& axis) {
  std::vector<double> ticks;
  if (axis.logarithmic) {
    const bool few_decades = axis.to - axis.from < 3;
    for (double decade = std::floor(axis.from); decade <= axis.to; ++decade) {
      for (double factor : {1.0, 2.0, 5.0}) {
        const double exponent = decade + std::log10(factor);
        if (exponent < axis.from || exponent > axis.to) continue;
        if (factor == 1 || few_decades) ticks.push_back(factor * std::pow(10, decade));
      }
    }
    return ticks;
  }
  const double raw = (axis.to - axis.from) / 6;
  const double power = std::pow(10, std::floor(std::log10(raw)));
  const double step = power * (raw / power < 1.5 ? 1 : raw / power < 3.5 ? 2 : 5);
  for (double i = std::ceil(axis.from / step); i * step <= axis.to; ++i) {
    ticks.push_back(i * step + 0.0);  // 0 rather than -0
  }
  return ticks;
}

struct Box {
  double x, y, width, height;
  bool Overlaps(const Box& o) const {
    return x < o.x + o.width && o.x < x + width && y < o.y + o.height && o.y < y + height;
  }
};

// Writes labels beside their points, each at the first of a few places that is free.
class LabelPlacer {
 public:
  explicit LabelPlacer(double right) : right_(right) {}

  void Block(double x, double y) { taken_.push_back({x - 5, y - 5, 10, 10}); }

  std::string Place(double x, double y, const std::string& label, const std::string& colour) {
    const double width = kCharacterWidth * static_cast<double>(label.size());
    const std::array<Box, 6> places = {{{x + 7, y - 14, width, kLineHeight},
                                        {x + 7, y + 2, width, kLineHeight},
                                        {x - 7 - width, y + 2, width, kLineHeight},
                                        {x - 7 - width, y - 14, width, kLineHeight},
                                        {x + 7, y - 26, width, kLineHeight},
                                        {x + 7, y + 14, width, kLineHeight}}};
    const auto is_free = [&](const Box& place) {
      return place.x + place.width <= right_ &&
             std::none_of(taken_.begin(), taken_.end(),
                          [&](const Box& box) { return box.Overlaps(place); });
    };
    const auto found = std::find_if(places.begin(), places.end(), is_free);
    const Box& place = found == places.end() ? places.front() : *found;
    taken_.push_back(place);
    return Text(place.x, place.y + kLineHeight - 3, label,
                absl::StrCat("font-size=\"10\" fill=\"", colour, "\""));
  }

 private:
  const double right_;
  std::vector<Box> taken_;
};

using Colours = std::map<std::string, std::string>;  // of each series

// Every series of any panel, in the order they first occur.
std::vector<std::string> SeriesOf(absl::Span<const PlotPanel> panels) {
  std::vector<std::string> series;
  for (const PlotPanel& panel : panels) {
    for (const PlotPoint& point : panel.points) {
      if (std::find(series.begin(), series.end(), point.series) == series.end()) {
        series.push_back(point.series);
      }
    }
  }
  return series;
}

// The points that can be drawn.
std::vector<PlotPoint> Drawable(const PlotPanel& panel) {
  std::vector<PlotPoint> points;
  for (const PlotPoint& point : panel.points) {
    if (!std::isfinite(point.x) || !std::isfinite(point.y)) continue;
    if (panel.log_y && point.y <= 0) continue;
    points.push_back(point);
  }
  std::stable_sort(points.begin(), points.end(),
                   [](const PlotPoint& a, const PlotPoint& b) { return a.x < b.x; });
  return points;
}

std::string DrawAxes(const PlotPanel& panel, const Axis& x, const Axis& y) {
  constexpr char kGrid[] = "stroke=\"#E4E4E4\"";
  std::string svg;
  for (double tick : Ticks(x)) {
    absl::StrAppend(&svg, Line(x.Pixel(tick), y.pixel_from, x.Pixel(tick), y.pixel_to, kGrid),
                    Text(x.Pixel(tick), y.pixel_from + 16, absl::StrFormat("%g", tick),
                         "text-anchor=\"middle\""));
  }
  for (double tick : Ticks(y)) {
    absl::StrAppend(&svg, Line(x.pixel_from, y.Pixel(tick), x.pixel_to, y.Pixel(tick), kGrid),
                    Text(x.pixel_from - 6, y.Pixel(tick) + 4, absl::StrFormat("%g", tick),
                         "text-anchor=\"end\""));
  }
  const double middle_y = (y.pixel_from + y.pixel_to) / 2;
  absl::StrAppend(
      &svg, Line(x.pixel_from, y.pixel_from, x.pixel_to, y.pixel_from, "stroke=\"#444\""),
      Line(x.pixel_from, y.pixel_from, x.pixel_from, y.pixel_to, "stroke=\"#444\""),
      Text((x.pixel_from + x.pixel_to) / 2, y.pixel_to - 12, panel.title,
           "text-anchor=\"middle\" font-size=\"14\" font-weight=\"bold\""),
      Text((x.pixel_from + x.pixel_to) / 2, y.pixel_from + 38, panel.x_label,
           "text-anchor=\"middle\""),
      Text(0, 0, panel.y_label,
           absl::StrFormat("text-anchor=\"middle\" transform=\"translate(%.1f %.1f) rotate(-90)\"",
                           x.pixel_from - 52, middle_y)));
  return svg;
}

std::string DrawSeries(const std::vector<PlotPoint>& points, const std::string& series,
                       const std::string& colour, const Axis& x, const Axis& y) {
  std::string path, marks;
  for (const PlotPoint& point : points) {
    if (point.series != series) continue;
    const double px = x.Pixel(point.x), py = y.Pixel(point.y);
    absl::StrAppendFormat(&path, "%s%.1f %.1f", path.empty() ? "M" : " L", px, py);
    const double low = y.logarithmic ? std::max(point.low, std::pow(10, y.from)) : point.low;
    if (!std::isnan(point.low) && point.high >= low) {
      absl::StrAppend(&marks, Line(px, y.Pixel(low), px, y.Pixel(point.high),
                                   absl::StrCat("stroke=\"", colour, "\"")));
    }
    absl::StrAppendFormat(&marks, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"3.5\" fill=\"%s\"/>\n", px,
                          py, colour);
  }
  return absl::StrFormat("<path d=\"%s\" fill=\"none\" stroke=\"%s\" stroke-opacity=\"0.45\"/>\n%s",
                         path, colour, marks);
}

std::string DrawPanel(const PlotPanel& panel, double left, const Colours& colours) {
  const std::vector<PlotPoint> points = Drawable(panel);
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  double min_x = kInfinity, max_x = -kInfinity, min_y = kInfinity, max_y = -kInfinity;
  for (const PlotPoint& point : points) {
    min_x = std::min(min_x, point.x), max_x = std::max(max_x, point.x);
    min_y = std::min(min_y, point.y), max_y = std::max(max_y, point.y);
    if (std::isnan(point.low)) continue;
    // An error bar that goes down to 0 has no end on a logarithmic axis.
    if (!panel.log_y || point.low > 0) min_y = std::min(min_y, point.low);
    max_y = std::max(max_y, point.high);
  }
  if (panel.reference.has_value()) {
    min_y = std::min(min_y, *panel.reference), max_y = std::max(max_y, *panel.reference);
  }
  if (points.empty()) min_x = min_y = 1, max_x = max_y = 1;  // axes alone
  const Axis x = MakeAxis(false, min_x, max_x, left + kLeft, left + kPanelWidth - kRight);
  const Axis y =
      MakeAxis(panel.log_y, min_y, max_y, kHeading + kPanelHeight - kBottom, kHeading + kTop);
  std::string svg = DrawAxes(panel, x, y);
  if (panel.reference.has_value()) {
    const double at = y.Pixel(*panel.reference);
    absl::StrAppend(
        &svg, Line(x.pixel_from, at, x.pixel_to, at, "stroke=\"#444\" stroke-dasharray=\"5 4\""),
        Text(x.pixel_to, at - 5, panel.reference_label, "text-anchor=\"end\" font-size=\"10\""));
  }
  LabelPlacer placer(left + kPanelWidth);
  for (const PlotPoint& point : points) placer.Block(x.Pixel(point.x), y.Pixel(point.y));
  for (const auto& [series, colour] : colours) {
    absl::StrAppend(&svg, DrawSeries(points, series, colour, x, y));
  }
  for (const PlotPoint& point : points) {
    absl::StrAppend(&svg, placer.Place(x.Pixel(point.x), y.Pixel(point.y), point.label,
                                       colours.at(point.series)));
  }
  return svg;
}

}  // namespace

std::string RenderSvg(const std::string& title, absl::Span<const PlotPanel> panels) {
  const double width = std::max<double>(kPanelWidth * static_cast<double>(panels.size()), 300);
  std::string svg = absl::StrFormat(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%.0f\" height=\"%.0f\" "
      "font-family=\"sans-serif\" font-size=\"11\">\n"
      "<rect width=\"100%%\" height=\"100%%\" fill=\"white\"/>\n",
      width, kHeading + kPanelHeight);
  absl::StrAppend(&svg, Text(20, 28, title, "font-size=\"16\" font-weight=\"bold\""));
  Colours colours;
  double legend = 20;
  for (const std::string& series : SeriesOf(panels)) {
    const std::string colour = kColours[colours.size() % std::size(kColours)];
    colours[series] = colour;
    absl::StrAppendFormat(&svg, "<circle cx=\"%.1f\" cy=\"48\" r=\"4\" fill=\"%s\"/>\n", legend + 4,
                          colour);
    absl::StrAppend(&svg, Text(legend + 13, 52, series, "font-size=\"12\""));
    legend += 40 + 7 * static_cast<double>(series.size());
  }
  for (size_t i = 0; i < panels.size(); ++i) {
    absl::StrAppend(&svg, DrawPanel(panels[i], kPanelWidth * static_cast<double>(i), colours));
  }
  return svg + "</svg>\n";
}

}  // namespace whit::eval
