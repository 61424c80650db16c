#include "runtime/ops/attention.h"

#include <algorithm>
#include <cmath>

#include "kvpool/quantizer.h"
#include "runtime/ops/attention_plan.h"
#include "runtime/ops/attention_range.h"

namespace whit {
namespace {

// Of scratch memory, for jobs to be finished by one thread.
constexpr size_t kFewFloats = 8192;

void StorePartial(const Partial& partial, float* record) {
  record[0] = partial.max;
  record[1] = partial.sum;
  record[2] = partial.squares;
}
Partial LoadPartial(float* record) {
  return {.max = record[0],
          .sum = record[1],
          .squares = record[2],
          .values = record + AttentionPlan::kRecordHeader};
}

class Attender {
 public:
  Attender(const AttentionShape& shape, int layer, const AttentionQueries& queries,
           absl::Span<const AttentionSlice> slices, ThreadPool& pool);

  void Run(AttentionScratch& scratch);

 private:
  const HeadJob& JobOf(const AttentionItem& item) const { return plan_.jobs()[item.job]; }
  // The first of an item's queries that sees something of a range, or num_queries.
  int FirstToSee(const AttentionItem& item, int range) const {
    const HeadJob& job = JobOf(item);
    const int query = (job.range_starts[range] - job.slice->first_position) * job.group;
    return std::clamp(query - item.first_query, 0, item.num_queries);
  }

  AttentionQueries::View ViewQuery(const HeadJob& job, int query) const {
    return queries_.view(job.slice->first_row + query / job.group,
                         job.kv_head * job.group + query % job.group);
  }
  // Called before the ranges of an item.
  void SetQueries(const AttentionItem& item, AttentionScratch::Thread& thread) const;
  void RunAllRanges(const AttentionItem& item, AttentionScratch::Thread& thread) const;
  void RunOneRange(size_t item, size_t likely_next, AttentionScratch::Thread& thread) const;
  // The partials of an item's queries, but for those that do not see the range. `fetched` and
  // `next` as in RangeView. Unless keep_p, each tile of queries has its p where the first has.
  void RunRange(const AttentionItem& item, int range, bool fetched,
                absl::Span<const PageEntry> next, AttentionScratch::Thread& thread,
                Partial* partials, RangeProbabilities* p, bool keep_p) const;
  QueryTile MakeTile(const HeadJob& job, int first_query, int count) const;
  // What is left of a job when its items have run; `items` are all of them.
  void Finish(const HeadJob& job, absl::Span<const AttentionItem> items) const;
  // Of the items of the same queries.
  void FinishRanges(absl::Span<const AttentionItem> ranges,
                    const ReceivedAttention& received) const;

  void Merge(Partial& into, const Partial& from) const;
  void Write(const HeadJob& job, int query, const Partial& merged) const;
  // Adds what the undecided tokens of a range receive from an item's queries: p and its `maxima` of
  // that range, and the queries' softmax over all ranges.
  void AddToReceived(const AttentionItem& item, int range, const RangeProbabilities* p,
                     const float* maxima, const Partial* merged,
                     const ReceivedAttention& received) const;
  ReceivedAttention ReceivedInTally(const HeadJob& job) const {
    return job.slice->tally->received(layer_, job.kv_head);
  }

