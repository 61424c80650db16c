#include "server/security/authenticator.h"

#include <cstddef>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "server/small_file.h"

namespace whit {
namespace {

constexpr size_t kLoggedMethodBytes = 200;

absl::string_view ToAbsl(std::string_view text) { return {text.data(), text.size()}; }

}  // namespace

bool IsOpenToAll(std::string_view method_path) {
  return absl::StartsWith(ToAbsl(method_path), "/grpc.health.v1.Health/");
}

absl::StatusOr<std::string_view> BearerToken(std::string_view authorization) {
  constexpr std::string_view kScheme = "Bearer ";
  if (!absl::StartsWithIgnoreCase(ToAbsl(authorization), ToAbsl(kScheme))) {
    return absl::UnauthenticatedError("the header is not 'authorization: Bearer TOKEN'");
  }
  return authorization.substr(kScheme.size());
}

absl::StatusOr<std::unique_ptr<Authenticator>> Authenticator::Create(const std::string& tokens_file,
                                                                     const Logger& logger,
                                                                     Metrics& metrics) {
  std::unique_ptr<Authenticator> authenticator(new Authenticator(tokens_file, logger, metrics));
  absl::MutexLock lock(&authenticator->mutex_);
  if (absl::Status status = authenticator->Load(); !status.ok()) return status;
  return authenticator;
}

Authenticator::Authenticator(const std::string& tokens_file, const Logger& logger, Metrics& metrics)
    : tokens_file_(tokens_file), logger_(logger), metrics_(metrics), watched_({tokens_file}) {}

absl::Status Authenticator::Check(std::string_view method_path,
                                  absl::Span<const std::string_view> authorization) {
  const std::shared_ptr<const ClientTable> table = ReloadedTable();
  if (IsOpenToAll(method_path)) return absl::OkStatus();
  absl::Status status = Judge(*table, authorization);
  if (!status.ok()) CountRefusal(method_path, status);
  return status;
}

absl::Status Authenticator::Judge(const ClientTable& table,
                                  absl::Span<const std::string_view> authorization) {
  if (authorization.size() != 1) {
    return absl::UnauthenticatedError(
        authorization.empty() ? "this server asks for the header 'authorization: Bearer TOKEN'"
                              : "there is more than one header 'authorization: Bearer TOKEN'");
  }
  const absl::StatusOr<std::string_view> token = BearerToken(authorization.front());
  if (!token.ok()) return token.status();
  if (table.FindByToken(*token) == nullptr) {
    return absl::UnauthenticatedError("the token is not one that this server knows");
  }
  return absl::OkStatus();
}

std::string Authenticator::ClientName(std::string_view authorization) const {
  const absl::StatusOr<std::string_view> token = BearerToken(authorization);
  if (!token.ok()) return "";
  const std::shared_ptr<const ClientTable> table = Table();
  const ClientTable::Client* const client = table->FindByToken(*token);
  return client == nullptr ? "" : client->name;
}

ClientLimits Authenticator::LimitsOf(std::string_view client) const {
  return Table()->LimitsOf(client);
}

absl::StatusOr<ClientUsage::Place> Authenticator::TakePlace(const std::string& client) {
  return usage_.Take(client, LimitsOf(client).max_requests);
}

absl::Status Authenticator::Load() {
  const absl::StatusOr<std::string> text = ReadSmallFile(tokens_file_);
  if (!text.ok()) return text.status();
  absl::StatusOr<ClientTable> table = ClientTable::Parse(*text);
  if (!table.ok()) {
    return absl::InvalidArgumentError(absl::StrCat(tokens_file_, ": ", table.status().message()));
  }
  table_ = std::make_shared<const ClientTable>(*std::move(table));
  logger_.Info("tokens",
               {{"file", tokens_file_}, {"tokens", static_cast<int64_t>(table_->size())}});
  return absl::OkStatus();
}

std::shared_ptr<const ClientTable> Authenticator::Table() const {
  absl::MutexLock lock(&mutex_);
  return table_;
}

std::shared_ptr<const ClientTable> Authenticator::ReloadedTable() {
  absl::MutexLock lock(&mutex_);
  if (watched_.Changed(absl::Now())) {
    if (const absl::Status status = Load(); !status.ok()) {
      logger_.Error("tokens not replaced; the last good ones stay in use",
                    {{"error", std::string(status.message())}});
    }
  }
  return table_;
}

void Authenticator::CountRefusal(std::string_view method_path, const absl::Status& status) {
  metrics_.CountRejection("unauthenticated");
  const std::optional<int64_t> left_out = refusal_log_.Admit(absl::Now());
  if (!left_out) return;
  std::vector<LogField> fields = {
      {"method", std::string(method_path.substr(0, kLoggedMethodBytes))},
      {"code", absl::StatusCodeToString(status.code())},
      {"reason", "unauthenticated"},
      {"error", std::string(status.message())}};
  if (*left_out > 0) fields.push_back({"left_out_before", *left_out});
  logger_.Log(LogLevel::kInfo, "request", fields);
}

}  // namespace whit
