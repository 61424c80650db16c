#include "kvpool/prefix_index.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "absl/hash/hash.h"

namespace whit {

namespace {
constexpr size_t kBlock = PageTable::kForkTokens;
}  // namespace

std::vector<uint64_t> PrefixIndex::BlockHashes(std::string_view kind,
                                               absl::Span<const int32_t> tokens) {
  std::vector<uint64_t> hashes;
  uint64_t hash = absl::HashOf(std::string(kind));
  for (size_t begin = 0; begin + kBlock <= tokens.size(); begin += kBlock) {
    hash = absl::HashOf(hash, tokens.subspan(begin, kBlock));
    hashes.push_back(hash);
  }
  return hashes;
}

bool PrefixIndex::Holds(const Entry& entry, std::string_view kind,
                        absl::Span<const int32_t> prefix) {
  return entry.kind == kind && entry.tokens.size() >= prefix.size() &&
         std::equal(prefix.begin(), prefix.end(), entry.tokens.begin());
}

PrefixIndex::Entries::iterator PrefixIndex::FindEntry(std::string_view kind,
                                                      absl::Span<const int32_t> tokens,
                                                      size_t* num_tokens) {
  const std::vector<uint64_t> hashes = BlockHashes(kind, tokens);
  for (size_t blocks = hashes.size(); blocks > 0; --blocks) {
    const auto it = by_prefix_.find(hashes[blocks - 1]);
    if (it == by_prefix_.end()) continue;
    *num_tokens = blocks * kBlock;
    if (!Holds(*it->second, kind, tokens.subspan(0, *num_tokens))) continue;
    entries_.splice(entries_.end(), entries_, it->second);
    return it->second;
  }
  *num_tokens = 0;
  return entries_.end();
}

PrefixIndex::Match PrefixIndex::Find(std::string_view kind, absl::Span<const int32_t> tokens) {
  size_t num_tokens = 0;
  const auto entry = FindEntry(kind, tokens, &num_tokens);
  if (num_tokens == 0) return {};
  return {.tokens = static_cast<int>(num_tokens), .table = &entry->table};
}

void PrefixIndex::Insert(std::string_view kind, absl::Span<const int32_t> tokens, PageTable table) {
  // What is past the last fork point can serve nobody.
  const size_t length = std::min<size_t>(table.forkable_tokens(), tokens.size() / kBlock * kBlock);
  const absl::Span<const int32_t> prefix = tokens.subspan(0, length);
  size_t known = 0;
  const auto beginning = FindEntry(kind, prefix, &known);
  if (known == length) return;  // also if both are 0
  entries_.push_back({.kind = std::string(kind),
                      .tokens = std::vector<int32_t>(prefix.begin(), prefix.end()),
                      .table = table.Fork(static_cast<int>(length), Holder::kCache)});
  for (uint64_t hash : BlockHashes(kind, prefix)) by_prefix_[hash] = std::prev(entries_.end());
  if (known > 0 && beginning->tokens.size() == known) Erase(beginning);
  if (entries_.size() > max_tables_) EvictOldest();
}

bool PrefixIndex::EvictOldest() {
  if (entries_.empty()) return false;
  Erase(entries_.begin());
  return true;
}

void PrefixIndex::Erase(Entries::iterator entry) {
  for (uint64_t hash : BlockHashes(entry->kind, entry->tokens)) {
    const auto it = by_prefix_.find(hash);
    if (it != by_prefix_.end() && it->second == entry) by_prefix_.erase(it);
  }
  entries_.erase(entry);
}

std::vector<PageTable*> PrefixIndex::tables() {
  std::vector<PageTable*> tables;
  for (Entry& entry : entries_) tables.push_back(&entry.table);
  return tables;
}

}  // namespace whit
