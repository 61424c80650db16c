// The modes from end to end, on a tiny model.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "controller/policy_lookup.h"
#include "runtime/model/gguf.h"
#include "tests/eval/accuracy.h"
#include "tests/eval/kld.h"
#include "tests/eval/loaded_model.h"
#include "tests/eval/needle.h"
#include "tests/eval/perplexity.h"
#include "tests/eval/text_chunks.h"
#include "tests/unit/support/process_temp_dir.h"
#include "tests/unit/support/tiny_model.h"

namespace whit::eval {
namespace {

using testing::HasSubstr;

class MeasureTest : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    path_ = new std::string(ProcessTempDir() + "/whit_eval_tiny.gguf");
    const std::vector<std::byte> bytes = MakeTinyModel({.context_length = 512}).Build();
    Write(*path_, {reinterpret_cast<const char*>(bytes.data()), bytes.size()});
    loaded_ = new LoadedModel(LoadModel(*path_, "", 2).value());
  }
  static void TearDownTestSuite() {
    std::remove(path_->c_str());
    delete loaded_;
    delete path_;
  }
  static void Write(const std::string& path, const std::string& content) {
    std::ofstream(path, std::ios::binary) << content;
  }

  static const KeyMeans* KeyMeansOf(const LoadedModel& loaded) {
    const auto pool = *PagePool::Create(
        {.capacity_bytes = PagePool::kSlabBytes, .head_dim = loaded.model->config().head_dim});
    return loaded.model->NewPageTable(*pool, kDefaultRing).key_means();
  }

  static std::vector<int32_t> SomeText(int words) {
    static constexpr const char* kWords[] = {"the", "cat", "sat", "on", "a", "mat", "again", "."};
    std::string text;
    uint32_t state = 1;
    for (int i = 0; i < words; ++i) {
      state = state * 1664525 + 1013904223;
      text += std::string(" ") + kWords[state >> 29];
    }
    return loaded_->tokenizer->Encode(text, false).value();
  }

  static std::string* path_;
  static LoadedModel* loaded_;
};
std::string* MeasureTest::path_ = nullptr;
LoadedModel* MeasureTest::loaded_ = nullptr;

TEST_F(MeasureTest, KldFallsWithTheRungAndIsZeroForTheReference) {
  const std::vector<Arm> arms = *ParseArms("static:K2V2,static:K4V4,static:K8V8", {});
  const auto results =
      MeasureKld(*loaded_, arms, {SomeText(1500)}, {.contexts = {128, 256}, .tokens = 1024});
  ASSERT_TRUE(results.ok()) << results.status().message();
  ASSERT_EQ(results->size(), 8u);
  for (int i : {0, 4}) {
    const KldResult& fp16 = (*results)[i];
    EXPECT_EQ(fp16.mean, 0);
    EXPECT_EQ(fp16.p999, 0);
    EXPECT_EQ(fp16.top1_agreement, 1);
    EXPECT_EQ(fp16.delta_ln_ppl, 0);
    EXPECT_EQ(fp16.perplexity, fp16.reference_perplexity);
    EXPECT_EQ(fp16.tokens, i == 0 ? 8 * 127 : 4 * 255);
    EXPECT_EQ(fp16.chunk_kld.size(), i == 0 ? 8u : 4u);
    const KldResult &k2 = (*results)[i + 1], &k4 = (*results)[i + 2], &k8 = (*results)[i + 3];
    EXPECT_GT(k2.mean, 3 * k4.mean);
    EXPECT_GT(k4.mean, 10 * k8.mean);
    EXPECT_GT(k8.mean, 0);
    for (const KldResult* arm : {&k2, &k4, &k8}) {
      EXPECT_GT(arm->p999, arm->p99);
      EXPECT_GT(arm->p99, arm->mean);
      EXPECT_LT(arm->mean_ci95.low, arm->mean);
      EXPECT_GT(arm->mean_ci95.high, arm->mean);
      EXPECT_NEAR(std::log(arm->perplexity / fp16.perplexity), arm->delta_ln_ppl, 1e-9);
    }
    EXPECT_LT(k2.top1_agreement, k8.top1_agreement);
    EXPECT_LT(k2.footprint.true_bits(), k4.footprint.true_bits());
  }
  const nlohmann::ordered_json object = (*results)[1].ToJson();
  for (const char* key :
       {"arm", "context", "true_bits", "packed_bits", "kld_mean", "kld_p99", "kld_p999",
        "top1_agreement", "delta_ln_ppl", "tokens", "ci95", "fp16_ppl"}) {
    EXPECT_TRUE(object.contains(key)) << key;
  }
  EXPECT_EQ(object["ci95"]["kld_mean"][0], (*results)[1].mean_ci95.low);
  EXPECT_THAT(PlotKld(*results), HasSubstr("context 256"));
}

