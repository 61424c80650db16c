// whit capacity
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "server/cli/capacity_view.h"
#include "server/cli/commands.h"
#include "server/cli/json_output.h"
#include "server/cli/screen.h"
#include "server/flag_values.h"

namespace whit {
namespace {

constexpr absl::Duration kMinInterval = absl::Milliseconds(100);
// A server that hangs must not look like one that rests.
constexpr absl::Duration kWatchTimeout = absl::Seconds(5);

struct CapacityFlags {
  bool watch = false;
  absl::Duration interval = absl::Seconds(1);
  uint64_t count = 0;  // 0: no end
};

int ShowOnce(const CommandContext& context) {
  grpc::ClientContext rpc;
  SetUpCall(context.flags, rpc);
  v1::GetCapacityResponse capacity;
  const grpc::Status status =
      ConnectStub(context.flags)->GetCapacity(&rpc, v1::GetCapacityRequest(), &capacity);
  if (!status.ok()) return ReportFailure(status, context.flags);
  if (context.flags.json) {
    PrintJson(ToJson(capacity));
  } else {
    std::fputs(
        RenderCapacity(capacity, {.width = Screen::Width(), .color = Screen::HasColor()}).c_str(),
        stdout);
  }
  return kExitOk;
}

// Asks again and again until Ctrl-C. A server that goes away may come back: only the first failure
// ends it.
class CapacityWatch {
 public:
  CapacityWatch(const CapacityFlags& flags, const ConnectionFlags& connection)
      : flags_(flags), connection_(connection), stub_(ConnectStub(connection)) {
    if (connection_.timeout == absl::InfiniteDuration()) connection_.timeout = kWatchTimeout;
  }

  int Run() {
    absl::Time next = absl::Now();
    for (uint64_t shown = 1;; ++shown) {
      v1::GetCapacityResponse capacity;
      const grpc::Status status = Ask(capacity);
      if (interrupted()) return kExitInterrupted;
      if (!status.ok() && shown == 1) return ReportFailure(status, connection_);
      if (status.ok()) {
        Show(capacity);
      } else {
        ShowFailure(status);
      }
      // Whoever reads is gone, or the disk is full: main says so.
      if (std::ferror(stdout) != 0) return kExitFailed;
      if (shown == flags_.count) return status.ok() ? kExitOk : kExitFailed;
      next = std::max(next + flags_.interval, absl::Now());
      if (WaitUntil(next)) return kExitInterrupted;
    }
  }

  // On another thread.
  void Interrupt() {
    absl::MutexLock lock(&mutex_);
    interrupted_ = true;
    if (call_ != nullptr) call_->TryCancel();
  }

 private:
  grpc::Status Ask(v1::GetCapacityResponse& capacity) {
    grpc::ClientContext rpc;
    SetUpCall(connection_, rpc);
    SetCall(&rpc);
    const grpc::Status status = stub_->GetCapacity(&rpc, v1::GetCapacityRequest(), &capacity);
    SetCall(nullptr);
    return status;
  }

  void SetCall(grpc::ClientContext* call) {
    absl::MutexLock lock(&mutex_);
    call_ = call;
    if (interrupted_ && call_ != nullptr) call_->TryCancel();
  }

  bool interrupted() {
    absl::MutexLock lock(&mutex_);
    return interrupted_;
  }

  // True if it was interrupted.
  bool WaitUntil(absl::Time time) {
    absl::MutexLock lock(&mutex_);
    return mutex_.AwaitWithDeadline(absl::Condition(&interrupted_), time);
  }

  void Show(const v1::GetCapacityResponse& capacity) {
    if (connection_.json) {
      PrintJson(ToJson(capacity));
      return;
    }
    if (!is_screen_) {
      std::printf("%s %s\n",
                  absl::FormatTime("%H:%M:%S", absl::Now(), absl::LocalTimeZone()).c_str(),
                  CapacityLine(capacity).c_str());
      std::fflush(stdout);
      return;
    }
    speeds_.push_back(capacity.generated_tokens_per_second());
    if (speeds_.size() > kMaxSpeeds) speeds_.erase(speeds_.begin());
    const ViewStyle style = {.width = Screen::Width(), .color = Screen::HasColor()};
    const std::string title = absl::StrCat(connection_.server, ", every ",
                                           absl::FormatDuration(flags_.interval), "; Ctrl-C ends");
    screen_.Show(absl::StrCat(CutToWidth(title, style.width), "\n\n",
                              RenderCapacity(capacity, style, speeds_)));
  }

  void ShowFailure(const grpc::Status& status) {
    const std::string message = absl::StrCat(FailureMessage(status, connection_), "; trying again");
    if (is_screen_ && !connection_.json) {
      speeds_.clear();
      screen_.Show(CutToWidth(message, Screen::Width()) + "\n");
    } else {
      std::fprintf(stderr, "whit: %s\n", message.c_str());
    }
  }

  static constexpr size_t kMaxSpeeds = 100;

  const CapacityFlags flags_;
  ConnectionFlags connection_;
  const std::unique_ptr<v1::TextGenerationService::Stub> stub_;
  const bool is_screen_ = Screen::IsThere();
  Screen screen_;
  std::vector<double> speeds_;  // oldest first

  absl::Mutex mutex_;
  bool interrupted_ ABSL_GUARDED_BY(mutex_) = false;
  grpc::ClientContext* call_ ABSL_GUARDED_BY(mutex_) = nullptr;  // under way
};

int Capacity(const CapacityFlags& flags, const CommandContext& context) {
  if (!flags.watch) return ShowOnce(context);
  CapacityWatch watch(flags, context.flags);
  const ScopedInterrupt interrupt(context.interrupts, [&watch] { watch.Interrupt(); });
  return watch.Run();
}

constexpr char kFooter[] =
    R"(The bar beside "KV cache" is what the cache holds: bytes of running requests by their precision,
then, hatched, what only the prefix cache holds and gives up when it is needed. "room for" is how
many tokens of prompt and answer could be admitted now. The figures are those of GetCapacity and of
/metrics.

Examples:
  whit capacity --watch
  whit capacity --watch --interval=5s >> capacity.log
  whit capacity --json | jq .headroom_tokens_floor
)";

}  // namespace

void AddCapacity(CLI::App& app, CommandContext context) {
  CLI::App* const command =
      app.add_subcommand("capacity", "How full the server is, and how much more it can take");
  const auto flags = std::make_shared<CapacityFlags>();
  CLI::Option* const watch = command->add_flag(
      "--watch", flags->watch,
      "show it again and again until Ctrl-C, in place on a terminal, otherwise as one line each "
      "time");
  AddDurationFlag(*command, "--interval", flags->interval,
                  "with --watch: time between two looks, at least 100ms")
      ->default_str("1s")
      ->needs(watch)
      ->check([](const std::string& text) {
        const absl::StatusOr<absl::Duration> interval = ParseDuration(text);
        return interval.ok() && *interval < kMinInterval
                   ? absl::StrCat("'", text, "' is less than 100ms")
                   : std::string();
      });
  command->add_option("--count", flags->count, "with --watch: end after this many looks")
      ->type_name("N")
      ->needs(watch);
  AddConnectionFlags(*command, context.flags);
  command->footer(kFooter);
  command->callback([=] { context.chosen = [=] { return Capacity(*flags, context); }; });
}

}  // namespace whit
