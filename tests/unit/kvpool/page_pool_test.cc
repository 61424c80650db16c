#include "kvpool/page_pool.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <map>
#include <random>
#include <vector>

namespace whit {
namespace {

constexpr Rung kAllRungs[] = {Rung::kK2V2, Rung::kK4V2, Rung::kK4V4,
                              Rung::kK8V4, Rung::kK8V8, Rung::kFp16};

std::unique_ptr<PagePool> MakePool(size_t slabs, int head_dim = 64) {
  auto pool =
      PagePool::Create({.capacity_bytes = slabs * PagePool::kSlabBytes, .head_dim = head_dim});
  EXPECT_TRUE(pool.ok()) << pool.status();
  return *std::move(pool);
}

TEST(RungTest, NamesRoundTripAndUnknownOnesAreRefused) {
  for (Rung rung : kAllRungs) EXPECT_EQ(ParseRung(RungName(rung)).value(), rung);
  const absl::Status status = ParseRung("K3V3").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), testing::HasSubstr("K4V2, K4V4"));
}

TEST(RungTest, PageBytesAreCodesPlusAScaleForEachTokensKeyAndValue) {
  EXPECT_EQ(PageBytes(Rung::kK2V2, 64), 16u * 36);
  EXPECT_EQ(PageBytes(Rung::kK4V2, 64), 16u * 52);
  EXPECT_EQ(PageBytes(Rung::kK4V4, 64), 16u * 68);
  EXPECT_EQ(PageBytes(Rung::kK8V4, 64), 16u * 100);
  EXPECT_EQ(PageBytes(Rung::kK8V8, 64), 16u * 132);
  EXPECT_EQ(PageBytes(Rung::kFp16, 64), 16u * 256);
  for (Rung rung : kAllRungs) {
    for (int d = 16; d <= 256; d += 16) EXPECT_EQ(PageBytes(rung, d) % kPageUnitBytes, 0u) << d;
  }
}

TEST(PagePoolTest, CreateNamesTheBoundThatWasBroken) {
  EXPECT_THAT(PagePool::Create({.capacity_bytes = 1000, .head_dim = 64}).status().ToString(),
              testing::HasSubstr("1000 bytes; it must have between 131072"));
  EXPECT_THAT(PagePool::Create({.capacity_bytes = 1 << 20, .head_dim = 40}).status().ToString(),
              testing::HasSubstr("head_dim is 40"));
}

TEST(PagePoolTest, ReferencesShareAPageAndTheLastReturnsIt) {
  const auto pool = MakePool(2);
  PageRef a = pool->Allocate(Rung::kK4V4).value();
  EXPECT_EQ(a.rung(), Rung::kK4V4);
  EXPECT_FALSE(a.shared());
  std::memset(a.data(), 7, PageBytes(Rung::kK4V4, 64));
  PageRef b = a;
  EXPECT_TRUE(a.shared());
  EXPECT_EQ(b.unit(), a.unit());
  a = PageRef();
  EXPECT_FALSE(b.shared());
  EXPECT_EQ(pool->stats().used_bytes, PageBytes(Rung::kK4V4, 64));
  b = PageRef();
  EXPECT_EQ(pool->stats().used_bytes, 0u);
  EXPECT_TRUE(pool->CheckInvariants().ok());
  // A page comes back zeroed.
  const PageRef c = pool->Allocate(Rung::kK4V4).value();
  for (size_t i = 0; i < PageBytes(Rung::kK4V4, 64); ++i) ASSERT_EQ(c.data()[i], std::byte{0});
}

TEST(PagePoolTest, AnEmptySlabServesAnotherRung) {
  const auto pool = MakePool(1);
  const size_t fp16_pages = PagePool::kSlabBytes / PageBytes(Rung::kFp16, 64);
  std::vector<PageRef> pages;
  for (size_t i = 0; i < fp16_pages; ++i) pages.push_back(pool->Allocate(Rung::kFp16).value());
  EXPECT_EQ(pool->stats().free_bytes, 0u);
  const absl::Status full = pool->Allocate(Rung::kK2V2).status();
  EXPECT_EQ(full.code(), absl::StatusCode::kResourceExhausted);
  // A slab that still holds FP16 pages serves no other rung.
  pages.pop_back();
  EXPECT_FALSE(pool->Allocate(Rung::kK2V2).ok());
  pages.clear();
  EXPECT_EQ(pool->Allocate(Rung::kK2V2)->rung(), Rung::kK2V2);
}

