#include "runtime/ops/attention.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "tests/unit/support/simd_targets.h"

namespace whit {
namespace {

std::vector<float> Random(size_t n, std::mt19937& rng, float scale = 1) {
  std::normal_distribution<float> normal(0, scale);
  std::vector<float> v(n);
  for (float& x : v) x = normal(rng);
  return v;
}

// A sequence of random keys and values in pages, and a query for every token.
struct RandomSequence {
  RandomSequence(const AttentionShape& shape, int tokens, PagePool& pool, std::mt19937& rng)
      : tokens(tokens),
        query_size(shape.num_heads * shape.head_dim),
        table(&pool, 1, shape.num_kv_heads),
        q(Random(size_t{1} * tokens * query_size, rng, 2)) {
    EXPECT_TRUE(table.Extend(tokens).ok());
    const size_t stride = shape.head_dim + 3;
    for (int head = 0; head < shape.num_kv_heads; ++head) {
      const std::vector<float> keys = Random(tokens * stride, rng);
      const std::vector<float> values = Random(tokens * stride, rng);
      table.Append(0, head, tokens,
                   {.keys = keys.data(), .values = values.data(), .stride = stride});
    }
  }

  AttentionSlice Slice(int first, int count, std::vector<float>& out) const {
    out.assign(size_t{1} * count * query_size, -1.0f);
    return {.q = q.data() + size_t{1} * first * query_size,
            .q_stride = query_size,
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
};

std::unique_ptr<PagePool> MakePool(int head_dim) {
  return *PagePool::Create({.capacity_bytes = size_t{64} << 20, .head_dim = head_dim});
}

AttentionShape Shape(int heads, int kv_heads, int head_dim) {
  return {.num_heads = heads,
          .num_kv_heads = kv_heads,
          .head_dim = head_dim,
          .scale = 1.0f / std::sqrt(static_cast<float>(head_dim))};
}

TEST(AttentionTest, MatchesReferenceForEveryTargetShapeAndLength) {
  struct Case {
    int heads, kv_heads, head_dim;
  };
  for (const Case c : {Case{9, 3, 64}, Case{4, 4, 16}, Case{8, 1, 80}, Case{5, 1, 128}}) {
    const AttentionShape shape = Shape(c.heads, c.kv_heads, c.head_dim);
    const auto page_pool = MakePool(c.head_dim);
    ThreadPool threads(2);
    std::mt19937 rng(c.head_dim);
    for (int tokens : {1, 2, 15, 16, 17, 100, 512, 513, 1100}) {
      const RandomSequence sequence(shape, tokens, *page_pool, rng);
      std::vector<float> expected(sequence.query_size);
      ForEachSimdTarget([&] {
        AttentionScratch scratch;
        for (int count : {1, 7}) {  // decode, and the end of a prefill
          if (count > tokens) continue;
          std::vector<float> out;
          const AttentionSlice slice = sequence.Slice(tokens - count, count, out);
          Attention(shape, 0, {slice}, threads, scratch);
          for (int row : {0, count - 1}) {
            AttentionReference(shape, 0, sequence.table, tokens - count + row + 1,
                               slice.q + row * slice.q_stride, expected.data());
            for (size_t i = 0; i < expected.size(); ++i) {
              ASSERT_NEAR(out[row * slice.out_stride + i], expected[i], 2e-5)
                  << "head_dim " << c.head_dim << " tokens " << tokens << " row " << row << " "
                  << i;
            }
          }
        }
      });
    }
  }
}

TEST(AttentionTest, ExtremeScoresStayFinite) {
  const AttentionShape shape = Shape(1, 1, 16);
  const auto page_pool = MakePool(16);
  PageTable table(page_pool.get(), 1, 1);
  ASSERT_TRUE(table.Extend(2).ok());
  std::vector<float> keys(32, 6e4f), values(32, 1.0f), q(16, 1e4f), out(16);
  std::fill(keys.begin(), keys.begin() + 16, -6e4f);
  table.Append(0, 0, 2, {.keys = keys.data(), .values = values.data(), .stride = 16});
  ThreadPool threads(1);
  AttentionScratch scratch;
  Attention(shape, 0,
            {{.q = q.data(),
              .q_stride = 16,
              .out = out.data(),
              .out_stride = 16,
              .num_tokens = 1,
              .first_position = 1,
              .kv = &table}},
            threads, scratch);
  for (float x : out) EXPECT_EQ(x, 1.0f);
}

TEST(AttentionTest, ARowIsBitwiseTheSameAloneBatchedAndInAnyChunk) {
  const AttentionShape shape = Shape(6, 2, 64);
  const auto page_pool = MakePool(64);
  std::mt19937 rng(3);
  const RandomSequence sequence(shape, 1300, *page_pool, rng);
  const RandomSequence other(shape, 77, *page_pool, rng);
  ThreadPool one(1), three(3);
  AttentionScratch scratch;
  std::vector<float> whole, other_out;
  Attention(shape, 0, {sequence.Slice(0, 1300, whole)}, three, scratch);
  for (int row : {0, 3, 15, 16, 511, 512, 600, 1023, 1024, 1299}) {
    SCOPED_TRACE(row);
    const size_t bytes = sequence.query_size * sizeof(float);
    const float* expected = whole.data() + row * sequence.query_size;
    std::vector<float> out;
    Attention(shape, 0, {sequence.Slice(row, 1, out)}, one, scratch);
    EXPECT_EQ(std::memcmp(out.data(), expected, bytes), 0) << "alone";
    Attention(shape, 0, {other.Slice(0, 77, other_out), sequence.Slice(row, 1, out)}, three,
              scratch);
    EXPECT_EQ(std::memcmp(out.data(), expected, bytes), 0) << "batched";
    if (row == 0) continue;
    Attention(shape, 0, {sequence.Slice(row - 1, 2, out)}, three, scratch);
    EXPECT_EQ(std::memcmp(out.data() + sequence.query_size, expected, bytes), 0) << "other chunk";
  }
}

}  // namespace
}  // namespace whit
