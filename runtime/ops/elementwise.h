// The arithmetic between matrix products, vectorised. Pointers need no alignment and must not
// overlap unless a comment says so.
#ifndef WHIT_RUNTIME_OPS_ELEMENTWISE_H_
#define WHIT_RUNTIME_OPS_ELEMENTWISE_H_

#include <cstddef>

namespace whit {

// out[i] = x[i] * weight[i] / sqrt(mean(x^2) + epsilon). Zhang & Sennrich 2019. out may be x.
void RmsNorm(const float* x, const float* weight, float epsilon, size_t n, float* out);

// gate[i] = silu(gate[i]) * up[i], silu(g) = g / (1 + exp(-g)), in `rows` rows of n elements; in
// both matrices rows lie `stride` elements apart.
void SiluMultiply(float* gate, const float* up, size_t rows, size_t n, size_t stride);

// Rotates pairs (2i, 2i+1) of the first `dims` elements by the angle whose cosine stands at
// cosines[2i] = cosines[2i+1], and whose sine at sines[2i+1] = -sines[2i]: tables in the layout of
// the vector itself. Su et al. 2021, in GGUF's order of a llama model's dimensions.
void RotatePairs(float* x, size_t dims, const float* cosines, const float* sines);

}  // namespace whit

#endif  // WHIT_RUNTIME_OPS_ELEMENTWISE_H_
