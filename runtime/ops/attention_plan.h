// How the work of one attention call is divided: into items, each of which one thread does.
#ifndef WHIT_RUNTIME_OPS_ATTENTION_PLAN_H_
#define WHIT_RUNTIME_OPS_ATTENTION_PLAN_H_

#include <algorithm>
#include <cstddef>
#include <vector>

#include "absl/types/span.h"
#include "runtime/ops/amx_attention.h"
#include "runtime/ops/attention.h"
#include "runtime/ops/attention_range.h"

namespace whit {

// Queries of an item: where there is a tally, more of them make less to add up.
inline constexpr int kItemQueriesWithTally = 8 * kQueryTile;
inline constexpr int kMaxItemQueries = std::max(kItemQueriesWithTally, AmxAttention::kMaxQueries);

// Of a RangeProbabilities in scratch memory.
inline constexpr size_t kRowFloats = sizeof(RangeProbabilities) / sizeof(float);

// One KV head of one slice; its queries are numbered row by row, heads of the GQA group together.
struct HeadJob {
  const AttentionSlice* slice;
  int kv_head;
  int group;  // query heads of the KV head
  absl::Span<const PageEntry> pages;
  std::vector<int> range_starts;  // tokens before each range, and the number of tokens in all
  // If the slice has a tally: pages from here on have undecided tokens, 16 a page but the last.
  int first_undecided_page = 0;
  int query_tile = kQueryTile;  // queries that share a pass over a range

  int num_queries() const { return slice->num_tokens * group; }
  // Of the table's tokens.
  int Visible(int query) const { return slice->first_position + query / group + 1; }
  absl::Span<const PageEntry> PagesOf(int range) const {
    return pages.subspan(size_t{1} * range * kRangePages, kRangePages);
  }
  // Ranges that hold one of the first `visible` tokens.
  int NumRanges(int visible) const {
    const auto end = range_starts.end() - 1;
    return static_cast<int>(std::lower_bound(range_starts.begin(), end, visible) -
                            range_starts.begin());
  }
  int first_undecided_range() const { return first_undecided_page / kRangePages; }
  size_t undecided_slots() const { return (pages.size() - first_undecided_page) * kTileTokens; }
};

// What a thread works on at a time: a few tiles of queries against all of a job's pages or, where
// there are few queries, against one range.
struct AttentionItem {
  static constexpr int kAllRanges = -1;

  int job;
  int first_query;
  int num_queries;
  int range = kAllRanges;
  // In scratch memory. Of all ranges, if the slice has a tally: sum, squares and recent of each
  // undecided slot, from these queries alone. They are added up in order, whatever thread was
  // first.
  float* received = nullptr;
  // Of one range: records of a partial for each query; and its p, if it has undecided tokens.
  float* partials = nullptr;
  RangeProbabilities* p = nullptr;

  // For its queries: kernels write whole tiles.
  size_t NumRows(const HeadJob& job) const {
    return size_t{1} * (num_queries + job.query_tile - 1) / job.query_tile * job.query_tile;
  }
};

class AttentionPlan {
 public:
  AttentionPlan(const AttentionShape& shape, int layer, absl::Span<const AttentionSlice> slices,
                int num_threads);

  // What the items need, and where they get it.
  size_t scratch_floats() const { return scratch_floats_; }
  void GiveMemory(float* scratch);

  absl::Span<const HeadJob> jobs() const { return jobs_; }
  // Job by job; those of the same queries follow each other.
  absl::Span<const AttentionItem> items() const { return items_; }
  absl::Span<const AttentionItem> ItemsOf(size_t job) const {
    return items().subspan(first_items_[job], first_items_[job + 1] - first_items_[job]);
  }
  // A partial in scratch memory: max, sum, squares, and at kRecordHeader its values.
  size_t record_floats() const { return record_floats_; }
  static constexpr size_t kRecordHeader = 16;

 private:
  // Appends the items of a job and counts the floats that they need.
  void AddItems(size_t job, bool split);

  const size_t record_floats_;
  size_t scratch_floats_ = 0;
  std::vector<HeadJob> jobs_;
  std::vector<AttentionItem> items_;
  std::vector<size_t> first_items_;  // of each job, and the number of items
};

}  // namespace whit

#endif  // WHIT_RUNTIME_OPS_ATTENTION_PLAN_H_
