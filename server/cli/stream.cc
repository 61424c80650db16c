#include "server/cli/stream.h"

#include <atomic>
#include <cstdio>

#include "absl/strings/str_format.h"
#include "server/cli/json_output.h"
#include "server/flag_values.h"

namespace whit {
namespace {

void Show(const v1::GenerateStreamResponse& piece, bool json) {
  if (json) {
    PrintJson(StreamPieceToJson(piece));
    return;
  }
  std::fwrite(piece.text().data(), 1, piece.text().size(), stdout);
  std::fflush(stdout);
}

}  // namespace

StreamResult ShowStream(v1::TextGenerationService::Stub& stub,
                        const v1::GenerateStreamRequest& request, const ConnectionFlags& flags,
                        InterruptHandler& interrupts) {
  grpc::ClientContext context;
  SetUpCall(flags, context);
  std::atomic<bool> interrupted{false};
  const ScopedInterrupt interrupt(interrupts, [&] {
    interrupted.store(true);
    context.TryCancel();
  });
  const auto reader = stub.GenerateStream(&context, request);
  StreamResult result;
  v1::GenerateStreamResponse piece;
  while (reader->Read(&piece)) {
    Show(piece, flags.json);
    result.text += piece.text();
    if (piece.finish_reason() != v1::FINISH_REASON_UNSPECIFIED) result.final = piece;
  }
  // What follows on the terminal begins a line of its own.
  if (!flags.json && !result.text.empty() && result.text.back() != '\n') {
    std::fputc('\n', stdout);
    std::fflush(stdout);
  }
  result.status = reader->Finish();
  result.interrupted = interrupted.load();
  return result;
}

std::string Summary(const v1::GenerateStreamResponse& final) {
  const uint32_t tokens = final.usage().completion_tokens();
  const v1::Timings& timings = final.timings();
  std::string summary = absl::StrFormat("%d tokens", tokens);
  // The first token comes with the prompt's pass.
  if (tokens > 1 && timings.decode_seconds() > 0) {
    absl::StrAppendFormat(&summary, ", %.1f tokens/s", (tokens - 1) / timings.decode_seconds());
  }
  absl::StrAppendFormat(&summary, ", first token after %.0f ms",
                        1e3 * (timings.queue_seconds() + timings.prefill_seconds()));
  const v1::KvCacheUsage& kv = final.kv_cache();
  absl::StrAppendFormat(&summary, "; KV cache %s, %s at FP16 (%.2f bits per element)",
                        FormatByteSize(kv.true_bytes()), FormatByteSize(kv.fp16_equivalent_bytes()),
                        kv.mean_bits());
  return summary;
}

}  // namespace whit
