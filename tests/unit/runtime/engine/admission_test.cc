#include "runtime/engine/admission.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <iterator>
#include <random>
#include <vector>

#include "kvpool/page_pool.h"
#include "kvpool/page_table.h"
#include "runtime/model/model.h"

namespace whit {
namespace {

using ::testing::HasSubstr;

ModelConfig Model(int head_dim = 64) {
  ModelConfig model;
  model.num_layers = 3;
  model.num_kv_heads = 2;
  model.head_dim = head_dim;
  return model;
}

constexpr PrecisionPolicySpec kFp16;
constexpr AdmissionLimits kLimits = {.reservable_bytes = 1000,
                                     .max_running_requests = 2,
                                     .max_waiting_requests = 3,
                                     .max_waiting_prompt_tokens = 100};

TEST(ReservationBytesTest, CountsWholePagesInEveryLayerAndHead) {
  const size_t tile = 6 * PageBytes(Rung::kFp16, 64);
  EXPECT_EQ(ReservationBytes(kFp16, kDefaultRing, Model(), 1), tile);
  EXPECT_EQ(ReservationBytes(kFp16, kDefaultRing, Model(), 16), tile);
  EXPECT_EQ(ReservationBytes(kFp16, kDefaultRing, Model(), 17), 2 * tile);
  EXPECT_EQ(ReservationBytes(kFp16, kDefaultRing, Model(), int64_t{1} << 31),
            (size_t{1} << 27) * tile);
  EXPECT_EQ(TokensThatFit(kFp16, kDefaultRing, Model(), 2 * tile + 1), 32);
  EXPECT_EQ(TokensThatFit(kFp16, kDefaultRing, Model(), tile - 1), 0);
}

TEST(ReservationBytesTest, ALongSequenceIsReservedAtItsPolicysRung) {
  const auto reserved = [](const char* policy, int64_t tokens) {
    return static_cast<double>(
        ReservationBytes(*ParsePrecisionPolicy(policy), kDefaultRing, Model(), tokens));
  };
  const double fp16 = reserved("fp16", 8192);
  EXPECT_NEAR(reserved("static:K4V4", 8192) / fp16, 68.0 / 256, 0.02);
  EXPECT_NEAR(reserved("static:K2V2", 8192) / fp16, 36.0 / 256, 0.02);
  // Anything the mix can draw.
  EXPECT_NEAR(reserved("random:K2V2=9,K8V8=1", 8192) / fp16, 132.0 / 256, 0.02);
  EXPECT_NEAR(reserved("adaptive:3", 8192) / fp16, 132.0 / 256, 0.02);
  EXPECT_NEAR(reserved("learned", 8192) / fp16, 1, 0.02);
  for (const char* policy : {"fp16", "static:K4V4", "random:K2V2=9,K8V8=1", "adaptive"}) {
    const auto spec = *ParsePrecisionPolicy(policy);
    for (int64_t tokens : {16, 160, 16000}) {
      const size_t bytes = ReservationBytes(spec, kDefaultRing, Model(), tokens);
      EXPECT_EQ(TokensThatFit(spec, kDefaultRing, Model(), bytes), tokens) << policy;
      EXPECT_EQ(TokensThatFit(spec, kDefaultRing, Model(), bytes - 1), tokens - 16) << policy;
    }
  }
}

constexpr RecentRing kRings[] = {
    kDefaultRing,
    {.rung = Rung::kFp16, .tokens = 0, .sink_rung = Rung::kFp16},
    {.rung = Rung::kFp16, .tokens = 64, .sink_rung = Rung::kK2V2},
    {.rung = Rung::kK2V2, .tokens = 16, .sink_rung = Rung::kK8V8},
    {.rung = Rung::kK8V8, .tokens = 16, .growth = 4, .max_tokens = 200},
};

// A sequence whose prompt comes in the longest chunks never holds more than was reserved for it.
void ExpectWithinReservation(const PrecisionPolicySpec& spec, const RecentRing& ring,
                             const PrecisionPolicy& policy, int tokens) {
  const ModelConfig model = Model(64);
  const auto pool =
      *PagePool::Create({.capacity_bytes = 200 * PagePool::kSlabBytes, .head_dim = 64});
  PageTable table(pool.get(), {model.num_layers, model.num_kv_heads}, RingOf(spec, ring), nullptr);
  const std::vector<float> rows(size_t{1} * tokens * 64, 1.0f);
  const size_t reserved = ReservationBytes(spec, ring, model, tokens);
  for (int first = 0; first < tokens;) {
    const int count = std::min<int>(tokens - first, first % 1000 < 500 ? Model::kPrefillBlock : 1);
    for (int i = 0; i < model.num_layers * model.num_kv_heads; ++i) {
      const int layer = i / model.num_kv_heads, head = i % model.num_kv_heads;
      table.Append(layer, head, count, {.keys = rows.data(), .values = rows.data(), .stride = 64});
    }
    EXPECT_LE(table.usage().page_bytes, reserved);
    for (int i = 0; i < model.num_layers * model.num_kv_heads; ++i) {
      const int layer = i / model.num_kv_heads, head = i % model.num_kv_heads;
      PageTable::LeavingPage page;
      while (table.NextLeaving(layer, head, &page)) {
        std::vector<Rung> rungs(page.tokens);
        policy.Decide({.layer = layer,
                       .kv_head = head,
                       .first_position = page.first_position,
                       .count = page.tokens},
                      absl::MakeSpan(rungs));
        table.Settle(layer, head, rungs);
      }
    }
    EXPECT_LE(table.usage().page_bytes, reserved);
    first += count;
  }
}

TEST(ReservationBytesTest, TablesStayWithinTheirReservation) {
  for (const char* policy : {"fp16", "static:K4V4", "static:K8V8", "random:K2V2=1,K4V2=1,K8V4=2",
                             "random:K2V2=1,FP16=1"}) {
    for (size_t ring = 0; ring < std::size(kRings); ++ring) {
      for (int tokens : {1, 16, 17, 33, 128, 160, 177, 1000}) {
        SCOPED_TRACE(testing::Message() << policy << ", ring " << ring << ", " << tokens);
        const PrecisionPolicySpec spec = *ParsePrecisionPolicy(policy);
        ExpectWithinReservation(spec, kRings[ring], *MakePrecisionPolicy(spec, nullptr).value(),
                                tokens);
      }
    }
  }
}

// The ring of adaptive grows with the sequence, here at a rung above all that it may choose.
TEST(ReservationBytesTest, AGrowingRingIsReservedFor) {
  constexpr RecentRing kExact = {.rung = Rung::kFp16, .tokens = 32};
  const auto dearest = MakePrecisionPolicy(*ParsePrecisionPolicy("static:K8V8"), nullptr).value();
  ExpectWithinReservation(*ParsePrecisionPolicy("adaptive"), kExact, *dearest, 8500);
}

TEST(ReservationBytesTest, ALargerRingIsReservedFor) {
  const PrecisionPolicySpec spec = *ParsePrecisionPolicy("static:K4V4");
  RecentRing larger = kDefaultRing;
  larger.tokens += 160;
  const size_t ten_pages = 10 * (PageBytes(Rung::kK8V8, 64) - PageBytes(Rung::kK4V4, 64));
  EXPECT_EQ(ReservationBytes(spec, larger, Model(), 1000),
            ReservationBytes(spec, kDefaultRing, Model(), 1000) + 6 * ten_pages);
  EXPECT_EQ(ReservationBytes(kFp16, larger, Model(), 1000),
            ReservationBytes(kFp16, kDefaultRing, Model(), 1000));
}

// The promise that reservations stand for: tables that stay within them never find the pool empty.
TEST(ReservationBytesTest, WhatIsReservableCanBeAllocated) {
  for (int head_dim : {16, 48, 64, 80, 96, 128}) {
    const ModelConfig model = Model(head_dim);
    const auto pool =
        *PagePool::Create({.capacity_bytes = 10 * PagePool::kSlabBytes, .head_dim = head_dim});
    const size_t reservable = ReservableBytes(model, pool->stats().capacity_bytes);
    EXPECT_LE(reservable, pool->stats().capacity_bytes);
    std::vector<PageTable> tables;
    const std::vector<float> row(head_dim, 0.0f);
    size_t reserved = 0;
    for (int tokens = 1;; tokens = tokens % 40 + 1) {
      reserved += ReservationBytes(kFp16, kDefaultRing, model, tokens);
      if (reserved > reservable) break;
      PageTable& table = tables.emplace_back(
          pool.get(), PageTable::Shape{model.num_layers, model.num_kv_heads}, RingOf(kFp16),
          /*means=*/nullptr);
      for (int i = 0; i < tokens * model.num_layers * model.num_kv_heads; ++i) {
        const int list = i % (model.num_layers * model.num_kv_heads);
        table.Append(list / model.num_kv_heads, list % model.num_kv_heads, 1,
                     {.keys = row.data(), .values = row.data(), .stride = row.size()});
      }
      ASSERT_TRUE(table.status().ok()) << table.status();
    }
  }
}

TEST(DecideAdmissionTest, RunsWhileThereAreBytesAndPlaces) {
  EXPECT_EQ(*DecideAdmission(kLimits, {}, {.bytes = 1000, .prompt_tokens = 5000}), Admission::kRun);
  EXPECT_EQ(*DecideAdmission(kLimits, {.reserved_bytes = 600, .running = 1}, {.bytes = 400}),
            Admission::kRun);
  EXPECT_EQ(*DecideAdmission(kLimits, {.reserved_bytes = 600, .running = 1}, {.bytes = 401}),
            Admission::kWait);
  EXPECT_EQ(*DecideAdmission(kLimits, {.reserved_bytes = 600, .running = 2}, {.bytes = 1}),
            Admission::kWait);
}

TEST(DecideAdmissionTest, NobodyOvertakesTheQueue) {
  EXPECT_EQ(
      *DecideAdmission(kLimits, {.reserved_bytes = 600, .running = 1, .waiting = 1}, {.bytes = 1}),
      Admission::kWait);
}

TEST(DecideAdmissionTest, WhatCanNeverFitIsRefusedWithTheLimit) {
  const absl::Status status = DecideAdmission(kLimits, {}, {.bytes = 1001}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("1001"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("1000"));
  EXPECT_EQ(RejectionReason(status), "too_large");
}

TEST(DecideAdmissionTest, TheQueueIsBoundedInRequestsAndInPromptTokens) {
  AdmissionState state = {
      .reserved_bytes = 1000, .running = 1, .waiting = 2, .waiting_prompt_tokens = 90};
  EXPECT_EQ(*DecideAdmission(kLimits, state, {.bytes = 1, .prompt_tokens = 10}), Admission::kWait);
  absl::Status status = DecideAdmission(kLimits, state, {.bytes = 1, .prompt_tokens = 11}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(RejectionReason(status), "queue_prompt_tokens");
  state.waiting = 3;
  status = DecideAdmission(kLimits, state, {.bytes = 1, .prompt_tokens = 1}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(RejectionReason(status), "queue_full");
}

TEST(DecideAdmissionTest, DrainingRefusesAll) {
  const absl::Status status = DecideAdmission(kLimits, {.draining = true}, {.bytes = 1}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(RejectionReason(status), "draining");
  EXPECT_EQ(CheckTicket(kLimits, {.draining = true}).code(), absl::StatusCode::kUnavailable);
}

TEST(CheckTicketTest, TicketsAreWorthTheFreePlaces) {
  EXPECT_TRUE(CheckTicket(kLimits, {.tickets = 4}).ok());
  EXPECT_EQ(RejectionReason(CheckTicket(kLimits, {.tickets = 5})), "queue_full");
  EXPECT_TRUE(CheckTicket(kLimits, {.running = 1, .tickets = 3}).ok());
  EXPECT_FALSE(CheckTicket(kLimits, {.running = 1, .tickets = 4}).ok());
  // Somebody waits for bytes: the second running place is of no use to a newcomer.
  EXPECT_TRUE(CheckTicket(kLimits, {.running = 1, .waiting = 1, .tickets = 1}).ok());
  EXPECT_FALSE(CheckTicket(kLimits, {.running = 1, .waiting = 1, .tickets = 2}).ok());
}

TEST(RejectionReasonTest, IsEmptyForOtherStatuses) {
  EXPECT_EQ(RejectionReason(absl::OkStatus()), "");
  EXPECT_EQ(RejectionReason(absl::InvalidArgumentError("top_p")), "");
}

}  // namespace
}  // namespace whit
