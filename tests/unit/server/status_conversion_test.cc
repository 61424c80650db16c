#include "server/status_conversion.h"

#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/engine/admission.h"
#include "runtime/engine/retry_estimate.h"
#include "runtime/text/utf8.h"

namespace whit {
namespace {

using ::testing::Contains;

TEST(ToGrpcStatusTest, KeepsCodeAndMessage) {
  EXPECT_TRUE(ToGrpcStatus(absl::OkStatus()).ok());
  const grpc::Status status = ToGrpcStatus(absl::InvalidArgumentError("top_p is 2"));
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(status.error_message(), "top_p is 2");
  EXPECT_EQ(ToGrpcStatus(absl::DeadlineExceededError("")).error_code(),
            grpc::StatusCode::DEADLINE_EXCEEDED);
  EXPECT_EQ(ToGrpcStatus(absl::UnavailableError("")).error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(ToGrpcStatus(absl::UnauthenticatedError("")).error_code(),
            grpc::StatusCode::UNAUTHENTICATED);
}

TEST(ToGrpcStatusTest, WhatNobodyMeansToReturnIsADefect) {
  EXPECT_EQ(ToGrpcStatus(absl::UnknownError("")).error_code(), grpc::StatusCode::INTERNAL);
}

TEST(ToGrpcStatusTest, CutsWhatIsTooLongForAHeader) {
  const grpc::Status status = ToGrpcStatus(absl::InvalidArgumentError(std::string(10'000, 'x')));
  EXPECT_EQ(status.error_message(), std::string(500, 'x') + "…");
  // Between characters.
  std::string euros = "x";
  while (euros.size() < 600) euros += "€";
  const std::string cut = ShortMessage(absl::InvalidArgumentError(euros));
  EXPECT_EQ(FindInvalidUtf8(cut), std::string_view::npos);
  EXPECT_EQ(cut.size(), 499 + std::string("…").size());
}

TEST(RejectionReasonTest, NamesEachReasonThatTheEngineAndTheServerHave) {
  AdmissionLimits limits;
  limits.reservable_bytes = 100;
  limits.max_running_requests = 1;
  limits.max_waiting_requests = 2;
  limits.max_waiting_prompt_tokens = 10;
  AdmissionState busy;
  busy.running = 1;

  EXPECT_EQ(RejectionReasonFor(
                DecideAdmission(limits, busy, {.bytes = 101, .prompt_tokens = 1}).status()),
            "too_large");
  EXPECT_EQ(
      RejectionReasonFor(DecideAdmission(limits, busy, {.bytes = 1, .prompt_tokens = 11}).status()),
      "queue_prompt_tokens");
  EXPECT_EQ(RejectionReasonFor(CheckDeadline(busy, {.tokens_left = {1000}, .tokens_per_second = 1},
                                             absl::Seconds(1))),
            "deadline");
  busy.waiting = 2;
  EXPECT_EQ(RejectionReasonFor(CheckTicket(limits, busy)), "queue_full");
  busy.draining = true;
  EXPECT_EQ(RejectionReasonFor(CheckTicket(limits, busy)), "draining");

  EXPECT_EQ(RejectionReasonFor(LoadingError()), "loading");
  EXPECT_EQ(RejectionReasonFor(absl::UnavailableError("going down")), "draining");
  EXPECT_EQ(RejectionReasonFor(TokenizerBusyError()), "tokenizer_busy");
  EXPECT_EQ(RejectionReasonFor(absl::InvalidArgumentError("")), "invalid");
  EXPECT_EQ(RejectionReasonFor(absl::UnimplementedError("")), "unimplemented");
  EXPECT_EQ(RejectionReasonFor(absl::FailedPreconditionError("")), "configuration");
  EXPECT_EQ(RejectionReasonFor(absl::InternalError("")), "other");
}

TEST(PushbackTest, FollowsTheEnginesEstimateWithAQuarterOfJitter) {
  absl::Status status = absl::ResourceExhaustedError("full");
  EXPECT_EQ(PushbackFor(status, 0.5), absl::Seconds(1));
  SetRetryAfter(absl::Seconds(8), &status);
  EXPECT_EQ(PushbackFor(status, 0), absl::Seconds(6));
  EXPECT_EQ(PushbackFor(status, 0.5), absl::Seconds(8));
  EXPECT_LE(PushbackFor(status, 0.999), absl::Seconds(10));
}

TEST(RejectionReasonTest, EveryReasonIsAMetricLabel) {
  for (const absl::Status& status :
       {LoadingError(), TokenizerBusyError(), absl::InvalidArgumentError(""),
        absl::UnimplementedError(""), absl::FailedPreconditionError(""), absl::InternalError("")}) {
    EXPECT_THAT(kRejectionReasons, Contains(RejectionReasonFor(status)));
  }
}

}  // namespace
}  // namespace whit
