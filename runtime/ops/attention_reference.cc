#include <cmath>
#include <vector>

#include "kvpool/quantizer.h"
#include "runtime/ops/attention.h"

namespace whit {

void AttentionReference(const AttentionShape& shape, int layer, const PageTable& kv,
                        int num_visible, const float* q, float* out) {
  const int d = shape.head_dim, group = shape.num_heads / shape.num_kv_heads;
  for (int head = 0; head < shape.num_heads; ++head) {
    std::vector<float> keys, values, query(q + head * d, q + (head + 1) * d);
    RotateHadamard(query.data(), d);
    kv.Read(layer, head / group, &keys, &values);
    std::vector<double> p(num_visible);
    double max = -INFINITY, sum = 0;
    for (int t = 0; t < num_visible; ++t) {
      for (int i = 0; i < d; ++i) p[t] += double{query[i]} * keys[t * d + i];
      p[t] *= shape.scale;
      max = std::max(max, p[t]);
    }
    for (double& x : p) sum += x = std::exp(x - max);
    float* result = out + head * d;
    for (int i = 0; i < d; ++i) {
      double v = 0;
      for (int t = 0; t < num_visible; ++t) v += p[t] * values[t * d + i];
      result[i] = static_cast<float>(v / sum);
    }
    RotateHadamard(result, d);
  }
}

}  // namespace whit
