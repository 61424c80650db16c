#include "runtime/text/chat_format.h"

#include <algorithm>
#include <iterator>
#include <optional>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "runtime/text/jinja_outline.h"
#include "runtime/text/quoted.h"

// Templates are recognised by what their outlines (see jinja_outline.h) contain.
namespace whit {
namespace {

absl::string_view Absl(std::string_view s) { return {s.data(), s.size()}; }

bool Contains(std::string_view text, std::string_view part) {
  return text.find(part) != std::string_view::npos;
}

absl::Status Unsupported(std::string_view what) {
  return absl::UnimplementedError(
      absl::StrCat("the model's chat template ", Absl(what),
                   ", which is not supported; write the prompt out and send it as text"));
}

// If the outline outputs before, the message's content and after: whether the content is trimmed.
std::optional<bool> FindTurn(std::string_view outline, std::string_view before,
                             std::string_view after) {
  for (std::string_view trim : {"", "|trim", ".strip()"}) {
    const std::string turn = absl::StrCat(Absl(before), "message.content", Absl(trim), Absl(after));
    if (Contains(outline, turn)) return !trim.empty();
  }
  return std::nullopt;
}

// What is between `begin`, which includes a literal's opening quote, and `end` in a literal that is
// these and more.
std::optional<std::string> FindLiteral(std::string_view outline, std::string_view begin,
                                       std::string_view end) {
  for (size_t at = outline.find(begin); at != std::string_view::npos;
       at = outline.find(begin, at + 1)) {
    const size_t quote = at + begin.find('\'');
    const size_t begin_size = at + begin.size() - (quote + 1);
    const std::string_view literal = OutlineLiteral(outline, quote);
    if (literal.size() <= begin_size + end.size() || !literal.ends_with(end)) continue;
    return UnescapeLiteral(literal.substr(begin_size, literal.size() - begin_size - end.size()));
  }
  return std::nullopt;
}

// Python's str.strip(), which Jinja's trim is.
std::string_view Trim(std::string_view text) {
  static constexpr std::string_view kSpaces[] = {
      " ",      "\n",     "\t",     "\r",     "\v",     "\f",     "\x1C",   "\x1D",
      "\x1E",   "\x1F",   "\u0085", "\u00A0", "\u1680", "\u2000", "\u2001", "\u2002",
      "\u2003", "\u2004", "\u2005", "\u2006", "\u2007", "\u2008", "\u2009", "\u200A",
      "\u2028", "\u2029", "\u202F", "\u205F", "\u3000"};
  const auto find = [](auto matches) {
    for (std::string_view space : kSpaces) {
      if (matches(space)) return space.size();
    }
    return size_t{0};
  };
  while (const size_t n = find([&](std::string_view s) { return text.starts_with(s); })) {
    text.remove_prefix(n);
  }
  while (const size_t n = find([&](std::string_view s) { return text.ends_with(s); })) {
    text.remove_suffix(n);
  }
  return text;
}

constexpr std::string_view kRoles[] = {"system", "user", "assistant"};

// A prompt in the making: neighbours of one kind are joined.
class Prompt {
 public:
  void AddTemplateText(std::string_view text) { Add(text, true); }
  void AddContent(std::string_view text) { Add(text, false); }
  std::vector<TextSegment> Take() { return std::move(segments_); }

 private:
  void Add(std::string_view text, bool parse_special) {
    if (text.empty()) return;
    if (segments_.empty() || segments_.back().parse_special != parse_special) {
      segments_.push_back({"", parse_special});
    }
    segments_.back().text += text;
  }

