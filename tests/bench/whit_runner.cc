#include "tests/bench/whit_runner.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "controller/policy_lookup.h"
#include "runtime/engine/engine.h"
#include "runtime/model/gguf.h"

namespace whit {
namespace {

// A page table only grows, so repeated runs at one depth drift; a thirty-second of the depth is
// allowed before the sequences are made anew.
int LargestDepth(int depth) { return depth + depth / 32; }

}  // namespace

absl::StatusOr<std::unique_ptr<WhitRunner>> WhitRunner::Create(const Options& options,
                                                               ThreadPool& threads) {
  absl::StatusOr<std::unique_ptr<GgufFile>> file = GgufFile::Open(options.model_path);
  if (!file.ok()) return file.status();
  absl::StatusOr<std::unique_ptr<Model>> model = Model::Load(**file, threads);
  if (!model.ok()) return model.status();
  const ModelConfig& config = (*model)->config();
  absl::StatusOr<std::optional<FoundPolicy>> found =
      FindPolicy({.path = options.kv_policy_file,
                  .model_path = options.model_path,
                  .directory = ShippedPolicyDirectory()},
                 IdentityOf(**file, config));
  if (!found.ok()) return found.status();
  std::unique_ptr<const FoundPolicy> policy_file;
  if (found->has_value()) {
    policy_file = std::make_unique<const FoundPolicy>(**std::move(found));
    (*model)->SetKeyMeans(policy_file->file.key_means);
  }
  const size_t pages = size_t{1} * config.num_layers * config.num_kv_heads *
                       (options.max_kv_tokens / kTileTokens + 1);
  const size_t bytes = pages * PageBytes(Rung::kFp16, config.head_dim);
  absl::StatusOr<std::unique_ptr<PagePool>> pool = PagePool::Create(
      {.capacity_bytes = bytes + bytes / 16,  // a slab may have a rest behind its last page
       .head_dim = config.head_dim});
  if (!pool.ok()) return pool.status();
  absl::StatusOr<std::unique_ptr<const PrecisionPolicy>> policy =
      MakePrecisionPolicy(options.kv_policy, policy_file ? &policy_file->file : nullptr);
  if (!policy.ok()) return policy.status();
  return std::unique_ptr<WhitRunner>(new WhitRunner(*std::move(model), std::move(policy_file),
                                                    *std::move(pool), options.kv_policy,
                                                    *std::move(policy)));
}

WhitRunner::WhitRunner(std::unique_ptr<Model> model, std::unique_ptr<const FoundPolicy> policy_file,
                       std::unique_ptr<PagePool> pool, const PrecisionPolicySpec& kv_policy,
                       std::unique_ptr<const PrecisionPolicy> policy)
    : model_(std::move(model)),
      policy_file_(std::move(policy_file)),
      pool_(std::move(pool)),
      ring_(RingOf(kv_policy)),
      kv_policy_(kv_policy),
      policy_(std::move(policy)),
      tokens_(config().vocab_size) {}

absl::Status WhitRunner::Prepare(int sequences, int depth) {
  if (static_cast<int>(sequences_.size()) != sequences || depth_ > LargestDepth(depth)) {
    Restart(sequences);
  }
  const int missing = depth - depth_;
  if (missing <= 0) return absl::OkStatus();
  for (size_t i = 0; i < sequences_.size(); ++i) {
    if (absl::Status s = Append(i, missing, ForwardSlice::Logits::kNone); !s.ok()) return s;
  }
  depth_ = depth;
  return absl::OkStatus();
}

absl::StatusOr<double> WhitRunner::Decode(int steps) {
  std::vector<int32_t> tokens(sequences_.size());
  std::vector<ForwardSlice> slices(sequences_.size());
  const absl::Time start = absl::Now();
  for (int step = 0; step < steps; ++step) {
    for (size_t i = 0; i < slices.size(); ++i) {
      tokens[i] = tokens_.Next();
      SequencePrice& price = *prices_[i];
      if (price.pays()) price.Update(/*pressure=*/0);
      slices[i] = {.tokens = absl::MakeConstSpan(&tokens[i], 1),
                   .first_position = depth_,
                   .kv = &sequences_[i],
                   .policy = policy_.get(),
                   .price = price.price(),
                   .decisions = &price.decisions(),
                   .signals = signals_[i].get(),
                   .activations = ActivationFormat::kInt16};
    }
    model_->Forward(slices);
    for (size_t i = 0; i < slices.size(); ++i) prices_[i]->EndStep(sequences_[i]);
    ++depth_;
  }
  const double seconds = absl::ToDoubleSeconds(absl::Now() - start);
  for (const PageTable& sequence : sequences_) {
    if (!sequence.status().ok()) return sequence.status();
  }
  return seconds;
}

absl::StatusOr<double> WhitRunner::Prefill(int tokens) {
  Restart(1);
  const absl::Time start = absl::Now();
  if (absl::Status s = Append(0, tokens, ForwardSlice::Logits::kLast); !s.ok()) return s;
  const double seconds = absl::ToDoubleSeconds(absl::Now() - start);
  depth_ = tokens;
  return seconds;
}

size_t WhitRunner::kv_bytes() const {
  size_t bytes = 0;
  for (const PageTable& sequence : sequences_) bytes += sequence.usage().page_bytes;
  return bytes;
}

void WhitRunner::Restart(int sequences) {
  sequences_.clear();
  prices_.clear();
  signals_.clear();
  const PriceCurve curve =
      PricesOf(policy_file_ ? &policy_file_->file : nullptr, config().head_dim);
  for (int i = 0; i < sequences; ++i) {
    sequences_.push_back(model_->NewPageTable(*pool_, ring_));
    signals_.push_back(std::make_unique<SequenceSignals>(
        policy_->needs(), config().num_layers, config().num_kv_heads, /*first_position=*/0));
    prices_.push_back(std::make_unique<SequencePrice>(kv_policy_, /*target_true_bits=*/0, config(),
                                                      curve, /*server_has_target=*/false));
  }
  depth_ = 0;
}

absl::Status WhitRunner::Append(size_t index, int count, ForwardSlice::Logits logits) {
  PageTable& sequence = sequences_[index];
  SequencePrice& price = *prices_[index];
  const std::vector<int32_t> prompt = tokens_.Take(count);
  const int chunk = EngineOptions().max_step_tokens;  // as the engine cuts prompts by default
  for (int begin = 0; begin < count; begin += chunk) {
    const int size = std::min(chunk, count - begin);
    if (price.pays()) price.Update(/*pressure=*/0);
    model_->Forward({{.tokens = absl::MakeConstSpan(prompt).subspan(begin, size),
                      .first_position = depth_ + begin,
                      .kv = &sequence,
                      .policy = policy_.get(),
                      .price = price.price(),
                      .decisions = &price.decisions(),
                      .signals = signals_[index].get(),
                      .logits = begin + size == count ? logits : ForwardSlice::Logits::kNone}});
    price.EndStep(sequence);
  }
  return sequence.status();
}

}  // namespace whit