TEST_F(MeasureTest, KldDoesNotDependOnTheBatch) {
  const std::vector<Arm> arms = *ParseArms("random:K2V2=1,K4V4=1", {});
  const std::vector<std::vector<int32_t>> texts = {SomeText(800)};
  KldOptions options = {.contexts = {96}, .tokens = 600, .batch = 1};
  const auto one = MeasureKld(*loaded_, arms, texts, options);
  options.batch = 5;
  const auto many = MeasureKld(*loaded_, arms, texts, options);
  ASSERT_TRUE(one.ok() && many.ok());
  EXPECT_EQ((*one)[1].chunk_kld, (*many)[1].chunk_kld);
  EXPECT_EQ((*one)[1].p99, (*many)[1].p99);
}

TEST_F(MeasureTest, KldNamesATextThatIsTooShort) {
  const auto results =
      MeasureKld(*loaded_, *ParseArms("", {}), {SomeText(20)}, {.contexts = {256}, .tokens = 1});
  EXPECT_THAT(std::string(results.status().message()), HasSubstr("256 needs as many"));
}

TEST_F(MeasureTest, PerplexityIsThatOfTheKldReference) {
  const std::vector<int32_t> text = SomeText(500);
  const auto perplexity = MeasurePerplexity(*loaded_, text, 128, 2);
  const auto kld =
      MeasureKld(*loaded_, *ParseArms("", {}), {text}, {.contexts = {128}, .tokens = 1 << 20});
  ASSERT_TRUE(perplexity.ok() && kld.ok());
  ASSERT_EQ(perplexity->size(), PromptActivations() == ActivationFormat::kBFloat16 ? 3u : 2u);
  EXPECT_NEAR((*perplexity)[0].all_positions, (*kld)[0].reference_perplexity, 1e-9);
  EXPECT_EQ((*perplexity)[0].tokens, (*kld)[0].tokens);
  for (size_t arm = 1; arm < perplexity->size(); ++arm) {
    EXPECT_NE((*perplexity)[arm].all_positions, (*perplexity)[0].all_positions);
    EXPECT_NEAR((*perplexity)[arm].all_positions / (*perplexity)[0].all_positions, 1, 0.05);
  }
}

// Two choices: what the model would write itself, and the worst it could.
TEST_F(MeasureTest, AccuracyIsOfTheLikelierChoiceAndOfGreedyText) {
  const std::vector<int32_t> text = SomeText(400);
  std::vector<ScoredItem> choice_items, greedy_items;
  const int vocab = loaded_->model->config().vocab_size;
  ArmRunner runner(*loaded_->model, {ReferenceArm()});
  for (int i = 0; i < 6; ++i) {
    Sequence sequence = {.tokens = {text.begin() + 50 * i, text.begin() + 50 * i + 40 + i}};
    sequence.targets.assign(sequence.tokens.size(), Sequence::kNotScored);
    sequence.targets.back() = 0;
    int32_t best = 0, worst = 0;
    ASSERT_TRUE(
        runner
            .Run(
                {sequence}, 1,
                [&](int, absl::Span<const ScoredRow> rows) {
                  if (rows.empty()) return;
                  const float* logits = rows[0].logits;
                  best = static_cast<int32_t>(std::max_element(logits, logits + vocab) - logits);
                  worst = static_cast<int32_t>(std::min_element(logits, logits + vocab) - logits);
                },
                [](int64_t) { return true; })
            .ok());
    Sequence good = sequence, bad = sequence;
    good.targets.back() = best;
    bad.targets.back() = worst;
    // Wrong on purpose in one of six. Per byte the last choice looks likelier by its length.
    choice_items.push_back({.choices = {bad, good}, .bytes = {1000000, 1}, .gold = i == 3 ? 0 : 1});
    greedy_items.push_back({.choices = {i < 2 ? bad : good}});
  }
  const std::vector<Arm> arms = *ParseArms("static:K8V8", {});
  const auto choices = MeasureAccuracy(*loaded_, arms, "choices", choice_items, 3);
  const auto greedy = MeasureAccuracy(*loaded_, arms, "greedy", greedy_items, 3);
  ASSERT_TRUE(choices.ok() && greedy.ok());
  ASSERT_EQ(choices->size(), 2u);
  EXPECT_EQ((*choices)[0].items, 6);
  EXPECT_NEAR((*choices)[0].accuracy.share, 5.0 / 6, 1e-12);
  EXPECT_NEAR((*choices)[0].accuracy_norm->share, 1.0 / 6, 1e-12);
  EXPECT_NEAR((*greedy)[0].accuracy.share, 4.0 / 6, 1e-12);
  EXPECT_FALSE((*greedy)[0].accuracy_norm.has_value());
  EXPECT_EQ((*choices)[1].accuracy.delta, 0);
  EXPECT_EQ((*choices)[1].accuracy.mcnemar_p, 1);
  EXPECT_EQ((*greedy)[0].context, 45);
  EXPECT_THAT(PlotAccuracy(*choices), HasSubstr("FP16: 16.7"));
}

