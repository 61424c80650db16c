#include "tests/unit/runtime/engine/tiny_runtime.h"

#include <algorithm>
#include <iterator>
#include <random>
#include <utility>

#include "kvpool/page_table.h"
#include "runtime/text/utf8.h"
#include "tests/unit/support/tiny_model.h"

namespace whit {
namespace {

// A table of pages in a pool of its own.
struct OwnTable {
  explicit OwnTable(const Model& model)
      : pool(*PagePool::Create(
            {.capacity_bytes = 64 * PagePool::kSlabBytes, .head_dim = model.config().head_dim})),
        kv(model.NewPageTable(*pool, RingOf({}))) {}
  std::unique_ptr<PagePool> pool;
  PageTable kv;
};

absl::Span<const float> RunOne(Model& model, PageTable& kv, int32_t token,
                               ActivationFormat activations) {
  return model.Forward({ForwardSlice{.tokens = absl::MakeConstSpan(&token, 1),
                                     .first_position = kv.num_tokens(),
                                     .kv = &kv,
                                     .activations = activations}});
}

}  // namespace

TinyRuntime::TinyRuntime() {
  const std::vector<std::byte> bytes = MakeTinyModel().Build();
  const std::unique_ptr<GgufFile> file = *GgufFile::Parse(bytes);
  model = *Model::Load(*file, threads);
  tokenizer = *Tokenizer::Create(*file);
}

std::vector<int32_t> TinyRuntime::Prompt(int length, uint32_t seed) const {
  std::mt19937 rng(seed);
  std::vector<int32_t> prompt;
  while (static_cast<int>(prompt.size()) < length) {
    const auto id = static_cast<int32_t>(rng() % tokenizer->vocab_size());
    if (!tokenizer->IsSpecial(id)) prompt.push_back(id);
  }
  return prompt;
}

Request TinyRuntime::GreedyRequest(std::vector<int32_t> prompt, int64_t max_new_tokens) const {
  Request request;
  request.prompt = std::move(prompt);
  request.max_new_tokens = max_new_tokens;
  return request;
}

std::vector<std::vector<float>> TinyRuntime::ReferenceLogits(const std::vector<int32_t>& tokens,
                                                             size_t prompt_tokens) const {
  OwnTable table(*model);
  std::vector<std::vector<float>> rows;
  for (size_t i = 0; i + 1 < tokens.size(); ++i) {
    const absl::Span<const float> logits =
        RunOne(*model, table.kv, tokens[i],
               i < prompt_tokens ? PromptActivations() : ActivationFormat::kInt16);
    rows.emplace_back(logits.begin(), logits.end());
  }
  return rows;
}

std::vector<int32_t> TinyRuntime::ReferenceGreedy(const std::vector<int32_t>& prompt,
                                                  int num_tokens) const {
  OwnTable table(*model);
  absl::Span<const float> logits;
  for (int32_t token : prompt) logits = RunOne(*model, table.kv, token, PromptActivations());
  std::vector<int32_t> generated;
  while (true) {
    generated.push_back(
        static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin()));
    if (static_cast<int>(generated.size()) == num_tokens) return generated;
    logits = RunOne(*model, table.kv, generated.back(), ActivationFormat::kInt16);
  }
}

std::string TinyRuntime::Text(const std::vector<int32_t>& tokens) const {
  Utf8Stream stream;
  std::string text;
  for (int32_t id : tokens) {
    if (!tokenizer->IsSpecial(id)) text += stream.Push(tokenizer->TokenBytes(id));
  }
  return text + stream.Flush();
}

Client::Client()
    : sink_(std::make_shared<TokenSink>([bell = bell_] {
        absl::MutexLock lock(&bell->mutex);
        bell->rung = true;
      })) {}

std::vector<int32_t> Client::Received::ids() const {
  std::vector<int32_t> ids;
  for (const TokenOutput& token : tokens) ids.push_back(token.id);
  return ids;
}

const Client::Received& Client::Poll() {
  TokenSink::Delivery delivery = sink_->Take();
  std::move(delivery.tokens.begin(), delivery.tokens.end(), std::back_inserter(received_.tokens));
  received_.text += delivery.text;
  if (delivery.completion.has_value()) received_.completion = std::move(delivery.completion);
  return received_;
}

const Client::Received& Client::Wait() {
  while (!Poll().completion.has_value()) AwaitNews();
  return received_;
}

const Client::Received& Client::WaitForTokens(size_t count) {
  while (!Poll().completion.has_value() && received_.tokens.size() < count) AwaitNews();
  return received_;
}

void Client::AwaitNews() {
  absl::MutexLock lock(&bell_->mutex);
  bell_->mutex.Await(absl::Condition(&bell_->rung));
  bell_->rung = false;
}

}  // namespace whit
