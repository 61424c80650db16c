#include "runtime/ops/attention.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "kvpool/quantizer.h"
#include "runtime/ops/cpu_extension.h"
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

  AttentionSlice Slice(int first, int count, bool tiles, std::vector<float>& out) const {
    out.assign(size_t{1} * count * query_size, -1.0f);
    return {.first_row = static_cast<size_t>(first),
            .out = out.data(),
            .out_stride = query_size,
            .num_tokens = count,
            .first_position = first,
            .kv = &table,
            .tiles = tiles};
  }

  int tokens;
  size_t query_size;
  PageTable table;
  std::vector<float> q;
  AttentionQueries queries;
};

// Of an output whose probabilities and values were rounded to bfloat16, squared and relative.
constexpr double kBFloat16Error = 1e-5;

constexpr RecentRing kExactRing = {.rung = Rung::kFp16, .tokens = 1 << 20};

bool HasTiles() { return DetectCpuExtension() == CpuExtension::kAmx; }

// Calls body(whether to use AMX tiles) for everything that this CPU can do.
template <typename Fn>
void ForEachKernel(Fn body) {
  ForEachSimdTarget([&] { body(false); });
  if (!HasTiles()) return;
  SCOPED_TRACE("AMX tiles");
  body(true);
}

double Norm2(const std::vector<float>& v) {
  double sum = 0;
  for (float x : v) sum += double{x} * x;
  return sum;
}

