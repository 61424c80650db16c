#include "server/security/client_usage.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/engine/admission.h"

namespace whit {

absl::StatusOr<ClientUsage::Place> ClientUsage::Take(const std::string& client,
                                                     int64_t max_requests) {
  absl::MutexLock lock(&mutex_);
  const auto found = requests_.find(client);
  const int64_t requests = found == requests_.end() ? 0 : found->second;
  if (requests >= max_requests) {
    return Rejection(absl::StatusCode::kResourceExhausted, "client_requests",
                     absl::StrCat("client ", client, " has ", requests,
                                  " requests that run or wait; at most ", max_requests, " may"));
  }
  requests_[client] = requests + 1;
  return Place(this, client);
}

void ClientUsage::GiveBack(const std::string& client) {
  absl::MutexLock lock(&mutex_);
  const auto found = requests_.find(client);
  if (--found->second == 0) requests_.erase(found);
}

ClientUsage::Place::Place(Place&& other) noexcept
    : usage_(std::exchange(other.usage_, nullptr)), client_(std::move(other.client_)) {}

ClientUsage::Place& ClientUsage::Place::operator=(Place&& other) noexcept {
  std::swap(usage_, other.usage_);
  std::swap(client_, other.client_);
  return *this;
}

ClientUsage::Place::~Place() {
  if (usage_ != nullptr) usage_->GiveBack(client_);
}

}  // namespace whit
