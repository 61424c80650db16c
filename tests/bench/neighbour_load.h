// NeighbourLoad: how much of the machine other processes used while a benchmark ran.
#ifndef WHIT_TESTS_BENCH_NEIGHBOUR_LOAD_H_
#define WHIT_TESTS_BENCH_NEIGHBOUR_LOAD_H_

#include <sys/types.h>

#include <optional>
#include <utility>
#include <vector>

namespace whit {

class NeighbourLoad {
 public:
  // `own` are processes that count as this one.
  explicit NeighbourLoad(std::vector<pid_t> own) : own_(std::move(own)), start_(Now()) {}

  // CPUs that other processes kept busy since construction, on average: 0.5 is half of one CPU.
  // Time stolen by a hypervisor counts. Nothing where /proc/stat cannot be read.
  std::optional<double> Cpus() const;

 private:
  struct Sample {
    double wall_seconds = 0;
    double busy_seconds = 0;  // of all processes
    double own_seconds = 0;
  };
  std::optional<Sample> Now() const;

  const std::vector<pid_t> own_;
  const std::optional<Sample> start_;
};

}  // namespace whit

#endif  // WHIT_TESTS_BENCH_NEIGHBOUR_LOAD_H_
