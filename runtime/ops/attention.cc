#include "runtime/ops/attention.h"

#include <algorithm>
#include <cmath>

#include "kvpool/quantizer.h"
#include "runtime/ops/attention_range.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "runtime/ops/attention.cc"
#define HWY_WANT_AVX3_DL 1
#include "hwy/foreach_target.h"  // IWYU pragma: keep

#include "hwy/highway.h"
#include "runtime/ops/page_attention-inl.h"

HWY_BEFORE_NAMESPACE();
#if HWY_TARGET == HWY_AVX3_DL  // as in quad_dot-inl.h
HWY_PUSH_ATTRIBUTES(HWY_TARGET_STR ",avx512vnni")
#endif
namespace whit {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// A tile of queries against one range. The last query sees a token of it; the partial of one that
// does not means nothing.
void AttendRange(const RangeView& range, const QueryTile& tile, Partial* partials) {
  switch (range.head_dim) {
    case 64:
      return page_attention::AttendTileOfDim<64>(range, tile, partials);
    case 128:
      return page_attention::AttendTileOfDim<128>(range, tile, partials);
    default:
      return page_attention::AttendTileOfDim<0>(range, tile, partials);
  }
}

// 15-bit integers q = unit * (128 * high + low); max|q| becomes 127 * 128.
void QuantizeQuery(const float* HWY_RESTRICT q, size_t head_dim, int8_t* HWY_RESTRICT high,
                   int8_t* HWY_RESTRICT low, float* unit, int32_t* high_sum, int32_t* low_sum) {
  using quad_dot::DF;
  using quad_dot::DI;
  const DF df;
  const DI di;
  const hn::Rebind<int8_t, DF> d8;
  auto largest = hn::Zero(df);
  for (size_t i = 0; i < head_dim; i += hn::Lanes(df)) {
    largest = hn::Max(largest, hn::Abs(hn::LoadU(df, q + i)));
  }
  const float max = hn::GetLane(hn::MaxOfLanes(df, largest));
  const auto inverse = hn::Set(df, max > 0 ? 127.0f * 128.0f / max : 0.0f);
  auto highs = hn::Zero(di), lows = hn::Zero(di);
  for (size_t i = 0; i < head_dim; i += hn::Lanes(df)) {
    const auto code = hn::NearestInt(hn::Mul(hn::LoadU(df, q + i), inverse));
    const auto h = hn::ShiftRight<7>(hn::Add(code, hn::Set(di, 64)));
    const auto l = hn::Sub(code, hn::ShiftLeft<7>(h));
    highs = hn::Add(highs, h);
    lows = hn::Add(lows, l);
    hn::StoreU(hn::DemoteTo(d8, h), d8, high + i);
    hn::StoreU(hn::DemoteTo(d8, l), d8, low + i);
  }
  *unit = max / (127.0f * 128.0f);
  *high_sum = hn::GetLane(hn::SumOfLanes(di, highs));
  *low_sum = hn::GetLane(hn::SumOfLanes(di, lows));
}

}  // namespace HWY_NAMESPACE
}  // namespace whit
#if HWY_TARGET == HWY_AVX3_DL
HWY_POP_ATTRIBUTES
#endif
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace whit {
namespace {

HWY_EXPORT(AttendRange);
HWY_EXPORT(QuantizeQuery);

// One KV head of one slice; its queries are numbered row by row, heads of the GQA group together.
struct HeadJob {
  const AttentionSlice* slice;
  int kv_head;
  absl::Span<const PageEntry> pages;
  std::vector<int> range_starts;  // tokens before each range, and the number of tokens in all
};

class Attender {
 public:
  Attender(const AttentionShape& shape, int layer, const AttentionQueries& queries,
           absl::Span<const AttentionSlice> slices);

  void Run(ThreadPool& pool, AttentionScratch& scratch);

 private:
  // A tile of queries of a job, whole or one range of it.
  struct Item {
    int job;
    int first_query;
    int range;      // kAllRanges: merge them here
    float* output;  // of a single range: kQueryTile records of record_floats()
  };
  static constexpr int kAllRanges = -1;

  int NumQueries(const HeadJob& job) const { return job.slice->num_tokens * group_; }
  int Visible(const HeadJob& job, int query) const {
    return job.slice->first_position + query / group_ + 1;
  }
  // Ranges that hold one of the first `visible` tokens.
  static int NumRanges(const HeadJob& job, int visible);
  // A partial in scratch memory: max, sum, and from 16 on the values.
  size_t record_floats() const { return 16 + shape_.head_dim; }

  QueryTile MakeTile(const HeadJob& job, int first_query) const;
  void RunRange(const HeadJob& job, int range, const QueryTile& tile, Partial* partials) const;
  void RunAllRanges(const HeadJob& job, int first_query) const;
  void MergeRanges(const HeadJob& job, int first_query, float* records) const;
  void Merge(Partial& into, const Partial& from) const;
  void Write(const HeadJob& job, int query, const Partial& partial) const;

  const AttentionShape& shape_;
  const int layer_;
  const AttentionQueries& queries_;
  const int group_;
  std::vector<HeadJob> jobs_;
};

Attender::Attender(const AttentionShape& shape, int layer, const AttentionQueries& queries,
                   absl::Span<const AttentionSlice> slices)
    : shape_(shape),
      layer_(layer),
      queries_(queries),
      group_(shape.num_heads / shape.num_kv_heads) {
  jobs_.reserve(slices.size() * shape.num_kv_heads);
  for (const AttentionSlice& slice : slices) {
    for (int head = 0; head < shape.num_kv_heads; ++head) {
      HeadJob job = {&slice, head, slice.kv->pages(layer, head), {}};
      int tokens = 0;
      for (size_t i = 0; i < job.pages.size(); ++i) {
        if (i % kRangePages == 0) job.range_starts.push_back(tokens);
        tokens += job.pages[i].tokens;
      }
      job.range_starts.push_back(tokens);
      jobs_.push_back(std::move(job));
    }
  }
}

int Attender::NumRanges(const HeadJob& job, int visible) {
  const auto end = job.range_starts.end() - 1;
  return static_cast<int>(std::lower_bound(job.range_starts.begin(), end, visible) -
                          job.range_starts.begin());
}

QueryTile Attender::MakeTile(const HeadJob& job, int first_query) const {
  QueryTile tile;
  tile.count = std::min(kQueryTile, NumQueries(job) - first_query);
  for (int i = 0; i < tile.count; ++i) {
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

void Attender::RunRange(const HeadJob& job, int range, const QueryTile& tile,
                        Partial* partials) const {
  const int start = job.range_starts[range];
  const auto all = job.pages.subspan(size_t{1} * range * kRangePages, kRangePages);
  // Pages whose tokens are all hidden from the last query are left out.
  size_t count = 0;
  for (int seen = start; count < all.size() && seen < tile.visible[tile.count - 1]; ++count) {
    seen += all[count].tokens;
  }
  const PageTable& kv = *job.slice->kv;
  HWY_DYNAMIC_DISPATCH(AttendRange)
  ({.pages = all.subspan(0, count),
    .tokens_before = start,
    .base = kv.pool().base(),
    .means = kv.key_means(),
    .layer = layer_,
    .kv_head = job.kv_head,
    .head_dim = shape_.head_dim,
    .scale = shape_.scale},
   tile, partials);
}

void Attender::Merge(Partial& into, const Partial& from) const {
  const float max = std::max(into.max, from.max);
  const float a = std::exp(into.max - max), b = std::exp(from.max - max);
  into.max = max;
  into.sum = into.sum * a + from.sum * b;
  for (int i = 0; i < shape_.head_dim; ++i) {
    into.values[i] = into.values[i] * a + from.values[i] * b;
  }
}

void Attender::Write(const HeadJob& job, int query, const Partial& partial) const {
  const int head = job.kv_head * group_ + query % group_;
  float* out = job.slice->out + query / group_ * job.slice->out_stride + head * shape_.head_dim;
  const float inverse = 1.0f / partial.sum;
  for (int i = 0; i < shape_.head_dim; ++i) out[i] = partial.values[i] * inverse;
  RotateHadamard(out, shape_.head_dim);
}

void Attender::RunAllRanges(const HeadJob& job, int first_query) const {
  const QueryTile tile = MakeTile(job, first_query);
  std::vector<float> values(size_t{2} * kQueryTile * shape_.head_dim);
  Partial merged[kQueryTile], partials[kQueryTile];
  for (int i = 0; i < kQueryTile; ++i) {
    merged[i].values = values.data() + size_t{1} * i * shape_.head_dim;
    partials[i].values = values.data() + size_t{1} * (kQueryTile + i) * shape_.head_dim;
  }
  RunRange(job, 0, tile, merged);
  for (int range = 1; range < NumRanges(job, tile.visible[tile.count - 1]); ++range) {
    RunRange(job, range, tile, partials);
    for (int i = 0; i < tile.count; ++i) {
      if (range < NumRanges(job, tile.visible[i])) Merge(merged[i], partials[i]);
    }
  }
  for (int i = 0; i < tile.count; ++i) Write(job, first_query + i, merged[i]);
}

void Attender::MergeRanges(const HeadJob& job, int first_query, float* records) const {
  for (int i = 0; i < std::min(kQueryTile, NumQueries(job) - first_query); ++i) {
    const int query = first_query + i;
    const auto partial = [&](int range) {
      float* record = records + (size_t{1} * range * kQueryTile + i) * record_floats();
      return Partial{.max = record[0], .sum = record[1], .values = record + 16};
    };
    Partial merged = partial(0);
    for (int range = 1; range < NumRanges(job, Visible(job, query)); ++range) {
      Merge(merged, partial(range));
    }
    Write(job, query, merged);
  }
}

void Attender::Run(ThreadPool& pool, AttentionScratch& scratch) {
  // Few queries over long contexts are split by range as well; many are enough work by themselves.
  std::vector<Item> items;
  int tiles = 0;
  for (const HeadJob& job : jobs_) tiles += (NumQueries(job) + kQueryTile - 1) / kQueryTile;
  const bool split = tiles < 8 * pool.num_threads();
  size_t records = 0;
  for (int j = 0; j < static_cast<int>(jobs_.size()); ++j) {
    const HeadJob& job = jobs_[j];
    for (int query = 0; query < NumQueries(job); query += kQueryTile) {
      const int last = std::min(query + kQueryTile, NumQueries(job)) - 1;
      const int ranges = NumRanges(job, Visible(job, last));
      if (!split || ranges == 1) {
        items.push_back({j, query, kAllRanges, nullptr});
        continue;
      }
      for (int range = 0; range < ranges; ++range) items.push_back({j, query, range, nullptr});
      records += size_t{1} * kQueryTile * ranges;
    }
  }
  if (scratch.floats.size() < records * record_floats()) {
    scratch.floats.resize(records * record_floats());
  }
  float* next = scratch.floats.data();
  for (Item& item : items) {
    if (item.range == kAllRanges) continue;
    item.output = next;
    next += kQueryTile * record_floats();
  }

  pool.ParallelFor(items.size(), 1, [&](size_t begin, size_t end, int) {
    for (size_t k = begin; k < end; ++k) {
      const Item& item = items[k];
      const HeadJob& job = jobs_[item.job];
      if (item.range == kAllRanges) {
        RunAllRanges(job, item.first_query);
        continue;
      }
      const QueryTile tile = MakeTile(job, item.first_query);
      Partial partials[kQueryTile];
      for (int i = 0; i < tile.count; ++i) {
        partials[i].values = item.output + i * record_floats() + 16;
      }
      RunRange(job, item.range, tile, partials);
      for (int i = 0; i < tile.count; ++i) {
        item.output[i * record_floats()] = partials[i].max;
        item.output[i * record_floats() + 1] = partials[i].sum;
      }
    }
  });
  for (const Item& item : items) {
    if (item.range == 0) MergeRanges(jobs_[item.job], item.first_query, item.output);
  }
}

}  // namespace

AttentionQueries::AttentionQueries(const AttentionShape& shape, size_t max_rows)
    : shape_(shape), scalars_(max_rows * shape.num_heads) {
  const size_t elements = max_rows * shape.num_heads * shape.head_dim;
  rotated_ = hwy::AllocateAligned<float>(elements);
  high_ = hwy::AllocateAligned<int8_t>(elements);
  low_ = hwy::AllocateAligned<int8_t>(elements);
}

void AttentionQueries::SetRow(size_t row, const float* q) {
  const size_t d = shape_.head_dim;
  for (int head = 0; head < shape_.num_heads; ++head) {
    const size_t index = row * shape_.num_heads + head;
    float* rotated = rotated_.get() + index * d;
    std::copy_n(q + head * d, d, rotated);
    RotateHadamard(rotated, shape_.head_dim);
    Scalars& s = scalars_[index];
    HWY_DYNAMIC_DISPATCH(QuantizeQuery)
    (rotated, d, high_.get() + index * d, low_.get() + index * d, &s.unit, &s.high_sum, &s.low_sum);
  }
}

AttentionQueries::View AttentionQueries::view(size_t row, int head) const {
  const size_t index = row * shape_.num_heads + head;
  const size_t offset = index * shape_.head_dim;
  const Scalars& s = scalars_[index];
  return {.rotated = rotated_.get() + offset,
          .high = high_.get() + offset,
          .low = low_.get() + offset,
          .unit = s.unit,
          .high_sum = s.high_sum,
          .low_sum = s.low_sum};
}

void Attention(const AttentionShape& shape, int layer, const AttentionQueries& queries,
               absl::Span<const AttentionSlice> slices, ThreadPool& pool,
               AttentionScratch& scratch) {
  Attender(shape, layer, queries, slices).Run(pool, scratch);
}

void AttentionReference(const AttentionShape& shape, int layer, const PageTable& kv,
                        int num_visible, const float* q, float* out) {
  const int d = shape.head_dim, group = shape.num_heads / shape.num_kv_heads;
  for (int head = 0; head < shape.num_heads; ++head) {
    std::vector<float> keys, values, query(q + head * d, q + (head + 1) * d);
    RotateHadamard(query.data(), d);
    kv.Read(layer, head / group, &keys, &values);
    std::vector<double> p(num_visible);
    double max = -INFINITY, sum = 0;
    for (int t = 0; t < num_visible; ++t) {
      for (int i = 0; i < d; ++i) p[t] += double{query[i]} * keys[t * d + i];
      p[t] *= shape.scale;
      max = std::max(max, p[t]);
    }
    for (double& x : p) sum += x = std::exp(x - max);
    float* result = out + head * d;
    for (int i = 0; i < d; ++i) {
      double v = 0;
      for (int t = 0; t < num_visible; ++t) v += p[t] * values[t * d + i];
      result[i] = static_cast<float>(v / sum);
    }
    RotateHadamard(result, d);
  }
}

}  // namespace whit
#endif  // HWY_ONCE
