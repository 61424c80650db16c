// What is done with the text part of a model file, and then with text, on arbitrary bytes: the
// bytes are the file, and they are also what is tokenized, streamed and taken for a chat template.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/model/gguf.h"
#include "runtime/text/chat_format.h"
#include "runtime/text/stop_matcher.h"
#include "runtime/text/tokenizer.h"
#include "runtime/text/utf8.h"

namespace whit {
namespace {

void Check(bool holds) {
  if (!holds) std::abort();
}

// Pieces of 1, 2, 3, … bytes and the rest.
std::vector<std::string_view> Cut(std::string_view bytes) {
  std::vector<std::string_view> pieces;
  for (size_t size = 1; !bytes.empty(); ++size) {
    pieces.push_back(bytes.substr(0, size));
    bytes.remove_prefix(pieces.back().size());
  }
  return pieces;
}

std::string Decode(const std::vector<std::string_view>& pieces) {
  Utf8Stream stream;
  std::string text;
  for (std::string_view piece : pieces) text += stream.Push(piece);
  return text + stream.Flush();
}

// What is shown, and "|" if it stopped.
std::string Match(const std::vector<std::string>& stops,
                  const std::vector<std::string_view>& pieces) {
  StopMatcher matcher(stops);
  std::string text;
  for (std::string_view piece : pieces) {
    const StopMatcher::Result result = matcher.Push(piece);
    text += result.text;
    if (result.stopped) return text + "|";
  }
  return text + matcher.Flush();
}

void TestStreams(std::string_view bytes) {
  const std::string text = Decode({bytes});
  Check(text == Decode(Cut(bytes)));
  Check(FindInvalidUtf8(text) == std::string_view::npos);
  Check((text == bytes) == (FindInvalidUtf8(bytes) == std::string_view::npos));

  if (bytes.size() < 8) return;
  const std::vector<std::string> stops = {std::string(bytes.substr(0, bytes[0] & 3)),
                                          std::string(bytes.substr(4, bytes[1] & 3)), "\n\n"};
  const std::string_view rest = bytes.substr(2);
  Check(Match(stops, {rest}) == Match(stops, Cut(rest)));
}

void TestChatTemplate(std::string_view chat_template) {
  const auto format = ChatFormat::Recognise(chat_template, {.bos = "<s>", .eos = "</s>"});
  if (!format.ok()) return;
  (void)format->Render(std::vector<ChatMessage>{{"system", " s "}, {"user", " u "}});
}

void TestTokenizer(const Tokenizer& tokenizer, const std::string& text) {
  for (bool parse_special : {false, true}) {
    const auto ids = tokenizer.Encode(text, parse_special);
    if (!ids.ok()) continue;
    for (int32_t id : *ids) {
      Check(id >= 0 && id < tokenizer.vocab_size());
      (void)tokenizer.TokenBytes(id);
    }
  }
  for (int32_t id : tokenizer.end_of_generation_ids()) Check(tokenizer.IsEndOfGeneration(id));
  const auto format = ChatFormat::Recognise(tokenizer);
  if (!format.ok()) return;
  const auto segments = format->Render(std::vector<ChatMessage>{{"user", text}});
  if (segments.ok()) (void)tokenizer.EncodeSegments(*segments);
}

}  // namespace
}  // namespace whit

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  whit::TestStreams(bytes);
  whit::TestChatTemplate(bytes);
  const auto file =
      whit::GgufFile::Parse(absl::MakeConstSpan(reinterpret_cast<const std::byte*>(data), size));
  if (!file.ok()) return 0;
  const auto tokenizer = whit::Tokenizer::Create(**file);
  if (tokenizer.ok()) whit::TestTokenizer(**tokenizer, whit::Utf8Stream().Push(bytes));
  return 0;
}
