// Products of bfloat16 activations with packed quantized weights, on AMX tiles.
#ifndef WHIT_RUNTIME_OPS_AMX_MATMUL_H_
#define WHIT_RUNTIME_OPS_AMX_MATMUL_H_

#include <cstddef>

#include "runtime/ops/matmul.h"

namespace whit {

// Panels [begin, end) of one output of quantized weights, for `rows` activation rows from `row0` on
// that are all kBFloat16. Only where DetectCpuExtension() is kAmx.
void MultiplyPanelsAmx(const Activations& a, size_t row0, size_t rows, const MatMulOutput& output,
                       size_t begin, size_t end);

}  // namespace whit

#endif  // WHIT_RUNTIME_OPS_AMX_MATMUL_H_
