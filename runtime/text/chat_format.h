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
class ChatFormat {
 public:
  enum class Family { kChatMl, kLlama3, kGemma, kZephyr, kPlain };

  // UNIMPLEMENTED for a template of no known family. An empty template is kPlain ("User: …").
  static absl::StatusOr<ChatFormat> Recognise(std::string_view chat_template);

  Family family() const { return family_; }
  std::string_view name() const;  // "chatml", "llama3", "gemma", "zephyr", "plain"

  // The prompt that asks for the assistant's next message. Only the template's own words may become
  // special tokens; a message's content never does. INVALID_ARGUMENT for an unknown role, for no
  // messages, or for an order the family cannot express.
  absl::StatusOr<std::vector<TextSegment>> Render(absl::Span<const ChatMessage> messages) const;

 private:
  Family family_ = Family::kPlain;
  std::string default_system_;  // what the template says when no system message is given
};

}  // namespace whit

#endif  // WHIT_RUNTIME_TEXT_CHAT_FORMAT_H_
