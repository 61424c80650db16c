// Plain decoding of GGUF tensor rows to float: the reference for the kernels' packed layouts, and
// how small tensors (norms) and embedding rows are read.
#ifndef WHIT_RUNTIME_MODEL_DEQUANTIZE_H_
#define WHIT_RUNTIME_MODEL_DEQUANTIZE_H_

#include <cstddef>

#include "runtime/model/gguf.h"

namespace whit {

// Decodes one row of `cols` elements (a multiple of the type's block) of any supported type.
void DequantizeRow(TensorType type, const std::byte* row, size_t cols, float* out);

}  // namespace whit

#endif  // WHIT_RUNTIME_MODEL_DEQUANTIZE_H_
