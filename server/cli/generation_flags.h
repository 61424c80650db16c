// Flags that say how to generate: sampling, stopping and precision.
#ifndef WHIT_SERVER_CLI_GENERATION_FLAGS_H_
#define WHIT_SERVER_CLI_GENERATION_FLAGS_H_

#include <CLI/CLI.hpp>
#include <cstdint>
#include <memory>

#include "whit/v1/text_generation.pb.h"

namespace whit {

// Each flag that is given is set in `request`, everything else stays unset: the server's defaults
// apply, and the server checks ranges. `request` outlives the parsing.
void AddGenerationFlags(CLI::App& app, v1::GenerateStreamRequest& request);
void AddKvCacheFlags(CLI::App& app, v1::KvCacheOptions& options);

}  // namespace whit

#endif  // WHIT_SERVER_CLI_GENERATION_FLAGS_H_
