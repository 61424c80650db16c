#include "controller/calibrate/progress_bar.h"

#include <gtest/gtest.h>

namespace whit {
namespace {

TEST(FormatProgressTest, TellsShareRateAndTimeLeft) {
  EXPECT_EQ(FormatProgress("measuring", "tokens", 0, 4000, absl::ZeroDuration()),
            "measuring [..............................]   0 %");
  EXPECT_EQ(FormatProgress("measuring", "tokens", 1000, 4000, absl::Seconds(40)),
            "measuring [#######.......................]  25 %  25 tokens/s  2:00 left");
  EXPECT_EQ(FormatProgress("measuring", "tokens", 4000, 4000, absl::Seconds(160)),
            "measuring [##############################] 100 %  25 tokens/s  0:00 left");
  EXPECT_EQ(FormatProgress("measuring", "tokens", 0, 0, absl::Seconds(1)),
            "measuring [##############################] 100 %");
}

}  // namespace
}  // namespace whit
