// Matrix multiplication of activations with packed weights: 8- or 16-bit integer or bfloat16
// activations against 4- and 8-bit weights, f32 against float weights.
#ifndef WHIT_RUNTIME_OPS_MATMUL_H_
#define WHIT_RUNTIME_OPS_MATMUL_H_

#include <cstddef>

#include "absl/types/span.h"
#include "runtime/ops/activations.h"
#include "runtime/ops/packed_matrix.h"
#include "runtime/ops/thread_pool.h"

namespace whit {

// One product of a MatMul call.
struct MatMulOutput {
  const PackedMatrix* weights = nullptr;
  float* out = nullptr;  // [activation row][weight row], rows `stride` floats apart
  size_t stride = 0;
  bool accumulate = false;  // add to out instead of overwriting it
};

// out = activations * weights^T for every output, in one parallel loop; all share the activations.
// A row's result is bitwise the same whatever the number of rows and threads.
void MatMul(const Activations& activations, absl::Span<const MatMulOutput> outputs,
            ThreadPool& pool);

// Some rows of activations against some panels of weights.
struct MatMulPart {
  size_t first_row;
  size_t rows;
  size_t first_panel;
  size_t panels;
};
// That part of one output, by the calling thread; output.out is where the part's first row and
// panel go.
void MultiplyPart(const Activations& activations, const MatMulOutput& output,
                  const MatMulPart& part);

// The plain reference for one element, in double: what MatMul approximates up to float rounding.
double MatMulReference(const Activations& activations, size_t row, const PackedMatrix& weights,
                       size_t weight_row);

}  // namespace whit

#endif  // WHIT_RUNTIME_OPS_MATMUL_H_
