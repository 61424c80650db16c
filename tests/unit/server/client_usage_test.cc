#include "server/security/client_usage.h"

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/security/client_table.h"
#include "server/status_conversion.h"

namespace whit {
namespace {

using ::testing::HasSubstr;

TEST(ClientUsageTest, EachClientHasItsOwnPlaces) {
  ClientUsage usage;
  std::vector<ClientUsage::Place> places;
  for (int i = 0; i < 2; ++i) {
    absl::StatusOr<ClientUsage::Place> place = usage.Take("mobile", 2);
    ASSERT_TRUE(place.ok()) << place.status();
    places.push_back(*std::move(place));
  }
  const absl::Status full = usage.Take("mobile", 2).status();
  EXPECT_EQ(full.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(RejectionReasonFor(full), "client_requests");
  EXPECT_THAT(std::string(full.message()), HasSubstr("client mobile has 2 requests"));
  EXPECT_TRUE(usage.Take("batch", 1).ok());
  EXPECT_TRUE(usage.Take("mobile", 3).ok());  // its limit was raised meanwhile
  EXPECT_TRUE(usage.Take("mobile", kNoLimit).ok());

  places.pop_back();
  EXPECT_TRUE(usage.Take("mobile", 2).ok());
}

TEST(ClientUsageTest, APlaceIsGivenBackOnceHoweverItMoves) {
  ClientUsage usage;
  std::optional<ClientUsage::Place> held;
  {
    absl::StatusOr<ClientUsage::Place> place = usage.Take("mobile", 1);
    ASSERT_TRUE(place.ok());
    ClientUsage::Place moved = *std::move(place);
    held = std::move(moved);
  }
  EXPECT_FALSE(usage.Take("mobile", 1).ok());
  held.reset();
  {
    absl::StatusOr<ClientUsage::Place> first = usage.Take("mobile", 1);
    absl::StatusOr<ClientUsage::Place> other = usage.Take("batch", 1);
    ASSERT_TRUE(first.ok() && other.ok());
    *first = *std::move(other);
  }
  EXPECT_TRUE(usage.Take("mobile", 1).ok());
  EXPECT_TRUE(usage.Take("batch", 1).ok());
}

}  // namespace
}  // namespace whit
