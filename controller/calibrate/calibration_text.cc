#include "controller/calibrate/calibration_text.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <sstream>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "controller/calibrate/random.h"
#include "nlohmann/json.hpp"
#include "runtime/text/chat_format.h"

namespace whit {
namespace {

// Of each text's windows, the first is learned from, the second is held out.
constexpr int kHeldOutPeriod = 8, kFirstHeldOut = 1;
// Of mixed windows: a fifth of a text, a quarter of the tokens learned from.
constexpr int kMixedHeldOutShare = 5, kMixedHeldOutPart = 4;

absl::Status Annotated(const absl::Status& status, const std::string& what) {
  return absl::Status(status.code(), absl::StrCat(what, ": ", status.message()));
}

// At most kMaxTextBytes; a longer file ends with its last whole line, or character if it has no
// lines.
absl::StatusOr<std::string> ReadBeginning(const std::string& path) {
  std::error_code error;
  if (!std::filesystem::exists(path, error)) return absl::NotFoundError("no such file");
  if (std::filesystem::is_directory(path, error)) {
    return absl::InvalidArgumentError("a folder, not a text file");
  }
  std::ifstream in(path, std::ios::binary);
  std::string text(kMaxTextBytes + 1, '\0');
  in.read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<size_t>(in.gcount()));
  if (in.bad() || (text.empty() && !in.eof())) return absl::PermissionDeniedError("cannot read");
  if (text.size() <= kMaxTextBytes) return text;

  size_t end = text.rfind('\n');
  if (end == std::string::npos) {
    end = kMaxTextBytes;
    while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;
  }
  text.resize(end);
  return text;
}

absl::StatusOr<std::vector<ChatMessage>> ParseChat(const std::string& line) {
  const auto json = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
  const auto bad = [] {
    return absl::InvalidArgumentError(
        R"(not of the form {"messages": [{"role": "…", "content": "…"}, …]})");
  };
  if (!json.is_object() || !json.contains("messages") || !json["messages"].is_array()) return bad();
  std::vector<ChatMessage> messages;
  for (const auto& message : json["messages"]) {
    if (!message.is_object() || !message.contains("role") || !message["role"].is_string() ||
        !message.contains("content") || !message["content"].is_string()) {
      return bad();
    }
    messages.push_back({.role = message["role"], .content = message["content"]});
  }
  if (messages.empty()) return bad();
  return messages;
}

// A prompt and, if the assistant has the last word, its answer with the token that ends it.
absl::StatusOr<std::vector<int32_t>> TokenizeChat(std::vector<ChatMessage> messages,
                                                  const ChatFormat& format,
                                                  const Tokenizer& tokenizer) {
  std::string answer;
  const bool answered = messages.size() > 1 && messages.back().role == "assistant";
  if (answered) {
    answer = std::move(messages.back().content);
    messages.pop_back();
  }
  absl::StatusOr<std::vector<TextSegment>> segments = format.Render(messages);
  if (!segments.ok()) return segments.status();
  if (answered) segments->push_back({.text = std::move(answer), .parse_special = false});
  absl::StatusOr<std::vector<int32_t>> tokens = tokenizer.EncodeSegments(*segments);
  if (tokens.ok() && answered && tokenizer.eos_id() >= 0) tokens->push_back(tokenizer.eos_id());
  return tokens;
}

absl::StatusOr<std::vector<int32_t>> TokenizeChats(const std::string& lines,
                                                   const Tokenizer& tokenizer) {
  const absl::StatusOr<ChatFormat> format = ChatFormat::Recognise(tokenizer);
  if (!format.ok()) return format.status();
  std::vector<int32_t> tokens;
  std::istringstream in(lines);
  std::string line;
  for (int number = 1; std::getline(in, line); ++number) {
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    absl::StatusOr<std::vector<ChatMessage>> messages = ParseChat(line);
    absl::StatusOr<std::vector<int32_t>> chat =
        messages.ok() ? TokenizeChat(*std::move(messages), *format, tokenizer) : messages.status();
    if (!chat.ok()) return Annotated(chat.status(), absl::StrCat("line ", number));
    tokens.insert(tokens.end(), chat->begin(), chat->end());
  }
  return tokens;
}

// What one text has to give, in the order in which it is drawn.
struct Source {
  int text = 0;
  std::vector<absl::Span<const int32_t>> windows;
  size_t drawn = 0;         // windows
  size_t drawn_tokens = 0;  // in them
};

Source Shuffled(int text, absl::Span<const int32_t> tokens, size_t size, size_t min_size,
                Random& random) {
  Source source;
  source.text = text;
  while (tokens.size() >= min_size) {
    source.windows.push_back(tokens.subspan(0, size));
    tokens.remove_prefix(source.windows.back().size());
  }
  random.Shuffle(source.windows);
  return source;
}

// From the text that has given least, of those that have more to give; false if none has.
bool DrawOne(std::vector<Source>& sources, int32_t bos_id, TextWindow& window, size_t& index) {
  Source* source = nullptr;
  for (Source& candidate : sources) {
    if (candidate.drawn == candidate.windows.size()) continue;
    if (source == nullptr || candidate.drawn_tokens < source->drawn_tokens) source = &candidate;
  }
  if (source == nullptr) return false;
  window = {.text = source->text, .tokens = {}};
  if (bos_id >= 0) window.tokens.push_back(bos_id);
  index = source->drawn++;
  const absl::Span<const int32_t> drawn = source->windows[index];
  window.tokens.insert(window.tokens.end(), drawn.begin(), drawn.end());
  source->drawn_tokens += drawn.size();
  return true;
}

size_t LongestText(absl::Span<const CalibrationText> texts) {
  size_t longest = 0;
  for (const CalibrationText& text : texts) longest = std::max(longest, text.tokens.size());
  return longest;
}

}  // namespace

