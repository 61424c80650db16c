// From GGUF's blocks to the kernels' layout (runtime/ops/packed_matrix.h), losing nothing.
#ifndef WHIT_RUNTIME_MODEL_PACK_WEIGHTS_H_
#define WHIT_RUNTIME_MODEL_PACK_WEIGHTS_H_

#include <cstddef>

#include "runtime/model/gguf.h"
#include "runtime/ops/packed_matrix.h"

namespace whit {

// Shape of a tensor's packed form, without data, in the format that keeps every bit of its type.
PackedMatrix DescribePacked(const GgufTensor& tensor);

// Fills the panels [begin, end) of matrix.data, which has matrix.bytes() zeroed bytes, from the
// tensor that the matrix was described for. Different panels may be packed by different threads.
void PackPanels(const GgufTensor& tensor, const PackedMatrix& matrix, size_t begin, size_t end);

}  // namespace whit

#endif  // WHIT_RUNTIME_MODEL_PACK_WEIGHTS_H_
