#include "runtime/text/byte_pair_encoder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <random>
#include <string>
#include <utility>
#include <vector>

namespace whit {
namespace {

using testing::ElementsAre;

std::vector<int32_t> Encode(const BytePairEncoder& encoder, std::string_view word) {
  BytePairEncoder::Scratch scratch;
  std::vector<int32_t> ids;
  encoder.Encode(word, scratch, ids);
  return ids;
}

TEST(BytePairEncoderTest, MergesByRankThenFromTheLeft) {
  BytePairEncoder encoder;
  for (char c = 'a'; c <= 'd'; ++c) encoder.SetByteToken(static_cast<uint8_t>(c), c - 'a');
  encoder.AddMerge(1, 2, 10);   // bc
  encoder.AddMerge(0, 1, 11);   // ab
  encoder.AddMerge(0, 0, 12);   // aa
  encoder.AddMerge(12, 0, 13);  // aaa
  encoder.AddMerge(0, 10, 14);  // abc
  EXPECT_THAT(Encode(encoder, ""), ElementsAre());
  EXPECT_THAT(Encode(encoder, "d"), ElementsAre(3));
  EXPECT_THAT(Encode(encoder, "abd"), ElementsAre(11, 3));
  EXPECT_THAT(Encode(encoder, "abcd"), ElementsAre(14, 3));  // bc first, though ab is to its left
  EXPECT_THAT(Encode(encoder, "aaaaa"), ElementsAre(12, 13));
  EXPECT_THAT(Encode(encoder, "aabab"), ElementsAre(0, 11, 11));
}

TEST(BytePairEncoderTest, APairsFirstMergeCounts) {
  BytePairEncoder encoder;
  encoder.SetByteToken('a', 0);
  encoder.AddMerge(0, 0, 1);
  encoder.AddMerge(0, 0, 2);
  EXPECT_THAT(Encode(encoder, "aa"), ElementsAre(1));
}

TEST(BytePairEncoderTest, ABytesWithoutATokenIsLeftOutBeforeMerging) {
  BytePairEncoder encoder;
  encoder.SetByteToken('a', 0);
  encoder.AddMerge(0, 0, 1);
  EXPECT_THAT(Encode(encoder, "axa"), ElementsAre(1));
  EXPECT_THAT(Encode(encoder, "xx"), ElementsAre());
}

// By definition: while some pair can be merged, merge the leftmost of the best rank.
using Ranks = std::map<std::pair<int32_t, int32_t>, std::pair<int, int32_t>>;
std::vector<int32_t> EncodeNaively(const Ranks& ranks, std::string_view word) {
  std::vector<int32_t> ids(word.begin(), word.end());
  while (true) {
    auto best = ranks.end();
    size_t at = 0;
    for (size_t i = 0; i + 1 < ids.size(); ++i) {
      const auto found = ranks.find({ids[i], ids[i + 1]});
      if (found == ranks.end()) continue;
      if (best == ranks.end() || found->second.first < best->second.first) {
        best = found;
        at = i;
      }
    }
    if (best == ranks.end()) return ids;
    ids[at] = best->second.second;
    ids.erase(ids.begin() + static_cast<std::ptrdiff_t>(at) + 1);
  }
}

TEST(BytePairEncoderTest, AgreesWithTheDefinition) {
  std::mt19937 rng(1);
  for (int round = 0; round < 50; ++round) {
    BytePairEncoder encoder;
    Ranks ranks;
    std::map<std::string, int32_t> ids;
    std::vector<std::string> spellings;
    for (char c : {'a', 'b', 'c'}) {
      encoder.SetByteToken(static_cast<uint8_t>(c), c);
      ids[std::string(1, c)] = c;
      spellings.emplace_back(1, c);
    }
    // Any two tokens may merge, also into a token that others merge into, and at any rank.
    for (int rank = 0; rank < 40; ++rank) {
      const std::string left = spellings[rng() % spellings.size()];
      const std::string right = spellings[rng() % spellings.size()];
      const auto [token, is_new] =
          ids.emplace(left + right, 256 + static_cast<int32_t>(ids.size()));
      if (is_new) spellings.push_back(left + right);
      encoder.AddMerge(ids[left], ids[right], token->second);
      ranks.emplace(std::pair(ids[left], ids[right]), std::pair(rank, token->second));
    }
    for (int i = 0; i < 50; ++i) {
      std::string word(rng() % 60, '\0');
      for (char& c : word) c = static_cast<char>('a' + rng() % 3);
      ASSERT_EQ(Encode(encoder, word), EncodeNaively(ranks, word)) << word;
    }
  }
}

}  // namespace
}  // namespace whit
