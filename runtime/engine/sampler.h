// Sampler: chooses the next token of one sequence from a row of logits.
#ifndef WHIT_RUNTIME_ENGINE_SAMPLER_H_
#define WHIT_RUNTIME_ENGINE_SAMPLER_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/types/span.h"
#include "runtime/engine/request.h"

namespace whit {

// A token that may be chosen. In order of likelihood, ties go to the lower id.
struct Candidate {
  float logit = 0;
  float weight = 0;  // probability, up to a factor common to all
  int32_t id = 0;
};
bool Likelier(const Candidate& a, const Candidate& b);

// The k likeliest tokens (fewer if k exceeds the number of logits above -inf), in no order; weights
// are not set. Reads the row once and sorts nothing.
void SelectLikeliest(absl::Span<const float> logits, size_t k, std::vector<Candidate>& out);

// Memory that a thread keeps between calls.
struct SamplerScratch {
  std::vector<float> logits;
  std::vector<float> weights;
  std::vector<Candidate> candidates;
  std::vector<Candidate> selection;
};

// scratch.candidates = the tokens that top_k, top_p and min_p leave of softmax(logits /
// temperature), by id, with their weights. At least one; temperature > 0.
void FilterCandidates(const SamplingParams& params, absl::Span<const float> logits,
                      SamplerScratch& scratch);

// Applies, in this order: repetition, presence and frequency penalties; temperature; top_k; top_p
// of what top_k left; min_p; then draws. Temperature 0 takes the likeliest after penalties.
//
// The random number of a draw depends on the seed and on how many tokens were chosen before, on
// nothing else: same seed and same logits, same tokens, on any platform.
//
// Threads: one at a time.
class Sampler {
 public:
  // `prompt` counts as seen for the repetition penalty. Without a seed in `params` it is 0.
  Sampler(const SamplingParams& params, absl::Span<const int32_t> prompt);

  int32_t Next(absl::Span<const float> logits, SamplerScratch& scratch);

 private:
  bool penalizes() const;
  bool filters() const;
  // The logits themselves, or scratch.logits.
  absl::Span<const float> Penalize(absl::Span<const float> logits, SamplerScratch& scratch) const;
  int32_t Draw(absl::Span<const float> logits, SamplerScratch& scratch) const;

  const SamplingParams params_;
  const uint64_t seed_;
  uint64_t num_chosen_ = 0;
  // Tokens seen, and how often each was generated. Kept only if there are penalties.
  absl::flat_hash_map<int32_t, int> seen_;
};

// The log-probability of token `id` in the model's own distribution, before penalties, temperature
// and filters; whether it is the likeliest; and the `num_top` likeliest with theirs, best first.
TokenOutput DescribeToken(absl::Span<const float> logits, int32_t id, int num_top,
                          SamplerScratch& scratch);

}  // namespace whit

#endif  // WHIT_RUNTIME_ENGINE_SAMPLER_H_
