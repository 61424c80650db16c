#include "tests/eval/needle.h"

#include <algorithm>
#include <random>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace whit::eval {
namespace {

constexpr uint64_t kSeed = 6;
constexpr double kShallowest = 0.02, kDeepest = 0.95;  // of the text before the question

// A needle's parts as tokens.
struct Needle {
  std::vector<int32_t> statement, question, key;
};

bool IsBlank(std::string_view bytes) {
  return std::all_of(bytes.begin(), bytes.end(), [](char c) { return c == ' '; });
}

absl::StatusOr<Needle> MakeNeedle(int key, const Tokenizer& tokenizer) {
  const std::string said = absl::StrFormat(" The pass key is %06d.", key);
  const std::string asked = " What is the pass key? The pass key is";
  const auto statement =
      tokenizer.Encode(absl::StrCat(said, " Remember it.", said), /*parse_special=*/false);
  const auto question = tokenizer.Encode(asked, /*parse_special=*/false);
  const auto answered =
      tokenizer.Encode(absl::StrFormat("%s %06d", asked, key), /*parse_special=*/false);
  for (const auto* ids : {&statement, &question, &answered}) {
    if (!ids->ok()) return ids->status();
  }
  // A space that is a token of its own belongs to the question.
  size_t begin = std::min(question->size(), answered->size() - 1);
  while (begin + 1 < answered->size() && IsBlank(tokenizer.TokenBytes((*answered)[begin]))) ++begin;
  const auto split = answered->begin() + static_cast<std::ptrdiff_t>(begin);
  return Needle{.statement = *statement,
                .question = {answered->begin(), split},
                .key = {split, answered->end()}};
}

// In [0, 1): the same on every machine, which std's distributions are not.
double Uniform(std::mt19937_64& rng) { return static_cast<double>(rng() >> 11) * 0x1p-53; }

}  // namespace

absl::StatusOr<std::vector<ScoredItem>> MakeNeedles(absl::Span<const int32_t> text, int context,
                                                    int trials, const Tokenizer& tokenizer) {
  std::mt19937_64 rng(kSeed);
  std::vector<ScoredItem> items;
  for (int trial = 0; trial < trials; ++trial) {
    const absl::StatusOr<Needle> needle =
        MakeNeedle(static_cast<int>(Uniform(rng) * 1e6), tokenizer);
    if (!needle.ok()) return needle.status();
    const size_t bos = tokenizer.add_bos() ? 1 : 0;
    // The key's last token is predicted but not run.
    const size_t around =
        bos + needle->statement.size() + needle->question.size() + needle->key.size() - 1;
    if (around >= static_cast<size_t>(context)) {
      return absl::InvalidArgumentError(absl::StrCat("a context of ", context,
                                                     " has no room for the needle and its "
                                                     "question, which have ",
                                                     around, " tokens"));
    }
    const size_t filler = context - around;
    if (text.size() < filler) {
      return absl::InvalidArgumentError(absl::StrCat(
          "the text has ", text.size(), " tokens; a context of ", context, " needs ", filler));
    }
    const auto begin =
        static_cast<size_t>(Uniform(rng) * static_cast<double>(text.size() - filler + 1));
    // Depths are spread evenly over the trials.
    const double depth = kShallowest + (kDeepest - kShallowest) * (trial + Uniform(rng)) / trials;
    const auto cut = static_cast<size_t>(depth * static_cast<double>(filler));

    std::vector<int32_t> all;
    const auto append = [&all](absl::Span<const int32_t> tokens) {
      all.insert(all.end(), tokens.begin(), tokens.end());
    };
    if (bos != 0) all.push_back(tokenizer.bos_id());
    append(text.subspan(begin, cut));
    append(needle->statement);
    append(text.subspan(begin + cut, filler - cut));
    append(needle->question);
    append(needle->key);

    Sequence sequence = {.tokens = {all.begin(), all.end() - 1}};
    sequence.targets.assign(sequence.tokens.size(), Sequence::kNotScored);
    std::copy(needle->key.begin(), needle->key.end(),
              sequence.targets.end() - static_cast<std::ptrdiff_t>(needle->key.size()));
    items.push_back({.choices = {std::move(sequence)}});
  }
  return items;
}

}  // namespace whit::eval
