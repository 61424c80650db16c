// BytePairEncoder: merges the bytes of a word into tokens.
#ifndef WHIT_RUNTIME_TEXT_BYTE_PAIR_ENCODER_H_
#define WHIT_RUNTIME_TEXT_BYTE_PAIR_ENCODER_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/types/span.h"

namespace whit {

// Threads: any may encode, each with its own Scratch, once nothing is added any more.
class BytePairEncoder {
 public:
  BytePairEncoder() { byte_ids_.fill(kNoToken); }

  // The token of a single byte. A byte without one is left out before merging, as Hugging Face's
  // tokenizers does (SmolLM2 lacks some control characters).
  void SetByteToken(uint8_t byte, int32_t id) { byte_ids_[byte] = id; }
  // Adds the next merge, of lower priority than those before. A pair's first merge counts.
  void AddMerge(int32_t left, int32_t right, int32_t merged);
  void ReserveMerges(size_t count);

  struct Merge {
    int32_t left, right, merged;
  };
  // The highest priority first.
  absl::Span<const Merge> merges() const { return merges_; }

  // Memory that is reused from word to word.
  struct Scratch {
    struct Symbol {
      int32_t id;
      uint32_t previous, next;  // kNone at the ends
    };
    std::vector<Symbol> symbols;
    std::vector<uint64_t> queue;
  };

  // Appends the tokens of a word of fewer than 2^32 - 1 bytes. Always merges the pair of the
  // highest priority, the leftmost of equals, until none is left. O(n log n).
  void Encode(std::string_view word, Scratch& scratch, std::vector<int32_t>& ids) const;

 private:
  static constexpr int32_t kNoToken = -1;
  static constexpr uint32_t kNone = UINT32_MAX;

  void Enqueue(uint32_t left, uint32_t right, Scratch& scratch) const;

  std::array<int32_t, 256> byte_ids_;
  std::vector<Merge> merges_;                        // by rank: the highest priority first
  absl::flat_hash_map<uint64_t, uint32_t> rank_of_;  // by PairKey
};

}  // namespace whit

#endif  // WHIT_RUNTIME_TEXT_BYTE_PAIR_ENCODER_H_
