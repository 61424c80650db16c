#include "controller/importance_features.h"

#include <algorithm>
#include <cmath>
#include <cstddef>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "controller/importance_features.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep

#include "hwy/contrib/math/math-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace whit {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using DF = hn::CappedTag<float, kTileTokens>;
using VF = hn::Vec<DF>;

// head_dim is a multiple of 16, and so of the lanes.
HWY_INLINE float Dot(const float* HWY_RESTRICT a, const float* HWY_RESTRICT b, size_t head_dim) {
  const DF d;
  VF sum = hn::Zero(d);
  for (size_t i = 0; i < head_dim; i += hn::Lanes(d)) {
    sum = hn::MulAdd(hn::LoadU(d, a + i), hn::LoadU(d, b + i), sum);
  }
  return hn::GetLane(hn::SumOfLanes(d, sum));
}

HWY_INLINE float SquaredDistance(const float* HWY_RESTRICT a, const float* HWY_RESTRICT b,
                                 size_t head_dim) {
  const DF d;
  VF sum = hn::Zero(d);
  for (size_t i = 0; i < head_dim; i += hn::Lanes(d)) {
    const VF difference = hn::Sub(hn::LoadU(d, a + i), hn::LoadU(d, b + i));
    sum = hn::MulAdd(difference, difference, sum);
  }
  return hn::GetLane(hn::SumOfLanes(d, sum));
}

constexpr float kLeast = 1e-12f;

// out[i] = scale * ln(max(x[i], least)), for a whole block.
void LogBlock(const float* HWY_RESTRICT x, float least, float scale, float* HWY_RESTRICT out) {
  const DF d;
  for (size_t i = 0; i < kTileTokens; i += hn::Lanes(d)) {
    const VF log = hn::Log(d, hn::Max(hn::LoadU(d, x + i), hn::Set(d, least)));
    hn::StoreU(hn::Mul(log, hn::Set(d, scale)), d, out + i);
  }
}

// out[i] = ln of the sum over rows of exp(scores[row][i]), for a whole block.
void LogSumExpBlock(const float* HWY_RESTRICT scores, size_t rows, float* HWY_RESTRICT out) {
  const DF d;
  for (size_t i = 0; i < kTileTokens; i += hn::Lanes(d)) {
    VF max = hn::LoadU(d, scores + i);
    for (size_t row = 1; row < rows; ++row) {
      max = hn::Max(max, hn::LoadU(d, scores + row * kTileTokens + i));
    }
    VF sum = hn::Zero(d);
    for (size_t row = 0; row < rows; ++row) {
      sum = hn::Add(sum, hn::Exp(d, hn::Sub(hn::LoadU(d, scores + row * kTileTokens + i), max)));
    }
    hn::StoreU(hn::Add(max, hn::Log(d, sum)), d, out + i);
  }
}

// scores[head][i] = scale * q . k, for up to kTileTokens keys and one query head after the other.
void ExpectedAttention(const float* HWY_RESTRICT keys, size_t count,
                       const float* HWY_RESTRICT queries, size_t num_queries, size_t head_dim,
                       float* HWY_RESTRICT out) {
  constexpr size_t kHeadsAtOnce = 16;
  HWY_ALIGN float scores[kHeadsAtOnce + 1][kTileTokens] = {};
  const float scale = 1.0f / std::sqrt(static_cast<float>(head_dim));
  // Row 0 has the logarithm of the heads done so far.
  for (size_t done = 0; done < num_queries;) {
    const size_t heads = std::min(kHeadsAtOnce, num_queries - done);
    for (size_t head = 0; head < heads; ++head) {
      const float* query = queries + (done + head) * head_dim;
      for (size_t i = 0; i < count; ++i) {
        scores[head + 1][i] = scale * Dot(query, keys + i * head_dim, head_dim);
      }
    }
    const bool first = done == 0;
    LogSumExpBlock(scores[first ? 1 : 0], heads + (first ? 0 : 1), out);
    std::copy(out, out + kTileTokens, scores[0]);
    done += heads;
  }
}

void Extract(const LeavingTokens& tokens, int first, int count, const float* query_means,
             size_t num_queries, ImportanceFeatureBlock* HWY_RESTRICT block) {
  const auto head_dim = static_cast<size_t>(tokens.head_dim);
  HWY_ALIGN float sum[kTileTokens] = {}, squares[kTileTokens] = {}, recent[kTileTokens] = {},
                  queries[kTileTokens] = {}, positions[kTileTokens] = {};
  std::fill_n(block->key_squares, kTileTokens, 0.0f);
  std::fill_n(block->value_squares, kTileTokens, 0.0f);
  for (int i = 0; i < count; ++i) {
    const int token = first + i;
    const int position = tokens.first_position + token;
    queries[i] = static_cast<float>(std::max(1, tokens.context - position));
    positions[i] = static_cast<float>(position + 1);
    sum[i] = tokens.received.sum[token] / queries[i];
    squares[i] = tokens.received.squares[token] / queries[i];
    recent[i] = tokens.received.recent[token];
    const float* key = tokens.keys + token * head_dim;
    const float* value = tokens.values + token * head_dim;
    block->key_squares[i] = tokens.key_mean == nullptr
                                ? Dot(key, key, head_dim)
                                : SquaredDistance(key, tokens.key_mean, head_dim);
    block->value_squares[i] = Dot(value, value, head_dim);
  }

  const auto row = [&](ImportanceFeature feature) {
    return block->features[static_cast<size_t>(feature)];
  };
  LogBlock(sum, kLeast, 1, row(ImportanceFeature::kAttention));
  LogBlock(squares, kLeast, 1, row(ImportanceFeature::kAttentionSquares));
  LogBlock(recent, kLeast, 1, row(ImportanceFeature::kRecentAttention));
  // ln|x| = ln|x|^2 / 2
  LogBlock(block->key_squares, kLeast * kLeast, 0.5f, row(ImportanceFeature::kKeyNorm));
  LogBlock(block->value_squares, kLeast * kLeast, 0.5f, row(ImportanceFeature::kValueNorm));
  LogBlock(queries, kLeast, 1, row(ImportanceFeature::kQueries));
  LogBlock(positions, kLeast, 1, row(ImportanceFeature::kPosition));
  float* expected = row(ImportanceFeature::kExpectedAttention);
  std::fill_n(expected, kTileTokens, 0.0f);
  if (num_queries > 0) {
    ExpectedAttention(tokens.keys + first * head_dim, count, query_means, num_queries, head_dim,
                      expected);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace whit
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace whit {

HWY_EXPORT(Extract);

void ExtractImportanceFeatures(const LeavingTokens& tokens, int first, int count,
                               absl::Span<const float> query_means, ImportanceFeatureBlock* block) {
  HWY_DYNAMIC_DISPATCH(Extract)
  (tokens, first, count, query_means.data(), query_means.size() / tokens.head_dim, block);
}

}  // namespace whit
#endif  // HWY_ONCE
