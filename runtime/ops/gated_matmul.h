// The first half of a gated feed-forward block: two products, and what is made of them.
#ifndef WHIT_RUNTIME_OPS_GATED_MATMUL_H_
#define WHIT_RUNTIME_OPS_GATED_MATMUL_H_

#include <cstddef>

#include "runtime/ops/activations.h"
#include "runtime/ops/packed_matrix.h"
#include "runtime/ops/thread_pool.h"

namespace whit {

struct GatedMatMulOutput {
  // Reset to the rows and formats of the input, and columns as the weights have rows.
  Activations* activations = nullptr;
  // If not null, the result is stored here alone, for float weights to read:
  // [row][weight row], rows `stride` floats apart.
  float* floats = nullptr;
  size_t stride = 0;
};

// out = silu(activations * gate^T) * (activations * up^T), Shazeer 2020, without storing the
// products: of a prompt's rows they would not fit in a cache. `gate` and `up` have the same shape.
// A row's result is bitwise the same whatever the number of rows and threads.
void GatedMatMul(const Activations& activations, const PackedMatrix& gate, const PackedMatrix& up,
                 const GatedMatMulOutput& out, ThreadPool& pool);

}  // namespace whit

#endif  // WHIT_RUNTIME_OPS_GATED_MATMUL_H_
