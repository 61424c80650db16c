#include "runtime/text/byte_pair_encoder.h"

#include <algorithm>
#include <functional>

namespace whit {
namespace {

uint64_t PairKey(int32_t left, int32_t right) {
  return uint64_t{static_cast<uint32_t>(left)} << 32 | static_cast<uint32_t>(right);
}

}  // namespace

void BytePairEncoder::AddMerge(int32_t left, int32_t right, int32_t merged) {
  const auto rank = static_cast<uint32_t>(merges_.size());
  if (rank_of_.emplace(PairKey(left, right), rank).second) merges_.push_back({left, right, merged});
}

void BytePairEncoder::ReserveMerges(size_t count) {
  merges_.reserve(count);
  rank_of_.reserve(count);
}

// A candidate is its rank and where its left symbol is, so that the smallest is the next to merge.
void BytePairEncoder::Enqueue(uint32_t left, uint32_t right, Scratch& scratch) const {
  const auto rank = rank_of_.find(PairKey(scratch.symbols[left].id, scratch.symbols[right].id));
  if (rank == rank_of_.end()) return;
  scratch.queue.push_back(uint64_t{rank->second} << 32 | left);
  std::push_heap(scratch.queue.begin(), scratch.queue.end(), std::greater<>());
}

void BytePairEncoder::Encode(std::string_view word, Scratch& scratch,
                             std::vector<int32_t>& ids) const {
  auto& symbols = scratch.symbols;
  auto& queue = scratch.queue;
  symbols.clear();
  queue.clear();
  for (char byte : word) {
    const int32_t id = byte_ids_[static_cast<uint8_t>(byte)];
    if (id == kNoToken) continue;
    const auto i = static_cast<uint32_t>(symbols.size());
    symbols.push_back({id, i - 1, i + 1});  // before the first is kNone
    if (i > 0) Enqueue(i - 1, i, scratch);
  }
  if (symbols.empty()) return;
  symbols.back().next = kNone;

  while (!queue.empty()) {
    std::pop_heap(queue.begin(), queue.end(), std::greater<>());
    const Merge& merge = merges_[queue.back() >> 32];
    const auto left_index = static_cast<uint32_t>(queue.back());
    queue.pop_back();

    // A candidate is stale once either of its symbols has been merged: the one that was swallowed
    // has no token any more, the one that grew has another.
    Scratch::Symbol& left = symbols[left_index];
    if (left.id != merge.left || left.next == kNone) continue;
    Scratch::Symbol& right = symbols[left.next];
    if (right.id != merge.right) continue;

    left.id = merge.merged;
    left.next = right.next;
    right.id = kNoToken;
    if (left.next != kNone) {
      symbols[left.next].previous = left_index;
      Enqueue(left_index, left.next, scratch);
    }
    if (left.previous != kNone) Enqueue(left.previous, left_index, scratch);
  }

  for (uint32_t i = 0; i != kNone; i = symbols[i].next) ids.push_back(symbols[i].id);
}

}  // namespace whit
