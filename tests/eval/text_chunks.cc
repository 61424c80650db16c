#include "tests/eval/text_chunks.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "tests/eval/loaded_model.h"

namespace whit::eval {
namespace {

Sequence MakeChunk(absl::Span<const int32_t> tokens, const Tokenizer& tokenizer) {
  Sequence chunk;
  chunk.tokens.assign(tokens.begin(), tokens.end());
  if (tokenizer.add_bos()) {
    chunk.tokens.insert(chunk.tokens.begin(), tokenizer.bos_id());
    chunk.tokens.pop_back();
  }
  chunk.targets.assign(chunk.tokens.begin() + 1, chunk.tokens.end());
  chunk.targets.push_back(Sequence::kNotScored);
  return chunk;
}

// How many chunks to take of each text, given how many each has: alike, as far as they go.
std::vector<int64_t> ShareOut(const std::vector<int64_t>& available, int64_t wanted) {
  std::vector<int64_t> taken(available.size());
  for (bool any = true; any && wanted > 0;) {
    any = false;
    for (size_t i = 0; i < taken.size() && wanted > 0; ++i) {
      if (taken[i] == available[i]) continue;
      ++taken[i];
      --wanted;
      any = true;
    }
  }
  return taken;
}

}  // namespace

absl::StatusOr<std::vector<std::vector<int32_t>>> TokenizeFiles(absl::Span<const std::string> paths,
                                                                const Tokenizer& tokenizer) {
  std::vector<std::vector<int32_t>> texts;
  for (const std::string& path : paths) {
    const absl::StatusOr<std::string> text = ReadFile(path);
    if (!text.ok()) return text.status();
    absl::StatusOr<std::vector<int32_t>> ids = tokenizer.Encode(*text, /*parse_special=*/false);
    if (!ids.ok()) return Annotate(ids.status(), path);
    texts.push_back(*std::move(ids));
  }
  return texts;
}

absl::StatusOr<std::vector<Sequence>> CutChunks(absl::Span<const std::vector<int32_t>> texts,
                                                int context, int64_t tokens,
                                                const Tokenizer& tokenizer) {
  std::vector<int64_t> available;
  size_t longest = 0;
  for (const std::vector<int32_t>& text : texts) {
    available.push_back(static_cast<int64_t>(text.size()) / context);
    longest = std::max(longest, text.size());
  }
  const std::vector<int64_t> taken = ShareOut(available, (tokens + context - 1) / context);
  std::vector<Sequence> chunks;
  for (int64_t turn = 0; turn < *std::max_element(taken.begin(), taken.end()); ++turn) {
    for (size_t i = 0; i < texts.size(); ++i) {
      if (turn >= taken[i]) continue;
      // The middle of the turn's part of the text.
      const int64_t index = (2 * turn + 1) * available[i] / (2 * taken[i]);
      chunks.push_back(
          MakeChunk(absl::MakeConstSpan(texts[i]).subspan(index * context, context), tokenizer));
    }
  }
  if (chunks.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the longest text has ", longest, " tokens; a context of ", context, " needs as many"));
  }
  return chunks;
}

std::string_view FirstCharacters(std::string_view text, int64_t count) {
  size_t end = 0;
  for (; end < text.size(); ++end) {
    const bool starts_character = (static_cast<unsigned char>(text[end]) & 0xC0) != 0x80;
    if (starts_character && count-- == 0) break;
  }
  return text.substr(0, end);
}

}  // namespace whit::eval
