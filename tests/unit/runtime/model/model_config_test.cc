#include "runtime/model/model_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/unit/support/tiny_model.h"

namespace whit {
namespace {

using absl::StatusCode;
using testing::HasSubstr;

absl::StatusOr<ModelConfig> Read(const GgufWriter& writer) {
  const std::vector<std::byte> bytes = writer.Build();
  return ReadModelConfig(*GgufFile::Parse(bytes).value());
}

using Edit = std::function<void(GgufWriter&)>;

absl::StatusOr<ModelConfig> ReadEdited(const Edit& edit) {
  GgufWriter writer = MakeTinyModel();
  edit(writer);
  return Read(writer);
}

void ExpectRefused(const Edit& edit, StatusCode code, const std::string& message) {
  const absl::Status status = ReadEdited(edit).status();
  EXPECT_EQ(status.code(), code) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr(message));
}

void ExpectInvalid(const Edit& edit, const std::string& message) {
  ExpectRefused(edit, StatusCode::kInvalidArgument, message);
}

void ExpectUnimplemented(const Edit& edit, const std::string& message) {
  ExpectRefused(edit, StatusCode::kUnimplemented, message);
}

Edit Set(std::string key, GgufWriter::Value value) {
  return [=](GgufWriter& file) { file.Set(key, value); };
}
Edit Remove(std::string key) {
  return [=](GgufWriter& file) { file.Remove(key); };
}

GgufWriter::Tensor FloatTensor(std::string name, const std::vector<float>& values) {
  const auto* p = reinterpret_cast<const std::byte*>(values.data());
  return {.name = std::move(name),
          .dimensions = {values.size()},
          .data = std::vector<std::byte>(p, p + 4 * values.size())};
}

TEST(ModelConfigTest, ReadsAModel) {
  const TinyModelOptions options = {.context_length = 4096, .num_layers = 3};
  const auto config = Read(MakeTinyModel(options));
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->name, "Tiny");
  EXPECT_EQ(config->architecture, "llama");
  EXPECT_EQ(config->context_length, 4096);
  EXPECT_EQ(config->vocab_size, 318);
  EXPECT_EQ(config->hidden_size, 64);
  EXPECT_EQ(config->ffn_size, 160);
  EXPECT_EQ(config->num_layers, 3);
  EXPECT_EQ(config->num_heads, 4);
  EXPECT_EQ(config->num_kv_heads, 2);
  EXPECT_EQ(config->head_dim, 16);
  EXPECT_EQ(config->rope_dims, 16);
  EXPECT_FLOAT_EQ(config->rms_norm_epsilon, 1e-5f);
  EXPECT_TRUE(config->tied_embeddings);
  const uint64_t layer = 2 * 64 + 2 * 64 * 64 + 2 * 32 * 64 + 3 * 160 * 64;
  EXPECT_EQ(config->num_parameters, 318 * 64 + 64 + 3 * layer);
}

TEST(ModelConfigTest, FillsInWhatIsOptional) {
  const auto config = ReadEdited([](GgufWriter& file) {
    for (const char* key : {"general.name", "llama.attention.key_length",
                            "llama.attention.value_length", "llama.rope.dimension_count",
                            "llama.rope.freq_base", "llama.vocab_size", "tokenizer.ggml.tokens"}) {
      file.Remove(key);
    }
  });
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->name, "");
  EXPECT_EQ(config->head_dim, 64 / 4);
  EXPECT_EQ(config->rope_dims, 16);
  EXPECT_FLOAT_EQ(config->rope_inverse_frequencies[1], std::pow(10000.0f, -2.0f / 16));
  EXPECT_EQ(config->vocab_size, 318);
}

TEST(ModelConfigTest, HasAsManyKvHeadsAsHeadsUnlessTold) {
  GgufWriter writer = MakeTinyModel({.num_heads = 4, .num_kv_heads = 4});
  writer.Remove("llama.attention.head_count_kv");
  EXPECT_EQ(Read(writer).value().num_kv_heads, 4);
}

TEST(ModelConfigTest, TakesAnOutputMatrix) {
  EXPECT_FALSE(Read(MakeTinyModel({.tied_embeddings = false})).value().tied_embeddings);
}

TEST(ModelConfigTest, MakesTheNamePrintable) {
  const auto config = ReadEdited(Set("general.name", std::string("a\n\xff")));
  EXPECT_EQ(config.value().name, "a\\n\\xff");
}

