// ChatFormat: chat messages to prompt text, for the common template families.
#ifndef WHIT_RUNTIME_TEXT_CHAT_FORMAT_H_
#define WHIT_RUNTIME_TEXT_CHAT_FORMAT_H_

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "runtime/text/tokenizer.h"

namespace whit {

struct ChatMessage {
  std::string role;  // "system", "user", "assistant"
  std::string content;
};

// The family is recognised from the file's Jinja template; the template itself is never executed.
// Threads: immutable; any thread may call.
class ChatFormat {
 public:
  enum class Family { kChatMl, kLlama3, kGemma, kZephyr, kPlain };

  // What a template calls bos_token and eos_token.
  struct TemplateTokens {
    std::string bos, eos;
  };

  // For the tokenizer's template and tokens. A begin-of-text token that the tokenizer's user adds
  // anyway (Tokenizer::add_bos) is left out of the rendered text.
  static absl::StatusOr<ChatFormat> Recognise(const Tokenizer& tokenizer);
  // UNIMPLEMENTED for a template of no known family, or of one that does more than the family's
  // rendering can. An empty template is kPlain ("User: …").
  static absl::StatusOr<ChatFormat> Recognise(std::string_view chat_template,
                                              const TemplateTokens& tokens);

  Family family() const { return family_; }
  std::string_view name() const;  // "chatml", "llama3", "gemma", "zephyr", "plain"

  // The prompt that asks for the assistant's next message: what the template gives with
  // add_generation_prompt and without a date. Only the template's own words may become special
  // tokens; a message's content never does. INVALID_ARGUMENT for an unknown role, for no messages,
  // or for an order the family cannot express.
  absl::StatusOr<std::vector<TextSegment>> Render(absl::Span<const ChatMessage> messages) const;

 private:
  // What becomes of a system message that comes first.
  enum class SystemMessage {
    kTurn,        // a turn like others; default_system_, unless empty, stands in for none
    kAlwaysTurn,  // likewise, even if that is empty; the turn begins with system_preamble_
    kUserPrefix,  // it goes before the first user message, with system_separator_ between
    kRefused,
  };

  absl::Status RecogniseChatMl(std::string_view outline);
  absl::Status RecogniseLlama3(std::string_view outline);
  absl::Status RecogniseGemma(std::string_view outline);
  absl::Status RecogniseZephyr(std::string_view outline, std::string_view eos);

  void SetTurns(Family family, std::string_view turn_begin, std::string_view role_end,
                std::string_view turn_end, std::string_view generation_prompt);

  std::string_view RoleName(std::string_view role) const;
  absl::Status CheckMessages(absl::Span<const ChatMessage> messages) const;

  Family family_ = Family::kPlain;
  std::string begin_;  // before all else
  // A turn: turn_begin_, the role, role_end_, the content, turn_end_.
  std::string turn_begin_, role_end_, turn_end_;
  std::string generation_prompt_;
  bool trims_content_ = false;
  bool must_alternate_ = false;
  SystemMessage system_message_ = SystemMessage::kTurn;
  bool loses_lone_system_ = false;  // a system message that nothing follows would be left out
  std::string default_system_, system_preamble_, system_separator_;
};

}  // namespace whit

#endif  // WHIT_RUNTIME_TEXT_CHAT_FORMAT_H_
