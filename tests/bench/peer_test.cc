#include "tests/bench/peer.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace whit {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(ParsePeerNamesTest, KeepsTheirOrder) {
  EXPECT_THAT(ParsePeerNames("llama.cpp").value(), ElementsAre(kLlamaCpp));
  EXPECT_THAT(ParsePeerNames("vllm,llama.cpp,openvino").value(),
              ElementsAre(kVllm, kLlamaCpp, kOpenVino));
}

TEST(ParsePeerNamesTest, NamesAnUnknownOne) {
  EXPECT_THAT(std::string(ParsePeerNames("vllm,gpt").status().message()), HasSubstr("'gpt'"));
  EXPECT_FALSE(ParsePeerNames("vllm,").ok());
}

TEST(LoadPeerTest, TellsHowToGetOneThatIsMissing) {
  PeerOptions options;
  options.model = "model.gguf";
  options.directory = testing::TempDir() + "/none";
  for (const char* name : {kLlamaCpp, kOpenVino, kVllm}) {
    const absl::StatusOr<Peer> peer = LoadPeer(name, options);
    EXPECT_EQ(peer.status().code(), absl::StatusCode::kNotFound) << name;
    EXPECT_THAT(std::string(peer.status().message()), HasSubstr("tests/bench/fetch_peer"));
  }
}

}  // namespace
}  // namespace whit
