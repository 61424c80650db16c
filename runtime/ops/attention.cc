#include "runtime/ops/attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kvpool/page.h"
#include "runtime/ops/half.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "runtime/ops/attention.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep

#include "hwy/contrib/math/math-inl.h"
#include "hwy/highway.h"

#ifndef WHIT_RUNTIME_OPS_ATTENTION_TYPES_
#define WHIT_RUNTIME_OPS_ATTENTION_TYPES_
namespace whit {
namespace attention_internal {

// The softmax over a long sequence is taken range by range, and the ranges' results are merged in
// order. Ranges are cut at the same tokens whoever asks, which is what makes a row's result the
// same bit for bit however the work was split.
constexpr int kRangePages = 32;
constexpr int kRangeTokens = kRangePages * kTileTokens;

// Queries that share one pass over a page. Each follows the same arithmetic in a tile of any size.
constexpr int kQueryTile = 4;

// What a range, or several merged, contributes to one query's output: sum over its tokens of
// exp(score - max), and of exp(score - max) * value.
struct Partial {
  float max;
  float sum;
  float* values;  // [head_dim]
};

// Up to kQueryTile queries of one KV head, and how many tokens each may see.
struct QueryTile {
  int count = 0;
  const float* q[kQueryTile] = {};
  int visible[kQueryTile] = {};
};

}  // namespace attention_internal
}  // namespace whit
#endif  // WHIT_RUNTIME_OPS_ATTENTION_TYPES_

