// From GGUF's blocks to the kernels' layout (runtime/ops/packed_matrix.h), losing nothing.
#ifndef WHIT_RUNTIME_MODEL_PACK_WEIGHTS_H_
#define WHIT_RUNTIME_MODEL_PACK_WEIGHTS_H_

#include <cstddef>

#include "runtime/model/gguf.h"
#include "runtime/ops/packed_matrix.h"
#include "runtime/ops/thread_pool.h"

namespace whit {

// The packed format that keeps every bit of a tensor type.
WeightFormat PackedFormat(TensorType type);

// Shape and format of a tensor's packed form, without data.
PackedMatrix DescribePacked(const GgufTensor& tensor);

// Fills matrix.data, which has matrix.bytes() zeroed bytes, from the tensor it was described for.
void PackWeights(const GgufTensor& tensor, const PackedMatrix& matrix, ThreadPool& pool);

}  // namespace whit

#endif  // WHIT_RUNTIME_MODEL_PACK_WEIGHTS_H_
