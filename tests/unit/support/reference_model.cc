#include "tests/unit/support/reference_model.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "runtime/model/dequantize.h"

namespace whit {
namespace {

double RoundToHalf(double x) {
  if (x == 0) return 0;
  const double ulp = std::ldexp(1.0, std::max(std::ilogb(x), -14) - 10);
  return std::nearbyint(x / ulp) * ulp;
}

double RoundToBFloat16(double x) {
  if (x == 0) return 0;
  const double ulp = std::ldexp(1.0, std::ilogb(x) - 7);
  return std::round(x / ulp) * ulp;
}

// Each 32 elements to multiples of the largest / largest_code.
void RoundToCodes(int largest_code, std::vector<double>& x) {
  constexpr size_t kGroup = 32;
  for (size_t begin = 0; begin < x.size(); begin += kGroup) {
    const size_t end = std::min(begin + kGroup, x.size());
    double largest = 0;
    for (size_t i = begin; i < end; ++i) largest = std::max(largest, std::abs(x[i]));
    const double scale = largest / largest_code;
    for (size_t i = begin; i < end && scale > 0; ++i) x[i] = scale * std::nearbyint(x[i] / scale);
  }
}

// Sylvester's matrix over the largest power of two that divides the size, block by block.
std::vector<double> Hadamard(absl::Span<const double> x) {
  const size_t order = x.size() & (~x.size() + 1);
  std::vector<double> out(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    for (size_t j = 0; j < order; ++j) {
      const double sign = std::popcount(i % order & j) % 2 == 0 ? 1 : -1;
      out[i] += sign * x[i / order * order + j] / std::sqrt(static_cast<double>(order));
    }
  }
  return out;
}

}  // namespace

ReferenceModel::ReferenceModel(const GgufFile& file, Rounding rounding)
    : rounding_(rounding),
      num_heads_(file.GetUint("llama.attention.head_count").value()),
      num_kv_heads_(file.GetUint("llama.attention.head_count_kv").value()),
      head_dim_(file.GetUint("llama.attention.key_length").value()),
      epsilon_(file.GetFloat("llama.attention.layer_norm_rms_epsilon").value()),
      embedding_(ReadMatrix(file, "token_embd")),
      output_(file.FindTensor("output.weight") != nullptr ? ReadMatrix(file, "output")
                                                          : embedding_),
      output_norm_(ReadMatrix(file, "output_norm").rows[0]) {
  const uint64_t rope_dims = file.GetUint("llama.rope.dimension_count").value();
  const double base = file.GetFloat("llama.rope.freq_base").value();
  const double factor = file.GetFloat("llama.rope.scaling.factor").value_or(1);
  const Vector divisors = file.FindTensor("rope_freqs.weight") != nullptr
                              ? ReadMatrix(file, "rope_freqs").rows[0]
                              : Vector(rope_dims / 2, 1.0);
  for (uint64_t i = 0; i < rope_dims / 2; ++i) {
    const double exponent = 2.0 * static_cast<double>(i) / static_cast<double>(rope_dims);
    inverse_frequencies_.push_back(1 / (std::pow(base, exponent) * factor * divisors[i]));
  }
  const uint64_t num_layers = file.GetUint("llama.block_count").value();
  for (uint64_t i = 0; i < num_layers; ++i) {
    const auto read = [&](const char* name) {
      return ReadMatrix(file, absl::StrCat("blk.", i, ".", name));
    };
    layers_.push_back({.attention_norm = read("attn_norm").rows[0],
                       .ffn_norm = read("ffn_norm").rows[0],
                       .query = read("attn_q"),
                       .key = read("attn_k"),
                       .value = read("attn_v"),
                       .attention_output = read("attn_output"),
                       .gate = read("ffn_gate"),
                       .up = read("ffn_up"),
                       .down = read("ffn_down")});
  }
}

std::vector<std::vector<double>> ReferenceModel::Forward(absl::Span<const int32_t> tokens) const {
  std::vector<std::vector<double>> logits;
  // [layer][position]
  std::vector<std::vector<Vector>> keys(layers_.size()), values(layers_.size());
  for (size_t position = 0; position < tokens.size(); ++position) {
    Vector hidden = embedding_.rows[tokens[position]];
    for (size_t l = 0; l < layers_.size(); ++l) {
      const Layer& layer = layers_[l];
      Vector normed = Normalize(hidden, layer.attention_norm);
      Vector query = Multiply(layer.query, normed);
      Vector key = Multiply(layer.key, normed);
      Vector value = Multiply(layer.value, normed);
      ApplyRope(static_cast<int>(position), query);
      ApplyRope(static_cast<int>(position), key);
      Store(key, /*bfloat16=*/false);
      Store(value, /*bfloat16=*/rounding_ == Rounding::kBFloat16);
      keys[l].push_back(std::move(key));
      values[l].push_back(std::move(value));
      const Vector attended = Multiply(layer.attention_output, Attend(query, keys[l], values[l]));
      for (size_t i = 0; i < hidden.size(); ++i) hidden[i] += attended[i];

      normed = Normalize(hidden, layer.ffn_norm);
      Vector gate = Multiply(layer.gate, normed);
      const Vector up = Multiply(layer.up, normed);
      for (size_t i = 0; i < gate.size(); ++i) gate[i] *= up[i] / (1 + std::exp(-gate[i]));
      const Vector down = Multiply(layer.down, gate);
      for (size_t i = 0; i < hidden.size(); ++i) hidden[i] += down[i];
    }
    logits.push_back(Multiply(output_, Normalize(hidden, output_norm_)));
  }
  return logits;
}

ReferenceModel::Matrix ReferenceModel::ReadMatrix(const GgufFile& file, const std::string& name) {
  const GgufTensor& tensor = *file.FindTensor(name + ".weight");
  Matrix matrix = {.quantized = TensorBlockElements(tensor.type) > 1, .rows = {}};
  std::vector<float> row(tensor.cols);
  for (size_t i = 0; i < tensor.rows; ++i) {
    DequantizeRow(tensor.type, tensor.data + i * tensor.row_bytes(), tensor.cols, row.data());
    matrix.rows.emplace_back(row.begin(), row.end());
  }
  return matrix;
}

ReferenceModel::Vector ReferenceModel::Multiply(const Matrix& matrix, const Vector& x) const {
  const bool bfloat16 = matrix.quantized && rounding_ == Rounding::kBFloat16;
  Vector rounded = x;
  if (bfloat16) std::transform(x.begin(), x.end(), rounded.begin(), RoundToBFloat16);
  if (matrix.quantized && rounding_ == Rounding::k8Bits) RoundToCodes(127, rounded);
  if (matrix.quantized && rounding_ == Rounding::k16Bits) RoundToCodes(127 * 128, rounded);
  Vector out;
  for (const Vector& row : matrix.rows) {
    double sum = 0;
    for (size_t i = 0; i < row.size(); ++i) {
      sum += (bfloat16 ? RoundToBFloat16(row[i]) : row[i]) * rounded[i];
    }
    out.push_back(sum);
  }
  return out;
}

ReferenceModel::Vector ReferenceModel::Normalize(const Vector& x, const Vector& weight) const {
  double squares = 0;
  for (double v : x) squares += v * v;
  const double scale = 1 / std::sqrt(squares / static_cast<double>(x.size()) + epsilon_);
  Vector out;
  for (size_t i = 0; i < x.size(); ++i) out.push_back(x[i] * scale * weight[i]);
  return out;
}

void ReferenceModel::ApplyRope(int position, Vector& heads) const {
  for (size_t head = 0; head < heads.size(); head += head_dim_) {
    for (size_t pair = 0; pair < inverse_frequencies_.size(); ++pair) {
      const double angle = position * inverse_frequencies_[pair];
      double& a = heads[head + 2 * pair];
      double& b = heads[head + 2 * pair + 1];
      const double rotated = a * std::cos(angle) - b * std::sin(angle);
      b = a * std::sin(angle) + b * std::cos(angle);
      a = rotated;
    }
  }
}

void ReferenceModel::Store(Vector& heads, bool bfloat16) const {
  if (rounding_ == Rounding::kNone) return;
  for (size_t head = 0; head < heads.size(); head += head_dim_) {
    Vector stored = Hadamard(absl::MakeConstSpan(heads).subspan(head, head_dim_));
    for (double& x : stored) x = bfloat16 ? RoundToBFloat16(RoundToHalf(x)) : RoundToHalf(x);
    const Vector restored = Hadamard(stored);
    std::copy(restored.begin(), restored.end(), heads.begin() + static_cast<ptrdiff_t>(head));
  }
}

ReferenceModel::Vector ReferenceModel::Attend(const Vector& query, absl::Span<const Vector> keys,
                                              absl::Span<const Vector> values) const {
  Vector out(query.size());
  for (size_t head = 0; head < num_heads_; ++head) {
    const size_t q = head * head_dim_, kv = head / (num_heads_ / num_kv_heads_) * head_dim_;
    Vector weights;
    for (const Vector& key : keys) {
      double score = 0;
      for (size_t i = 0; i < head_dim_; ++i) score += query[q + i] * key[kv + i];
      weights.push_back(score / std::sqrt(static_cast<double>(head_dim_)));
    }
    const double largest = *std::max_element(weights.begin(), weights.end());
    double total = 0;
    for (double& weight : weights) {
      weight = std::exp(weight - largest);
      total += weight;
      if (rounding_ == Rounding::kBFloat16) weight = RoundToBFloat16(weight);
    }
    for (size_t t = 0; t < values.size(); ++t) {
      for (size_t i = 0; i < head_dim_; ++i) out[q + i] += weights[t] / total * values[t][kv + i];
    }
  }
  return out;
}

}  // namespace whit
