#include "runtime/model/weights.h"

#include <sys/mman.h>

#include <algorithm>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_format.h"
#include "runtime/model/dequantize.h"
#include "runtime/model/pack_weights.h"

namespace whit {
namespace {

constexpr size_t kAlignment = 64;

std::vector<float> ReadVector(const GgufTensor& tensor) {
  std::vector<float> values(tensor.cols);
  DequantizeRow(tensor.type, tensor.data, tensor.cols, values.data());
  return values;
}

struct Packing {
  const GgufTensor* from;
  PackedMatrix* to;
};

size_t AlignedBytes(const PackedMatrix& matrix) {
  return (matrix.bytes() + kAlignment - 1) / kAlignment * kAlignment;
}

// One loop through the panels of all matrices. Neighbouring panels go to the same thread, so that
// threads seldom meet in a huge page, which each would clear.
void PackAll(absl::Span<const Packing> packings, ThreadPool& pool) {
  constexpr size_t kGrain = 256;  // panels: some MiB
  size_t panels = 0;
  for (const Packing& packing : packings) panels += packing.to->panels();
  pool.ParallelFor(panels, kGrain, [&](size_t begin, size_t end, int) {
    size_t first = 0;  // panel of this matrix, counted through all
    for (const auto& [tensor, packed] : packings) {
      const size_t last = first + packed->panels();
      if (begin < last && end > first) {
        PackPanels(*tensor, *packed, std::max(begin, first) - first, std::min(end, last) - first);
      }
      first = last;
    }
  });
}

}  // namespace

absl::StatusOr<std::unique_ptr<ModelWeights>> ModelWeights::Load(const GgufFile& file,
                                                                 const ModelConfig& config,
                                                                 ThreadPool& pool) {
  std::unique_ptr<ModelWeights> weights(new ModelWeights());
  weights->layers.resize(config.num_layers);

  std::vector<Packing> matrices;
  size_t bytes = 0;
  const auto matrix = [&](const std::string& name, PackedMatrix& packed) {
    const GgufTensor* tensor = file.FindTensor(name + ".weight");
    packed = DescribePacked(*tensor);
    bytes += AlignedBytes(packed);
    matrices.push_back({tensor, &packed});
  };
  const auto vector = [&](const std::string& name) {
    return ReadVector(*file.FindTensor(name + ".weight"));
  };
  for (int i = 0; i < config.num_layers; ++i) {
    const std::string prefix = absl::StrFormat("blk.%d.", i);
    LayerWeights& layer = weights->layers[i];
    layer.attention_norm = vector(prefix + "attn_norm");
    layer.ffn_norm = vector(prefix + "ffn_norm");
    matrix(prefix + "attn_q", layer.query);
    matrix(prefix + "attn_k", layer.key);
    matrix(prefix + "attn_v", layer.value);
    matrix(prefix + "attn_output", layer.attention_output);
    matrix(prefix + "ffn_gate", layer.gate);
    matrix(prefix + "ffn_up", layer.up);
    matrix(prefix + "ffn_down", layer.down);
  }
  weights->output_norm = vector("output_norm");
  matrix("token_embd", weights->embedding);
  if (!config.tied_embeddings) matrix("output", weights->output);

  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) {
    return absl::ResourceExhaustedError(
        absl::StrFormat("no memory for %d bytes of model weights", bytes));
  }
  madvise(memory, bytes, MADV_HUGEPAGE);
  weights->memory_ = static_cast<std::byte*>(memory);
  weights->bytes_ = bytes;

  std::byte* next = weights->memory_;
  for (auto& [tensor, packed] : matrices) {
    packed->data = next;
    next += AlignedBytes(*packed);
  }
  PackAll(matrices, pool);
  if (config.tied_embeddings) weights->output = weights->embedding;
  return weights;
}

ModelWeights::~ModelWeights() {
  if (memory_ != nullptr) munmap(memory_, bytes_);
}

size_t ModelWeights::bytes_per_step() const {
  const bool tied = output.data == embedding.data;
  return bytes_ - (tied ? 0 : embedding.bytes());
}

}  // namespace whit
