#ifndef WHIT_CONTROLLER_CALIBRATE_OUTER_PRODUCTS_H_
#define WHIT_CONTROLLER_CALIBRATE_OUTER_PRODUCTS_H_

#include <cstddef>

namespace whit {

// c = A^T B for A [depth][rows] and B [depth][cols], whose rows are a_stride and b_stride floats
// apart; c [rows][cols] likewise. `rows` and `cols` are multiples of kOuterRows and kOuterCols.
// Eigen, which is compiled for the least of machines, takes three times as long.
inline constexpr size_t kOuterRows = 8, kOuterCols = 16;
void MultiplyOuter(const float* a, size_t a_stride, const float* b, size_t b_stride, size_t depth,
                   size_t rows, size_t cols, float* c, size_t c_stride);

}  // namespace whit

#endif  // WHIT_CONTROLLER_CALIBRATE_OUTER_PRODUCTS_H_