  const AttentionShape& shape_;
  const int layer_;
  const AttentionQueries& queries_;
  ThreadPool& pool_;
  AttentionPlan plan_;
  std::vector<float> decays_;  // kRecentDecay^n; as many as a slice with a tally needs
};

Attender::Attender(const AttentionShape& shape, int layer, const AttentionQueries& queries,
                   absl::Span<const AttentionSlice> slices, ThreadPool& pool)
    : shape_(shape),
      layer_(layer),
      queries_(queries),
      pool_(pool),
      plan_(shape, layer, slices, pool.num_threads()),
      decays_({1}) {
  for (const AttentionSlice& slice : slices) {
    while (slice.tally != nullptr && static_cast<int>(decays_.size()) <= slice.num_tokens) {
      decays_.push_back(decays_.back() * kRecentDecay);
    }
  }
}

void Attender::Run(AttentionScratch& scratch) {
  const size_t floats = plan_.scratch_floats();
  plan_.GiveMemory(scratch.shared.Reserve(floats));
  scratch.by_thread.resize(pool_.num_threads());
  for (AttentionScratch::Thread& thread : scratch.by_thread) thread.fetched_item = 0;

  const absl::Span<const AttentionItem> items = plan_.items();
  pool_.ParallelFor(items.size(), 1, [&](size_t begin, size_t end, int thread) {
    for (size_t i = begin; i < end; ++i) {
      if (items[i].range == AttentionItem::kAllRanges) {
        RunAllRanges(items[i], scratch.by_thread[thread]);
      } else {
        // Threads that are equally fast take turns.
        RunOneRange(i, i + pool_.num_threads(), scratch.by_thread[thread]);
      }
    }
  });
  const auto finish = [&](size_t begin, size_t end, int) {
    for (size_t job = begin; job < end; ++job) Finish(plan_.jobs()[job], plan_.ItemsOf(job));
  };
  // A little is done sooner than a thread is woken.
  const size_t jobs = plan_.jobs().size();
  if (floats > 0) pool_.ParallelFor(jobs, floats < kFewFloats ? jobs : 1, finish);
}

void Attender::SetQueries(const AttentionItem& item, AttentionScratch::Thread& thread) const {
  const HeadJob& job = JobOf(item);
  if constexpr (kHasAmxAttention) {
    if (!job.slice->tiles) return;
    if (thread.amx == nullptr || thread.amx->head_dim() != shape_.head_dim) {
      thread.amx = std::make_unique<AmxAttention>(shape_.head_dim);
    }
    for (int i = 0; i < item.num_queries; ++i) {
      thread.amx->SetQuery(i, ViewQuery(job, item.first_query + i).rotated, shape_.scale * kLog2E);
    }
  }
}

void Attender::RunAllRanges(const AttentionItem& item, AttentionScratch::Thread& thread) const {
  const HeadJob& job = JobOf(item);
  const bool tally = item.received != nullptr;
  const int ranges = job.NumRanges(job.Visible(item.first_query + item.num_queries - 1));
  // p of ranges with undecided tokens are kept, each in a place of its own.
  const int kept_from = tally ? job.first_undecided_range() : ranges;
  const size_t kept = std::max(1, ranges - kept_from);
  const size_t rows = item.NumRows(job);
  float* memory = thread.floats.Reserve(rows * (kept * (kRowFloats + 1) + 2 * shape_.head_dim));
  auto* p = reinterpret_cast<RangeProbabilities*>(memory);  // [kept][rows]
  float* values = memory + kept * rows * kRowFloats;        // [2][rows][head_dim]
  float* maxima = values + 2 * rows * shape_.head_dim;      // [kept][rows]
  Partial merged[kMaxItemQueries], partials[kMaxItemQueries];
  for (size_t i = 0; i < rows; ++i) {
    merged[i].values = values + i * shape_.head_dim;
    partials[i].values = values + (rows + i) * shape_.head_dim;
  }

  SetQueries(item, thread);
  for (int range = 0; range < ranges; ++range) {
    const size_t place = std::max(0, range - kept_from) * rows;
    Partial* into = range == 0 ? merged : partials;
    const auto next = range + 1 < ranges ? job.PagesOf(range + 1) : absl::Span<const PageEntry>();
    RunRange(item, range, /*fetched=*/range > 0, next, thread, into, p + place,
             /*keep_p=*/range >= kept_from);
    for (int i = FirstToSee(item, range); i < item.num_queries; ++i) {
      maxima[place + i] = into[i].max;
      if (range > 0) Merge(merged[i], partials[i]);
    }
  }
  for (int i = 0; i < item.num_queries; ++i) Write(job, item.first_query + i, merged[i]);
  if (!tally) return;

  const size_t slots = job.undecided_slots();
  std::fill_n(item.received, 3 * slots, 0.0f);
  const ReceivedAttention received = {
      .sum = item.received, .squares = item.received + slots, .recent = item.received + 2 * slots};
  for (int range = kept_from; range < ranges; ++range) {
    const size_t place = (range - kept_from) * rows;
    AddToReceived(item, range, p + place, maxima + place, merged, received);
  }
}

void Attender::RunOneRange(size_t index, size_t likely_next,
                           AttentionScratch::Thread& thread) const {
  const absl::Span<const AttentionItem> items = plan_.items();
  const AttentionItem& item = items[index];
  const bool keep_p = item.p != nullptr;
  float* memory = thread.floats.Reserve(JobOf(item).query_tile * kRowFloats);
  auto* p = keep_p ? item.p : reinterpret_cast<RangeProbabilities*>(memory);
  absl::Span<const PageEntry> next;
  if (likely_next < items.size() && items[likely_next].range != AttentionItem::kAllRanges) {
    next = JobOf(items[likely_next]).PagesOf(items[likely_next].range);
  }
  Partial partials[kMaxItemQueries];
  for (size_t i = 0; i < item.NumRows(JobOf(item)); ++i) {
    partials[i].values = item.partials + i * plan_.record_floats() + AttentionPlan::kRecordHeader;
  }
  SetQueries(item, thread);
  RunRange(item, item.range, index != 0 && thread.fetched_item == index, next, thread, partials, p,
           keep_p);
  thread.fetched_item = likely_next;
  for (int i = 0; i < item.num_queries; ++i) {
    StorePartial(partials[i], item.partials + i * plan_.record_floats());
  }
}

void Attender::RunRange(const AttentionItem& item, int range, bool fetched,
                        absl::Span<const PageEntry> next, AttentionScratch::Thread& thread,
                        Partial* partials, RangeProbabilities* p, bool keep_p) const {
  const HeadJob& job = JobOf(item);
  const PageTable& kv = *job.slice->kv;
  const int start = job.range_starts[range];
  const absl::Span<const PageEntry> all = job.PagesOf(range);
  // Pages whose tokens are all hidden are left out.
  const auto visible_pages = [&](int visible) {
    size_t count = 0;
    for (int seen = start; count < all.size() && seen < visible; ++count) seen += all[count].tokens;
    return all.first(count);
  };
  RangeView view = {.pages = visible_pages(job.Visible(item.first_query + item.num_queries - 1)),
                    .fetched = fetched,
                    .next = {},
                    .tokens_before = start,
                    .base = kv.pool().base(),
                    .means = kv.key_means(),
                    .layer = layer_,
                    .kv_head = job.kv_head,
                    .head_dim = shape_.head_dim,
                    .scale = shape_.scale};
  if constexpr (kHasAmxAttention) {
    if (job.slice->tiles) thread.amx->SetRange(view);
  }
  for (int first = FirstToSee(item, range) / job.query_tile * job.query_tile;
       first < item.num_queries; first += job.query_tile) {
    const int count = std::min(job.query_tile, item.num_queries - first);
    const int first_query = item.first_query + first;
    view.pages = visible_pages(job.Visible(first_query + count - 1));
    RangeProbabilities* tile_p = keep_p ? p + first : p;
    if (!job.slice->tiles) {
      if (first + count == item.num_queries) view.next = next;
      AttendRange(view, MakeTile(job, first_query, count), partials + first, tile_p);
      view.fetched = true;
    } else if constexpr (kHasAmxAttention) {
      int visible[AmxAttention::kQueryTile];
      for (int i = 0; i < count; ++i) visible[i] = job.Visible(first_query + i);
      thread.amx->Attend(first, count, visible, view.pages.size(), partials + first, tile_p,
                         keep_p || job.slice->squared_probabilities != nullptr);
    }
    for (int i = 0; i < count; ++i) {
      const size_t slots = view.pages.size() * kTileTokens;
      // Slots of pages that were left out have received nothing.
      if (keep_p) std::fill(tile_p[i] + slots, tile_p[i] + all.size() * kTileTokens, 0.0f);
      if (job.slice->squared_probabilities != nullptr) {
        partials[first + i].squares = SumOfSquares(tile_p[i], slots);
      }
    }
  }
}

QueryTile Attender::MakeTile(const HeadJob& job, int first_query, int count) const {
  QueryTile tile;
  tile.count = count;
  for (int i = 0; i < count; ++i) {
    const AttentionQueries::View view = ViewQuery(job, first_query + i);
    tile.visible[i] = job.Visible(first_query + i);
    tile.rotated[i] = view.rotated;
    tile.high[i] = view.high;
    tile.low[i] = view.low;
    tile.unit[i] = view.unit;
    tile.high_sum[i] = view.high_sum;
    tile.low_sum[i] = view.low_sum;
  }
  return tile;
}

void Attender::Finish(const HeadJob& job, absl::Span<const AttentionItem> items) const {
  ReceivedAttention received;
  if (job.slice->tally != nullptr) {
    received = ReceivedInTally(job);
    const auto tokens = static_cast<size_t>(job.slice->tally->num_tokens(layer_, job.kv_head));
    for (size_t i = 0; i < tokens; ++i) received.recent[i] *= decays_[job.slice->num_tokens];
  }
  for (size_t first = 0, end; first < items.size(); first = end) {
    const AttentionItem& item = items[first];
    for (end = first + 1; end < items.size() && items[end].first_query == item.first_query;) ++end;
    if (item.range == AttentionItem::kAllRanges) {
      if (item.received == nullptr) continue;
      const auto tokens = static_cast<size_t>(job.slice->tally->num_tokens(layer_, job.kv_head));
      const float* added = item.received;
      for (float* into : {received.sum, received.squares, received.recent}) {
        for (size_t i = 0; i < tokens; ++i) into[i] += added[i];
        added += job.undecided_slots();
      }
      continue;
    }
    FinishRanges(items.subspan(first, end - first), received);
  }
}

void Attender::FinishRanges(absl::Span<const AttentionItem> ranges,
                            const ReceivedAttention& received) const {
  const AttentionItem& item = ranges[0];
  const HeadJob& job = JobOf(item);
  const auto record = [&](const AttentionItem& range, int i) {
    return range.partials + i * plan_.record_floats();
  };
  Partial merged[kMaxItemQueries];
  for (int i = 0; i < item.num_queries; ++i) {
    merged[i] = LoadPartial(record(item, i));
    const int seen = job.NumRanges(job.Visible(item.first_query + i));
    for (const AttentionItem& range : ranges.subspan(1, seen - 1)) {
      Merge(merged[i], LoadPartial(record(range, i)));
    }
    Write(job, item.first_query + i, merged[i]);
  }
  for (const AttentionItem& range : ranges) {
    if (range.p == nullptr) continue;
    float maxima[kMaxItemQueries];
    for (int i = 0; i < item.num_queries; ++i) maxima[i] = record(range, i)[0];
    AddToReceived(item, range.range, range.p, maxima, merged, received);
  }
}

void Attender::Merge(Partial& into, const Partial& from) const {
  const float max = std::max(into.max, from.max);
  const float a = std::exp2(into.max - max), b = std::exp2(from.max - max);
  into.max = max;
  into.sum = into.sum * a + from.sum * b;
  into.squares = into.squares * a * a + from.squares * b * b;
  ScaleAndAdd(into.values, a, from.values, b, shape_.head_dim);
}

void Attender::Write(const HeadJob& job, int query, const Partial& merged) const {
  const int row = query / job.group, head = job.kv_head * job.group + query % job.group;
  float* out = job.slice->out + row * job.slice->out_stride + head * shape_.head_dim;
  const float inverse = 1.0f / merged.sum;
  for (int i = 0; i < shape_.head_dim; ++i) out[i] = merged.values[i] * inverse;
  RotateHadamard(out, shape_.head_dim);
  if (float* squares = job.slice->squared_probabilities; squares != nullptr) {
    squares[row * shape_.num_heads + head] = merged.squares * inverse * inverse;
  }
}

void Attender::AddToReceived(const AttentionItem& item, int range, const RangeProbabilities* p,
                             const float* maxima, const Partial* merged,
                             const ReceivedAttention& received) const {
  const HeadJob& job = JobOf(item);
  const int first = FirstToSee(item, range);
  float factors[kMaxItemQueries], weights[kMaxItemQueries];
  for (int i = first; i < item.num_queries; ++i) {
    factors[i] = std::exp2(maxima[i] - merged[i].max) / merged[i].sum;
    weights[i] = decays_[job.slice->num_tokens - 1 - (item.first_query + i) / job.group];
  }
  const int first_page = std::max(job.first_undecided_page, range * kRangePages);
  const int end_page = std::min(static_cast<int>(job.pages.size()), (range + 1) * kRangePages);
  const size_t slot = size_t{1} * (first_page - job.first_undecided_page) * kTileTokens;
  AddReceived(p + first, size_t{1} * (first_page - range * kRangePages) * kTileTokens,
              absl::MakeConstSpan(factors + first, item.num_queries - first), weights + first,
              size_t{1} * (end_page - first_page) * kTileTokens,
              {.sum = received.sum + slot,
               .squares = received.squares + slot,
               .recent = received.recent + slot});
}

}  // namespace

void Attention(const AttentionShape& shape, int layer, const AttentionQueries& queries,
               absl::Span<const AttentionSlice> slices, ThreadPool& pool,
               AttentionScratch& scratch) {
  Attender(shape, layer, queries, slices, pool).Run(scratch);
}

}  // namespace whit
