// whit_tokenize_lines MODEL.gguf: tokenizes what it reads, for comparison with other
// implementations. whit_tokenize_lines --tokenizer-json MODEL.gguf: writes the model's
// tokenizer.json.
//
// Standard input: JSON objects, one a line: {"text": "…", "parse_special": false}.
// Standard output, one line for each: {"token_ids": […], "text": "…"}, the ids turned back to text.
#include <cstdint>
#include <iostream>
#include <string>
#include <string_view>

#include "nlohmann/json.hpp"
#include "runtime/model/gguf.h"
#include "runtime/text/tokenizer.h"
#include "runtime/text/tokenizer_json.h"
#include "runtime/text/utf8.h"

namespace {

int Fail(const std::string& message) {
  std::cerr << "whit_tokenize_lines: " << message << "\n";
  return 1;
}

}  // namespace

int main(int argc, char** argv) {
  const bool exports = argc == 3 && std::string_view(argv[1]) == "--tokenizer-json";
  if (argc != 2 && !exports) {
    return Fail("usage: whit_tokenize_lines [--tokenizer-json] MODEL.gguf");
  }
  const auto file = whit::GgufFile::Open(argv[argc - 1]);
  if (!file.ok()) return Fail(file.status().ToString());
  const auto tokenizer = whit::Tokenizer::Create(**file);
  if (!tokenizer.ok()) return Fail(tokenizer.status().ToString());
  if (exports) {
    std::cout << whit::ToTokenizerJson(**tokenizer);
    return 0;
  }

  std::ios::sync_with_stdio(false);
  for (std::string line; std::getline(std::cin, line);) {
    const auto request = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (!request.is_object() || !request.contains("text") || !request["text"].is_string()) {
      return Fail("not a request: " + line);
    }
    const auto ids = (*tokenizer)
                         ->Encode(request["text"].get_ref<const std::string&>(),
                                  request.value("parse_special", false));
    if (!ids.ok()) return Fail(ids.status().ToString());
    whit::Utf8Stream stream;
    std::string text;
    for (int32_t id : *ids) text += stream.Push((*tokenizer)->TokenBytes(id));
    text += stream.Flush();
    std::cout << nlohmann::json{{"token_ids", *ids}, {"text", text}}.dump() << "\n";
  }
}
