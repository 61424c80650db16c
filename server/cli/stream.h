// One GenerateStream call, shown as it comes.
#ifndef WHIT_SERVER_CLI_STREAM_H_
#define WHIT_SERVER_CLI_STREAM_H_

#include <grpcpp/support/status.h>

#include <string>

#include "server/cli/connection.h"
#include "server/cli/interrupt.h"
#include "whit/v1/text_generation.grpc.pb.h"

namespace whit {

struct StreamResult {
  grpc::Status status;
  bool interrupted = false;          // by Ctrl-C
  std::string text;                  // all of it
  v1::GenerateStreamResponse final;  // the last message; empty if none came
};

// Prints text, or JSON lines, on standard output while it comes. Ctrl-C cancels the call.
StreamResult ShowStream(v1::TextGenerationService::Stub& stub,
                        const v1::GenerateStreamRequest& request, const ConnectionFlags& flags,
                        InterruptHandler& interrupts);

// "48 tokens, 187.3 tokens/s, first token after 23 ms; KV cache 1.1 MiB, …".
std::string Summary(const v1::GenerateStreamResponse& final);

}  // namespace whit

#endif  // WHIT_SERVER_CLI_STREAM_H_
