// The naive quantization of the literature's baselines, for comparison: one absmax scale for each
// token's key and for its value in a KV head, symmetric levels, rounded to the nearest; no
// rotation, no mean, no scale search, no exact tokens.
//
// No kernel knows it: FP16 pages are given the values that would be read back.
#ifndef WHIT_TESTS_EVAL_NAIVE_ROUNDING_H_
#define WHIT_TESTS_EVAL_NAIVE_ROUNDING_H_

#include "absl/types/span.h"
#include "kvpool/page_table.h"
#include "kvpool/rung.h"

namespace whit::eval {

// x[i] = round(x[i] / s) * s, with s = max|x| / (2^(bits - 1) - 1).
void RoundToAbsMax(absl::Span<float> x, int bits);

// Rounds the last page of every (layer, KV head) of a table of FP16 pages that no other shares.
// `rung` has the widths of keys and of values.
void RoundLastPages(const PageTable& table, int num_layers, int num_kv_heads, Rung rung);

}  // namespace whit::eval

#endif  // WHIT_TESTS_EVAL_NAIVE_ROUNDING_H_
