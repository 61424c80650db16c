#include "server/request_conversion.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/generation_setup.h"
#include "tests/unit/support/process_temp_dir.h"
#include "tests/unit/support/tiny_model.h"

namespace whit {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

Request Convert(const v1::GenerateRequest& proto) {
  absl::StatusOr<Request> request = ToEngineRequest(proto, PrecisionPolicySpec());
  EXPECT_TRUE(request.ok()) << request.status();
  return *std::move(request);
}

TEST(ToEngineRequestTest, UnsetFieldsAreTheEnginesDefaults) {
  const Request request = Convert(v1::GenerateRequest());
  const Request defaults;
  EXPECT_EQ(request.sampling.temperature, defaults.sampling.temperature);
  EXPECT_EQ(request.sampling.top_p, defaults.sampling.top_p);
  EXPECT_EQ(request.sampling.repetition_penalty, defaults.sampling.repetition_penalty);
  EXPECT_FALSE(request.sampling.seed.has_value());
  EXPECT_EQ(request.max_new_tokens, 256);
  EXPECT_EQ(request.logprobs, -1);
  EXPECT_FALSE(request.ignore_eos);
}

TEST(ToEngineRequestTest, ZerosThatAreSetAreKept) {
  v1::GenerateRequest proto;
  proto.mutable_sampling()->set_top_p(0);
  proto.mutable_sampling()->set_repetition_penalty(0);
  proto.mutable_sampling()->set_seed(0);
  proto.mutable_stopping()->set_max_new_tokens(0);
  proto.set_logprobs(0);
  const Request request = Convert(proto);
  EXPECT_EQ(request.sampling.top_p, 0);
  EXPECT_EQ(request.sampling.repetition_penalty, 0);
  EXPECT_EQ(request.sampling.seed, 0u);
  EXPECT_EQ(request.max_new_tokens, 0);
  EXPECT_EQ(request.logprobs, 0);
}

TEST(ToEngineRequestTest, TakesEveryField) {
  v1::GenerateRequest proto;
  v1::SamplingParameters& sampling = *proto.mutable_sampling();
  sampling.set_temperature(0.5f);
  sampling.set_top_k(40);
  sampling.set_top_p(0.25f);
  sampling.set_min_p(0.125f);
  sampling.set_repetition_penalty(1.5f);
  sampling.set_presence_penalty(-2);
  sampling.set_frequency_penalty(3);
  sampling.set_seed(std::numeric_limits<uint64_t>::max());
  v1::StoppingCriteria& stopping = *proto.mutable_stopping();
  stopping.set_max_new_tokens(7);
  stopping.add_stop("\n\n");
  stopping.add_stop_token_ids(9);
  stopping.set_ignore_eos(true);
  proto.set_logprobs(5);
  const Request request = Convert(proto);
  EXPECT_EQ(request.sampling.temperature, 0.5f);
  EXPECT_EQ(request.sampling.top_k, 40);
  EXPECT_EQ(request.sampling.top_p, 0.25f);
  EXPECT_EQ(request.sampling.min_p, 0.125f);
  EXPECT_EQ(request.sampling.repetition_penalty, 1.5f);
  EXPECT_EQ(request.sampling.presence_penalty, -2);
  EXPECT_EQ(request.sampling.frequency_penalty, 3);
  EXPECT_EQ(request.sampling.seed, std::numeric_limits<uint64_t>::max());
  EXPECT_EQ(request.max_new_tokens, 7);
  EXPECT_THAT(request.stop, ElementsAre("\n\n"));
  EXPECT_THAT(request.stop_token_ids, ElementsAre(9));
  EXPECT_TRUE(request.ignore_eos);
  EXPECT_EQ(request.logprobs, 5);
}

TEST(ToEngineRequestTest, LargeNumbersDoNotWrapIntoGoodOnes) {
  constexpr uint32_t kMax = std::numeric_limits<uint32_t>::max();
  v1::GenerateRequest proto;
  proto.mutable_sampling()->set_top_k(kMax);
  proto.mutable_stopping()->set_max_new_tokens(kMax);
  proto.mutable_stopping()->add_stop_token_ids(kMax);
  const Request request = Convert(proto);
  EXPECT_EQ(request.sampling.top_k, std::numeric_limits<int32_t>::max());
  EXPECT_EQ(request.max_new_tokens, int64_t{kMax});
  EXPECT_LT(request.stop_token_ids[0], 0);

  proto.set_logprobs(kMax);
  const absl::Status status = ToEngineRequest(proto, PrecisionPolicySpec()).status();
  EXPECT_TRUE(absl::IsInvalidArgument(status));
  EXPECT_THAT(std::string(status.message()), HasSubstr("4294967295"));
}

TEST(ToPrecisionTest, AnswersClearlyForWhatItCannotDo) {
  const PrecisionPolicySpec fp16 = *ParsePrecisionPolicy("fp16");
  v1::KvCacheOptions options;
  EXPECT_EQ(ToPrecision(options, fp16)->policy.ToString(), "fp16");
  options.set_policy("static:K4V4");
  EXPECT_EQ(ToPrecision(options, fp16)->policy.ToString(), "static:K4V4");

  EXPECT_EQ(ToPrecision(options, fp16)->floor, std::nullopt);
  options.set_floor_rung("K2V2");
  EXPECT_EQ(ToPrecision(options, fp16)->floor, Rung::kK2V2);
  options.set_floor_rung("K5V5");
  EXPECT_TRUE(absl::IsInvalidArgument(ToPrecision(options, fp16).status()));
  options.clear_floor_rung();

  options.set_policy("best");
  const absl::Status unknown = ToPrecision(options, fp16).status();
  EXPECT_TRUE(absl::IsInvalidArgument(unknown));
  EXPECT_THAT(std::string(unknown.message()), HasSubstr("kv_cache.policy"));
  EXPECT_THAT(std::string(unknown.message()), HasSubstr("best"));
  options.set_policy("adaptive");
  EXPECT_EQ(ToPrecision(options, fp16)->target_bits, 0);

  options.set_target_bits(4);
  EXPECT_EQ(ToPrecision(options, fp16)->policy.ToString(), "adaptive");
  EXPECT_EQ(ToPrecision(options, fp16)->target_bits, 4);
  for (const float bits : {0.f, 2.f, 17.f, NAN}) {
    options.set_target_bits(bits);
    EXPECT_TRUE(absl::IsInvalidArgument(ToPrecision(options, fp16).status())) << bits;
  }
}

TEST(RequestIdTest, IsShortPrintableAscii) {
  EXPECT_EQ(RandomRequestId().size(), 16u);
  EXPECT_NE(RandomRequestId(), RandomRequestId());
  EXPECT_TRUE(CheckRequestId("").ok());
  EXPECT_TRUE(CheckRequestId("a-1 ~").ok());
  EXPECT_TRUE(CheckRequestId(std::string(128, 'x')).ok());
  EXPECT_THAT(std::string(CheckRequestId(std::string(129, 'x')).message()), HasSubstr("129 bytes"));
  for (const std::string id : {"a\nb", "\x7f", "\xc3\xa4"}) {
    EXPECT_TRUE(absl::IsInvalidArgument(CheckRequestId(id))) << id;
  }
}

// With a tiny model of 2,048 tokens of context.
class PromptTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    const std::string path = ProcessTempDir() + "/request_conversion_test.gguf";
    const std::vector<std::byte> file = MakeTinyModel().Build();
    std::ofstream(path, std::ios::binary)
        .write(reinterpret_cast<const char*>(file.data()),
               static_cast<std::streamsize>(file.size()));
    ServerOptions options;
    options.model_path = path;
    options.threads = 1;
    options.kv_cache_bytes = 8 << 20;
    const Logger logger(LogLevel::kError, LogFormat::kText);
    absl::StatusOr<std::unique_ptr<ServingModel>> model =
        ServingModel::Load(options, EngineObserver(), logger);
    ASSERT_TRUE(model.ok()) << model.status();
    model_ = model->release();
  }
  static void TearDownTestSuite() { delete std::exchange(model_, nullptr); }

  static std::string CheckError(const v1::Prompt& prompt) {
    const absl::Status status = CheckPrompt(prompt, "prompt", *model_);
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
    return std::string(status.message());
  }

  static ServingModel* model_;
};
ServingModel* PromptTest::model_ = nullptr;

