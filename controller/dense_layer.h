// The layers of the controller's networks, vectorised.
#ifndef WHIT_CONTROLLER_DENSE_LAYER_H_
#define WHIT_CONTROLLER_DENSE_LAYER_H_

#include <cstddef>

namespace whit {

// out[row][o] = max(0, bias[o] + sum over i of in[row][i] * weights[i][o]); `outputs` is a multiple
// of 32. A row's result does not depend on the others.
void DenseRelu(const float* in, size_t rows, size_t inputs, const float* weights, const float* bias,
               size_t outputs, float* out);

// The same without max and for 2 or 4 outputs; `inputs` is a multiple of 16.
void DenseLinear(const float* in, size_t rows, size_t inputs, const float* weights,
                 const float* bias, size_t outputs, float* out);

}  // namespace whit

#endif  // WHIT_CONTROLLER_DENSE_LAYER_H_
