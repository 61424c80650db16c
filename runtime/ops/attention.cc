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
// there are few queries, one tile against one range.
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
  // Of one range: kQueryTile records of a partial; and its p, if it has undecided tokens.
  float* partials = nullptr;
  RangeProbabilities* p = nullptr;
};

// Tiles of an item of all ranges: more of them make less to add up where there is a tally.
constexpr int kTilesWithTally = 8;

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
  size_t record_floats() const { return kRecordHeader + shape_.head_dim; }

  HeadJob MakeJob(const AttentionSlice& slice, int kv_head) const;
  // Appends the items of a job and returns the floats of scratch memory that they need.
  size_t AddItems(int job, bool split);
  void GiveMemory(float* memory);

  void RunAllRanges(const Item& item, std::vector<float>& memory) const;
  void RunTile(const HeadJob& job, int first_query, int count, const ReceivedAttention& received,
               std::vector<float>& memory) const;
  void RunOneRange(size_t item, size_t likely_next, AttentionScratch::Thread& thread) const;
  // What is left of a job when its items have run; `items` are all of them.
  void Finish(const HeadJob& job, absl::Span<const Item> items) const;

  QueryTile MakeTile(const HeadJob& job, int first_query, int count) const;
  // `fetched` and `next` as in RangeView.
  void RunRange(const HeadJob& job, int range, const QueryTile& tile, bool fetched,
                absl::Span<const PageEntry> next, Partial* partials, RangeProbabilities& p) const;
  void Merge(Partial& into, const Partial& from) const;
  void Write(const HeadJob& job, int query, const Partial& merged) const;
  // Adds what the undecided tokens of a range receive from a query: p of the range relative to
  // range_max, and the query's softmax over all ranges.
  void AddToReceived(const HeadJob& job, int query, int range, const float* p, float range_max,
                     const Partial& merged, const ReceivedAttention& received) const;
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
  if (slice.tally != nullptr) {
    const int undecided = slice.tally->num_tokens(layer_, kv_head);
    job.first_undecided_page =
        static_cast<int>(job.pages.size()) - static_cast<int>(PagesFor(undecided));
  }
  return job;
}