TEST_F(PromptTest, AnEmptyPromptIsNamed) {
  v1::Prompt prompt;
  EXPECT_THAT(CheckError(prompt), HasSubstr("prompt is missing"));
  prompt.set_text("");
  EXPECT_EQ(CheckError(prompt), "prompt is empty");
  prompt.mutable_token_ids();
  EXPECT_EQ(CheckError(prompt), "prompt is empty");
  prompt.mutable_chat();
  EXPECT_EQ(CheckError(prompt), "prompt is empty");
}

TEST_F(PromptTest, TextThatCannotFitIsRefusedBeforeItIsTokenized) {
  v1::Prompt prompt;
  const size_t fits = model_->max_token_bytes() * model_->config().context_length;
  prompt.set_text(std::string(fits, 'x'));
  EXPECT_TRUE(CheckPrompt(prompt, "prompt", *model_).ok());
  prompt.set_text(std::string(2 * fits, 'x'));
  EXPECT_THAT(CheckError(prompt), HasSubstr("at least 4096 tokens"));
  prompt.mutable_chat()->add_messages()->set_content(std::string(2 * fits, 'x'));
  EXPECT_THAT(CheckError(prompt), HasSubstr("at least 4096 tokens"));
}

TEST_F(PromptTest, TokenIdsAreCheckedAgainstTheVocabulary) {
  v1::Prompt prompt;
  prompt.mutable_token_ids()->add_ids(3);
  prompt.mutable_token_ids()->add_ids(4);
  EXPECT_THAT(*EncodePrompt(prompt, "prompt", *model_), ElementsAre(3, 4));
  for (const uint32_t id : {static_cast<uint32_t>(model_->config().vocab_size), 0xffffffffu}) {
    prompt.mutable_token_ids()->set_ids(1, id);
    const absl::Status status = EncodePrompt(prompt, "prompt", *model_).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status));
    EXPECT_THAT(std::string(status.message()),
                HasSubstr("prompt.token_ids.ids[1] is " + std::to_string(id)));
  }
}

