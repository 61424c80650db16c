#include "kvpool/quantizer.h"

#include <cstdint>

#include "kvpool/page.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kvpool/quantizer.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace whit {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// head_dim is a multiple of 16, and so of every vector's lanes.
HWY_INLINE void ToHalf(const float* HWY_RESTRICT x, size_t n, hwy::float16_t* HWY_RESTRICT out) {
  const hn::CappedTag<float, 16> df;
  const hn::Rebind<hwy::float16_t, decltype(df)> dh;
  const auto limit = hn::Set(df, 65504.0f);
  for (size_t i = 0; i < n; i += hn::Lanes(df)) {
    const auto v = hn::Clamp(hn::LoadU(df, x + i), hn::Neg(limit), limit);
    hn::StoreU(hn::DemoteTo(dh, v), dh, out + i);
  }
}

void WriteFp16Tokens(std::byte* page, int head_dim, int slot, int count, const TokenRows& rows) {
  const auto d = static_cast<size_t>(head_dim);
  auto* keys = reinterpret_cast<uint16_t*>(page + Fp16PageLayout::KeyOffset(head_dim));
  auto* values = reinterpret_cast<hwy::float16_t*>(page + Fp16PageLayout::ValueOffset(head_dim));
  for (int i = 0; i < count; ++i) {
    HWY_ALIGN uint16_t key[16];
    for (size_t block = 0; block < d; block += 16) {
      ToHalf(rows.keys + i * rows.stride + block, 16, reinterpret_cast<hwy::float16_t*>(key));
      for (size_t j = 0; j < 16; ++j) keys[(block + j) * kTileTokens + slot + i] = key[j];
    }
    ToHalf(rows.values + i * rows.stride, d, values + (slot + i) * d);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace whit
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace whit {

HWY_EXPORT(WriteFp16Tokens);

void WriteFp16(std::byte* page, int head_dim, int slot, int count, const TokenRows& rows) {
  HWY_DYNAMIC_DISPATCH(WriteFp16Tokens)(page, head_dim, slot, count, rows);
}

}  // namespace whit
#endif  // HWY_ONCE