// The kernels' error against exact arithmetic on the decoded pages, relative to the output.
double KernelError(const AttentionShape& shape, const RandomSequence& sequence, bool tiles, int row,
                   int count) {
  ThreadPool threads(2);
  AttentionScratch scratch;
  std::vector<float> out, expected(sequence.query_size);
  Attention(shape, 0, sequence.queries, {sequence.Slice(row, count, tiles, out)}, threads, scratch);
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
      ForEachKernel([&](bool tiles) {
        for (int count : {1, 7, 40}) {
          if (count > tokens) continue;
          EXPECT_LT(KernelError(shape, sequence, tiles, tokens - count, count),
                    tiles ? kBFloat16Error : 1e-10)
              << count;
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
        ForEachKernel([&](bool tiles) {
          EXPECT_LT(KernelError(shape, quantized, tiles, tokens - 1, 1),
                    std::max(0.1 * quantization, tiles ? kBFloat16Error : 0));
        });
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
      ForEachKernel([&](bool tiles) {
        for (int row : {1279, 1299}) {  // earlier rows see only tokens of the ring left out
          EXPECT_LT(KernelError(shape, sequence, tiles, row, 1), 1e-4) << row;
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
    // The second token takes all.
    std::vector<float> k, v;
    table.Read(0, 0, &k, &v);
    RotateHadamard(v.data() + 16, 16);
    for (bool tiles : {false, true}) {
      if (tiles && !HasTiles()) continue;
      Attention(shape, 0, queries,
                {{.out = out.data(),
                  .out_stride = 16,
                  .num_tokens = 1,
                  .first_position = 1,
                  .kv = &table,
                  .tiles = tiles}},
                threads, scratch);
      for (int i = 0; i < 16; ++i) EXPECT_NEAR(out[i], v[16 + i], 0.02f) << RungName(rung);
    }
  }
}

void ExpectRowsBitwiseTheSame(bool tiles) {
  const AttentionShape shape = Shape(6, 2, 64);
  const auto pool = MakePool(64);
  std::mt19937 rng(3);
  const KeyMeans means = MakeMeans(shape, rng);
  for (const RecentRing& ring : {kExactRing, RecentRing{.rung = Rung::kK8V8, .tokens = 400}}) {
    const RandomSequence sequence(shape, 1300, ring, *pool, &means, rng,
                                  [&] { return kAllRungs[rng() % kNumRungs]; });
    ThreadPool one(1), three(3);
    AttentionScratch scratch;
    std::vector<float> whole, out, other;
    const int first = 320;
    Attention(shape, 0, sequence.queries, {sequence.Slice(first, 1300 - first, tiles, whole)},
              three, scratch);
    for (int row : {321, 511, 512, 600, 1023, 1024, 1299}) {
      SCOPED_TRACE(row);
      const size_t bytes = sequence.query_size * sizeof(float);
      const float* expected = whole.data() + (row - first) * sequence.query_size;
      Attention(shape, 0, sequence.queries, {sequence.Slice(row, 1, tiles, out)}, one, scratch);
      EXPECT_EQ(std::memcmp(out.data(), expected, bytes), 0) << "alone";
      Attention(shape, 0, sequence.queries,
                {sequence.Slice(700, 77, tiles, other), sequence.Slice(row, 1, tiles, out)}, three,
                scratch);
      EXPECT_EQ(std::memcmp(out.data(), expected, bytes), 0) << "batched";
      Attention(shape, 0, sequence.queries, {sequence.Slice(row - 1, 2, tiles, out)}, three,
                scratch);
      EXPECT_EQ(std::memcmp(out.data() + sequence.query_size, expected, bytes), 0) << "other chunk";
    }
  }
}

TEST(AttentionTest, ARowIsBitwiseTheSameAloneBatchedAndInAnyChunk) {
  ExpectRowsBitwiseTheSame(/*tiles=*/false);
}

TEST(AttentionTest, ARowOnTilesIsBitwiseTheSameAloneBatchedAndInAnyChunk) {
  if (!HasTiles()) GTEST_SKIP() << "this CPU has no AMX";
  ExpectRowsBitwiseTheSame(/*tiles=*/true);
}

// What undecided tokens receive, by the definition: probabilities of every query in double.
struct ExpectedTally {
  ExpectedTally(const AttentionShape& shape, const RandomSequence& sequence, int kv_head,
                int first_undecided, int count)
      : sum(sequence.tokens - first_undecided), squares(sum), recent(sum) {
    const int d = shape.head_dim, group = shape.num_heads / shape.num_kv_heads;
    std::vector<float> keys, values;
    sequence.table.Read(0, kv_head, &keys, &values);
    for (int row = sequence.tokens - count; row < sequence.tokens; ++row) {
      for (int head = kv_head * group; head < (kv_head + 1) * group; ++head) {
        std::vector<float> q(&sequence.q[row * sequence.query_size + head * d],
                             &sequence.q[row * sequence.query_size + (head + 1) * d]);
        RotateHadamard(q.data(), d);
        std::vector<double> p(row + 1);
        double total = 0;
        for (int t = 0; t <= row; ++t) {
          for (int i = 0; i < d; ++i) p[t] += double{q[i]} * keys[t * d + i];
          total += p[t] = std::exp(p[t] * shape.scale);
        }
        double squared = 0;
        for (int t = 0; t <= row; ++t) {
          const double a = p[t] / total;
          squared += a * a;
          if (t < first_undecided) continue;
          sum[t - first_undecided] += a;
          squares[t - first_undecided] += a * a;
          recent[t - first_undecided] += a * std::pow(kRecentDecay, sequence.tokens - 1 - row);
        }
        squared_probabilities.push_back(squared);  // [row][head of the group]
      }
    }
  }
  std::vector<double> sum, squares, recent, squared_probabilities;
};

void ExpectNear(const float* got, const std::vector<double>& expected, const char* what) {
  for (size_t i = 0; i < expected.size(); ++i) {
    ASSERT_NEAR(got[i], expected[i], 1e-3 * expected[i] + 1e-7) << what << " " << i;
  }
}

TEST(AttentionTest, TallyAndSquaresAreThoseOfTheProbabilities) {
  for (const AttentionShape& shape : {Shape(9, 3, 64), Shape(12, 2, 16)}) {
    const auto pool = MakePool(shape.head_dim);
    std::mt19937 rng(shape.head_dim);
    for (int tokens : {33, 530, 1100}) {
      const RandomSequence sequence(shape, tokens, kExactRing, *pool, nullptr, rng,
                                    [] { return Rung::kFp16; });
      for (int count : {1, 5, 33, 150}) {
        const int first_undecided = std::max(0, (tokens - count - 20) / 16 * 16);
        if (count > tokens) continue;
        SCOPED_TRACE(testing::Message()
                     << "heads " << shape.num_heads << " tokens " << tokens << " rows " << count);
        ForEachKernel([&](bool tiles) {
          AttentionTally tally(1, shape.num_kv_heads, first_undecided);
          std::vector<float> out, squares(count * shape.num_heads);
          AttentionSlice slice = sequence.Slice(tokens - count, count, tiles, out);
          slice.tally = &tally;
          slice.squared_probabilities = squares.data();
          for (int head = 0; head < shape.num_kv_heads; ++head) {
            tally.Append(0, head, tokens - first_undecided);
          }
          ThreadPool threads(2);
          AttentionScratch scratch;
          Attention(shape, 0, sequence.queries, {slice}, threads, scratch);
          for (int head = 0; head < shape.num_kv_heads; ++head) {
            const ExpectedTally expected(shape, sequence, head, first_undecided, count);
            const ReceivedAttention received = tally.received(0, head);
            ExpectNear(received.sum, expected.sum, "sum");
            ExpectNear(received.squares, expected.squares, "squares");
            ExpectNear(received.recent, expected.recent, "recent");
            const int group = shape.num_heads / shape.num_kv_heads;
            for (int i = 0; i < count * group; ++i) {
              const double squared = expected.squared_probabilities[i];
              EXPECT_NEAR(squares[i / group * shape.num_heads + head * group + i % group], squared,
                          1e-3 * squared);
            }
          }
        });
      }
    }
  }
}

TEST(AttentionTest, TallyIsBitwiseTheSameOnAnyNumberOfThreadsAndAddsUpOverCalls) {
  const AttentionShape shape = Shape(6, 2, 64);
  const auto pool = MakePool(64);
  std::mt19937 rng(5);
  const RandomSequence sequence(shape, 700, kExactRing, *pool, nullptr, rng,
                                [] { return Rung::kFp16; });
  const auto run = [&](int num_threads, bool tiles) {
    AttentionTally tally(1, 2, 480);
    ThreadPool threads(num_threads);
    AttentionScratch scratch;
    std::vector<float> out;
    for (int head = 0; head < 2; ++head) tally.Append(0, head, 220);
    AttentionSlice slice = sequence.Slice(550, 150, tiles, out);
    slice.tally = &tally;
    Attention(shape, 0, sequence.queries, {slice}, threads, scratch);
    const std::vector<float> once(tally.received(0, 1).sum, tally.received(0, 1).sum + 220);
    Attention(shape, 0, sequence.queries, {slice}, threads, scratch);
    for (int i = 0; i < 220; ++i) EXPECT_FLOAT_EQ(tally.received(0, 1).sum[i], 2 * once[i]);
    return once;
  };
  for (bool tiles : {false, true}) {
    if (tiles && !HasTiles()) continue;
    EXPECT_EQ(run(1, tiles), run(2, tiles));
  }
}

}  // namespace
}  // namespace whit
