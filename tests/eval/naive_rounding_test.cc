#include "tests/eval/naive_rounding.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

namespace whit::eval {
namespace {

TEST(RoundToAbsMaxTest, KeepsTheLargestAndRoundsTheRest) {
  std::vector<float> x = {7, -3.4f, 0.6f, 0.4f, -7};
  RoundToAbsMax(absl::MakeSpan(x), 4);
  EXPECT_THAT(x, testing::ElementsAre(7, -3, 1, 0, -7));
  // Three levels are all that 2 bits leave around zero.
  x = {2, 1.1f, 0.9f, -1.5f};
  RoundToAbsMax(absl::MakeSpan(x), 2);
  EXPECT_THAT(x, testing::ElementsAre(2, 2, 0, -2));
  x = {0, 0};
  RoundToAbsMax(absl::MakeSpan(x), 8);
  EXPECT_THAT(x, testing::ElementsAre(0, 0));
}

}  // namespace
}  // namespace whit::eval
