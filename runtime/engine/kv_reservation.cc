#include "runtime/engine/kv_reservation.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "kvpool/page_pool.h"
#include "runtime/model/model.h"

namespace whit {
namespace {

using Kind = PrecisionPolicySpec::Kind;

int64_t RingTokens(const KvTerms& terms, int64_t tokens) {
  return terms.ring.tokens_at(
      static_cast<int>(std::min<int64_t>(tokens, std::numeric_limits<int>::max())));
}

// Of one (layer, KV head).
size_t ListBytes(const KvTerms& terms, int head_dim, int64_t tokens, int64_t ring_tokens) {
  const auto footprint = [&](Rung rung) { return PagePool::FootprintBytes(rung, head_dim); };
  if (terms.uniform) return PagesFor(tokens) * footprint(terms.floor);
  const int64_t behind_sink = std::max<int64_t>(tokens - kTileTokens, 0);
  const int64_t settled = std::max<int64_t>(behind_sink - RingTokens(terms, tokens), 0);
  return footprint(terms.ring.sink_rung) +
         PagesFor(std::min(behind_sink, ring_tokens)) * footprint(terms.ring.rung) +
         MaxSettledPages(terms, settled) * footprint(terms.floor);
}

}  // namespace

KvTerms TermsOf(const PrecisionPolicySpec& policy, Rung floor, const RecentRing& ring) {
  const std::vector<Rung> rungs = PossibleRungs(policy);
  KvTerms terms = {.floor = rungs.size() == 1 ? rungs.back() : std::min(floor, rungs.back()),
                   .dearest = rungs.back(),
                   .decides_late = policy.kind == Kind::kRule || policy.kind == Kind::kLearned,
                   .ring = RingOf(policy, ring)};
  terms.uniform =
      rungs.size() == 1 && terms.ring.rung == terms.floor && terms.ring.sink_rung == terms.floor;
  // Under pressure any rung between the floor and the dearest may be given in place of a higher
  // one.
  terms.open_pages = 0;
  for (int i = 0; i < kNumRungs; ++i) {
    const auto rung = static_cast<Rung>(i);
    const bool possible = std::find(rungs.begin(), rungs.end(), rung) != rungs.end();
    if (possible || (rung >= terms.floor && rung < terms.dearest)) ++terms.open_pages;
  }
  return terms;
}

int64_t MaxRingTokensInPrompt(const KvTerms& terms, int64_t tokens) {
  // Tokens leave when a block of the prompt is complete; where decisions are late, when the pass
  // after theirs has got through its first block.
  const int64_t waiting =
      terms.decides_late ? int64_t{2} * Model::kMaxForwardTokens : Model::kPrefillBlock;
  return RingTokens(terms, tokens) + kTileTokens - 1 + waiting;
}

int64_t MaxRingTokensInDecode(const KvTerms& terms, int64_t tokens) {
  return RingTokens(terms, tokens) + kTileTokens + (terms.decides_late ? 1 : 0);
}

int64_t MaxSettledPages(const KvTerms& terms, int64_t settled) {
  return settled == 0 ? 0 : (settled + (kTileTokens - 1) * terms.open_pages) / kTileTokens;
}

size_t ReservationBytes(const KvTerms& terms, const ModelConfig& model, int64_t prompt_tokens,
                        int64_t tokens) {
  // The first token behind the prompt finds what the prompt's last pass has left in the ring.
  const int64_t prompt = std::min(tokens, prompt_tokens + 1);
  const size_t list_bytes =
      std::max(ListBytes(terms, model.head_dim, prompt, MaxRingTokensInPrompt(terms, prompt)),
               ListBytes(terms, model.head_dim, tokens, MaxRingTokensInDecode(terms, tokens)));
  return size_t{1} * model.num_layers * model.num_kv_heads * list_bytes;
}

int64_t TokensThatFit(const KvTerms& terms, const ModelConfig& model, size_t bytes) {
  // By whole pages: the most that a list can have is all of its bytes at the lowest rung.
  const size_t lists = size_t{1} * model.num_layers * model.num_kv_heads;
  int64_t fits = 0;
  int64_t too_many =
      static_cast<int64_t>(bytes / lists / PageBytes(Rung::kK2V2, model.head_dim)) + 1;
  while (fits + 1 < too_many) {
    const int64_t pages = fits + (too_many - fits) / 2;
    const int64_t tokens = pages * kTileTokens;
    const bool fit = ReservationBytes(terms, model, tokens, tokens) <= bytes;
    (fit ? fits : too_many) = pages;
  }
  return fits * kTileTokens;
}

}  // namespace whit
