#include "runtime/ops/attention.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "kvpool/quantizer.h"
#include "runtime/ops/attention_range.h"

namespace whit {
namespace {

// One KV head of one slice; its queries are numbered row by row, heads of the GQA group together.
struct HeadJob {
  const AttentionSlice* slice;
  int kv_head;
  absl::Span<const PageEntry> pages;
  std::vector<int> range_starts;  // tokens before each range, and the number of tokens in all
  // If the slice has a tally: pages from here on have undecided tokens, 16 a page but the last.
  int first_undecided_page = 0;
  int query_tile = kQueryTile;  // queries that share a pass over a range

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
struct Item {
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
};

// Queries of an item: where there is a tally, more of them make less to add up.
constexpr int kItemQueriesWithTally = 8 * kQueryTile;
constexpr int kMaxItemQueries = std::max(kItemQueriesWithTally, AmxAttention::kMaxQueries);

constexpr size_t kRowFloats = sizeof(RangeProbabilities) / sizeof(float);

int DivideUp(int n, int by) { return (n + by - 1) / by; }

// Of scratch memory, for jobs to be finished by one thread.
constexpr size_t kFewFloats = 8192;

// A partial in scratch memory.
constexpr size_t kRecordHeader = 16;
void StorePartial(const Partial& partial, float* record) {
  record[0] = partial.max;
  record[1] = partial.sum;
  record[2] = partial.squares;
}
Partial LoadPartial(float* record) {
  return {
      .max = record[0], .sum = record[1], .squares = record[2], .values = record + kRecordHeader};
}

class Attender {
 public:
  Attender(const AttentionShape& shape, int layer, const AttentionQueries& queries,
           absl::Span<const AttentionSlice> slices);

  void Run(ThreadPool& pool, AttentionScratch& scratch);

 private:
  int NumQueries(const HeadJob& job) const { return job.slice->num_tokens * group_; }
  int Visible(const HeadJob& job, int query) const {
    return job.slice->first_position + query / group_ + 1;
  }
  // The first of an item's queries that sees something of a range, or num_queries.
  int FirstToSee(const Item& item, int range) const {
    const HeadJob& job = jobs_[item.job];
    const int query = (job.range_starts[range] - job.slice->first_position) * group_;
    return std::clamp(query - item.first_query, 0, item.num_queries);
  }
  // For an item's queries: kernels write whole tiles.
  static size_t NumRows(const HeadJob& job, const Item& item) {
    return size_t{1} * DivideUp(item.num_queries, job.query_tile) * job.query_tile;
  }
  size_t record_floats() const { return kRecordHeader + shape_.head_dim; }

  HeadJob MakeJob(const AttentionSlice& slice, int kv_head) const;
  // Appends the items of a job and returns the floats of scratch memory that they need.
  size_t AddItems(int job, bool split);
  void GiveMemory(float* memory);

  AttentionQueries::View ViewQuery(const HeadJob& job, int query) const {
    return queries_.view(job.slice->first_row + query / group_,
                         job.kv_head * group_ + query % group_);
  }
  // Called before the ranges of an item.
  void SetQueries(const Item& item, AttentionScratch::Thread& thread) const;
  void RunAllRanges(const Item& item, AttentionScratch::Thread& thread) const;
  void RunOneRange(size_t item, size_t likely_next, AttentionScratch::Thread& thread) const;
  // The partials of an item's queries, but for those that do not see the range. `fetched` and
  // `next` as in RangeView. Unless keep_p, each tile of queries has its p where the first has.
  void RunRange(const Item& item, int range, bool fetched, absl::Span<const PageEntry> next,
                AttentionScratch::Thread& thread, Partial* partials, RangeProbabilities* p,
                bool keep_p) const;
  QueryTile MakeTile(const HeadJob& job, int first_query, int count) const;
  // What is left of a job when its items have run; `items` are all of them.
  void Finish(const HeadJob& job, absl::Span<const Item> items) const;
  // Of the items of the same queries.
  void FinishRanges(absl::Span<const Item> ranges, const ReceivedAttention& received) const;