TEST(ModelConfigTest, ScalesRope) {
  const std::vector<float> plain = Read(MakeTinyModel()).value().rope_inverse_frequencies;
  ASSERT_EQ(plain.size(), 8);
  EXPECT_EQ(plain[0], 1);
  const auto scaled = [](const Edit& edit) {
    return ReadEdited(edit).value().rope_inverse_frequencies;
  };

  const auto linear = scaled([](GgufWriter& file) {
    file.Set("llama.rope.scaling.type", std::string("linear"));
    file.Set("llama.rope.scaling.factor", 4.0f);
  });
  const auto bare = scaled(Set("llama.rope.scale_linear", 4.0f));
  const auto none = scaled([](GgufWriter& file) {
    file.Set("llama.rope.scaling.type", std::string("none"));
    file.Set("llama.rope.scaling.factor", 4.0f);
  });
  const std::vector<float> divisors = {1, 1, 1, 1, 2, 4, 8, 8};
  const auto llama3 = scaled([&](GgufWriter& file) {
    file.Set("llama.rope.scaling.type", std::string("llama3"));
    file.tensors.push_back(FloatTensor("rope_freqs.weight", divisors));
  });
  for (size_t i = 0; i < plain.size(); ++i) {
    EXPECT_FLOAT_EQ(linear[i], plain[i] / 4);
    EXPECT_FLOAT_EQ(bare[i], plain[i] / 4);
    EXPECT_EQ(none[i], plain[i]);
    EXPECT_FLOAT_EQ(llama3[i], plain[i] / divisors[i]);
  }
}

TEST(ModelConfigTest, RefusesBadRope) {
  ExpectUnimplemented(Set("llama.rope.scaling.type", std::string("yarn")), "'yarn'");
  ExpectUnimplemented(Set("llama.rope.scaling.type", std::string("longrope")), "'longrope'");
  ExpectUnimplemented(Set("llama.rope.scaling.attn_factor", 0.5f), "attn_factor is 0.5");
  ExpectInvalid(Set("llama.rope.scaling.type", std::string("llama3")), "rope_freqs.weight");
  ExpectInvalid(Set("llama.rope.scaling.type", 1.0f), "llama.rope.scaling.type");
  for (float factor : {0.0f, -1.0f, 1e9f, INFINITY, NAN}) {
    ExpectInvalid(Set("llama.rope.scaling.factor", factor), "llama.rope.scaling.factor is ");
  }
  for (float base : {0.0f, 1.0f, -10000.0f, INFINITY, NAN}) {
    ExpectInvalid(Set("llama.rope.freq_base", base), "llama.rope.freq_base is ");
  }
  for (uint32_t dims : {0, 1, 18, 1 << 30}) {
    ExpectInvalid(Set("llama.rope.dimension_count", dims),
                  absl::StrCat("llama.rope.dimension_count is ", dims));
  }
  ExpectInvalid(Set("llama.rope.dimension_count", uint32_t{7}), "must be even");
  const auto with_divisors = [](std::vector<float> divisors) {
    return [=](GgufWriter& file) {
      file.tensors.push_back(FloatTensor("rope_freqs.weight", divisors));
    };
  };
  ExpectInvalid(with_divisors({1, 1, 1}), "1 rows of 3 elements; 1 row of 8");
  for (float divisor : {0.0f, -1.0f, NAN, INFINITY}) {
    ExpectInvalid(with_divisors({1, 1, 1, 1, 1, divisor, 1, 1}), "element 5 = ");
  }
}

TEST(ModelConfigTest, NamesTheArchitectureThatIsNotSupported) {
  ExpectUnimplemented(Set("general.architecture", std::string("qwen2")), "'qwen2'");
  ExpectInvalid(Remove("general.architecture"), "'general.architecture' is missing");
  ExpectInvalid(Set("general.architecture", uint32_t{3}), "has type uint32");
}

TEST(ModelConfigTest, RequiresItsKeys) {
  for (const char* key : {"llama.block_count", "llama.context_length", "llama.embedding_length",
                          "llama.feed_forward_length", "llama.attention.head_count",
                          "llama.attention.layer_norm_rms_epsilon"}) {
    ExpectInvalid(Remove(key), absl::StrCat("'", key, "' is missing"));
    ExpectInvalid(Set(key, std::string("text")), absl::StrCat("'", key, "' has type string"));
  }
}

TEST(ModelConfigTest, BoundsItsKeys) {
  for (const char* key : {"llama.block_count", "llama.context_length", "llama.embedding_length",
                          "llama.feed_forward_length", "llama.attention.head_count",
                          "llama.attention.head_count_kv"}) {
    for (uint64_t value : {uint64_t{0}, uint64_t{1} << 31, uint64_t{1} << 32, ~uint64_t{0}}) {
      ExpectInvalid(Set(key, value), absl::StrCat(key, " is ", value));
    }
    ExpectInvalid(Set(key, int32_t{-1}), absl::StrCat("'", key, "' is -1"));
  }
  for (float epsilon : {0.0f, -1e-5f, 1.0f, NAN, INFINITY}) {
    ExpectInvalid(Set("llama.attention.layer_norm_rms_epsilon", epsilon), "epsilon is ");
  }
}

