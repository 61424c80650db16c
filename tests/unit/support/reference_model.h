// The llama forward pass written down plainly: loops over dequantized weights, sums in double, the
// whole context attended to at once. What Model is tested against; it shares no code with it but
// the reading of tensor rows.
#ifndef WHIT_TESTS_UNIT_SUPPORT_REFERENCE_MODEL_H_
#define WHIT_TESTS_UNIT_SUPPORT_REFERENCE_MODEL_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/types/span.h"
#include "runtime/model/gguf.h"

namespace whit {

class ReferenceModel {
 public:
  // What Model rounds on purpose: activations that meet a quantized matrix, to 8 or 16 bits with
  // one scale for 32 columns, or to bfloat16 as its weights then are; keys and values to fp16,
  // after a Hadamard rotation of each head. With kBFloat16 attention's values and probabilities,
  // relative to the largest, are of bfloat16 as well.
  enum class Rounding { kNone, k8Bits, k16Bits, kBFloat16 };

  // `file` is a valid llama model.
  ReferenceModel(const GgufFile& file, Rounding rounding);

  // The logits after each token, [tokens][vocab].
  std::vector<std::vector<double>> Forward(absl::Span<const int32_t> tokens) const;

 private:
  using Vector = std::vector<double>;
  struct Matrix {
    bool quantized = false;
    std::vector<Vector> rows;
  };
  struct Layer {
    Vector attention_norm, ffn_norm;
    Matrix query, key, value, attention_output, gate, up, down;
  };

  static Matrix ReadMatrix(const GgufFile& file, const std::string& name);
  Vector Multiply(const Matrix& matrix, const Vector& x) const;
  Vector Normalize(const Vector& x, const Vector& weight) const;
  // Turns each head of `heads` to `position`.
  void ApplyRope(int position, Vector& heads) const;
  // What is left of keys or values after they were stored and, if so, rounded to bfloat16.
  void Store(Vector& heads, bool bfloat16) const;
  // One token's queries over all keys and values up to its own.
  Vector Attend(const Vector& query, absl::Span<const Vector> keys,
                absl::Span<const Vector> values) const;

  const Rounding rounding_;
  size_t num_heads_ = 0, num_kv_heads_ = 0, head_dim_ = 0;
  double epsilon_ = 0;
  Vector inverse_frequencies_;
  Matrix embedding_, output_;
  Vector output_norm_;
  std::vector<Layer> layers_;
};

}  // namespace whit

#endif  // WHIT_TESTS_UNIT_SUPPORT_REFERENCE_MODEL_H_
