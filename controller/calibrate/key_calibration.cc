#include "controller/calibrate/key_calibration.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "controller/calibrate/exact_run.h"
#include "controller/calibrate/key_statistics.h"
#include "kvpool/key_means.h"
#include "kvpool/page_pool.h"

namespace whit {
namespace {

class WindowRunner {
 public:
  WindowRunner(Model& model, PagePool& kv_pool, absl::FunctionRef<void(size_t tokens)> progress)
      : model_(model), kv_pool_(kv_pool), progress_(progress) {}

  // The exact keys and values of a window; its queries are counted in `queries`, if not null.
  absl::StatusOr<PageTable> Run(absl::Span<const int32_t> tokens, QueryMeanSums* queries) {
    PageTable kv = model_.NewPageTable(kv_pool_, RecentRing{});
    if (queries != nullptr) {
      model_.SetLayerProbe(
          [&](const LayerView& view) { queries->Add(view, position_, model_.thread_pool()); });
    }
    const absl::Cleanup unset = [&] { model_.SetLayerProbe(nullptr); };
    position_ = 0;
    absl::Status status = RunExactly(model_, tokens, kv, ForwardSlice::Logits::kNone,
                                     [&](int first, int count, absl::Span<const float>) {
                                       position_ = first + count;
                                       progress_(tokens_ += count);
                                     });
    if (!status.ok()) return status;
    return kv;
  }

 private:
  Model& model_;
  PagePool& kv_pool_;
  const absl::FunctionRef<void(size_t tokens)> progress_;
  int position_ = 0;  // of the pass under way
  size_t tokens_ = 0;
};

}  // namespace

absl::StatusOr<KeyCalibration> CalibrateKeys(Model& model, absl::Span<const TextWindow> windows,
                                             absl::Span<const int> contexts,
                                             absl::FunctionRef<void(size_t tokens)> progress) {
  const ModelConfig& config = model.config();
  ThreadPool& pool = model.thread_pool();
  size_t longest = 0;
  for (const TextWindow& window : windows) longest = std::max(longest, window.tokens.size());
  absl::StatusOr<std::unique_ptr<PagePool>> kv_pool = PoolForOneSequence(config, longest);
  if (!kv_pool.ok()) return kv_pool.status();
  WindowRunner runner(model, **kv_pool, progress);

  KeyMeanSums sums(config, static_cast<int>(longest));
  QueryMeanSums queries(config, static_cast<int>(longest));
  for (const TextWindow& window : windows) {
    if (window.held_out) continue;
    absl::StatusOr<PageTable> kv = runner.Run(window.tokens, &queries);
    if (!kv.ok()) return kv.status();
    sums.Add(*kv, pool);
  }

  if (absl::Status status = sums.status(); !status.ok()) return status;
  KeyCalibration result = {.key_means = sums.Means(),
                           .query_means = queries.Means(contexts),
                           .learned_tokens = sums.tokens()};
  KeyMeans means({.num_layers = config.num_layers,
                  .num_kv_heads = config.num_kv_heads,
                  .head_dim = config.head_dim,
                  .inverse_frequencies = config.rope_inverse_frequencies},
                 result.key_means);
  means.Prepare(static_cast<int>(longest));
  KeyEnergy energy(config, means);
  for (const TextWindow& window : windows) {
    if (!window.held_out) continue;
    absl::StatusOr<PageTable> kv = runner.Run(window.tokens, nullptr);
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
