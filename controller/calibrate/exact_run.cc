#include "controller/calibrate/exact_run.h"

namespace whit {
namespace {

// Logits of a large vocabulary take a megabyte for a token or two.
constexpr int kPassWithLogits = 256;

}  // namespace

absl::StatusOr<std::unique_ptr<PagePool>> PoolForOneSequence(const ModelConfig& config,
                                                             size_t tokens) {
  const size_t page_bytes = PageBytes(Rung::kFp16, config.head_dim);
  const size_t pages =
      PagesFor(static_cast<int64_t>(tokens)) * config.num_layers * config.num_kv_heads;
  const size_t slab_pages = PagePool::kSlabBytes / page_bytes;
  return PagePool::Create(
      {.capacity_bytes = (pages + slab_pages - 1) / slab_pages * PagePool::kSlabBytes,
       .head_dim = config.head_dim});
}

absl::Status RunExactly(
    Model& model, absl::Span<const int32_t> tokens, PageTable& kv, ForwardSlice::Logits logits,
    absl::FunctionRef<void(int first, int count, absl::Span<const float> logits)> after_pass,
    ActivationFormat activations) {
  const int pass =
      logits == ForwardSlice::Logits::kAll ? kPassWithLogits : Model::kMaxForwardTokens;
  while (!tokens.empty()) {
    const auto slice = tokens.subspan(0, pass);
    const int first = kv.num_tokens();
    const absl::Span<const float> given = model.Forward({{.tokens = slice,
                                                          .first_position = first,
                                                          .kv = &kv,
                                                          .activations = activations,
                                                          .logits = logits}});
    if (!kv.status().ok()) return kv.status();
    tokens.remove_prefix(slice.size());
    after_pass(first, static_cast<int>(slice.size()), given);
  }
  return absl::OkStatus();
}

}  // namespace whit
