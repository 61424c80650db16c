#include "tests/eval/plot_file.h"

#include <cmath>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"
#include "tests/eval/svg_plot.h"

namespace whit::eval {
namespace {

using Json = nlohmann::json;

// Reads members of objects; the first that is of another type is remembered.
class Reader {
 public:
  std::string Text(const Json& object, const char* key) {
    const auto it = object.find(key);
    if (it == object.end()) return "";
    if (it->is_string()) return *it;
    Fail(key, "a text");
    return "";
  }
  double Number(const Json& object, const char* key, bool required) {
    const auto it = object.find(key);
    if (it != object.end() && it->is_number()) return *it;
    if (required || (it != object.end() && !it->is_null())) Fail(key, "a number");
    return NAN;
  }
  bool Flag(const Json& object, const char* key) {
    const auto it = object.find(key);
    if (it != object.end() && !it->is_boolean()) Fail(key, "true or false");
    return it != object.end() && it->is_boolean() && it->get<bool>();
  }
  // The objects of a list.
  std::vector<Json> Objects(const Json& object, const char* key) {
    const auto it = object.find(key);
    if (it == object.end()) return {};
    if (!it->is_array()) {
      Fail(key, "a list of objects");
      return {};
    }
    for (const Json& element : *it) {
      if (!element.is_object()) Fail(key, "a list of objects");
    }
    return problem_.empty() ? it->get<std::vector<Json>>() : std::vector<Json>();
  }
  absl::Status status() const {
    return problem_.empty() ? absl::OkStatus() : absl::InvalidArgumentError(problem_);
  }

 private:
  void Fail(const char* key, const char* expected) {
    if (problem_.empty()) problem_ = absl::StrCat("'", key, "' must be ", expected);
  }
  std::string problem_;
};

PlotPanel ReadPanel(const Json& object, Reader& reader) {
  PlotPanel panel = {.title = reader.Text(object, "title"),
                     .x_label = reader.Text(object, "x_label"),
                     .y_label = reader.Text(object, "y_label"),
                     .log_y = reader.Flag(object, "log_y"),
                     .reference_label = reader.Text(object, "reference_label")};
  const double reference = reader.Number(object, "reference", /*required=*/false);
  if (!std::isnan(reference)) panel.reference = reference;
  for (const Json& point : reader.Objects(object, "points")) {
    panel.points.push_back({.series = reader.Text(point, "series"),
                            .label = reader.Text(point, "label"),
                            .x = reader.Number(point, "x", /*required=*/true),
                            .y = reader.Number(point, "y", /*required=*/true),
                            .low = reader.Number(point, "low", /*required=*/false),
                            .high = reader.Number(point, "high", /*required=*/false)});
  }
  return panel;
}

}  // namespace

absl::StatusOr<std::string> RenderJson(std::string_view json) {
  const Json object =
      Json::parse(json.begin(), json.end(), /*cb=*/nullptr, /*allow_exceptions=*/false);
  if (!object.is_object()) return absl::InvalidArgumentError("this is no JSON object");
  Reader reader;
  std::vector<PlotPanel> panels;
  for (const Json& panel : reader.Objects(object, "panels")) {
    panels.push_back(ReadPanel(panel, reader));
  }
  const std::string title = reader.Text(object, "title");
  if (!reader.status().ok()) return reader.status();
  return RenderSvg(title, panels);
}

}  // namespace whit::eval
