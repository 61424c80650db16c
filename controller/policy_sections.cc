#include "controller/policy_sections.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "absl/types/span.h"

namespace whit {
namespace {

constexpr char kKeyMeans[] = "key_means", kImportance[] = "importance", kPrices[] = "prices",
               kSensitivities[] = "sensitivities", kLearned[] = "learned", kNotes[] = "notes";
constexpr std::string_view kNoteSeparator = " = ";
constexpr uint32_t kMaxQueryHeads = 1 << 16;

size_t Pairs(const ModelIdentity& model) {
  return size_t{1} * model.num_layers * model.num_kv_heads;
}

absl::Status Error(std::string_view section, std::string_view what) {
  return absl::InvalidArgumentError(
      absl::StrCat("section '", std::string(section), "'", std::string(what)));
}

// One of the arrays that a section consists of.
class FloatArray {
 public:
  FloatArray(const char* name, std::vector<float>& elements, size_t size)
      : name_(name), size_(size), vector_(&elements) {}
  template <size_t n>
  FloatArray(const char* name, std::array<float, n>& elements)
      : name_(name), size_(n), array_(elements.data()) {}

  const char* name() const { return name_; }
  size_t size() const { return size_; }
  // Gives a vector its size.
  absl::Span<float> elements() const {
    if (vector_ == nullptr) return {array_, size_};
    vector_->resize(size_);
    return absl::MakeSpan(*vector_);
  }

