#include "runtime/ops/gated_matmul.h"

#include <algorithm>

#include "runtime/ops/elementwise.h"
#include "runtime/ops/matmul.h"

namespace whit {
namespace {

// Rows that are multiplied at once, a multiple of a tile's, and the floats of both products that a
// thread then holds: a group's at least. They stay in its second-level cache.
constexpr size_t kMaxRows = 512;
constexpr size_t kProductFloats = size_t{2} * kMaxRows * kGroupColumns;

// Rows whose products are gated and then rounded, while they are in the first-level cache.
constexpr size_t kRowsAtOnce = 16;

// Chunks of outputs, which threads claim one by one.
constexpr size_t kChunksPerThread = 2;

// Some rows and some groups of outputs.
struct Strip {
  size_t first_row;
  size_t rows;
  size_t first_group;
  size_t groups;
};

void MultiplyStrip(const Activations& activations, const PackedMatrix& gate, const PackedMatrix& up,
                   const GatedMatMulOutput& out, const Strip& strip) {
  constexpr size_t kGroupPanels = kGroupColumns / kPanelRows;
  alignas(64) float products[kProductFloats];
  const size_t stride = strip.groups * kGroupColumns;
  float* ups = products + strip.rows * stride;
  const size_t first_panel = strip.first_group * kGroupPanels;
  const MatMulPart part = {
      .first_row = strip.first_row,
      .rows = strip.rows,
      .first_panel = first_panel,
      .panels = std::min(strip.groups * kGroupPanels, gate.panels() - first_panel)};
  MultiplyPart(activations, {.weights = &gate, .out = products, .stride = stride}, part);
  MultiplyPart(activations, {.weights = &up, .out = ups, .stride = stride}, part);

  const size_t first_column = strip.first_group * kGroupColumns;
  const size_t columns = std::min(stride, gate.rows - first_column);
  for (size_t i = 0; i < strip.rows; i += kRowsAtOnce) {
    const size_t rows = std::min(kRowsAtOnce, strip.rows - i);
    float* gated = products + i * stride;
    SiluMultiply(gated, ups + i * stride, rows, columns, stride);
    if (out.floats == nullptr) {
      out.activations->SetBlock({.first_row = strip.first_row + i,
                                 .rows = rows,
                                 .first_column = first_column,
                                 .columns = columns},
                                gated, stride);
      continue;
    }
    for (size_t row = 0; row < rows; ++row) {
      std::copy_n(gated + row * stride, columns,
                  out.floats + (strip.first_row + i + row) * out.stride + first_column);
    }
  }
}

}  // namespace

void GatedMatMul(const Activations& activations, const PackedMatrix& gate, const PackedMatrix& up,
                 const GatedMatMulOutput& out, ThreadPool& pool) {
  const size_t rows = activations.rows();
  const size_t rows_at_once = std::min(rows, kMaxRows);
  const size_t groups_at_once = kProductFloats / (2 * kGroupColumns * rows_at_once);
  out.activations->Reset(activations.formats(), gate.rows);
  const size_t groups = out.activations->groups();
  const size_t chunk = std::max<size_t>(1, groups / (kChunksPerThread * pool.num_threads()));
  pool.ParallelFor(groups, chunk, [&](size_t begin, size_t end, int) {
    for (size_t row = 0; row < rows; row += rows_at_once) {
      for (size_t group = begin; group < end; group += groups_at_once) {
        MultiplyStrip(activations, gate, up, out,
                      {.first_row = row,
                       .rows = std::min(rows_at_once, rows - row),
                       .first_group = group,
                       .groups = std::min(groups_at_once, end - group)});
      }
    }
  });
  if (out.floats != nullptr) out.activations->SetFloats(out.floats, out.stride);
}

}  // namespace whit
