#include "runtime/engine/admission.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace whit {
namespace {

using ::testing::HasSubstr;

constexpr AdmissionLimits kLimits = {.reservable_bytes = 1000,
                                     .max_running_requests = 2,
                                     .max_waiting_requests = 3,
                                     .max_waiting_prompt_tokens = 100};

TEST(DecideAdmissionTest, RunsWhileThereAreBytesAndPlaces) {
  EXPECT_EQ(*DecideAdmission(kLimits, {}, {.bytes = 1000, .prompt_tokens = 5000}), Admission::kRun);
  EXPECT_EQ(*DecideAdmission(kLimits, {.reserved_bytes = 600, .running = 1}, {.bytes = 400}),
            Admission::kRun);
  EXPECT_EQ(*DecideAdmission(kLimits, {.reserved_bytes = 600, .running = 1}, {.bytes = 401}),
            Admission::kWait);
  EXPECT_EQ(*DecideAdmission(kLimits, {.reserved_bytes = 600, .running = 2}, {.bytes = 1}),
            Admission::kWait);
}

TEST(DecideAdmissionTest, WhatFitsOvertakesTheQueueWhereThatIsAllowed) {
  AdmissionState state = {.reserved_bytes = 600, .running = 1, .waiting = 1};
  EXPECT_EQ(*DecideAdmission(kLimits, state, {.bytes = 1}), Admission::kRun);
  EXPECT_EQ(*DecideAdmission(kLimits, state, {.bytes = 401}), Admission::kWait);
  state.may_overtake = false;
  EXPECT_EQ(*DecideAdmission(kLimits, state, {.bytes = 1}), Admission::kWait);
}

TEST(DecideAdmissionTest, AClientsShareCountsForWhatWaits) {
  const ClientShare share = {.max_waiting_prompt_tokens = 50, .waiting_prompt_tokens = 30};
  EXPECT_EQ(*DecideAdmission(kLimits, {}, {.prompt_tokens = 21}, share), Admission::kRun);
  const AdmissionState full = {.running = 2, .waiting = 1, .waiting_prompt_tokens = 30};
  EXPECT_EQ(*DecideAdmission(kLimits, full, {.prompt_tokens = 20}, share), Admission::kWait);
  const absl::Status status = DecideAdmission(kLimits, full, {.prompt_tokens = 21}, share).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(RejectionReason(status), "client_queue_prompt_tokens");
  EXPECT_THAT(std::string(status.message()), HasSubstr("30 prompt tokens of this client wait and "
                                                       "this request has 21; at most 50"));
}

TEST(NextToStartTest, IsTheFirstThatFitsOfThoseFirstInLine) {
  const AdmissionState state = {.reserved_bytes = 600, .running = 1};
  const auto waiting = [](std::vector<size_t> bytes) {
    std::vector<WaitingView> views;
    for (size_t b : bytes) views.push_back({.demand = {.bytes = b}});
    return views;
  };
  EXPECT_EQ(NextToStart(kLimits, state, {}), -1);
  EXPECT_EQ(NextToStart(kLimits, state, waiting({400, 1})), 0);
  EXPECT_EQ(NextToStart(kLimits, state, waiting({401, 500, 7, 1})), 2);
  EXPECT_EQ(NextToStart(kLimits, state, waiting({401, 500})), -1);
  EXPECT_EQ(NextToStart(kLimits, {.reserved_bytes = 600, .running = 2}, waiting({1})), -1);
  // Not further ahead than the line goes.
  std::vector<size_t> line(kLookAhead - 1, 900);
  line.push_back(1);
  EXPECT_EQ(NextToStart(kLimits, state, waiting(line)), kLookAhead - 1);
  EXPECT_TRUE(MayOvertake(waiting({900})));
  line.insert(line.begin(), 900);
  EXPECT_EQ(NextToStart(kLimits, state, waiting(line)), -1);
  EXPECT_FALSE(MayOvertake(waiting(line)));
  // Nor past one that has let enough others pass.
  std::vector<WaitingView> patient = waiting({900, 900, 1});
  patient[1].overtaken = kMaxOvertaken;
  EXPECT_EQ(NextToStart(kLimits, state, patient), -1);
  EXPECT_FALSE(MayOvertake(patient));
  patient[1].demand.bytes = 1;
  EXPECT_EQ(NextToStart(kLimits, state, patient), 1);
}

TEST(CheckDeadlineTest, WhoWouldStillWaitIsRefusedAtOnce) {
  // Two running at 10 tokens a second each, the first done in 10 s.
  const RunningProgress progress = {.tokens_left = {300, 100}, .tokens_per_second = 20};
  EXPECT_TRUE(CheckDeadline({}, progress, absl::InfiniteDuration()).ok());
  EXPECT_TRUE(CheckDeadline({}, progress, absl::Seconds(5)).ok());
  const absl::Status status = CheckDeadline({.waiting = 1}, progress, absl::Seconds(14));
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(RejectionReason(status), "deadline");
  EXPECT_THAT(std::string(status.message()), HasSubstr("30s"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("14s"));
  EXPECT_TRUE(CheckDeadline({.waiting = 1}, progress, absl::Seconds(15)).ok());
  EXPECT_FALSE(CheckDeadline({}, progress, -absl::Seconds(1)).ok());
  // Nothing is known.
  EXPECT_TRUE(CheckDeadline({.waiting = 9}, {}, absl::Milliseconds(1)).ok());
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
