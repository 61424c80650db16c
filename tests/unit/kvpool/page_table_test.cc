#include "kvpool/page_table.h"

#include <gtest/gtest.h>

#include <cstring>
#include <numeric>
#include <utility>
#include <vector>

namespace whit {
namespace {

std::unique_ptr<PagePool> MakePool(size_t slabs, int head_dim) {
  return *PagePool::Create({.capacity_bytes = slabs * PagePool::kSlabBytes, .head_dim = head_dim});
}

// Small integers are exact in binary16.
std::vector<float> Rows(int tokens, int head_dim, float first) {
  std::vector<float> rows(size_t{1} * tokens * head_dim);
  std::iota(rows.begin(), rows.end(), first);
  return rows;
}

uint16_t HalfAt(const std::byte* page, size_t offset, size_t index) {
  uint16_t bits;
  std::memcpy(&bits, page + offset + 2 * index, sizeof(bits));
  return bits;
}

TEST(PageTableTest, TokensLandInTheirSlotsInTheDocumentedLayout) {
  constexpr int kDim = 16;
  const auto pool = MakePool(1, kDim);
  PageTable table(pool.get(), 2, 3);
  ASSERT_TRUE(table.Extend(20).ok());
  EXPECT_TRUE(table.pages(1, 2).empty());  // room, but nothing in it
  const std::vector<float> keys = Rows(20, kDim, 0), values = Rows(20, kDim, 1000);
  const auto append = [&](int first, int count) {
    table.Append(1, 2, count,
                 {.keys = &keys[first * kDim], .values = &values[first * kDim], .stride = kDim});
  };
  append(0, 13);
  append(13, 7);
  const auto pages = table.pages(1, 2);
  ASSERT_EQ(pages.size(), 2u);
  EXPECT_EQ(pages[0].tokens, 16);
  EXPECT_EQ(pages[1].tokens, 4);
  for (int token = 0; token < 20; ++token) {
    const std::byte* page = pool->PageData(pages[token / 16].unit);
    for (int i = 0; i < kDim; ++i) {
      const auto expected_key = static_cast<_Float16>(keys[token * kDim + i]);
      const auto expected_value = static_cast<_Float16>(values[token * kDim + i]);
      EXPECT_EQ(HalfAt(page, Fp16PageLayout::KeyOffset(kDim), i * 16 + token % 16),
                std::bit_cast<uint16_t>(expected_key));
      EXPECT_EQ(HalfAt(page, Fp16PageLayout::ValueOffset(kDim), token % 16 * kDim + i),
                std::bit_cast<uint16_t>(expected_value));
    }
  }
  EXPECT_TRUE(table.pages(1, 1).empty());
}

TEST(PageTableTest, ValuesBeyondBinary16AreClamped) {
  const auto pool = MakePool(1, 16);
  PageTable table(pool.get(), 1, 1);
  ASSERT_TRUE(table.Extend(1).ok());
  std::vector<float> key(16, 1e9f), value(16, -1e9f);
  table.Append(0, 0, 1, {.keys = key.data(), .values = value.data(), .stride = 16});
  const std::byte* page = pool->PageData(table.pages(0, 0)[0].unit);
  EXPECT_EQ(HalfAt(page, 0, 0), 0x7BFF);
  EXPECT_EQ(HalfAt(page, Fp16PageLayout::ValueOffset(16), 0), 0xFBFF);
}

TEST(PageTableTest, ExtendIsAllOrNothing) {
  const auto pool = MakePool(1, 64);  // 32 pages
  PageTable table(pool.get(), 5, 2);
  ASSERT_TRUE(table.Extend(30).ok());  // 2 pages in each of 10 lists
  EXPECT_EQ(table.page_bytes(), 20 * PageBytes(Rung::kFp16, 64));
  EXPECT_TRUE(table.Extend(2).ok());  // fits the pages at hand
  const absl::Status status = table.Extend(33);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(table.page_bytes(), 20 * PageBytes(Rung::kFp16, 64));
  EXPECT_EQ(pool->stats().used_bytes, table.page_bytes());
  EXPECT_TRUE(table.Extend(16).ok());
  EXPECT_TRUE(pool->CheckInvariants().ok());
}

TEST(PageTableTest, PagesReturnWithTheTableAndMoveWithIt) {
  const auto pool = MakePool(2, 64);
  {
    PageTable a(pool.get(), 2, 2);
    ASSERT_TRUE(a.Extend(17).ok());
    PageTable b = std::move(a);
    EXPECT_EQ(pool->stats().used_bytes, 8 * PageBytes(Rung::kFp16, 64));
    a = PageTable(pool.get(), 1, 1);
    ASSERT_TRUE(a.Extend(1).ok());
    b = std::move(a);
  }
  EXPECT_EQ(pool->stats().used_bytes, 0u);
}

}  // namespace
}  // namespace whit
