#include "runtime/engine/kv_reservation.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <iterator>
#include <random>
#include <vector>

#include "kvpool/page_pool.h"
#include "kvpool/page_table.h"
#include "runtime/model/model.h"

namespace whit {
namespace {

ModelConfig Shape(int head_dim = 64) {
  ModelConfig model;
  model.num_layers = 3;
  model.num_kv_heads = 2;
  model.head_dim = head_dim;
  return model;
}

KvTerms Terms(const char* policy, Rung floor, const RecentRing& ring = kDefaultRing) {
  return TermsOf(*ParsePrecisionPolicy(policy), floor, ring);
}

size_t Footprint(Rung rung) { return PagePool::FootprintBytes(rung, 64); }

TEST(KvTermsTest, TheFloorBindsPoliciesThatGiveSeveralRungs) {
  EXPECT_EQ(Terms("fp16", Rung::kK2V2).floor, Rung::kFp16);
  EXPECT_EQ(Terms("static:K8V4", Rung::kK2V2).floor, Rung::kK8V4);
  EXPECT_EQ(Terms("static:K2V2", Rung::kK8V4).floor, Rung::kK2V2);
  EXPECT_EQ(Terms("adaptive", Rung::kK4V2).floor, Rung::kK4V2);
  EXPECT_EQ(Terms("adaptive", Rung::kFp16).floor, Rung::kK8V8);  // it gives no more
  EXPECT_FALSE(Terms("fp16", Rung::kK2V2).elastic());
  EXPECT_FALSE(Terms("static:K4V4", Rung::kK2V2).elastic());
  EXPECT_FALSE(Terms("adaptive", Rung::kK8V8).elastic());
  EXPECT_TRUE(Terms("learned", Rung::kK4V4).elastic());
  EXPECT_TRUE(Terms("adaptive", Rung::kK4V4).elastic());
}

TEST(ReservationBytesTest, CountsWholePagesInEveryLayerAndHead) {
  const KvTerms fp16 = Terms("fp16", Rung::kK2V2);
  const size_t tile = 6 * Footprint(Rung::kFp16);
  EXPECT_EQ(ReservationBytes(fp16, Shape(), 1, 1), tile);
  EXPECT_EQ(ReservationBytes(fp16, Shape(), 3, 16), tile);
  EXPECT_EQ(ReservationBytes(fp16, Shape(), 3, 17), 2 * tile);
  EXPECT_EQ(ReservationBytes(fp16, Shape(), 1, int64_t{1} << 31), (size_t{1} << 27) * tile);
  EXPECT_EQ(TokensThatFit(fp16, Shape(), 2 * tile + 1), 32);
  EXPECT_EQ(TokensThatFit(fp16, Shape(), tile - 1), 0);
}

TEST(ReservationBytesTest, ALongSequenceIsReservedAtItsFloor) {
  const auto reserved = [](const char* policy, Rung floor) {
    return static_cast<double>(ReservationBytes(Terms(policy, floor), Shape(), 100, 8192));
  };
  const double fp16 = reserved("fp16", Rung::kK2V2);
  EXPECT_NEAR(reserved("static:K4V4", Rung::kK2V2) / fp16, 68.0 / 256, 0.02);
  EXPECT_NEAR(reserved("static:K2V2", Rung::kFp16) / fp16, 36.0 / 256, 0.02);
  EXPECT_NEAR(reserved("random:K2V2=9,K8V8=1", Rung::kK4V4) / fp16, 68.0 / 256, 0.02);
  EXPECT_NEAR(reserved("adaptive:3", Rung::kK2V2) / fp16, 36.0 / 256, 0.02);
  EXPECT_NEAR(reserved("adaptive:8", Rung::kK4V2) / fp16, 52.0 / 256, 0.02);
  EXPECT_NEAR(reserved("learned", Rung::kFp16) / fp16, 1, 0.02);
  for (const char* policy : {"fp16", "static:K4V4", "random:K2V2=9,K8V8=1", "adaptive"}) {
    const KvTerms terms = Terms(policy, Rung::kK4V2);
    for (int64_t tokens : {16, 160, 16000}) {
      const size_t bytes = ReservationBytes(terms, Shape(), tokens, tokens);
      EXPECT_EQ(TokensThatFit(terms, Shape(), bytes), tokens) << policy;
      EXPECT_EQ(TokensThatFit(terms, Shape(), bytes - 1), tokens - 16) << policy;
    }
  }
}

TEST(ReservationBytesTest, ALargerRingIsReservedFor) {
  RecentRing larger = kDefaultRing;
  larger.tokens += 160;
  const size_t ten_pages = 10 * (Footprint(Rung::kK8V8) - Footprint(Rung::kK4V4));
  const auto reserved = [](const char* policy, const RecentRing& ring) {
    return ReservationBytes(Terms(policy, Rung::kK2V2, ring), Shape(), 100, 1000);
  };
  EXPECT_EQ(reserved("static:K4V4", larger), reserved("static:K4V4", kDefaultRing) + 6 * ten_pages);
  EXPECT_EQ(reserved("fp16", larger), reserved("fp16", kDefaultRing));
}

constexpr RecentRing kRings[] = {
    kDefaultRing,
    {.rung = Rung::kFp16, .tokens = 0, .sink_rung = Rung::kFp16},
    {.rung = Rung::kFp16, .tokens = 64, .sink_rung = Rung::kK2V2},
    {.rung = Rung::kK2V2, .tokens = 16, .sink_rung = Rung::kK8V8},
    {.rung = Rung::kK8V8, .tokens = 16, .growth = 4, .max_tokens = 200},
};

// What the table holds once all its decided pages have come down to the floor.
size_t SqueezedBytes(const PageTable& table, const KvTerms& terms) {
  size_t bytes = 0;
  for (int list = 0; list < 6; ++list) {
    const auto pages = table.pages(list / 2, list % 2);
    const int settled = table.num_settled_pages(list / 2, list % 2);
    for (int i = 0; i < static_cast<int>(pages.size()); ++i) {
      const bool decided = i > 0 && i < settled;
      bytes += Footprint(decided ? std::min(pages[i].rung, terms.floor) : pages[i].rung);
    }
  }
  return bytes;
}

// A sequence whose prompt comes in the longest or in odd chunks never holds more than was reserved
// for it, if its decided pages are squeezed. Rungs are drawn from all that may be given.
void ExpectWithinReservation(const KvTerms& terms, int prompt_tokens, int tokens) {
  const auto pool =
      *PagePool::Create({.capacity_bytes = 400 * PagePool::kSlabBytes, .head_dim = 64});
  PageTable table(pool.get(), {3, 2}, terms.ring, nullptr);
  const std::vector<float> rows(size_t{1} * Model::kMaxForwardTokens * 64, 1.0f);
  const size_t reserved = ReservationBytes(terms, Shape(), prompt_tokens, tokens);
  std::mt19937 rng(tokens);
  const int lowest = terms.elastic() ? 0 : static_cast<int>(terms.floor);
  for (int first = 0; first < tokens;) {
    int chunk = rng() % 2 == 0 ? Model::kMaxForwardTokens : 1 + static_cast<int>(rng() % 100);
    chunk = first < prompt_tokens ? std::min(chunk, prompt_tokens - first) : 1;
    const int end = first + chunk;
    for (int begin = first; begin < end;) {
      const int piece_end =
          std::min(end, (begin / Model::kPrefillBlock + 1) * Model::kPrefillBlock);
      for (int list = 0; list < 6; ++list) {
        table.Append(list / 2, list % 2, piece_end - begin,
                     {.keys = rows.data(), .values = rows.data(), .stride = 64});
      }
      begin = piece_end;
      ASSERT_LE(SqueezedBytes(table, terms), reserved) << begin;
      if (end < prompt_tokens && begin % Model::kPrefillBlock != 0) continue;
      for (int list = 0; list < 6; ++list) {
        PageTable::LeavingPage page;
        while (table.NextLeaving(list / 2, list % 2, &page)) {
          if (terms.decides_late && page.first_position + page.tokens > first) break;
          std::vector<Rung> rungs(page.tokens);
          for (Rung& rung : rungs) {
            rung =
                static_cast<Rung>(lowest + rng() % (static_cast<int>(terms.dearest) - lowest + 1));
          }
          table.Settle(list / 2, list % 2, rungs);
        }
      }
      ASSERT_LE(SqueezedBytes(table, terms), reserved) << begin;
    }
    first = end;
  }
  ASSERT_TRUE(table.status().ok());
}

TEST(ReservationBytesTest, TablesStayWithinTheirReservation) {
  for (const char* policy : {"fp16", "static:K4V4", "static:K8V8", "adaptive", "rule", "learned"}) {
    for (Rung floor : {Rung::kK2V2, Rung::kK4V4}) {
      for (size_t ring = 0; ring < std::size(kRings); ++ring) {
        for (int tokens : {1, 16, 17, 33, 160, 177, 1400}) {
          for (int prompt : {1, tokens * 2 / 3, tokens}) {
            SCOPED_TRACE(testing::Message() << policy << " " << RungName(floor) << ", ring " << ring
                                            << ", " << prompt << " of " << tokens);
            if (prompt == 0) continue;
            ExpectWithinReservation(Terms(policy, floor, kRings[ring]), prompt, tokens);
            if (testing::Test::HasFatalFailure()) return;
          }
        }
      }
    }
  }
}

TEST(ReservationBytesTest, AGrowingRingIsReservedFor) {
  ExpectWithinReservation(Terms("adaptive", Rung::kK4V2), 8000, 8500);
}

}  // namespace
}  // namespace whit
