#include "runtime/ops/attention.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "kvpool/quantizer.h"
#include "tests/unit/support/simd_targets.h"

namespace whit {
namespace {

constexpr Rung kAllRungs[] = {Rung::kK2V2, Rung::kK4V2, Rung::kK4V4,
                              Rung::kK8V4, Rung::kK8V8, Rung::kFp16};

std::vector<float> Gaussian(size_t n, std::mt19937& rng, float scale = 1) {
  std::normal_distribution<float> normal(0, scale);
  std::vector<float> v(n);
  for (float& x : v) x = normal(rng);
  return v;
}

AttentionShape Shape(int heads, int kv_heads, int head_dim) {
  return {.num_heads = heads,
          .num_kv_heads = kv_heads,
          .head_dim = head_dim,
          .scale = 1.0f / std::sqrt(static_cast<float>(head_dim))};
}

std::unique_ptr<PagePool> MakePool(int head_dim) {
  return *PagePool::Create({.capacity_bytes = size_t{64} << 20, .head_dim = head_dim});
}

KeyMeans MakeMeans(const AttentionShape& shape, std::mt19937& rng) {
  KeyMeans means({.num_layers = 1,
                  .num_kv_heads = shape.num_kv_heads,
                  .head_dim = shape.head_dim,
                  .inverse_frequencies = std::vector<float>(shape.head_dim / 2, 0.01f)},
                 Gaussian(shape.num_kv_heads * shape.head_dim, rng, 2));
  means.Prepare(4096);
  return means;
}

// A sequence of random keys and values, of which `settle` chooses what leaves the ring, and a query
// for every token.
struct RandomSequence {
  template <typename ChooseRung>
  RandomSequence(const AttentionShape& shape, int tokens, const RecentRing& ring, PagePool& pool,
                 const KeyMeans* means, std::mt19937& rng, ChooseRung choose)
      : tokens(tokens),
        query_size(shape.num_heads * shape.head_dim),
        table(&pool, {.num_layers = 1, .num_kv_heads = shape.num_kv_heads}, ring, means),
        q(Gaussian(size_t{1} * tokens * query_size, rng)),
        queries(shape, tokens) {
    const size_t d = shape.head_dim;
    for (int row = 0; row < tokens; ++row) queries.SetRow(row, q.data() + row * query_size);
    for (int head = 0; head < shape.num_kv_heads; ++head) {
      std::vector<float> rows = Gaussian(tokens * 2 * d, rng);
      for (int token = 0; token < tokens; ++token) {
        // Keys gather around the mean; sizes differ from token to token.
        float* key = rows.data() + token * 2 * d;
        RotateHadamard(key, static_cast<int>(d));
        if (means != nullptr) {
          const float* mean = means->mean(KeyMeans::Block(token), 0, head);
          for (size_t i = 0; i < d; ++i) key[i] += mean[i];
        }
        for (size_t i = 0; i < d; ++i) key[d + i] *= 0.2f + static_cast<float>(token % 7);
        table.Append(0, head, 1, {.keys = key, .values = key + d, .stride = 2 * d});
        PageTable::LeavingPage page;
        while (table.NextLeaving(0, head, &page)) {
          std::vector<Rung> rungs(page.tokens);
          for (Rung& rung : rungs) rung = choose();
          table.Settle(0, head, rungs);
        }
      }
    }
    EXPECT_TRUE(table.status().ok());
  }

  AttentionSlice Slice(int first, int count, std::vector<float>& out) const {
    out.assign(size_t{1} * count * query_size, -1.0f);
    return {.first_row = static_cast<size_t>(first),
            .out = out.data(),
            .out_stride = query_size,
            .num_tokens = count,
            .first_position = first,
            .kv = &table};
  }

