// How much of the pool one request may come to need: what admission reserves for it. Pure
// functions.
//
// Bytes are footprints (PagePool::FootprintBytes), of which a pool can hold any mix up to
// PagePool::UsableBytes.
#ifndef WHIT_RUNTIME_ENGINE_KV_RESERVATION_H_
#define WHIT_RUNTIME_ENGINE_KV_RESERVATION_H_

#include <cstddef>
#include <cstdint>

#include "controller/precision_policy.h"
#include "kvpool/page_table.h"
#include "kvpool/rung.h"
#include "runtime/model/model_config.h"

namespace whit {

// On what terms a request holds its keys and values.
struct KvTerms {
  // No pressure squeezes its tokens below this rung. Its policy may decide on less by itself.
  Rung floor = Rung::kFp16;
  // The highest rung that its policy may give: nothing is elastic where that is the floor.
  Rung dearest = Rung::kFp16;
  // Rungs whose pages may each be part-filled, in a list.
  int open_pages = 1;
  // All pages, whatever tokens they hold, are at the floor.
  bool uniform = true;
  // Its policy decides on a token only after the forward pass that the token was in.
  bool decides_late = false;
  RecentRing ring{};

  bool elastic() const { return floor < dearest; }
};

// `floor` is the wanted one: it binds policies that give several rungs. The others (fp16, static)
// have their one rung for a floor. `ring` is how quantizing policies keep the newest and first
// tokens.
KvTerms TermsOf(const PrecisionPolicySpec& policy, Rung floor, const RecentRing& ring);

// The most tokens, of those behind the first page, that wait in a list's ring when the sequence has
// `tokens`; while the prompt runs, and behind it.
int64_t MaxRingTokensInPrompt(const KvTerms& terms, int64_t tokens);
int64_t MaxRingTokensInDecode(const KvTerms& terms, int64_t tokens);
// The most pages that `settled` tokens of a list take behind its first page, however they were
// decided: each rung's last page may hold a single token.
int64_t MaxSettledPages(const KvTerms& terms, int64_t settled);

// What a request of `tokens` in all, the prompt's among them, holds at most at any time, when its
// decided tokens are squeezed to the floor.
size_t ReservationBytes(const KvTerms& terms, const ModelConfig& model, int64_t prompt_tokens,
                        int64_t tokens);

// The longest sequence, in tokens, whose reservation is within `bytes` wherever its prompt ends.
int64_t TokensThatFit(const KvTerms& terms, const ModelConfig& model, size_t bytes);

}  // namespace whit

#endif  // WHIT_RUNTIME_ENGINE_KV_RESERVATION_H_