  void Merge(Partial& into, const Partial& from) const;
  void Write(const HeadJob& job, int query, const Partial& merged) const;
  // Adds what the undecided tokens of a range receive from an item's queries: p and its `maxima` of
  // that range, and the queries' softmax over all ranges.
  void AddToReceived(const Item& item, int range, const RangeProbabilities* p, const float* maxima,
                     const Partial* merged, const ReceivedAttention& received) const;
  ReceivedAttention ReceivedInTally(const HeadJob& job) const {
    return job.slice->tally->received(layer_, job.kv_head);
  }

  const AttentionShape& shape_;
  const int layer_;
  const AttentionQueries& queries_;
  const int group_;
  std::vector<HeadJob> jobs_;
  std::vector<float> decays_;  // kRecentDecay^n; as many as a slice with a tally needs
  std::vector<Item> items_;
  std::vector<size_t> first_items_;  // of each job, and the number of items
};

Attender::Attender(const AttentionShape& shape, int layer, const AttentionQueries& queries,
                   absl::Span<const AttentionSlice> slices)
    : shape_(shape),
      layer_(layer),
      queries_(queries),
      group_(shape.num_heads / shape.num_kv_heads) {
  jobs_.reserve(slices.size() * shape.num_kv_heads);
  decays_.push_back(1);
  for (const AttentionSlice& slice : slices) {
    while (slice.tally != nullptr && static_cast<int>(decays_.size()) <= slice.num_tokens) {
      decays_.push_back(decays_.back() * kRecentDecay);
    }
    for (int head = 0; head < shape.num_kv_heads; ++head) jobs_.push_back(MakeJob(slice, head));
  }
}

HeadJob Attender::MakeJob(const AttentionSlice& slice, int kv_head) const {
  HeadJob job = {.slice = &slice,
                 .kv_head = kv_head,
                 .pages = slice.kv->pages(layer_, kv_head),
                 .range_starts = {}};
  int tokens = 0;
  for (size_t i = 0; i < job.pages.size(); ++i) {
    if (i % kRangePages == 0) job.range_starts.push_back(tokens);
    tokens += job.pages[i].tokens;
  }
  job.range_starts.push_back(tokens);
  if (slice.tiles) job.query_tile = AmxAttention::kQueryTile;
  if (slice.tally != nullptr) {
    const int undecided = slice.tally->num_tokens(layer_, kv_head);
    job.first_undecided_page =
        static_cast<int>(job.pages.size()) - static_cast<int>(PagesFor(undecided));
  }
  return job;
}

void Attender::Run(ThreadPool& pool, AttentionScratch& scratch) {
  // Few queries over long contexts are split by range as well; many are enough work by themselves.
  int work = 0;
  for (const HeadJob& job : jobs_) {
    work += job.slice->tiles ? 2 * DivideUp(NumQueries(job), AmxAttention::kMaxQueries)
                             : DivideUp(NumQueries(job), kQueryTile);
  }
  const bool split = work < 8 * pool.num_threads();
  size_t floats = 0;
  for (size_t job = 0; job < jobs_.size(); ++job) {
    first_items_.push_back(items_.size());
    floats += AddItems(static_cast<int>(job), split);
  }
  first_items_.push_back(items_.size());
  GiveMemory(scratch.shared.Reserve(floats));
  scratch.by_thread.resize(pool.num_threads());

  for (AttentionScratch::Thread& thread : scratch.by_thread) thread.fetched_item = 0;

  pool.ParallelFor(items_.size(), 1, [&](size_t begin, size_t end, int thread) {
    for (size_t i = begin; i < end; ++i) {
      if (items_[i].range == Item::kAllRanges) {
        RunAllRanges(items_[i], scratch.by_thread[thread]);
      } else {
        // Threads that are equally fast take turns.
        RunOneRange(i, i + pool.num_threads(), scratch.by_thread[thread]);
      }
    }
  });
  const auto finish = [&](size_t begin, size_t end, int) {
    for (size_t job = begin; job < end; ++job) {
      Finish(jobs_[job], absl::MakeConstSpan(items_).subspan(
                             first_items_[job], first_items_[job + 1] - first_items_[job]));
    }
  };
  // A little is done sooner than a thread is woken.
  if (floats > 0) pool.ParallelFor(jobs_.size(), floats < kFewFloats ? jobs_.size() : 1, finish);
}

size_t Attender::AddItems(int index, bool split) {
  const HeadJob& job = jobs_[index];
  const bool tally = job.slice->tally != nullptr;
  int step = job.slice->tiles ? AmxAttention::kMaxQueries : kQueryTile;
  if (tally && !split) step = std::max(step, kItemQueriesWithTally);
  size_t floats = 0;
  for (int query = 0; query < NumQueries(job); query += step) {
    const int count = std::min(step, NumQueries(job) - query);
    const int ranges = job.NumRanges(Visible(job, query + count - 1));
    if (!split || ranges == 1) {
      items_.push_back({.job = index, .first_query = query, .num_queries = count});
      if (tally) floats += 3 * job.undecided_slots();
      continue;
    }
    for (int range = 0; range < ranges; ++range) {
      items_.push_back({.job = index, .first_query = query, .num_queries = count, .range = range});
      const size_t rows = NumRows(job, items_.back());
      floats += rows * record_floats();
      if (tally && range >= job.first_undecided_range()) floats += rows * kRowFloats;
    }
  }
  return floats;
}

void Attender::GiveMemory(float* memory) {
  const auto take = [&](size_t floats) { return std::exchange(memory, memory + floats); };
  for (Item& item : items_) {
    const HeadJob& job = jobs_[item.job];
    const bool tally = job.slice->tally != nullptr;
    if (item.range == Item::kAllRanges) {
      if (tally) item.received = take(3 * job.undecided_slots());
      continue;
    }
    item.partials = take(NumRows(job, item) * record_floats());
    if (tally && item.range >= job.first_undecided_range()) {
      item.p = reinterpret_cast<RangeProbabilities*>(take(NumRows(job, item) * kRowFloats));
    }
  }
}

void Attender::SetQueries(const Item& item, AttentionScratch::Thread& thread) const {
  const HeadJob& job = jobs_[item.job];
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

void Attender::RunAllRanges(const Item& item, AttentionScratch::Thread& thread) const {
  const HeadJob& job = jobs_[item.job];
  const bool tally = item.received != nullptr;
  const int ranges = job.NumRanges(Visible(job, item.first_query + item.num_queries - 1));
  // p of ranges with undecided tokens are kept, each in a place of its own.
  const int kept_from = tally ? job.first_undecided_range() : ranges;
  const size_t kept = std::max(1, ranges - kept_from);
  const size_t rows = NumRows(job, item);
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
  const Item& item = items_[index];
  const bool keep_p = item.p != nullptr;
  float* memory = thread.floats.Reserve(jobs_[item.job].query_tile * kRowFloats);
  auto* p = keep_p ? item.p : reinterpret_cast<RangeProbabilities*>(memory);
  absl::Span<const PageEntry> next;
  if (likely_next < items_.size() && items_[likely_next].range != Item::kAllRanges) {
    next = jobs_[items_[likely_next].job].PagesOf(items_[likely_next].range);
  }
  Partial partials[kMaxItemQueries];
  for (size_t i = 0; i < NumRows(jobs_[item.job], item); ++i) {
    partials[i].values = item.partials + i * record_floats() + kRecordHeader;
  }
  SetQueries(item, thread);
  RunRange(item, item.range, index != 0 && thread.fetched_item == index, next, thread, partials, p,
           keep_p);
  thread.fetched_item = likely_next;
  for (int i = 0; i < item.num_queries; ++i) {
    StorePartial(partials[i], item.partials + i * record_floats());
  }
}

void Attender::RunRange(const Item& item, int range, bool fetched, absl::Span<const PageEntry> next,
                        AttentionScratch::Thread& thread, Partial* partials, RangeProbabilities* p,
                        bool keep_p) const {
  const HeadJob& job = jobs_[item.job];
  const PageTable& kv = *job.slice->kv;
  const int start = job.range_starts[range];
  const absl::Span<const PageEntry> all = job.PagesOf(range);
  // Pages whose tokens are all hidden are left out.
  const auto visible_pages = [&](int visible) {
    size_t count = 0;
    for (int seen = start; count < all.size() && seen < visible; ++count) seen += all[count].tokens;
    return all.first(count);
  };
  RangeView view = {.pages = visible_pages(Visible(job, item.first_query + item.num_queries - 1)),
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
    view.pages = visible_pages(Visible(job, first_query + count - 1));
    RangeProbabilities* tile_p = keep_p ? p + first : p;
    if (!job.slice->tiles) {
      if (first + count == item.num_queries) view.next = next;
      AttendRange(view, MakeTile(job, first_query, count), partials + first, tile_p);
      view.fetched = true;
    } else if constexpr (kHasAmxAttention) {
      int visible[AmxAttention::kQueryTile];
      for (int i = 0; i < count; ++i) visible[i] = Visible(job, first_query + i);
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
    tile.visible[i] = Visible(job, first_query + i);
    tile.rotated[i] = view.rotated;
    tile.high[i] = view.high;
    tile.low[i] = view.low;
    tile.unit[i] = view.unit;
    tile.high_sum[i] = view.high_sum;
    tile.low_sum[i] = view.low_sum;
  }
  return tile;
}

void Attender::Finish(const HeadJob& job, absl::Span<const Item> items) const {
  ReceivedAttention received;
  if (job.slice->tally != nullptr) {
    received = ReceivedInTally(job);
    const auto tokens = static_cast<size_t>(job.slice->tally->num_tokens(layer_, job.kv_head));
    for (size_t i = 0; i < tokens; ++i) received.recent[i] *= decays_[job.slice->num_tokens];
  }
  for (size_t first = 0, end; first < items.size(); first = end) {
    const Item& item = items[first];
    for (end = first + 1; end < items.size() && items[end].first_query == item.first_query;) ++end;
    if (item.range == Item::kAllRanges) {
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

void Attender::FinishRanges(absl::Span<const Item> ranges,
                            const ReceivedAttention& received) const {
  const Item& item = ranges[0];
  const HeadJob& job = jobs_[item.job];
  const auto record = [&](const Item& range, int i) {
    return range.partials + i * record_floats();
  };
  Partial merged[kMaxItemQueries];
  for (int i = 0; i < item.num_queries; ++i) {
    merged[i] = LoadPartial(record(item, i));
    const int seen = job.NumRanges(Visible(job, item.first_query + i));
    for (const Item& range : ranges.subspan(1, seen - 1)) {
      Merge(merged[i], LoadPartial(record(range, i)));
    }
    Write(job, item.first_query + i, merged[i]);
  }
  for (const Item& range : ranges) {
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
  const int row = query / group_, head = job.kv_head * group_ + query % group_;
  float* out = job.slice->out + row * job.slice->out_stride + head * shape_.head_dim;
  const float inverse = 1.0f / merged.sum;
  for (int i = 0; i < shape_.head_dim; ++i) out[i] = merged.values[i] * inverse;
  RotateHadamard(out, shape_.head_dim);
  if (float* squares = job.slice->squared_probabilities; squares != nullptr) {
    squares[row * shape_.num_heads + head] = merged.squares * inverse * inverse;
  }
}

void Attender::AddToReceived(const Item& item, int range, const RangeProbabilities* p,
                             const float* maxima, const Partial* merged,
                             const ReceivedAttention& received) const {
  const HeadJob& job = jobs_[item.job];
  const int first = FirstToSee(item, range);
  float factors[kMaxItemQueries], weights[kMaxItemQueries];
  for (int i = first; i < item.num_queries; ++i) {
    factors[i] = std::exp2(maxima[i] - merged[i].max) / merged[i].sum;
    weights[i] = decays_[job.slice->num_tokens - 1 - (item.first_query + i) / group_];
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
  Attender(shape, layer, queries, slices).Run(pool, scratch);
}

}  // namespace whit
