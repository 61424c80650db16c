// PrefixIndex: tables of finished sequences, kept so that a new prompt with the same beginning need
// not be computed again.
#ifndef WHIT_KVPOOL_PREFIX_INDEX_H_
#define WHIT_KVPOOL_PREFIX_INDEX_H_

#include <cstddef>
#include <cstdint>
#include <list>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/types/span.h"
#include "kvpool/page_table.h"

namespace whit {

// Prefixes are found by hash, block of PageTable::kForkTokens by block, and then compared token by
// token: a hit is never a collision. Only tables of the same kind (precision policy and ring)
// match.
//
// Threads: the pool owner's.
class PrefixIndex {
 public:
  explicit PrefixIndex(size_t max_tables) : max_tables_(max_tables) {}

  struct Match {
    int tokens = 0;                    // a multiple of PageTable::kForkTokens; 0: nothing found
    const PageTable* table = nullptr;  // valid until the index changes
  };
  // The longest known prefix of `tokens` among tables of this kind.
  Match Find(std::string_view kind, absl::Span<const int32_t> tokens);

  // Keeps as much of a table as begins with these tokens, as the most recently used one. Dropped
  // are a table that adds nothing to what is known, one that the new one goes on from, and the
  // oldest one beyond max_tables.
  void Insert(std::string_view kind, absl::Span<const int32_t> tokens, PageTable table);

  // Drops the least recently used table; false if there is none.
  bool EvictOldest();

  size_t num_tables() const { return entries_.size(); }
  // For passes over all tables, oldest first.
  std::vector<PageTable*> tables();

 private:
  struct Entry {
    std::string kind;
    std::vector<int32_t> tokens;  // as many as a fork can begin with
    PageTable table;
  };
  using Entries = std::list<Entry>;  // least recently used first

  // The entry of Find's match; its end if there is none.
  Entries::iterator FindEntry(std::string_view kind, absl::Span<const int32_t> tokens,
                              size_t* num_tokens);
  void Erase(Entries::iterator entry);

  // hashes[n] names the kind and the first n + 1 blocks.
  static std::vector<uint64_t> BlockHashes(std::string_view kind, absl::Span<const int32_t> tokens);
  static bool Holds(const Entry& entry, std::string_view kind, absl::Span<const int32_t> prefix);

  const size_t max_tables_;
  Entries entries_;
  absl::flat_hash_map<uint64_t, Entries::iterator> by_prefix_;
};

}  // namespace whit

#endif  // WHIT_KVPOOL_PREFIX_INDEX_H_