HWY_BEFORE_NAMESPACE();
namespace whit {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using namespace attention_internal;  // NOLINT: one name space per target

using DF = hn::CappedTag<float, kTileTokens>;
using VF = hn::Vec<DF>;

HWY_INLINE VF LoadHalf(const uint16_t* p) {
  const hn::Rebind<hwy::float16_t, DF> dh;
  return hn::PromoteTo(DF(), hn::LoadU(dh, reinterpret_cast<const hwy::float16_t*>(p)));
}

// scores[query][16] = q . k for the tokens of one page. Two sums a query, over even and odd
// dimensions, keep the multipliers busy.
template <int kQueries>
HWY_INLINE void PageScores(const uint16_t* keys, int head_dim, const QueryTile& tile, float scale,
                           float* scores, size_t score_stride) {
  const DF df;
  for (size_t lane = 0; lane < kTileTokens; lane += hn::Lanes(df)) {
    VF even[kQueries], odd[kQueries];
    for (int i = 0; i < kQueries; ++i) even[i] = odd[i] = hn::Zero(df);
    for (int dim = 0; dim < head_dim; dim += 2) {
      const VF k0 = LoadHalf(keys + dim * kTileTokens + lane);
      const VF k1 = LoadHalf(keys + (dim + 1) * kTileTokens + lane);
      for (int i = 0; i < kQueries; ++i) {
        even[i] = hn::MulAdd(hn::Set(df, tile.q[i][dim]), k0, even[i]);
        odd[i] = hn::MulAdd(hn::Set(df, tile.q[i][dim + 1]), k1, odd[i]);
      }
    }
    for (int i = 0; i < kQueries; ++i) {
      hn::StoreU(hn::Mul(hn::Add(even[i], odd[i]), hn::Set(df, scale)), df,
                 scores + i * score_stride + lane);
    }
  }
}

// Turns the scores of `tokens` (a multiple of 16) into exp(score - max), 0 from `visible` on.
HWY_INLINE void Exponentiate(float* HWY_RESTRICT scores, int tokens, int visible, float* max,
                             float* sum) {
  const DF df;
  const auto n = static_cast<size_t>(tokens);
  for (int t = std::max(visible, 0); t < tokens; ++t) scores[t] = -1e30f;
  VF largest = hn::Set(df, -1e30f);
  for (size_t t = 0; t < n; t += hn::Lanes(df)) {
    largest = hn::Max(largest, hn::Load(df, scores + t));
  }
  *max = hn::GetLane(hn::MaxOfLanes(df, largest));
  const VF m = hn::Set(df, *max);
  VF total = hn::Zero(df);
  for (size_t t = 0; t < n; t += hn::Lanes(df)) {
    const VF p = hn::Exp(df, hn::Sub(hn::Load(df, scores + t), m));
    total = hn::Add(total, p);
    hn::Store(p, df, scores + t);
  }
  *sum = hn::GetLane(hn::SumOfLanes(df, total));
}

// values[query] += sum over the page's tokens of p * v, four vectors of dimensions at a time.
template <int kQueries>
HWY_INLINE void AddPageValues(const uint16_t* values, int head_dim, const float* p, size_t p_stride,
                              const Partial* partials) {
  const DF df;
  constexpr size_t kVectors = 4;
  const size_t d = head_dim, lanes = hn::Lanes(df);
  for (size_t dim = 0; dim < d; dim += kVectors * lanes) {
    const size_t vectors = std::min(kVectors, (d - dim) / lanes);
    VF acc[kQueries][kVectors];
    for (int i = 0; i < kQueries; ++i) {
      for (size_t j = 0; j < kVectors; ++j) {
        acc[i][j] =
            j < vectors ? hn::LoadU(df, partials[i].values + dim + j * lanes) : hn::Zero(df);
      }
    }
    for (size_t t = 0; t < kTileTokens; ++t) {
      for (size_t j = 0; j < kVectors; ++j) {
        if (j >= vectors) break;
        const VF v = LoadHalf(values + t * d + dim + j * lanes);
        for (int i = 0; i < kQueries; ++i) {
          acc[i][j] = hn::MulAdd(hn::Set(df, p[i * p_stride + t]), v, acc[i][j]);
        }
      }
    }
    for (int i = 0; i < kQueries; ++i) {
      for (size_t j = 0; j < vectors; ++j) {
        hn::StoreU(acc[i][j], df, partials[i].values + dim + j * lanes);
      }
    }
  }
}

template <int kQueries>
void AttendRangeTile(const std::byte* base, absl::Span<const PageEntry> pages, int first_token,
                     int head_dim, float scale, const QueryTile& tile, Partial* partials) {
  HWY_ALIGN float scores[kQueries][kRangeTokens];
  const int tokens = static_cast<int>(pages.size()) * kTileTokens;
  const auto page_data = [&](size_t page) { return base + pages[page].unit * kPageUnitBytes; };
  for (size_t i = 0; i < pages.size(); ++i) {
    const auto* keys =
        reinterpret_cast<const uint16_t*>(page_data(i) + Fp16PageLayout::KeyOffset(head_dim));
    PageScores<kQueries>(keys, head_dim, tile, scale, scores[0] + i * kTileTokens, kRangeTokens);
  }
  for (int i = 0; i < kQueries; ++i) {
    Exponentiate(scores[i], tokens, tile.visible[i] - first_token, &partials[i].max,
                 &partials[i].sum);
    std::memset(partials[i].values, 0, head_dim * sizeof(float));
  }
  for (size_t i = 0; i < pages.size(); ++i) {
    const auto* values =
        reinterpret_cast<const uint16_t*>(page_data(i) + Fp16PageLayout::ValueOffset(head_dim));
    AddPageValues<kQueries>(values, head_dim, scores[0] + i * kTileTokens, kRangeTokens, partials);
  }
}

// One range of one KV head for a tile of queries. `pages` are the range's, at most kRangePages;
// `first_token` is the first page's first. The last query sees a token of it; the partial of one
// that does not means nothing.
void AttendRange(const std::byte* base, absl::Span<const PageEntry> pages, int first_token,
                 int head_dim, float scale, const QueryTile& tile, Partial* partials) {
  switch (tile.count) {
    case 1:
      return AttendRangeTile<1>(base, pages, first_token, head_dim, scale, tile, partials);
    case 2:
      return AttendRangeTile<2>(base, pages, first_token, head_dim, scale, tile, partials);
    case 3:
      return AttendRangeTile<3>(base, pages, first_token, head_dim, scale, tile, partials);
    default:
      return AttendRangeTile<4>(base, pages, first_token, head_dim, scale, tile, partials);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace whit
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace whit {
namespace {

using attention_internal::kQueryTile;
using attention_internal::kRangePages;
using attention_internal::kRangeTokens;
using attention_internal::Partial;
using attention_internal::QueryTile;

HWY_EXPORT(AttendRange);

// One KV head of one slice; its queries are numbered row by row, heads of the GQA group together.
struct HeadJob {
  const AttentionSlice* slice;
  int kv_head;
  absl::Span<const PageEntry> pages;
};

class Attender {
 public:
  Attender(const AttentionShape& shape, int layer, absl::Span<const AttentionSlice> slices)
      : shape_(shape), group_(shape.num_heads / shape.num_kv_heads) {
    for (const AttentionSlice& slice : slices) {
      for (int head = 0; head < shape.num_kv_heads; ++head) {
        jobs_.push_back({&slice, head, slice.kv->pages(layer, head)});
      }
    }
  }

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
  static int NumRanges(int visible) { return (visible + kRangeTokens - 1) / kRangeTokens; }
  // A partial in scratch memory: max, sum, and from 16 on the values.
  size_t record_floats() const { return 16 + shape_.head_dim; }

  QueryTile MakeTile(const HeadJob& job, int first_query) const;
  void RunRange(const HeadJob& job, int range, const QueryTile& tile, Partial* partials) const;
  void RunAllRanges(const HeadJob& job, int first_query) const;
  void MergeRanges(const HeadJob& job, int first_query, float* records) const;
  void Merge(Partial& into, const Partial& from) const;
  void Write(const HeadJob& job, int query, const Partial& partial) const;

  const AttentionShape& shape_;
  const int group_;
  std::vector<HeadJob> jobs_;
};

QueryTile Attender::MakeTile(const HeadJob& job, int first_query) const {
  QueryTile tile;
  tile.count = std::min(kQueryTile, NumQueries(job) - first_query);
  for (int i = 0; i < tile.count; ++i) {
    const int row = (first_query + i) / group_;
    const int head = job.kv_head * group_ + (first_query + i) % group_;
    tile.q[i] = job.slice->q + row * job.slice->q_stride + head * shape_.head_dim;
    tile.visible[i] = job.slice->first_position + row + 1;
  }
  return tile;
}

void Attender::RunRange(const HeadJob& job, int range, const QueryTile& tile,
                        Partial* partials) const {
  const int last_visible = tile.visible[tile.count - 1];
  const int first_token = range * kRangeTokens;
  const int tokens = std::min(kRangeTokens, last_visible - first_token);
  const auto pages =
      job.pages.subspan(size_t{1} * range * kRangePages, (tokens + kTileTokens - 1) / kTileTokens);
  HWY_DYNAMIC_DISPATCH(AttendRange)
  (job.slice->kv->pool().base(), pages, first_token, shape_.head_dim, shape_.scale, tile, partials);
}

void Attender::Merge(Partial& into, const Partial& from) const {
  const float max = std::max(into.max, from.max);
  const float a = std::exp(into.max - max), b = std::exp(from.max - max);
  into.max = max;
  into.sum = into.sum * a + from.sum * b;
  for (int i = 0; i < shape_.head_dim; ++i)
    into.values[i] = into.values[i] * a + from.values[i] * b;
}

void Attender::Write(const HeadJob& job, int query, const Partial& partial) const {
  const int head = job.kv_head * group_ + query % group_;
  float* out = job.slice->out + query / group_ * job.slice->out_stride + head * shape_.head_dim;
  const float inverse = 1.0f / partial.sum;
  for (int i = 0; i < shape_.head_dim; ++i) out[i] = partial.values[i] * inverse;
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
  for (int range = 1; range < NumRanges(tile.visible[tile.count - 1]); ++range) {
    RunRange(job, range, tile, partials);
    for (int i = 0; i < tile.count; ++i) {
      if (range < NumRanges(tile.visible[i])) Merge(merged[i], partials[i]);
    }
  }
  for (int i = 0; i < tile.count; ++i) Write(job, first_query + i, merged[i]);
}

void Attender::MergeRanges(const HeadJob& job, int first_query, float* records) const {
  const QueryTile tile = MakeTile(job, first_query);
  for (int i = 0; i < tile.count; ++i) {
    const auto partial = [&](int range) {
      float* record = records + (size_t{1} * range * kQueryTile + i) * record_floats();
      return Partial{.max = record[0], .sum = record[1], .values = record + 16};
    };
    Partial merged = partial(0);
    for (int range = 1; range < NumRanges(tile.visible[i]); ++range) Merge(merged, partial(range));
    Write(job, first_query + i, merged);
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
      const int ranges = NumRanges(job.slice->first_position + last / group_ + 1);
      if (!split || ranges == 1) {
        items.push_back({j, query, kAllRanges, nullptr});
        continue;
      }
      for (int range = 0; range < ranges; ++range) {
        items.push_back({j, query, range, nullptr});
        records += kQueryTile;
      }
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

void Attention(const AttentionShape& shape, int layer, absl::Span<const AttentionSlice> slices,
               ThreadPool& pool, AttentionScratch& scratch) {
  Attender(shape, layer, slices).Run(pool, scratch);
}

void AttentionReference(const AttentionShape& shape, int layer, const PageTable& kv,
                        int num_visible, const float* q, float* out) {
  const int d = shape.head_dim, group = shape.num_heads / shape.num_kv_heads;
  for (int head = 0; head < shape.num_heads; ++head) {
    const absl::Span<const PageEntry> pages = kv.pages(layer, head / group);
    const auto half = [&](int token, size_t offset, int index) {
      const std::byte* page = kv.pool().PageData(pages[token / kTileTokens].unit);
      uint16_t bits;
      std::memcpy(&bits, page + offset + 2 * index, sizeof(bits));
      return double{HalfToFloat(bits)};
    };
    std::vector<double> p(num_visible);
    double max = -INFINITY, sum = 0;
    for (int t = 0; t < num_visible; ++t) {
      for (int i = 0; i < d; ++i) {
        p[t] += q[head * d + i] *
                half(t, Fp16PageLayout::KeyOffset(d), i * kTileTokens + t % kTileTokens);
      }
      p[t] *= shape.scale;
      max = std::max(max, p[t]);
    }
    for (double& x : p) sum += x = std::exp(x - max);
    for (int i = 0; i < d; ++i) {
      double v = 0;
      for (int t = 0; t < num_visible; ++t) {
        v += p[t] * half(t, Fp16PageLayout::ValueOffset(d), t % kTileTokens * d + i);
      }
      out[head * d + i] = static_cast<float>(v / sum);
    }
  }
}

}  // namespace whit
#endif  // HWY_ONCE
