// Products of bfloat16 activations with packed quantized weights, on AMX tiles.
#ifndef WHIT_RUNTIME_OPS_AMX_MATMUL_H_
#define WHIT_RUNTIME_OPS_AMX_MATMUL_H_

#include <cstddef>

#include "runtime/ops/matmul.h"

namespace whit {

// As MultiplyPart, for quantized weights and rows that are all kBFloat16. Only where
// DetectCpuExtension() is kAmx.
void MultiplyPartAmx(const Activations& a, const MatMulOutput& output, const MatMulPart& part);

}  // namespace whit

#endif  // WHIT_RUNTIME_OPS_AMX_MATMUL_H_
