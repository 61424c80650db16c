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

PrefixIndex::Match PrefixIndex::Find(std::string_view kind, absl::Span<const int32_t> tokens) {
  const std::vector<uint64_t> hashes = BlockHashes(kind, tokens);
  for (size_t blocks = hashes.size(); blocks > 0; --blocks) {
    const auto it = by_prefix_.find(hashes[blocks - 1]);
    if (it == by_prefix_.end()) continue;
    if (!Holds(*it->second, kind, tokens.subspan(0, blocks * kBlock))) continue;
    entries_.splice(entries_.end(), entries_, it->second);
    return {.tokens = static_cast<int>(blocks * kBlock), .table = &it->second->table};
  }
  return {};
}

void PrefixIndex::Insert(std::string_view kind, absl::Span<const int32_t> tokens, PageTable table) {
  const size_t length = table.forkable_tokens();
  const absl::Span<const int32_t> prefix = tokens.subspan(0, std::min(length, tokens.size()));
  if (prefix.size() < kBlock || Find(kind, prefix).tokens == static_cast<int>(length)) return;
  // What is past the last fork point can serve nobody.
  entries_.push_back({.kind = std::string(kind),
                      .tokens = std::vector<int32_t>(prefix.begin(), prefix.end()),
                      .table = table.Fork(static_cast<int>(length))});
  for (uint64_t hash : BlockHashes(kind, prefix)) by_prefix_[hash] = std::prev(entries_.end());
  if (entries_.size() > max_tables_) EvictOldest();
}

bool PrefixIndex::EvictOldest() {
  if (entries_.empty()) return false;
  const auto oldest = entries_.begin();
  for (uint64_t hash : BlockHashes(oldest->kind, oldest->tokens)) {
    const auto it = by_prefix_.find(hash);
    if (it != by_prefix_.end() && it->second == oldest) by_prefix_.erase(it);
  }
  entries_.erase(oldest);
  return true;
}

std::vector<PageTable*> PrefixIndex::tables() {
  std::vector<PageTable*> tables;
  for (Entry& entry : entries_) tables.push_back(&entry.table);
  return tables;
}

}  // namespace whit