absl::StatusOr<CalibrationText> ReadCalibrationText(const std::string& path,
                                                    const Tokenizer& tokenizer) {
  const absl::StatusOr<std::string> text = ReadBeginning(path);
  if (!text.ok()) return Annotated(text.status(), path);
  const bool chats = std::filesystem::path(path).extension() == ".jsonl";
  absl::StatusOr<std::vector<int32_t>> tokens =
      chats ? TokenizeChats(*text, tokenizer) : tokenizer.Encode(*text, /*parse_special=*/false);
  if (!tokens.ok()) return Annotated(tokens.status(), path);
  if (tokens->empty()) return absl::InvalidArgumentError(absl::StrCat(path, ": no text in it"));
  return CalibrationText{.name = std::filesystem::path(path).filename().string(),
                         .tokens = *std::move(tokens)};
}

absl::StatusOr<std::vector<TextWindow>> DrawWindows(absl::Span<const CalibrationText> texts,
                                                    const WindowOptions& options) {
  const size_t bos_tokens = options.bos_id < 0 ? 0 : 1;
  Random random(options.seed);
  std::vector<Source> sources;
  for (size_t text = 0; text < texts.size(); ++text) {
    sources.push_back(Shuffled(static_cast<int>(text), texts[text].tokens,
                               options.context - bos_tokens, kMinWindowTokens, random));
  }

  std::vector<TextWindow> windows;
  bool any_held_out = false;
  TextWindow window;
  for (size_t tokens = 0, index; tokens < static_cast<size_t>(options.tokens) || !any_held_out;) {
    if (!DrawOne(sources, options.bos_id, window, index)) break;
    window.context = options.context;
    window.held_out = index % kHeldOutPeriod == kFirstHeldOut;
    any_held_out |= window.held_out;
    tokens += window.tokens.size() - bos_tokens;
    windows.push_back(std::move(window));
  }
  if (!any_held_out) {
    return absl::InvalidArgumentError(absl::StrCat(
        "too little text: the longest file has ", LongestText(texts),
        " tokens, but one at least must have ", options.context - bos_tokens + kMinWindowTokens,
        ", to learn from a window of ", options.context, " and to hold out another"));
  }
  return windows;
}

absl::StatusOr<std::vector<TextWindow>> DrawMixedWindows(absl::Span<const CalibrationText> texts,
                                                         const MixedWindowOptions& options) {
  const size_t bos_tokens = options.bos_id < 0 ? 0 : 1;
  Random random(options.seed);
  std::vector<TextWindow> windows;
  for (size_t i = options.contexts.size(); i-- > 0;) {
    const size_t size = options.contexts[i] - bos_tokens;
    const size_t min_size =
        i > 0 ? size : std::min<size_t>(size, kMinMixedWindowTokens - bos_tokens);
    std::vector<TextWindow> of_context;
    bool any_learned = false, any_held_out = false;
    for (bool held_out : {false, true}) {
      std::vector<Source> sources;
      for (size_t text = 0; text < texts.size(); ++text) {
        const absl::Span<const int32_t> tokens = texts[text].tokens;
        const size_t held_out_from = tokens.size() - tokens.size() / kMixedHeldOutShare;
        sources.push_back(
            Shuffled(static_cast<int>(text),
                     held_out ? tokens.subspan(held_out_from) : tokens.subspan(0, held_out_from),
                     size, min_size, random));
      }
      const size_t wanted = held_out ? options.tokens / kMixedHeldOutPart : options.tokens;
      TextWindow window;
      for (size_t tokens = 0, index; tokens < wanted;) {
        if (!DrawOne(sources, options.bos_id, window, index)) break;
        window.context = options.contexts[i];
        window.held_out = held_out;
        (held_out ? any_held_out : any_learned) = true;
        tokens += window.tokens.size() - bos_tokens;
        of_context.push_back(std::move(window));
      }
    }
    if (!any_learned || !any_held_out) continue;
    windows.insert(windows.end(), std::make_move_iterator(of_context.begin()),
                   std::make_move_iterator(of_context.end()));
  }
  if (windows.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "too little text: the longest file has ", LongestText(texts),
        " tokens, but one at least must have ",
        (kMinMixedWindowTokens - bos_tokens) * kMixedHeldOutShare,
        ", so that a fifth of it, held out, is longer than the ring of newest tokens"));
  }
  return windows;
}

}  // namespace whit
