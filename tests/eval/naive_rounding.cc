#include "tests/eval/naive_rounding.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "kvpool/page_pool.h"
#include "kvpool/quantizer.h"

namespace whit::eval {
namespace {

void RoundRotated(absl::Span<float> x, int bits) {
  RotateHadamard(x.data(), static_cast<int>(x.size()));
  RoundToAbsMax(x, bits);
  RotateHadamard(x.data(), static_cast<int>(x.size()));
}

}  // namespace

void RoundToAbsMax(absl::Span<float> x, int bits) {
  float largest = 0;
  for (const float v : x) largest = std::max(largest, std::abs(v));
  const float levels = static_cast<float>((1 << (bits - 1)) - 1);
  const float scale = largest / levels;
  if (scale == 0) return;
  for (float& v : x) v = std::clamp(std::round(v / scale), -levels, levels) * scale;
}

void RoundLastPages(const PageTable& table, int num_layers, int num_kv_heads, Rung rung) {
  const auto head_dim = static_cast<size_t>(table.pool().head_dim());
  std::vector<float> keys(kTileTokens * head_dim), values(kTileTokens * head_dim);
  for (int layer = 0; layer < num_layers; ++layer) {
    for (int head = 0; head < num_kv_heads; ++head) {
      const PageEntry& page = table.pages(layer, head).back();
      std::byte* const data = table.pool().PageData(page.unit);
      const int dim = table.pool().head_dim();
      ReadTokens(data, Rung::kFp16, dim, page.tokens, nullptr, keys.data(), values.data());
      for (size_t i = 0; i < page.tokens; ++i) {
        RoundRotated(absl::MakeSpan(&keys[i * head_dim], head_dim), KeyBits(rung));
        RoundRotated(absl::MakeSpan(&values[i * head_dim], head_dim), ValueBits(rung));
      }
      WriteTokens(data, Rung::kFp16, dim, 0, page.tokens,
                  {.keys = keys.data(), .values = values.data(), .stride = head_dim}, nullptr);
    }
  }
}

}  // namespace whit::eval
