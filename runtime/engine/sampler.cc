#include "runtime/engine/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "runtime/ops/logits.h"

namespace whit {
namespace {

// Elements that are compared with a bar at once, before any of them is looked at.
constexpr size_t kScanBlock = 64;

// Calls visit(i) for every x[i] that exceeds the bar, in order; visit may raise it. NaN never does.
template <typename Visit>
void ForEachAbove(absl::Span<const float> x, const float& bar, Visit visit) {
  for (size_t begin = 0; begin < x.size(); begin += kScanBlock) {
    const size_t end = std::min(x.size(), begin + kScanBlock);
    bool any = false;
    for (size_t i = begin; i < end; ++i) any |= x[i] > bar;
    if (!any) continue;
    for (size_t i = begin; i < end; ++i) {
      if (x[i] > bar) visit(i);
    }
  }
}

bool LowerId(const Candidate& a, const Candidate& b) { return a.id < b.id; }

double SumOfWeights(absl::Span<const Candidate> candidates) {
  double sum = 0;
  for (const Candidate& c : candidates) sum += c.weight;
  return sum;
}

// The last token of the shortest run of likeliest ones that weighs `mass` or more; the very last if
// all together weigh less. Reorders `candidates`, without sorting them: halves are weighed and
// only the one with the border in it is split further.
Candidate LastWithinMass(absl::Span<Candidate> candidates, double mass) {
  while (candidates.size() > 1) {
    const size_t half = candidates.size() / 2;
    std::nth_element(candidates.begin(), candidates.begin() + half, candidates.end(), Likelier);
    const double upper = SumOfWeights(candidates.first(half));
    if (upper >= mass) {
      candidates = candidates.first(half);
    } else {
      candidates = candidates.subspan(half);
      mass -= upper;
    }
  }
  return candidates[0];
}

// The first index at which the running sum of weights exceeds `target`, which is less than the sum
// of all. Rounding may leave the running sum short of that: then the last that weighs anything.
template <typename WeightAt>
size_t PickByWeight(size_t n, double target, WeightAt weight_at) {
  double sum = 0;
  size_t picked = 0;
  for (size_t i = 0; i < n && sum <= target; ++i) {
    const float weight = weight_at(i);
    if (weight > 0) picked = i;
    sum += weight;
  }
  return picked;
}

// SplitMix64 (Steele, Lea, Flood 2014) as a function of a counter: number `n` of the stream that
// `seed` names, uniform in [0, 1).
double UniformAt(uint64_t seed, uint64_t n) {
  const auto mix = [](uint64_t x) {
    x += 0x9E3779B97F4A7C15;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB;
    return x ^ (x >> 31);
  };
  return static_cast<double>(mix(mix(seed) + n * 0x9E3779B97F4A7C15) >> 11) * 0x1p-53;
}

}  // namespace

bool Likelier(const Candidate& a, const Candidate& b) {
  return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;
}

void SelectLikeliest(absl::Span<const float> logits, size_t k, std::vector<Candidate>& out) {
  out.clear();
  if (k == 0) return;
  // Collects what exceeds the k-th best seen so far; when that has grown to twice k, all but the
  // best k go and the bar rises. A token equal to the bar comes after the k in order of likelihood.
  const size_t room = 2 * std::max(k, kScanBlock);
  float bar = -std::numeric_limits<float>::infinity();
  const auto keep_best = [&] {
    std::nth_element(out.begin(), out.begin() + (k - 1), out.end(), Likelier);
    out.resize(k);
    bar = out[k - 1].logit;
  };
  ForEachAbove(logits, bar, [&](size_t i) {
    out.push_back({.logit = logits[i], .id = static_cast<int32_t>(i)});
    if (out.size() >= room) keep_best();
  });
  if (out.size() > k) keep_best();
}

namespace {

// Sets the weights of tokens that stand for the whole vocabulary.
void Weigh(float scale, std::vector<Candidate>& candidates, std::vector<float>& weights) {
  weights.resize(candidates.size());
  for (size_t i = 0; i < candidates.size(); ++i) weights[i] = candidates[i].logit;
  const size_t max = ArgMax(weights.data(), weights.size());
  ExpWeights(weights.data(), weights.size(), max, scale, weights.data());
  for (size_t i = 0; i < candidates.size(); ++i) candidates[i].weight = weights[i];
}

}  // namespace

// Each filter keeps the likeliest tokens down to some border, so what all of them keep does not
// depend on whether min_p comes before top_p, whose mass is that of all that top_k left.
void FilterCandidates(const SamplingParams& params, absl::Span<const float> logits,
                      SamplerScratch& scratch) {
  const size_t n = logits.size();
  const float scale = 1 / params.temperature;
  std::vector<Candidate>& kept = scratch.candidates;
  std::vector<float>& weights = scratch.weights;
  double total;
  if (params.top_k > 0 && static_cast<size_t>(params.top_k) < n) {
    SelectLikeliest(logits, params.top_k, kept);
    if (kept.empty()) kept.push_back({.logit = FiniteLogit(logits[0])});
    std::sort(kept.begin(), kept.end(), LowerId);
    Weigh(scale, kept, weights);
    total = SumOfWeights(kept);
    std::erase_if(kept, [&](const Candidate& c) { return c.weight < params.min_p; });
  } else {
    weights.resize(n);
    total = ExpWeights(logits.data(), n, ArgMax(logits.data(), n), scale, weights.data());
    // Tokens below (1 - top_p) / n cannot reach 1 - top_p together, so top_p keeps none of them;
    // half of that leaves room for rounding.
    const double floor = std::max<double>(params.min_p, (1 - params.top_p) * total / n / 2);
    const float bar = std::nextafter(static_cast<float>(floor), -1.0f);
    kept.clear();
    ForEachAbove(weights, bar, [&](size_t i) {
      kept.push_back(
          {.logit = FiniteLogit(logits[i]), .weight = weights[i], .id = static_cast<int32_t>(i)});
    });
  }
  if (params.top_p < 1) {
    scratch.selection = kept;
    const Candidate last = LastWithinMass(absl::MakeSpan(scratch.selection), params.top_p * total);
    std::erase_if(kept, [&](const Candidate& c) { return Likelier(last, c); });
  }
}

Sampler::Sampler(const SamplingParams& params, absl::Span<const int32_t> prompt)
    : params_(params), seed_(params.seed.value_or(0)) {
  if (!penalizes()) return;
  for (int32_t id : prompt) seen_.try_emplace(id);
}

bool Sampler::penalizes() const {
  return params_.repetition_penalty != 1 || params_.presence_penalty != 0 ||
         params_.frequency_penalty != 0;
}

bool Sampler::filters() const {
  return params_.top_k > 0 || params_.top_p < 1 || params_.min_p > 0;
}

int32_t Sampler::Next(absl::Span<const float> logits, SamplerScratch& scratch) {
  const absl::Span<const float> penalized = Penalize(logits, scratch);
  const int32_t id = params_.temperature == 0
                         ? static_cast<int32_t>(ArgMax(penalized.data(), penalized.size()))
                         : Draw(penalized, scratch);
  ++num_chosen_;
  if (penalizes()) ++seen_[id];
  return id;
}

absl::Span<const float> Sampler::Penalize(absl::Span<const float> logits,
                                          SamplerScratch& scratch) const {
  if (seen_.empty()) return logits;
  scratch.logits.assign(logits.begin(), logits.end());
  for (const auto& [id, times_generated] : seen_) {
    float& logit = scratch.logits[id];
    logit = logit > 0 ? logit / params_.repetition_penalty : logit * params_.repetition_penalty;
    if (times_generated == 0) continue;
    logit -=
        params_.presence_penalty + params_.frequency_penalty * static_cast<float>(times_generated);
  }
  return scratch.logits;
}

int32_t Sampler::Draw(absl::Span<const float> logits, SamplerScratch& scratch) const {
  const double uniform = UniformAt(seed_, num_chosen_);
  const size_t n = logits.size();
  if (filters()) {
    FilterCandidates(params_, logits, scratch);
    const std::vector<Candidate>& kept = scratch.candidates;
    return kept[PickByWeight(kept.size(), uniform * SumOfWeights(kept),
                             [&](size_t i) { return kept[i].weight; })]
        .id;
  }
  scratch.weights.resize(n);
  const double total = ExpWeights(logits.data(), n, ArgMax(logits.data(), n),
                                  1 / params_.temperature, scratch.weights.data());
  return static_cast<int32_t>(
      PickByWeight(n, uniform * total, [&](size_t i) { return scratch.weights[i]; }));
}

TokenOutput DescribeToken(absl::Span<const float> logits, int32_t id, int num_top,
                          SamplerScratch& scratch) {
  const size_t best = ArgMax(logits.data(), logits.size());
  const double log_sum = LogSumExp(logits.data(), logits.size(), best);
  const auto logprob = [&](int32_t token) {
    return static_cast<float>(FiniteLogit(logits[token]) - log_sum);
  };
  TokenOutput output;
  output.id = id;
  output.logprob = logprob(id);
  output.is_greedy = static_cast<size_t>(id) == best;
  if (num_top > 0) {
    SelectLikeliest(logits, num_top, scratch.candidates);
    std::sort(scratch.candidates.begin(), scratch.candidates.end(), Likelier);
    for (const Candidate& c : scratch.candidates) {
      output.top.push_back({.id = c.id, .logprob = logprob(c.id)});
    }
  }
  return output;
}

}  // namespace whit
