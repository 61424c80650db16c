#include "runtime/ops/attention_plan.h"

#include <utility>

namespace whit {
namespace {

int DivideUp(int n, int by) { return (n + by - 1) / by; }

HeadJob MakeJob(const AttentionShape& shape, int layer, const AttentionSlice& slice, int kv_head) {
  HeadJob job = {.slice = &slice,
                 .kv_head = kv_head,
                 .group = shape.num_heads / shape.num_kv_heads,
                 .pages = slice.kv->pages(layer, kv_head),
                 .range_starts = {}};
  int tokens = 0;
  for (size_t i = 0; i < job.pages.size(); ++i) {
    if (i % kRangePages == 0) job.range_starts.push_back(tokens);
    tokens += job.pages[i].tokens;
  }
  job.range_starts.push_back(tokens);
  if (slice.tiles) job.query_tile = AmxAttention::kQueryTile;
  if (slice.tally != nullptr) {
    const int undecided = slice.tally->num_tokens(layer, kv_head);
    job.first_undecided_page =
        static_cast<int>(job.pages.size()) - static_cast<int>(PagesFor(undecided));
  }
  return job;
}

}  // namespace

AttentionPlan::AttentionPlan(const AttentionShape& shape, int layer,
                             absl::Span<const AttentionSlice> slices, int num_threads)
    : record_floats_(kRecordHeader + shape.head_dim) {
  jobs_.reserve(slices.size() * shape.num_kv_heads);
  for (const AttentionSlice& slice : slices) {
    for (int head = 0; head < shape.num_kv_heads; ++head) {
      jobs_.push_back(MakeJob(shape, layer, slice, head));
    }
  }
  // Few queries over long contexts are split by range as well; many are enough work by themselves.
  int work = 0;
  for (const HeadJob& job : jobs_) {
    work += job.slice->tiles ? 2 * DivideUp(job.num_queries(), AmxAttention::kMaxQueries)
                             : DivideUp(job.num_queries(), kQueryTile);
  }
  const bool split = work < 8 * num_threads;
  for (size_t job = 0; job < jobs_.size(); ++job) {
    first_items_.push_back(items_.size());
    AddItems(job, split);
  }
  first_items_.push_back(items_.size());
}

void AttentionPlan::AddItems(size_t index, bool split) {
  const HeadJob& job = jobs_[index];
  const bool tally = job.slice->tally != nullptr;
  int step = job.slice->tiles ? AmxAttention::kMaxQueries : kQueryTile;
  if (tally && !split) step = std::max(step, kItemQueriesWithTally);
  for (int query = 0; query < job.num_queries(); query += step) {
    const int count = std::min(step, job.num_queries() - query);
    const AttentionItem item = {
        .job = static_cast<int>(index), .first_query = query, .num_queries = count};
    const int ranges = job.NumRanges(job.Visible(query + count - 1));
    if (!split || ranges == 1) {
      items_.push_back(item);
      if (tally) scratch_floats_ += 3 * job.undecided_slots();
      continue;
    }
    for (int range = 0; range < ranges; ++range) {
      items_.push_back(item);
      items_.back().range = range;
      const size_t rows = item.NumRows(job);
      scratch_floats_ += rows * record_floats_;
      if (tally && range >= job.first_undecided_range()) scratch_floats_ += rows * kRowFloats;
    }
  }
}

void AttentionPlan::GiveMemory(float* scratch) {
  const auto take = [&](size_t floats) { return std::exchange(scratch, scratch + floats); };
  for (AttentionItem& item : items_) {
    const HeadJob& job = jobs_[item.job];
    const bool tally = job.slice->tally != nullptr;
    if (item.range == AttentionItem::kAllRanges) {
      if (tally) item.received = take(3 * job.undecided_slots());
      continue;
    }
    item.partials = take(item.NumRows(job) * record_floats_);
    if (tally && item.range >= job.first_undecided_range()) {
      item.p = reinterpret_cast<RangeProbabilities*>(take(item.NumRows(job) * kRowFloats));
    }
  }
}

}  // namespace whit