 private:
  const char* name_;
  size_t size_;
  std::vector<float>* vector_ = nullptr;  // or
  float* array_ = nullptr;
};

std::string WriteArrays(absl::Span<const FloatArray> arrays) {
  std::string content;
  for (const FloatArray& array : arrays) {
    content.append(reinterpret_cast<const char*>(array.elements().data()),
                   array.size() * sizeof(float));
  }
  return content;
}

absl::Status ReadArrays(std::string_view section, std::string_view content,
                        const ModelIdentity& model, absl::Span<const FloatArray> arrays) {
  // Before memory is taken for what the header declares.
  size_t bytes = 0;
  for (const FloatArray& array : arrays) bytes += array.size() * sizeof(float);
  if (content.size() != bytes) {
    return Error(section, absl::StrCat(" has ", content.size(), " bytes, but the model (",
                                       model.ToString(), ") needs ", bytes));
  }
  for (const FloatArray& array : arrays) {
    const absl::Span<float> elements = array.elements();
    std::memcpy(elements.data(), content.data(), array.size() * sizeof(float));
    content.remove_prefix(array.size() * sizeof(float));
    for (size_t i = 0; i < elements.size(); ++i) {
      if (std::isfinite(elements[i])) continue;
      return Error(section, absl::StrCat(": ", array.name(), " ", i, " is ", elements[i],
                                         ", not a finite number"));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckPositive(std::string_view section, const FloatArray& array) {
  const absl::Span<const float> elements = array.elements();
  for (size_t i = 0; i < elements.size(); ++i) {
    if (elements[i] > 0) continue;
    return Error(section,
                 absl::StrCat(": ", array.name(), " ", i, " is ", elements[i], ", not above 0"));
  }
  return absl::OkStatus();
}

// In the order of the file.
std::vector<FloatArray> ArraysOf(ImportanceModel& importance, size_t pairs, size_t query_means) {
  constexpr size_t kHidden = ImportanceModel::kHidden, kFeatures = kNumImportanceFeatures;
  return {{"centers", importance.centers, pairs * kFeatures},
          {"spreads", importance.spreads, pairs * kFeatures},
          {"pair_bias1", importance.pair_bias1, pairs * kHidden},
          {"weights1", importance.weights1, kFeatures * kHidden},
          {"weights2", importance.weights2, kHidden * kHidden},
          {"bias2", importance.bias2, kHidden},
          {"weights3", importance.weights3, kHidden * 2},
          {"pair_bias3", importance.pair_bias3, pairs * 2},
          {"query_means", importance.query_means, query_means},
          {"key_error", importance.key_error},
          {"value_error", importance.value_error}};
}

std::vector<FloatArray> ArraysOf(LearnedModel& learned) {
  constexpr size_t kHidden = LearnedModel::kHidden;
  return {{"centers", learned.centers},
          {"spreads", learned.spreads},
          {"weights1", learned.weights1, LearnedModel::kFeatures * kHidden},
          {"bias1", learned.bias1, kHidden},
          {"weights2", learned.weights2, kHidden * kHidden},
          {"bias2", learned.bias2, kHidden},
          {"weights3", learned.weights3, kHidden * LearnedModel::kClasses},
          {"bias3", learned.bias3}};
}

// Begins the importance section: what its arrays' sizes depend on.
struct ImportanceShape {
  uint32_t num_query_heads;
  uint32_t features;
  uint32_t hidden;
  uint32_t zero;
};
static_assert(sizeof(ImportanceShape) == 16);

std::string WriteImportance(ImportanceModel importance, const ModelIdentity& model) {
  const size_t query_means = importance.query_means.size();
  const ImportanceShape shape = {
      .num_query_heads = static_cast<uint32_t>(query_means / model.num_layers / model.head_dim),
      .features = kNumImportanceFeatures,
      .hidden = ImportanceModel::kHidden,
      .zero = 0};
  return std::string(reinterpret_cast<const char*>(&shape), sizeof(shape)) +
         WriteArrays(ArraysOf(importance, Pairs(model), query_means));
}

absl::Status ReadImportance(std::string_view content, const ModelIdentity& model,
                            ImportanceModel& importance) {
  ImportanceShape shape;
  if (content.size() < sizeof(shape)) {
    return Error(kImportance,
                 absl::StrCat(" has ", content.size(), " bytes, fewer than ", sizeof(shape)));
  }
  std::memcpy(&shape, content.data(), sizeof(shape));
  content.remove_prefix(sizeof(shape));
  if (shape.num_query_heads == 0 || shape.num_query_heads > kMaxQueryHeads ||
      shape.num_query_heads % model.num_kv_heads != 0) {
    return Error(kImportance,
                 absl::StrCat(": ", shape.num_query_heads, " query heads are no multiple of ",
                              model.num_kv_heads, " KV heads within [1, ", kMaxQueryHeads, "]"));
  }
  if (shape.features != kNumImportanceFeatures || shape.hidden != ImportanceModel::kHidden) {
    return Error(kImportance,
                 absl::StrCat(": a network of ", shape.features, " features and ", shape.hidden,
                              " hidden units, but this version of Whit knows only ",
                              kNumImportanceFeatures, " and ", ImportanceModel::kHidden,
                              "; make the file anew with whit-calibrate"));
  }
  const size_t query_means = size_t{1} * model.num_layers * shape.num_query_heads * model.head_dim;
  if (absl::Status s =
          ReadArrays(kImportance, content, model, ArraysOf(importance, Pairs(model), query_means));
      !s.ok()) {
    return s;
  }
  for (const FloatArray& array :
       {FloatArray("spreads", importance.spreads, importance.spreads.size()),
        FloatArray("key_error", importance.key_error),
        FloatArray("value_error", importance.value_error)}) {
    if (absl::Status s = CheckPositive(kImportance, array); !s.ok()) return s;
  }
  return absl::OkStatus();
}

absl::Status ReadPrices(std::string_view content, std::vector<PolicyFile::PricePoint>& prices) {
  using Point = PolicyFile::PricePoint;
  static_assert(sizeof(Point) == 8);
  if (content.empty() || content.size() % sizeof(Point) != 0) {
    return Error(kPrices, absl::StrCat(" has ", content.size(),
                                       " bytes, not a positive multiple of ", sizeof(Point)));
  }
  prices.resize(content.size() / sizeof(Point));
  std::memcpy(prices.data(), content.data(), content.size());
  for (size_t i = 0; i < prices.size(); ++i) {
    const Point& point = prices[i];
    if (!(point.bits > 0 && point.bits <= 16 && point.price > 0 && std::isfinite(point.price))) {
      return Error(kPrices,
                   absl::StrCat(": point ", i, " has ", point.bits, " bits at price ", point.price,
                                "; bits must be within (0, 16], prices positive and finite"));
    }
    if (i > 0 && (point.bits > prices[i - 1].bits || point.price <= prices[i - 1].price)) {
      return Error(kPrices, absl::StrCat(": from point ", i - 1, " to ", i,
                                         " bits do not fall as the price rises"));
    }
  }
  return absl::OkStatus();
}

absl::Status ReadSensitivities(std::string_view content, const ModelIdentity& model,
                               std::vector<float>& sensitivities) {
  if (absl::Status s = ReadArrays(kSensitivities, content, model,
                                  {{"element", sensitivities, 2 * Pairs(model)}});
      !s.ok()) {
    return s;
  }
  const auto negative =
      std::find_if(sensitivities.begin(), sensitivities.end(), [](float x) { return x < 0; });
  if (negative == sensitivities.end()) return absl::OkStatus();
  return Error(kSensitivities, absl::StrCat(": element ", negative - sensitivities.begin(), " is ",
                                            *negative, ", below 0"));
}

absl::Status ReadLearned(std::string_view content, const ModelIdentity& model,
                         LearnedModel& learned) {
  if (absl::Status s = ReadArrays(kLearned, content, model, ArraysOf(learned)); !s.ok()) return s;
  return CheckPositive(kLearned, {"spreads", learned.spreads});
}

std::string WriteNotes(const std::vector<PolicyFile::Note>& notes) {
  std::string content;
  for (const PolicyFile::Note& note : notes) {
    std::string line = absl::StrCat(note.name, std::string(kNoteSeparator), note.value);
    std::replace(line.begin(), line.end(), '\n', ' ');
    absl::StrAppend(&content, line, "\n");
  }
  return content;
}

absl::Status ReadNotes(std::string_view content, std::vector<PolicyFile::Note>& notes) {
  while (!content.empty()) {
    const size_t end = content.find('\n');
    const std::string_view line = content.substr(0, end);
    const size_t separator = line.find(kNoteSeparator);
    if (end == std::string_view::npos || separator == std::string_view::npos) {
      return Error(kNotes,
                   absl::StrCat(": line ", notes.size() + 1, " is not of the form 'name = value'"));
    }
    notes.push_back({.name = std::string(line.substr(0, separator)),
                     .value = std::string(line.substr(separator + kNoteSeparator.size()))});
    content.remove_prefix(end + 1);
  }
  return absl::OkStatus();
}

template <typename T>
std::string BytesOf(const std::vector<T>& elements) {
  return {reinterpret_cast<const char*>(elements.data()), elements.size() * sizeof(T)};
}

}  // namespace

std::vector<std::pair<std::string, std::string>> WritePolicySections(const PolicyFile& file) {
  std::vector<std::pair<std::string, std::string>> sections;
  sections.emplace_back(kKeyMeans, BytesOf(file.key_means));
  if (file.importance.has_value()) {
    sections.emplace_back(kImportance, WriteImportance(*file.importance, file.model));
  }
  if (!file.prices.empty()) sections.emplace_back(kPrices, BytesOf(file.prices));
  if (!file.sensitivities.empty()) {
    sections.emplace_back(kSensitivities, BytesOf(file.sensitivities));
  }
  if (file.learned.has_value()) {
    LearnedModel learned = *file.learned;
    sections.emplace_back(kLearned, WriteArrays(ArraysOf(learned)));
  }
  sections.emplace_back(kNotes, WriteNotes(file.notes));
  return sections;
}

absl::Status ReadPolicySection(std::string_view name, std::string_view content, PolicyFile& file) {
  if (name == kKeyMeans) {
    return ReadArrays(kKeyMeans, content, file.model,
                      {{"element", file.key_means, file.model.key_elements()}});
  }
  if (name == kImportance) return ReadImportance(content, file.model, file.importance.emplace());
  if (name == kPrices) return ReadPrices(content, file.prices);
  if (name == kSensitivities) return ReadSensitivities(content, file.model, file.sensitivities);
  if (name == kLearned) return ReadLearned(content, file.model, file.learned.emplace());
  if (name == kNotes) return ReadNotes(content, file.notes);
  return absl::OkStatus();
}

}  // namespace whit
