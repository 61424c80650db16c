#include "controller/calibrate/calibration.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "controller/calibrate/key_statistics.h"
#include "controller/precision_policy.h"
#include "kvpool/key_means.h"
#include "kvpool/page_pool.h"

namespace whit {
namespace {

// A pool for one sequence of `tokens` whose pages are all in FP16.
absl::StatusOr<std::unique_ptr<PagePool>> PoolForOneSequence(const ModelConfig& config,
                                                             size_t tokens) {
  const size_t page_bytes = PageBytes(Rung::kFp16, config.head_dim);
  const size_t pages =
      (tokens + kTileTokens - 1) / kTileTokens * config.num_layers * config.num_kv_heads;
  const size_t slab_pages = PagePool::kSlabBytes / page_bytes;
  return PagePool::Create(
      {.capacity_bytes = (pages + slab_pages - 1) / slab_pages * PagePool::kSlabBytes,
       .head_dim = config.head_dim});
}

class WindowRunner {
 public:
  WindowRunner(Model& model, PagePool& kv_pool, absl::FunctionRef<void(size_t tokens)> progress)
      : model_(model), kv_pool_(kv_pool), progress_(progress) {}

  // The exact keys and values of a window.
  absl::StatusOr<PageTable> Run(absl::Span<const int32_t> tokens) {
    PageTable kv = model_.NewPageTable(kv_pool_, RingOf({}));
    while (!tokens.empty()) {
      const auto slice = tokens.subspan(0, Model::kMaxForwardTokens);
      model_.Forward({{.tokens = slice,
                       .first_position = kv.num_tokens(),
                       .kv = &kv,
                       .logits = ForwardSlice::Logits::kNone}});
      if (!kv.status().ok()) return kv.status();
      tokens.remove_prefix(slice.size());
      progress_(tokens_ += slice.size());
    }
    return kv;
  }

 private:
  Model& model_;
  PagePool& kv_pool_;
  const absl::FunctionRef<void(size_t tokens)> progress_;
  size_t tokens_ = 0;
};

}  // namespace

absl::StatusOr<Calibration> Calibrate(Model& model, absl::Span<const TextWindow> windows,
                                      absl::FunctionRef<void(size_t tokens)> progress) {
  const ModelConfig& config = model.config();
  ThreadPool& pool = model.thread_pool();
  size_t longest = 0;
  for (const TextWindow& window : windows) longest = std::max(longest, window.tokens.size());
  absl::StatusOr<std::unique_ptr<PagePool>> kv_pool = PoolForOneSequence(config, longest);
  if (!kv_pool.ok()) return kv_pool.status();
  WindowRunner runner(model, **kv_pool, progress);

  KeyMeanSums sums(config, static_cast<int>(longest));
  for (const TextWindow& window : windows) {
    if (window.held_out) continue;
    absl::StatusOr<PageTable> kv = runner.Run(window.tokens);
    if (!kv.ok()) return kv.status();
    sums.Add(*kv, pool);
  }

  if (absl::Status status = sums.status(); !status.ok()) return status;
  Calibration result = {.key_means = sums.Means(), .learned_tokens = sums.tokens()};
  KeyMeans means({.num_layers = config.num_layers,
                  .num_kv_heads = config.num_kv_heads,
                  .head_dim = config.head_dim,
                  .inverse_frequencies = config.rope_inverse_frequencies},
                 result.key_means);
  means.Prepare(static_cast<int>(longest));
  KeyEnergy energy(config, means);
  for (const TextWindow& window : windows) {
    if (!window.held_out) continue;
    absl::StatusOr<PageTable> kv = runner.Run(window.tokens);
    if (!kv.ok()) return kv.status();
    energy.Add(*kv, pool);
  }
  for (int layer = 0; layer < config.num_layers; ++layer) {
    result.layer_key_energy_explained.push_back(energy.Explained(layer));
  }
  result.key_energy_explained = energy.Explained();
  return result;
}

}  // namespace whit
