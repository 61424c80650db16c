#include "controller/calibrate/calibration_text.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <random>
#include <sstream>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"
#include "runtime/text/chat_format.h"

namespace whit {
namespace {

// Of each text's windows, the first is learned from, the second is held out.
constexpr int kHeldOutPeriod = 8, kFirstHeldOut = 1;

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

// A text's windows in the order in which they are drawn.
std::vector<absl::Span<const int32_t>> ShuffledWindows(absl::Span<const int32_t> tokens,
                                                       size_t size, std::mt19937_64& rng) {
  std::vector<absl::Span<const int32_t>> windows;
  while (tokens.size() >= kMinWindowTokens) {
    windows.push_back(tokens.subspan(0, size));
    tokens.remove_prefix(windows.back().size());
  }
  // std::shuffle's draws are not the same in every standard library.
  for (size_t i = windows.size(); i > 1; --i) std::swap(windows[i - 1], windows[rng() % i]);
  return windows;
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
  struct Source {
    std::vector<absl::Span<const int32_t>> windows;
    size_t drawn = 0;         // windows
    size_t drawn_tokens = 0;  // in them
  };
  const size_t bos_tokens = options.bos_id < 0 ? 0 : 1;
  std::mt19937_64 rng(options.seed);
  std::vector<Source> sources;
  size_t longest = 0;
  for (const CalibrationText& text : texts) {
    sources.push_back({.windows = ShuffledWindows(text.tokens, options.context - bos_tokens, rng)});
    longest = std::max(longest, text.tokens.size());
  }

  std::vector<TextWindow> windows;
  bool any_held_out = false;
  for (size_t tokens = 0; tokens < static_cast<size_t>(options.tokens) || !any_held_out;) {
    // The text that has given least, of those that have more to give.
    Source* source = nullptr;
    for (Source& candidate : sources) {
      if (candidate.drawn == candidate.windows.size()) continue;
      if (source == nullptr || candidate.drawn_tokens < source->drawn_tokens) source = &candidate;
    }
    if (source == nullptr) break;
    TextWindow window = {.text = static_cast<int>(source - sources.data()),
                         .tokens = std::vector<int32_t>(bos_tokens, options.bos_id),
                         .held_out = source->drawn % kHeldOutPeriod == kFirstHeldOut};
    const absl::Span<const int32_t> drawn = source->windows[source->drawn++];
    window.tokens.insert(window.tokens.end(), drawn.begin(), drawn.end());
    any_held_out |= window.held_out;
    source->drawn_tokens += drawn.size();
    tokens += drawn.size();
    windows.push_back(std::move(window));
  }
  if (!any_held_out) {
    return absl::InvalidArgumentError(absl::StrCat(
        "too little text: the longest file has ", longest, " tokens, but one at least must have ",
        options.context - bos_tokens + kMinWindowTokens, ", to learn from a window of ",
        options.context, " and to hold out another"));
  }
  return windows;
}

}  // namespace whit