TEST(PagePoolTest, FootprintsOfASlabsPagesAreTheSlab) {
  for (int head_dim : {16, 48, 64, 80, 96, 128, 256}) {
    for (Rung rung : kAllRungs) {
      const size_t pages = PagePool::PagesPerSlab(rung, head_dim);
      const size_t footprint = PagePool::FootprintBytes(rung, head_dim);
      EXPECT_GE(footprint, PageBytes(rung, head_dim));
      EXPECT_GE(footprint * pages, PagePool::kSlabBytes);
      EXPECT_LT((footprint - 1) * pages, PagePool::kSlabBytes);
    }
  }
  EXPECT_EQ(PagePool::UsableBytes(6 * PagePool::kSlabBytes), 0u);
  EXPECT_EQ(PagePool::UsableBytes(7 * PagePool::kSlabBytes), 0u);
  EXPECT_EQ(PagePool::UsableBytes(9 * PagePool::kSlabBytes - 1), PagePool::kSlabBytes);
}

// Random allocations, copies and releases against a map from page to its number of references;
// every live page keeps the bytes written into it.
TEST(PagePoolTest, BehavesLikeASimpleModel) {
  for (int head_dim : {16, 64, 80, 128}) {
    const auto pool = MakePool(6, head_dim);
    std::mt19937 rng(head_dim);
    std::vector<PageRef> live;
    std::map<uint32_t, int> references;
    std::array<size_t, kNumRungs> pages{};
    int refused = 0;
    for (int step = 0; step < 20000; ++step) {
      const bool filling = step / 2000 % 2 == 0;
      if (live.empty() || rng() % 8 < (filling ? 6 : 1)) {
        if (!live.empty() && rng() % 4 == 0) {
          live.push_back(live[rng() % live.size()]);
          ++references[live.back().unit()];
          continue;
        }
        const Rung rung = kAllRungs[rng() % kNumRungs];
        absl::StatusOr<PageRef> page = pool->Allocate(rung);
        if (!page.ok()) {
          ++refused;
          ASSERT_EQ(page.status().code(), absl::StatusCode::kResourceExhausted);
          continue;
        }
        ASSERT_EQ(references[page->unit()]++, 0) << "a live page was handed out again";
        ASSERT_EQ(page->rung(), rung);
        ++pages[static_cast<size_t>(page->rung())];
        std::memset(page->data(), static_cast<uint8_t>(page->unit() * 31),
                    PageBytes(page->rung(), head_dim));
        live.push_back(*std::move(page));
      } else {
        std::swap(live[rng() % live.size()], live.back());
        const uint32_t unit = live.back().unit();
        const Rung rung = live.back().rung();
        const auto* bytes = reinterpret_cast<const uint8_t*>(live.back().data());
        ASSERT_EQ(bytes[0], static_cast<uint8_t>(unit * 31));
        ASSERT_EQ(bytes[PageBytes(rung, head_dim) - 1], static_cast<uint8_t>(unit * 31));
        if (--references[unit] == 0) --pages[static_cast<size_t>(rung)];
        live.pop_back();
      }
      const PagePoolStats stats = pool->stats();
      ASSERT_EQ(stats.used_pages_by_rung, pages);
      ASSERT_EQ(stats.used_bytes + stats.free_bytes, stats.capacity_bytes);
      if (step % 500 == 0) {
        const absl::Status invariants = pool->CheckInvariants();
        ASSERT_TRUE(invariants.ok()) << invariants;
      }
    }
    EXPECT_GT(refused, 0);  // the pool has been full
    live.clear();
    EXPECT_EQ(pool->stats().used_bytes, 0u);
    EXPECT_TRUE(pool->CheckInvariants().ok());
  }
}

}  // namespace
}  // namespace whit
