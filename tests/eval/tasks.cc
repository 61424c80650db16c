#include "tests/eval/tasks.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "nlohmann/json.hpp"
#include "tests/eval/text_chunks.h"

namespace whit::eval {
namespace {

using Json = nlohmann::json;

// Reads a line's fields; the first that is missing or of another type is remembered.
class Fields {
 public:
  explicit Fields(const Json& object) : object_(object) {}

  std::string Text(const char* key) {
    const auto it = object_.find(key);
    if (it != object_.end() && it->is_string() && !it->get_ref<const std::string&>().empty()) {
      return *it;
    }
    Fail(key, "a text that is not empty");
    return "";
  }

  std::vector<std::string> Texts(const char* key) {
    const auto it = object_.find(key);
    const bool good = it != object_.end() && it->is_array() && it->size() >= 2 &&
                      std::all_of(it->begin(), it->end(), [](const Json& text) {
                        return text.is_string() && !text.get_ref<const std::string&>().empty();
                      });
    if (good) return *it;
    Fail(key, "a list of at least two texts");
    return {};
  }

  int Index(const char* key, size_t size) {
    const auto it = object_.find(key);
    if (it != object_.end() && it->is_number_integer() && *it >= 0 && *it < size) return *it;
    Fail(key, absl::StrCat("an index below ", size));
    return 0;
  }

  // Absent and null are the same.
  std::optional<int64_t> OptionalCount(const char* key) {
    const auto it = object_.find(key);
    if (it == object_.end() || it->is_null()) return std::nullopt;
    if (it->is_number_integer() && *it >= 0) return *it;
    Fail(key, "null or a count");
    return std::nullopt;
  }

  void Fail(const char* key, const std::string& expected) {
    if (problem_.empty()) problem_ = absl::StrCat("'", key, "' must be ", expected);
  }
  const std::string& problem() const { return problem_; }

