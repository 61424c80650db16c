#ifndef WHIT_TESTS_BENCH_MEDIAN_H_
#define WHIT_TESTS_BENCH_MEDIAN_H_

#include <algorithm>
#include <cstddef>
#include <vector>

namespace whit {

// Of at least one value; of an even number, the mean of the two in the middle.
inline double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t half = values.size() / 2;
  return values.size() % 2 == 1 ? values[half] : (values[half - 1] + values[half]) / 2;
}

}  // namespace whit

#endif  // WHIT_TESTS_BENCH_MEDIAN_H_
