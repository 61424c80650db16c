// What a simulation found, as a table for people or as one JSON object.
#ifndef WHIT_TESTS_BENCH_SIMULATION_SIMULATION_REPORT_H_
#define WHIT_TESTS_BENCH_SIMULATION_SIMULATION_REPORT_H_

#include <string>

#include "tests/bench/simulation/simulation.h"

namespace whit {

// They sort the result's values.
std::string SimulationTable(SimulationResult& result);
std::string SimulationJson(SimulationResult& result);

}  // namespace whit

#endif  // WHIT_TESTS_BENCH_SIMULATION_SIMULATION_REPORT_H_