 private:
  const Json& object_;
  std::string problem_;
};

// As Python's str.capitalize, which the benchmark's published scores go by, on ASCII.
std::string Capitalize(std::string_view text) {
  std::string result = absl::AsciiStrToLower(std::string(text));
  if (!result.empty()) result[0] = absl::ascii_toupper(static_cast<unsigned char>(result[0]));
  return result;
}

TaskItem Continuations(const std::string& context, const std::vector<std::string>& choices,
                       int gold, bool per_byte) {
  TaskItem item = {.gold = gold, .per_byte = per_byte};
  for (const std::string& choice : choices) item.choices.push_back({context, " " + choice});
  return item;
}

TaskItem HellaSwag(Fields& fields) {
  std::string context = fields.Text("ctx");
  if (const std::optional<int64_t> start = fields.OptionalCount("ctx_b_start")) {
    const std::string_view first = FirstCharacters(context, *start);
    context = absl::StrCat(std::string(first), Capitalize(context.substr(first.size())));
  }
  const std::vector<std::string> endings = fields.Texts("endings");
  return Continuations(absl::StrCat(fields.Text("activity_label"), ": ", context), endings,
                       fields.Index("label", endings.size()), /*per_byte=*/true);
}

TaskItem Question(Fields& fields) {
  const std::vector<std::string> choices = fields.Texts("choices");
  return Continuations(absl::StrCat("Question: ", fields.Text("query"), "\nAnswer:"), choices,
                       fields.Index("gold", choices.size()), /*per_byte=*/true);
}

TaskItem OpenBookQa(Fields& fields) {
  const std::vector<std::string> choices = fields.Texts("choices");
  return Continuations(fields.Text("query"), choices, fields.Index("gold", choices.size()),
                       /*per_byte=*/true);
}

TaskItem Winogrande(Fields& fields) {
  const std::string query = fields.Text("query");
  const std::vector<std::string> choices = fields.Texts("choices");
  TaskItem item = {.gold = fields.Index("gold", choices.size())};
  const std::pair<std::string, std::string> halves = absl::StrSplit(query, absl::MaxSplits('_', 1));
  if (halves.second.empty()) fields.Fail("query", "a text with more after one \"_\"");
  for (const std::string& choice : choices) {
    item.choices.push_back({halves.first + choice, halves.second});
  }
  return item;
}

TaskItem Lambada(Fields& fields) {
  return Continuations(fields.Text("context"), {fields.Text("target")}, 0, /*per_byte=*/false);
}

struct TaskFormat {
  std::string_view name;  // files of a task's parts are named name_part
  TaskItem (*parse)(Fields&);
};
constexpr TaskFormat kFormats[] = {{"hellaswag", HellaSwag},   {"arc", Question},
                                   {"piqa", Question},         {"openbookqa", OpenBookQa},
                                   {"winogrande", Winogrande}, {"lambada", Lambada}};

absl::StatusOr<TaskFormat> FindFormat(std::string_view task) {
  std::string names;
  for (const TaskFormat& format : kFormats) {
    if (task.substr(0, task.find('_')) == format.name) return format;
    absl::StrAppend(&names, names.empty() ? "" : ", ", std::string(format.name));
  }
  return absl::InvalidArgumentError(absl::StrCat("'", std::string(task),
                                                 "' is no task; the tasks are ", names,
                                                 " (arc_easy and the like are arc)"));
}

absl::StatusOr<std::vector<int32_t>> Encode(const Tokenizer& tokenizer, const std::string& text) {
  return tokenizer.Encode(text, /*parse_special=*/false);
}

// A choice as tokens: the continuation's begin after as many as the context alone has.
struct EncodedChoice {
  std::vector<int32_t> tokens;
  size_t context = 0;
};

absl::StatusOr<EncodedChoice> EncodeChoice(const TaskItem::Choice& choice,
                                           const Tokenizer& tokenizer) {
  absl::StatusOr<std::vector<int32_t>> all =
      Encode(tokenizer, choice.context + choice.continuation);
  if (!all.ok()) return all.status();
  const absl::StatusOr<std::vector<int32_t>> context = Encode(tokenizer, choice.context);
  if (!context.ok()) return context.status();
  // Something is scored even where the continuation melts into the context's last token.
  return EncodedChoice{*std::move(all), std::min(context->size(), all->size() - 1)};
}

// What has been said before a choice, then its tokens; the continuation's are scored.
Sequence MakeSequence(const std::vector<int32_t>& before, const EncodedChoice& choice) {
  std::vector<int32_t> all = before;
  all.insert(all.end(), choice.tokens.begin(), choice.tokens.end());
  const size_t first_target = before.size() + choice.context;
  Sequence sequence = {.tokens = {all.begin(), all.end() - 1}};
  for (size_t i = 1; i < all.size(); ++i) {
    sequence.targets.push_back(i >= first_target ? all[i] : Sequence::kNotScored);
  }
  return sequence;
}

}  // namespace

absl::StatusOr<std::vector<TaskItem>> ParseTask(std::string_view task,
                                                std::string_view json_lines) {
  const absl::StatusOr<TaskFormat> format = FindFormat(task);
  if (!format.ok()) return format.status();
  std::vector<TaskItem> items;
  int number = 0;
  for (absl::string_view line : absl::StrSplit(std::string(json_lines), '\n')) {
    ++number;
    if (absl::StripAsciiWhitespace(line).empty()) continue;
    const Json object =
        Json::parse(line.begin(), line.end(), /*cb=*/nullptr, /*allow_exceptions=*/false);
    if (!object.is_object()) {
      return absl::InvalidArgumentError(absl::StrCat("line ", number, " is no JSON object"));
    }
    Fields fields(object);
    items.push_back(format->parse(fields));
    if (!fields.problem().empty()) {
      return absl::InvalidArgumentError(absl::StrCat("line ", number, ": ", fields.problem()));
    }
  }
  if (items.empty()) return absl::InvalidArgumentError("no items");
  return items;
}

absl::StatusOr<std::vector<ScoredItem>> MakeScoredItems(absl::Span<const TaskItem> items,
                                                        const Tokenizer& tokenizer,
                                                        const TaskOptions& options) {
  // Solved items, as they stand before others.
  std::vector<std::vector<int32_t>> solved(items.size());
  for (size_t i = 0; i < items.size() && options.prefix_tokens > 0; ++i) {
    const TaskItem::Choice& gold = items[i].choices[items[i].gold];
    absl::StatusOr<std::vector<int32_t>> ids =
        Encode(tokenizer, absl::StrCat(gold.context, gold.continuation, "\n\n"));
    if (!ids.ok()) return ids.status();
    solved[i] = *std::move(ids);
  }
  const auto prefix_of = [&](size_t item) {
    std::vector<int32_t> prefix;
    if (tokenizer.add_bos()) prefix.push_back(tokenizer.bos_id());
    for (size_t step = 1; step < items.size() && options.prefix_tokens > 0; ++step) {
      const std::vector<int32_t>& next = solved[(item + step) % items.size()];
      if (prefix.size() + next.size() > static_cast<size_t>(options.prefix_tokens)) break;
      prefix.insert(prefix.end(), next.begin(), next.end());
    }
    return prefix;
  };

  const size_t count =
      options.limit > 0 ? std::min<size_t>(options.limit, items.size()) : items.size();
  std::vector<ScoredItem> scored;
  for (size_t i = 0; i < count; ++i) {
    const size_t index = i * items.size() / count;
    const TaskItem& item = items[index];
    ScoredItem& result = scored.emplace_back();
    result.gold = item.gold;
    const std::vector<int32_t> prefix = prefix_of(index);
    for (const TaskItem::Choice& choice : item.choices) {
      const absl::StatusOr<EncodedChoice> encoded = EncodeChoice(choice, tokenizer);
      if (!encoded.ok()) return encoded.status();
      result.choices.push_back(MakeSequence(prefix, *encoded));
      if (item.per_byte) {  // the space before it is none of the choice's own
        result.bytes.push_back(static_cast<int>(choice.continuation.size()) - 1);
      }
      const size_t length = result.choices.back().tokens.size();
      if (length > static_cast<size_t>(options.context_length)) {
        return absl::InvalidArgumentError(
            absl::StrCat("item ", index + 1, " has ", length, " tokens with its prefix; the ",
                         "model's context has ", options.context_length));
      }
    }
  }
  return scored;
}

}  // namespace whit::eval