  int tokens;
  size_t query_size;
  PageTable table;
  std::vector<float> q;
  AttentionQueries queries;
};

constexpr RecentRing kExactRing = {.rung = Rung::kFp16, .tokens = 1 << 20};

double Norm2(const std::vector<float>& v) {
  double sum = 0;
  for (float x : v) sum += double{x} * x;
  return sum;
}

// The kernels' error against exact arithmetic on the decoded pages, relative to the output.
double KernelError(const AttentionShape& shape, const RandomSequence& sequence, int row,
                   int count) {
  ThreadPool threads(2);
  AttentionScratch scratch;
  std::vector<float> out, expected(sequence.query_size);
  Attention(shape, 0, sequence.queries, {sequence.Slice(row, count, out)}, threads, scratch);
  AttentionReference(shape, 0, sequence.table, row + count,
                     &sequence.q[(row + count - 1) * sequence.query_size], expected.data());
  out.erase(out.begin(), out.end() - static_cast<ptrdiff_t>(sequence.query_size));
  const double norm = Norm2(expected);
  for (size_t i = 0; i < out.size(); ++i) out[i] -= expected[i];
  return Norm2(out) / norm;
}

TEST(AttentionTest, Fp16MatchesReferenceForEveryTargetShapeAndLength) {
  for (const AttentionShape& shape :
       {Shape(9, 3, 64), Shape(4, 4, 16), Shape(8, 1, 80), Shape(5, 1, 128)}) {
    const auto pool = MakePool(shape.head_dim);
    std::mt19937 rng(shape.head_dim);
    for (int tokens : {1, 2, 15, 16, 17, 100, 512, 513, 1100}) {
      SCOPED_TRACE(testing::Message() << "head_dim " << shape.head_dim << " tokens " << tokens);
      const RandomSequence sequence(shape, tokens, kExactRing, *pool, nullptr, rng,
                                    [] { return Rung::kFp16; });
      ForEachSimdTarget([&] {
        for (int count : {1, 7}) {
          if (count > tokens) continue;
          EXPECT_LT(KernelError(shape, sequence, tokens - count, count), 1e-10) << count;
        }
      });
    }
  }
}

// What quantization itself costs: attention over decoded pages against attention over exact ones.
TEST(AttentionTest, KernelErrorIsATenthOfTheRungsQuantizationError) {
  for (const AttentionShape& shape : {Shape(9, 3, 64), Shape(4, 2, 48), Shape(4, 1, 128)}) {
    const auto pool = MakePool(shape.head_dim);
    for (Rung rung : kAllRungs) {
      if (rung == Rung::kFp16) continue;
      SCOPED_TRACE(testing::Message() << "head_dim " << shape.head_dim << " " << RungName(rung));
      for (int tokens : {40, 700}) {
        std::mt19937 seed(tokens), same_seed(tokens);
        const KeyMeans means = MakeMeans(shape, seed);
        MakeMeans(shape, same_seed);
        const RandomSequence exact(shape, tokens, kExactRing, *pool, &means, seed,
                                   [] { return Rung::kFp16; });
        const RandomSequence quantized(shape, tokens, {.rung = rung, .tokens = 0}, *pool, &means,
                                       same_seed, [&] { return rung; });
        std::vector<float> a(exact.query_size), b(exact.query_size);
        const float* q = &exact.q[(tokens - 1) * exact.query_size];
        AttentionReference(shape, 0, exact.table, tokens, q, a.data());
        AttentionReference(shape, 0, quantized.table, tokens, q, b.data());
        for (size_t i = 0; i < a.size(); ++i) b[i] -= a[i];
        const double quantization = Norm2(b) / Norm2(a);
        ForEachSimdTarget(
            [&] { EXPECT_LT(KernelError(shape, quantized, tokens - 1, 1), 0.1 * quantization); });
      }
    }
  }
}

TEST(AttentionTest, AnyMixOfRungsMatchesReferenceOnEveryTarget) {
  for (const AttentionShape& shape : {Shape(6, 2, 64), Shape(2, 2, 32)}) {
    const auto pool = MakePool(shape.head_dim);
    std::mt19937 rng(9);
    const KeyMeans means = MakeMeans(shape, rng);
    for (Rung ring : {Rung::kK8V8, Rung::kFp16}) {
      const RandomSequence sequence(shape, 1300, {.rung = ring, .tokens = 20}, *pool, &means, rng,
                                    [&] { return kAllRungs[rng() % kNumRungs]; });
      ForEachSimdTarget([&] {
        for (int row : {1279, 1299}) {  // earlier rows see only tokens of the ring left out
          EXPECT_LT(KernelError(shape, sequence, row, 1), 1e-4) << row;
        }
      });
    }
  }
}

TEST(AttentionTest, ExtremeScoresStayFinite) {
  const AttentionShape shape = Shape(1, 1, 16);
  const auto pool = MakePool(16);
  std::mt19937 rng(4);
  for (Rung rung : kAllRungs) {
    PageTable table(pool.get(), {.num_layers = 1, .num_kv_heads = 1}, {.rung = rung}, nullptr);
    const std::vector<float> values = Gaussian(32, rng), q(16, 1e4f);
    std::vector<float> keys(32, 6e4f), out(16);
    std::fill(keys.begin(), keys.begin() + 16, -6e4f);
    for (float* key : {keys.data(), keys.data() + 16}) RotateHadamard(key, 16);
    table.Append(0, 0, 2, {.keys = keys.data(), .values = values.data(), .stride = 16});
    ThreadPool threads(1);
    AttentionScratch scratch;
    AttentionQueries queries(shape, 1);
    queries.SetRow(0, q.data());
    Attention(
        shape, 0, queries,
        {{.out = out.data(), .out_stride = 16, .num_tokens = 1, .first_position = 1, .kv = &table}},
        threads, scratch);
    // The second token takes all.
    std::vector<float> k, v;
    table.Read(0, 0, &k, &v);
    RotateHadamard(v.data() + 16, 16);
    for (int i = 0; i < 16; ++i) EXPECT_NEAR(out[i], v[16 + i], 0.02f) << RungName(rung);
  }
}

TEST(AttentionTest, ARowIsBitwiseTheSameAloneBatchedAndInAnyChunk) {
  const AttentionShape shape = Shape(6, 2, 64);
  const auto pool = MakePool(64);
  std::mt19937 rng(3);
  const KeyMeans means = MakeMeans(shape, rng);
  for (const RecentRing& ring : {kExactRing, RecentRing{.rung = Rung::kK8V8, .tokens = 1000}}) {
    const RandomSequence sequence(shape, 1300, ring, *pool, &means, rng,
                                  [] { return Rung::kK4V2; });
    ThreadPool one(1), three(3);
    AttentionScratch scratch;
    std::vector<float> whole, out, other;
    const int first = 320;
    Attention(shape, 0, sequence.queries, {sequence.Slice(first, 1300 - first, whole)}, three,
              scratch);
    for (int row : {321, 511, 512, 600, 1023, 1024, 1299}) {
      SCOPED_TRACE(row);
      const size_t bytes = sequence.query_size * sizeof(float);
      const float* expected = whole.data() + (row - first) * sequence.query_size;
      Attention(shape, 0, sequence.queries, {sequence.Slice(row, 1, out)}, one, scratch);
      EXPECT_EQ(std::memcmp(out.data(), expected, bytes), 0) << "alone";
      Attention(shape, 0, sequence.queries,
                {sequence.Slice(700, 77, other), sequence.Slice(row, 1, out)}, three, scratch);
      EXPECT_EQ(std::memcmp(out.data(), expected, bytes), 0) << "batched";
      Attention(shape, 0, sequence.queries, {sequence.Slice(row - 1, 2, out)}, three, scratch);
      EXPECT_EQ(std::memcmp(out.data() + sequence.query_size, expected, bytes), 0) << "other chunk";
    }
  }
}

}  // namespace
}  // namespace whit