TEST_F(PromptTest, TextIsPlainAndChatIsFormatted) {
  const int32_t im_start = 1;  // "<|im_start|>"
  v1::Prompt text, chat;
  text.set_text("<|im_start|>");
  chat.mutable_chat()->add_messages()->set_role("user");
  chat.mutable_chat()->mutable_messages(0)->set_content("<|im_start|>");
  const std::vector<int32_t> text_tokens = *EncodePrompt(text, "prompt", *model_);
  EXPECT_EQ(std::count(text_tokens.begin(), text_tokens.end(), im_start), 0);
  // The template's own begin turns; the content's never does.
  const std::vector<int32_t> chat_tokens = *EncodePrompt(chat, "prompt", *model_);
  EXPECT_EQ(chat_tokens.front(), im_start);
  const auto turns = std::count(chat_tokens.begin(), chat_tokens.end(), im_start);
  chat.mutable_chat()->mutable_messages(0)->set_content("hi");
  const std::vector<int32_t> plain_tokens = *EncodePrompt(chat, "prompt", *model_);
  EXPECT_EQ(std::count(plain_tokens.begin(), plain_tokens.end(), im_start), turns);

  chat.mutable_chat()->mutable_messages(0)->set_role("robot");
  const absl::Status status = EncodePrompt(chat, "prompt", *model_).status();
  EXPECT_TRUE(absl::IsInvalidArgument(status));
  EXPECT_THAT(std::string(status.message()), HasSubstr("prompt.chat"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("robot"));
}

TEST_F(PromptTest, TheDefaultOfMaxNewTokensShrinksToFit) {
  const auto max_new_tokens = [](int prompt_tokens, std::optional<uint32_t> asked) {
    GenerationSetup<v1::GenerateRequest> setup;
    setup.model = model_;
    for (int i = 0; i < prompt_tokens; ++i) {
      setup.proto.mutable_prompt()->mutable_token_ids()->add_ids(3);
    }
    if (asked) setup.proto.mutable_stopping()->set_max_new_tokens(*asked);
    setup.request = *ToEngineRequest(setup.proto, PrecisionPolicySpec());
    return setup.Encode()->max_new_tokens;
  };
  EXPECT_EQ(max_new_tokens(1, std::nullopt), 256);
  EXPECT_EQ(max_new_tokens(2000, std::nullopt), 48);
  EXPECT_EQ(max_new_tokens(2000, 500), 500);  // which the engine then refuses
}

}  // namespace
}  // namespace whit