TEST(ModelConfigTest, BoundsHeads) {
  ExpectInvalid(Set("llama.attention.head_count_kv", uint32_t{3}),
                "llama.attention.head_count is 4, not a multiple of");
  ExpectUnimplemented(Set("llama.attention.key_length", uint32_t{24}), "head dimension is 24");
  ExpectUnimplemented(Set("llama.attention.value_length", uint32_t{32}), "values 32");
  ExpectInvalid(Set("llama.attention.key_length", uint32_t{0}), "key_length is 0");
  ExpectInvalid(Set("llama.attention.key_length", uint32_t{1024}), "key_length is 1024");
  ExpectInvalid(
      [](GgufWriter& file) {
        file.Remove("llama.attention.key_length");
        file.Set("llama.attention.head_count", uint32_t{6});
      },
      "llama.embedding_length is 64, not a multiple");
  ExpectUnimplemented(
      [](GgufWriter& file) {
        file.Remove("llama.attention.key_length");
        file.Set("llama.attention.head_count", uint32_t{8});
      },
      "head dimension is 8");
}

TEST(ModelConfigTest, BoundsTheVocabulary) {
  ExpectInvalid(Set("llama.vocab_size", uint32_t{319}), "llama.vocab_size says 319 tokens");
  ExpectInvalid(Set("llama.vocab_size", 1.0f), "'llama.vocab_size' has type float32");
  ExpectInvalid(Set("tokenizer.ggml.tokens", GgufWriter::Array(std::vector<std::string>(320, "x"))),
                "tokenizer.ggml.tokens says 320 tokens");
  ExpectInvalid([](GgufWriter& file) { file.RemoveTensor("token_embd.weight"); },
                "'token_embd.weight' is missing");
  ExpectInvalid(
      [](GgufWriter& file) {
        auto& embedding = file.FindTensor("token_embd.weight");
        embedding.type = TensorType::kF16;
        embedding.dimensions = {1, (1 << 20) + 1};
        embedding.data.resize(2 * embedding.dimensions[1]);
      },
      "1048577 rows");
}

TEST(ModelConfigTest, ChecksEveryTensor) {
  const GgufWriter model = MakeTinyModel({.tied_embeddings = false});
  for (const GgufWriter::Tensor& tensor : model.tensors) {
    if (tensor.name == "output.weight") continue;  // a model may lack it
    GgufWriter without = model;
    without.RemoveTensor(tensor.name);
    const absl::Status missing = Read(without).status();
    EXPECT_EQ(missing.code(), StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(missing.message()),
                HasSubstr(absl::StrCat("'", tensor.name, "' is missing")));
  }
  for (const GgufWriter::Tensor& tensor : model.tensors) {
    for (const std::vector<uint64_t>& dimensions :
         {std::vector<uint64_t>{32, 1}, std::vector<uint64_t>{64, 31}}) {
      GgufWriter wrong = model;
      auto& changed = wrong.FindTensor(tensor.name);
      changed.type = TensorType::kF32;
      changed.dimensions = dimensions;
      changed.data.resize(4 * dimensions[0] * dimensions[1]);
      const absl::Status status = Read(wrong).status();
      EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << tensor.name;
      EXPECT_THAT(std::string(status.message()), HasSubstr(tensor.name));
    }
  }
}

TEST(ModelConfigTest, RefusesFeaturesThatWouldBeIgnored) {
  ExpectUnimplemented(Set("llama.expert_count", uint32_t{8}), "llama.expert_count is 8");
  ExpectUnimplemented(Set("llama.attention.sliding_window", uint32_t{4096}),
                      "llama.attention.sliding_window is 4096");
  ExpectUnimplemented(Set("llama.attention.causal", false), "llama.attention.causal");
  ExpectUnimplemented(Set("llama.attention.clamp_kqv", 8.0f), "llama.attention.clamp_kqv is 8");
  ExpectUnimplemented(Set("llama.final_logit_softcapping", 30.0f), "softcapping");
  EXPECT_TRUE(ReadEdited(Set("llama.expert_count", uint32_t{0})).ok());
  EXPECT_TRUE(ReadEdited(Set("llama.attention.causal", true)).ok());
  for (const char* name :
       {"blk.0.attn_q.bias", "blk.1.ffn_gate_inp.weight", "blk.0.attn_q_norm.weight",
        "blk.2.attn_q.weight", "rope_factors_long.weight", "output.bias"}) {
    ExpectUnimplemented(
        [&](GgufWriter& file) {
          file.tensors.push_back(FloatTensor(name, {1, 2}));
        },
        name);
  }
}

}  // namespace
}  // namespace whit