  std::vector<TextSegment> segments_;
};

}  // namespace

absl::StatusOr<ChatFormat> ChatFormat::Recognise(const Tokenizer& tokenizer) {
  const auto spelling = [&](int32_t id) {
    return id < 0 ? std::string() : std::string(tokenizer.TokenBytes(id));
  };
  return Recognise(tokenizer.chat_template(),
                   {.bos = tokenizer.add_bos() ? std::string() : spelling(tokenizer.bos_id()),
                    .eos = spelling(tokenizer.eos_id())});
}

absl::StatusOr<ChatFormat> ChatFormat::Recognise(std::string_view chat_template,
                                                 const TemplateTokens& tokens) {
  ChatFormat format;
  if (chat_template.empty()) {
    format.SetTurns(Family::kPlain, "", ": ", "\n\n", "Assistant:");
    return format;
  }

  const std::string outline = OutlineJinja(chat_template);
  if (Contains(outline, "</think>")) return Unsupported("rewrites reasoning in earlier messages");
  if (Contains(outline, "bos_token")) format.begin_ = tokens.bos;
  absl::Status status;
  if (Contains(outline, "<|im_start|>")) {
    status = format.RecogniseChatMl(outline);
  } else if (Contains(outline, "<|start_header_id|>")) {
    status = format.RecogniseLlama3(outline);
  } else if (Contains(outline, "<start_of_turn>")) {
    status = format.RecogniseGemma(outline);
  } else if (Contains(outline, "<|user|>") && Contains(outline, "<|assistant|>")) {
    status = format.RecogniseZephyr(outline, tokens.eos);
  } else {
    status = Unsupported("is of none of the families ChatML, Llama 3, Gemma and Zephyr");
  }
  if (!status.ok()) return status;
  return format;
}

absl::Status ChatFormat::RecogniseChatMl(std::string_view outline) {
  SetTurns(Family::kChatMl, "<|im_start|>", "\n", "<|im_end|>\n", "<|im_start|>assistant\n");
  constexpr std::string_view kTurnEnd = R"(+'<|im_end|>\n')";
  auto trims = FindTurn(outline, R"('<|im_start|>'+message.role+'\n'+)", kTurnEnd);
  if (!trims) {
    // Or each role on its own.
    for (std::string_view role : kRoles) {
      const auto role_trims =
          FindTurn(outline, absl::StrCat("'<|im_start|>", Absl(role), R"(\n'+)"), kTurnEnd);
      if (!role_trims || (trims && role_trims != trims)) {
        return Unsupported("has <|im_start|>, but not ChatML's turns");
      }
      trims = role_trims;
    }
  }
  if (!trims || !Contains(outline, R"('<|im_start|>assistant\n')")) {
    return Unsupported("has <|im_start|>, but not ChatML's turns");
  }
  trims_content_ = *trims;

  if (const auto text = FindLiteral(outline, R"('<|im_start|>system\n)", R"(<|im_end|>\n)")) {
    default_system_ = *text;
  } else if (Contains(outline, R"('<|im_start|>system\n'+system_message+'<|im_end|>\n')")) {
    if (Contains(outline, "{%setsystem_message=''%}")) {
      return Unsupported("has an empty system message of its own");
    }
    default_system_ = FindLiteral(outline, "{%setsystem_message='", "").value_or("");
    loses_lone_system_ = true;
  } else if (Contains(outline, "system_message")) {
    return Unsupported("treats system messages in a way of its own");
  }
  return absl::OkStatus();
}

absl::Status ChatFormat::RecogniseLlama3(std::string_view outline) {
  SetTurns(Family::kLlama3, "<|start_header_id|>", "<|end_header_id|>\n\n", "<|eot_id|>",
           "<|start_header_id|>assistant<|end_header_id|>\n\n");
  const auto trims = FindTurn(
      outline, R"('<|start_header_id|>'+message.role+'<|end_header_id|>\n\n'+)", "+'<|eot_id|>'");
  if (!trims || !Contains(outline, R"('<|start_header_id|>assistant<|end_header_id|>\n\n')")) {
    return Unsupported("has <|start_header_id|>, but not Llama 3's turns");
  }
  trims_content_ = *trims;

  constexpr std::string_view kSystemBegin = R"('<|start_header_id|>system<|end_header_id|>\n\n)";
  if (!Contains(outline, "system_message")) {
    default_system_ = FindLiteral(outline, kSystemBegin, "<|eot_id|>").value_or("");
    return absl::OkStatus();
  }

  // Llama 3.1 and later: always a system turn, which begins with two dates.
  const size_t system_begin = outline.find(kSystemBegin);
  const size_t block = outline.rfind("{%", system_begin);
  const bool conditional = block != std::string_view::npos &&
                           !outline.substr(block).starts_with("{%endif%}") &&
                           !outline.substr(block).starts_with("{%set");
  const std::string set_system =
      absl::StrCat("{%setsystem_message=messages[0].content", *trims ? "|trim" : "", "%}");
  if (system_begin == std::string_view::npos || conditional || !Contains(outline, set_system) ||
      !Contains(outline, "system_message+'<|eot_id|>'")) {
    return Unsupported("treats system messages in a way of its own");
  }
  system_message_ = SystemMessage::kAlwaysTurn;
  default_system_ = FindLiteral(outline, "{%setsystem_message='", "").value_or("");

  constexpr std::string_view kDate = "'+date_string+'";
  const size_t date = outline.find(kDate, system_begin);
  if (date == std::string_view::npos) return absl::OkStatus();
  const auto fixed_date = FindLiteral(outline, "{%setdate_string='", "");
  if (!fixed_date) return Unsupported("wants today's date");
  std::string_view before = outline.substr(0, date);
  before.remove_prefix(before.rfind('\'') + 1);
  if (before.starts_with(kSystemBegin.substr(1))) before.remove_prefix(kSystemBegin.size() - 1);
  const std::string_view after = OutlineLiteral(outline, date + kDate.size() - 1);
  system_preamble_ = UnescapeLiteral(before) + *fixed_date + UnescapeLiteral(after);
  return absl::OkStatus();
}

absl::Status ChatFormat::RecogniseGemma(std::string_view outline) {
  SetTurns(Family::kGemma, "<start_of_turn>", "\n", "<end_of_turn>\n", "<start_of_turn>model\n");
  must_alternate_ = Contains(outline, "loop.index0%2==0");

  constexpr std::string_view kTurnBegin = R"('<start_of_turn>'+role+'\n'+)";
  constexpr std::string_view kPrefix = "(first_user_prefixifloop.firstelse'')}}";
  auto trims = FindTurn(outline, kTurnBegin, R"(+'<end_of_turn>\n')");
  if (!trims && Contains(outline, absl::StrCat(Absl(kTurnBegin), Absl(kPrefix)))) {
    // Gemma 3: the content may also be a list of parts, so it is an output of its own.
    trims = FindTurn(outline, "{%ifmessage.contentisstring%}{{", "}}");
    const auto separator = FindLiteral(outline, "{%setfirst_user_prefix=messages[0].content+'", "");
    if (!separator || !Contains(outline, R"({{'<end_of_turn>\n'}})")) trims.reset();
    system_message_ = SystemMessage::kUserPrefix;
    loses_lone_system_ = true;
    system_separator_ = separator.value_or("");
  } else if (Contains(outline, "raise_exception('System role not supported')")) {
    system_message_ = SystemMessage::kRefused;
  } else if (Contains(outline, "messages[0].content")) {
    return Unsupported("treats system messages in a way of its own");
  }
  if (!trims || !Contains(outline, "{%setrole='model'%}") ||
      !Contains(outline, R"('<start_of_turn>model\n')")) {
    return Unsupported("has <start_of_turn>, but not Gemma's turns");
  }
  trims_content_ = *trims;
  return absl::OkStatus();
}

absl::Status ChatFormat::RecogniseZephyr(std::string_view outline, std::string_view eos) {
  // All roles' turns end alike: in eos_token or a literal, with or without a line end.
  std::optional<std::string_view> end;
  for (std::string_view role : kRoles) {
    const std::string begin = absl::StrCat("'<|", Absl(role), R"(|>\n'+message.content+)");
    const size_t at = outline.find(begin);
    if (at == std::string_view::npos) return Unsupported("has <|user|>, but not Zephyr's turns");
    std::string_view role_end = outline.substr(at + begin.size());
    role_end = role_end.substr(0, role_end.find("}}"));
    if (end && role_end != *end) return Unsupported("ends the turns of each role differently");
    end = role_end;
  }
  std::string turn_end;
  if (*end == "eos_token" || *end == R"(eos_token+'\n')") {
    if (eos.empty()) return Unsupported("uses eos_token, but the file names none");
    turn_end = absl::StrCat(Absl(eos), *end == "eos_token" ? "" : "\n");
  } else if (const std::string_view literal = OutlineLiteral(*end, 0);
             end->starts_with("'<") && literal.size() + 2 == end->size()) {
    turn_end = UnescapeLiteral(literal);
  } else {
    return Unsupported("has <|user|>, but does not end turns as Zephyr does");
  }

  const bool new_line = Contains(outline, R"({{'<|assistant|>\n'}})");
  if (!new_line && !Contains(outline, "{{'<|assistant|>'}}")) {
    return Unsupported("has <|assistant|>, but not Zephyr's generation prompt");
  }
  SetTurns(Family::kZephyr, "<|", "|>\n", turn_end, new_line ? "<|assistant|>\n" : "<|assistant|>");
  return absl::OkStatus();
}

void ChatFormat::SetTurns(Family family, std::string_view turn_begin, std::string_view role_end,
                          std::string_view turn_end, std::string_view generation_prompt) {
  family_ = family;
  turn_begin_ = turn_begin;
  role_end_ = role_end;
  turn_end_ = turn_end;
  generation_prompt_ = generation_prompt;
}

std::string_view ChatFormat::name() const {
  switch (family_) {
    case Family::kChatMl:
      return "chatml";
    case Family::kLlama3:
      return "llama3";
    case Family::kGemma:
      return "gemma";
    case Family::kZephyr:
      return "zephyr";
    case Family::kPlain:
      return "plain";
  }
  return "";
}

std::string_view ChatFormat::RoleName(std::string_view role) const {
  if (family_ == Family::kGemma && role == "assistant") return "model";
  if (family_ != Family::kPlain) return role;
  return role == "system" ? "System" : role == "user" ? "User" : "Assistant";
}

absl::Status ChatFormat::CheckMessages(absl::Span<const ChatMessage> messages) const {
  if (messages.empty()) return absl::InvalidArgumentError("there are no messages");
  for (size_t i = 0; i < messages.size(); ++i) {
    const std::string& role = messages[i].role;
    if (std::find(std::begin(kRoles), std::end(kRoles), role) == std::end(kRoles)) {
      return absl::InvalidArgumentError(absl::StrCat("message ", i, " has role ", Quoted(role),
                                                     ", not system, user or assistant"));
    }
  }
  const bool has_system = messages[0].role == "system";
  if (has_system && system_message_ == SystemMessage::kRefused) {
    return absl::InvalidArgumentError("this model's chat template takes no system message");
  }
  if (has_system && messages.size() == 1 && loses_lone_system_) {
    return absl::InvalidArgumentError(
        "this model's chat template needs a user message after the system message");
  }
  const size_t first_turn = has_system && system_message_ == SystemMessage::kUserPrefix ? 1 : 0;
  for (size_t i = first_turn; must_alternate_ && i < messages.size(); ++i) {
    const bool want_user = (i - first_turn) % 2 == 0;
    if (want_user != (messages[i].role == "user")) {
      return absl::InvalidArgumentError(
          absl::StrCat("message ", i, " has role '", messages[i].role,
                       "', but with this model user and assistant take turns, the user first"));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<TextSegment>> ChatFormat::Render(
    absl::Span<const ChatMessage> messages) const {
  if (absl::Status status = CheckMessages(messages); !status.ok()) return status;
  const auto content_of = [this](const ChatMessage& message) {
    return trims_content_ ? Trim(message.content) : std::string_view(message.content);
  };
  Prompt prompt;
  const auto begin_turn = [&](std::string_view role) {
    prompt.AddTemplateText(turn_begin_);
    prompt.AddTemplateText(RoleName(role));
    prompt.AddTemplateText(role_end_);
  };
  prompt.AddTemplateText(begin_);

  const bool has_system = messages[0].role == "system";
  const ChatMessage* user_prefix = nullptr;
  if (has_system && system_message_ == SystemMessage::kUserPrefix) {
    user_prefix = &messages[0];
    messages.remove_prefix(1);
  } else if (system_message_ == SystemMessage::kAlwaysTurn ||
             (!has_system && !default_system_.empty())) {
    begin_turn("system");
    prompt.AddTemplateText(system_preamble_);
    if (has_system) {
      prompt.AddContent(content_of(messages[0]));
      messages.remove_prefix(1);
    } else {
      prompt.AddTemplateText(default_system_);
    }
    prompt.AddTemplateText(turn_end_);
  }

  for (const ChatMessage& message : messages) {
    begin_turn(message.role);
    if (user_prefix != nullptr) {
      prompt.AddContent(user_prefix->content);
      prompt.AddTemplateText(system_separator_);
      user_prefix = nullptr;
    }
    prompt.AddContent(content_of(message));
    prompt.AddTemplateText(turn_end_);
  }
  prompt.AddTemplateText(generation_prompt_);
  return prompt.Take();
}

}  // namespace whit