TEST_F(MeasureTest, NeedlesLieInTheTextAndAreAskedForAtItsEnd) {
  const Tokenizer& tokenizer = *loaded_->tokenizer;
  const std::vector<int32_t> text = SomeText(1000);
  const auto items = MakeNeedles(text, 300, 8, tokenizer);
  ASSERT_TRUE(items.ok()) << items.status().message();
  ASSERT_EQ(items->size(), 8u);
  std::vector<double> depths;
  for (const ScoredItem& item : *items) {
    ASSERT_EQ(item.choices.size(), 1u);
    const Sequence& sequence = item.choices[0];
    EXPECT_EQ(sequence.tokens.size(), 300u);
    std::string all, key;
    for (int32_t id : sequence.tokens) all += tokenizer.TokenBytes(id);
    for (int32_t id : sequence.targets) {
      if (id != Sequence::kNotScored) key += tokenizer.TokenBytes(id);
    }
    EXPECT_EQ(key.size(), 6u) << key;
    const size_t at = all.find(" The pass key is " + key + ".");
    ASSERT_NE(at, all.npos);
    depths.push_back(static_cast<double>(at) / static_cast<double>(all.size()));
    EXPECT_THAT(all,
                testing::EndsWith("What is the pass key? The pass key is " + key.substr(0, 5)));
  }
  EXPECT_TRUE(std::is_sorted(depths.begin(), depths.end()));
  EXPECT_LT(depths.front(), 0.15);
  EXPECT_GT(depths.back(), 0.5);

  EXPECT_THAT(std::string(MakeNeedles(text, 40, 1, tokenizer).status().message()),
              HasSubstr("has no room"));
  EXPECT_THAT(std::string(MakeNeedles(SomeText(20), 400, 1, tokenizer).status().message()),
              HasSubstr("the text has"));
}

TEST_F(MeasureTest, ChunksAreSpreadOverTheTextsInTurn) {
  const std::vector<std::vector<int32_t>> texts = {
      std::vector<int32_t>(1000, 7), std::vector<int32_t>(250, 8), std::vector<int32_t>(99, 9)};
  const auto chunks = CutChunks(texts, 100, 550, *loaded_->tokenizer);
  ASSERT_TRUE(chunks.ok());
  std::string order;
  for (const Sequence& chunk : *chunks) {
    EXPECT_EQ(chunk.tokens.size(), 100u);
    EXPECT_EQ(chunk.targets.back(), Sequence::kNotScored);
    EXPECT_EQ(chunk.targets[98], chunk.tokens[99]);
    order += std::to_string(chunk.tokens[0]);
  }
  EXPECT_EQ(order, "787877");
  std::vector<int32_t> counting(1000);
  for (int i = 0; i < 1000; ++i) counting[i] = i / 100;
  const auto two = CutChunks({counting}, 100, 200, *loaded_->tokenizer);
  EXPECT_EQ((*two)[0].tokens[0], 2);
  EXPECT_EQ((*two)[1].tokens[0], 7);
  EXPECT_EQ(CutChunks({counting}, 100, 1 << 30, *loaded_->tokenizer)->size(), 10u);
}

TEST(FirstCharactersTest, CountsCodePoints) {
  EXPECT_EQ(FirstCharacters("aé€z", 3), "aé€");
  EXPECT_EQ(FirstCharacters("aé", 9), "aé");
  EXPECT_EQ(FirstCharacters("é", 0), "");
}

TEST_F(MeasureTest, ModelErrorsNameTheFile) {
  const auto error = [](const std::string& model, const std::string& policy_file) {
    return std::string(LoadModel(model, policy_file, 1).status().message());
  };
  const std::string path = ProcessTempDir() + "/short.whitpolicy";
  EXPECT_THAT(error("/nowhere.gguf", ""), HasSubstr("/nowhere.gguf"));
  Write(path, "short");
  EXPECT_THAT(error(*path_, path), HasSubstr(path));
  std::remove(path.c_str());
}

TEST_F(MeasureTest, TheMeansAreThoseOfThePolicyFileUnlessItIsOff) {
  EXPECT_EQ(loaded_->policy_file, nullptr);
  EXPECT_EQ(KeyMeansOf(*loaded_), nullptr);
  PolicyFile file;
  file.model = IdentityOf(**GgufFile::Open(*path_), loaded_->model->config());
  file.key_means.assign(file.model.key_elements(), 0.5f);
  const std::string path = PolicyPathBeside(*path_);
  ASSERT_TRUE(WritePolicyFile(path, file).ok());
  const LoadedModel found = LoadModel(*path_, "", 1).value();
  ASSERT_NE(found.policy_file, nullptr);
  EXPECT_EQ(found.policy_file->path, path);
  EXPECT_NE(KeyMeansOf(found), nullptr);
  const LoadedModel off = LoadModel(*path_, "off", 1).value();
  EXPECT_EQ(off.policy_file, nullptr);
  EXPECT_EQ(KeyMeansOf(off), nullptr);
  std::remove(path.c_str());
}

}  // namespace
}  // namespace whit::eval