void Attender::Run(ThreadPool& pool, AttentionScratch& scratch) {
  // Few queries over long contexts are split by range as well; many are enough work by themselves.
  int tiles = 0;
  for (const HeadJob& job : jobs_) tiles += (NumQueries(job) + kQueryTile - 1) / kQueryTile;
  const bool split = tiles < 8 * pool.num_threads();
  size_t floats = 0;
  for (size_t job = 0; job < jobs_.size(); ++job) {
    first_items_.push_back(items_.size());
    floats += AddItems(static_cast<int>(job), split);
  }
  first_items_.push_back(items_.size());
  if (scratch.shared.size() < floats) scratch.shared.resize(floats);
  GiveMemory(scratch.shared.data());
  scratch.by_thread.resize(pool.num_threads());

  for (AttentionScratch::Thread& thread : scratch.by_thread) thread.fetched_item = 0;

  pool.ParallelFor(items_.size(), 1, [&](size_t begin, size_t end, int thread) {
    for (size_t i = begin; i < end; ++i) {
      if (items_[i].range == Item::kAllRanges) {
        RunAllRanges(items_[i], scratch.by_thread[thread].floats);
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
  const int step = tally && !split ? kTilesWithTally * kQueryTile : kQueryTile;
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
      floats += kQueryTile * record_floats();
      if (tally && range >= job.first_undecided_range()) floats += kQueryTile * kRangeTokens;
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
    item.partials = take(kQueryTile * record_floats());
    if (tally && item.range >= job.first_undecided_range()) {
      item.p = reinterpret_cast<RangeProbabilities*>(take(kQueryTile * kRangeTokens));
    }
  }
}

void Attender::RunAllRanges(const Item& item, std::vector<float>& memory) const {
  const HeadJob& job = jobs_[item.job];
  ReceivedAttention received;
  if (item.received != nullptr) {
    const size_t slots = job.undecided_slots();
    std::fill_n(item.received, 3 * slots, 0.0f);
    received = {.sum = item.received,
                .squares = item.received + slots,
                .recent = item.received + 2 * slots};
  }
  const int end = item.first_query + item.num_queries;
  for (int query = item.first_query; query < end; query += kQueryTile) {
    RunTile(job, query, std::min(kQueryTile, end - query), received, memory);
  }
}

void Attender::RunTile(const HeadJob& job, int first_query, int count,
                       const ReceivedAttention& received, std::vector<float>& memory) const {
  const QueryTile tile = MakeTile(job, first_query, count);
  const int ranges = job.NumRanges(tile.visible[count - 1]);
  const bool tally = received.sum != nullptr;
  // p of ranges with undecided tokens are kept, each in a place of its own.
  const int kept_from = tally ? job.first_undecided_range() : ranges;
  const int kept = std::max(1, ranges - kept_from);
  const size_t value_floats = size_t{1} * kQueryTile * shape_.head_dim;
  const size_t p_floats = sizeof(RangeProbabilities) / sizeof(float);
  const size_t floats = 2 * value_floats + kept * (p_floats + kQueryTile);
  if (memory.size() < floats) memory.resize(floats);
  auto* p = reinterpret_cast<RangeProbabilities*>(memory.data());
  float* kept_max = memory.data() + kept * p_floats;  // [kept][kQueryTile]
  float* values = kept_max + kept * kQueryTile;
  Partial merged[kQueryTile], partials[kQueryTile];
  for (int i = 0; i < kQueryTile; ++i) {
    merged[i].values = values + i * shape_.head_dim;
    partials[i].values = values + value_floats + i * shape_.head_dim;
  }

  for (int range = 0; range < ranges; ++range) {
    const int place = std::max(0, range - kept_from);
    Partial* into = range == 0 ? merged : partials;
    const auto next = range + 1 < ranges ? job.PagesOf(range + 1) : absl::Span<const PageEntry>();
    RunRange(job, range, tile, /*fetched=*/range > 0, next, into, p[place]);
    for (int i = 0; i < count; ++i) {
      kept_max[place * kQueryTile + i] = into[i].max;
      if (range > 0 && range < job.NumRanges(tile.visible[i])) Merge(merged[i], partials[i]);
    }
  }
  for (int i = 0; i < count; ++i) Write(job, first_query + i, merged[i]);
  for (int range = kept_from; range < ranges; ++range) {
    const int place = range - kept_from;
    for (int i = 0; i < count; ++i) {
      AddToReceived(job, first_query + i, range, p[place][i], kept_max[place * kQueryTile + i],
                    merged[i], received);
    }
  }
}

void Attender::RunOneRange(size_t index, size_t likely_next,
                           AttentionScratch::Thread& thread) const {
  const Item& item = items_[index];
  const HeadJob& job = jobs_[item.job];
  const size_t p_floats = sizeof(RangeProbabilities) / sizeof(float);
  if (thread.floats.size() < p_floats) thread.floats.resize(p_floats);
  auto* p =
      item.p != nullptr ? item.p : reinterpret_cast<RangeProbabilities*>(thread.floats.data());
  absl::Span<const PageEntry> next;
  if (likely_next < items_.size() && items_[likely_next].range != Item::kAllRanges) {
    next = jobs_[items_[likely_next].job].PagesOf(items_[likely_next].range);
  }
  Partial partials[kQueryTile];
  for (int i = 0; i < item.num_queries; ++i) {
    partials[i].values = item.partials + i * record_floats() + kRecordHeader;
  }
  RunRange(job, item.range, MakeTile(job, item.first_query, item.num_queries),
           index != 0 && thread.fetched_item == index, next, partials, *p);
  thread.fetched_item = likely_next;
  for (int i = 0; i < item.num_queries; ++i) {
    StorePartial(partials[i], item.partials + i * record_floats());
  }
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
    for (int i = 0; i < item.num_queries; ++i) {
      const int query = item.first_query + i;
      const auto ranges = items.subspan(first, job.NumRanges(Visible(job, query)));
      const auto record = [&](const Item& range) { return range.partials + i * record_floats(); };
      Partial merged = LoadPartial(record(ranges[0]));
      for (const Item& range : ranges.subspan(1)) Merge(merged, LoadPartial(record(range)));
      Write(job, query, merged);
      for (const Item& range : ranges) {
        if (range.p == nullptr) continue;
        AddToReceived(job, query, range.range, (*range.p)[i], record(range)[0], merged, received);
      }
    }
  }
}

QueryTile Attender::MakeTile(const HeadJob& job, int first_query, int count) const {
  QueryTile tile;
  tile.count = count;
  for (int i = 0; i < count; ++i) {
    const int query = first_query + i;
    const AttentionQueries::View view =
        queries_.view(job.slice->first_row + query / group_, job.kv_head * group_ + query % group_);
    tile.visible[i] = Visible(job, query);
    tile.rotated[i] = view.rotated;
    tile.high[i] = view.high;
    tile.low[i] = view.low;
    tile.unit[i] = view.unit;
    tile.high_sum[i] = view.high_sum;
    tile.low_sum[i] = view.low_sum;
  }
  return tile;
}

void Attender::RunRange(const HeadJob& job, int range, const QueryTile& tile, bool fetched,
                        absl::Span<const PageEntry> next, Partial* partials,
                        RangeProbabilities& p) const {
  const int start = job.range_starts[range];
  const absl::Span<const PageEntry> all = job.PagesOf(range);
  // Pages whose tokens are all hidden from the last query are left out.
  size_t count = 0;
  for (int seen = start; count < all.size() && seen < tile.visible[tile.count - 1]; ++count) {
    seen += all[count].tokens;
  }
  const PageTable& kv = *job.slice->kv;
  AttendRange({.pages = all.subspan(0, count),
               .fetched = fetched,
               .next = next,
               .tokens_before = start,
               .base = kv.pool().base(),
               .means = kv.key_means(),
               .layer = layer_,
               .kv_head = job.kv_head,
               .head_dim = shape_.head_dim,
               .scale = shape_.scale},
              tile, partials, p);
  for (int i = 0; i < tile.count; ++i) {
    // Slots of pages that were left out have received nothing.
    if (job.slice->tally != nullptr) {
      std::fill(p[i] + count * kTileTokens, p[i] + all.size() * kTileTokens, 0.0f);
    }
    if (job.slice->squared_probabilities != nullptr) {
      partials[i].squares = SumOfSquares(p[i], count * kTileTokens);
    }
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

void Attender::AddToReceived(const HeadJob& job, int query, int range, const float* p,
                             float range_max, const Partial& merged,
                             const ReceivedAttention& received) const {
  if (range >= job.NumRanges(Visible(job, query))) return;
  const int first_page = std::max(job.first_undecided_page, range * kRangePages);
  const int end_page = std::min(static_cast<int>(job.pages.size()), (range + 1) * kRangePages);
  const size_t slot = size_t{1} * (first_page - job.first_undecided_page) * kTileTokens;
  const int age = job.slice->num_tokens - 1 - query / group_;
  AddReceived(p + (first_page - range * kRangePages) * kTileTokens,
              std::exp2(range_max - merged.max) / merged.sum, decays_[age],
              size_t{1} * (end_page - first_page) * kTileTokens, received.sum + slot,
              received.squares + slot, received.recent + slot);
}

}  // namespace

void Attention(const AttentionShape& shape, int layer, const AttentionQueries& queries,
               absl::Span<const AttentionSlice> slices, ThreadPool& pool,
               AttentionScratch& scratch) {
  Attender(shape, layer, queries, slices).Run(pool, scratch);
}

}  // namespace whit
