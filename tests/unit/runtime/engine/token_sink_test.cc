#include "runtime/engine/token_sink.h"

#include <gtest/gtest.h>

#include <thread>

namespace whit {
namespace {

std::vector<TokenOutput> Tokens(std::vector<int32_t> ids) {
  std::vector<TokenOutput> tokens;
  for (int32_t id : ids) tokens.push_back({.id = id});
  return tokens;
}

TEST(TokenSinkTest, CoalescesForASlowConsumerAndNotifiesOnce) {
  int notified = 0;
  TokenSink sink([&] { ++notified; });
  EXPECT_TRUE(sink.Take().empty());
  sink.Put(Tokens({1}), "a");
  sink.Put(Tokens({2, 3}), "");
  sink.Put({}, "bc");
  EXPECT_EQ(notified, 1);
  const TokenSink::Delivery delivery = sink.Take();
  ASSERT_EQ(delivery.tokens.size(), 3u);
  for (int i = 0; i < 3; ++i) EXPECT_EQ(delivery.tokens[i].id, i + 1);
  EXPECT_EQ(delivery.text, "abc");
  EXPECT_FALSE(delivery.completion.has_value());
  EXPECT_TRUE(sink.Take().empty());
  sink.Put(Tokens({4}), "d");
  EXPECT_EQ(notified, 2);
}

TEST(TokenSinkTest, NothingIsNoNews) {
  int notified = 0;
  TokenSink sink([&] { ++notified; });
  sink.Put({}, "");
  EXPECT_EQ(notified, 0);
}

TEST(TokenSinkTest, TheCompletionComesWithTheLastTokensOrAlone) {
  int notified = 0;
  TokenSink sink([&] { ++notified; });
  sink.Put(Tokens({1}), "a");
  sink.Finish({.reason = FinishReason::kLength, .completion_tokens = 1});
  EXPECT_EQ(notified, 1);
  TokenSink::Delivery delivery = sink.Take();
  EXPECT_EQ(delivery.text, "a");
  ASSERT_TRUE(delivery.completion.has_value());
  EXPECT_EQ(delivery.completion->reason, FinishReason::kLength);

  TokenSink other([&] { ++notified; });
  other.Finish({.reason = FinishReason::kCancelled});
  EXPECT_EQ(notified, 2);
  EXPECT_TRUE(other.Take().completion.has_value());
}

TEST(TokenSinkTest, NothingIsLostBetweenTwoThreads) {
  constexpr int kTokens = 20000;
  absl::Mutex mutex;
  bool ready = false;
  TokenSink sink([&] {
    absl::MutexLock lock(&mutex);
    ready = true;
  });
  std::thread engine([&] {
    for (int i = 0; i < kTokens; ++i) sink.Put(Tokens({i}), "x");
    sink.Finish({.reason = FinishReason::kStop});
  });
  int received = 0;
  size_t text = 0;
  for (bool done = false; !done;) {
    {
      absl::MutexLock lock(&mutex);
      mutex.Await(absl::Condition(&ready));
      ready = false;
    }
    const TokenSink::Delivery delivery = sink.Take();
    for (const TokenOutput& token : delivery.tokens) ASSERT_EQ(token.id, received++);
    text += delivery.text.size();
    done = delivery.completion.has_value();
  }
  engine.join();
  EXPECT_EQ(received, kTokens);
  EXPECT_EQ(text, size_t{kTokens});
}

}  // namespace
}  // namespace whit
