// ClientUsage: how many requests each client has under way.
#ifndef WHIT_SERVER_SECURITY_CLIENT_USAGE_H_
#define WHIT_SERVER_SECURITY_CLIENT_USAGE_H_

#include <cstdint>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"

namespace whit {

// Threads: any may call.
class ClientUsage {
 public:
  // A request's place among its client's. Move-only; gives it back when it dies. Dies before the
  // ClientUsage it is of.
  class Place;

  // RESOURCE_EXHAUSTED if the client has `max_requests` already.
  absl::StatusOr<Place> Take(const std::string& client, int64_t max_requests);

 private:
  void GiveBack(const std::string& client);

  absl::Mutex mutex_;
  // Of those who have any.
  absl::flat_hash_map<std::string, int64_t> requests_ ABSL_GUARDED_BY(mutex_);
};

class ClientUsage::Place {
 public:
  Place(Place&& other) noexcept;
  Place& operator=(Place&& other) noexcept;
  ~Place();

 private:
  friend class ClientUsage;
  Place(ClientUsage* usage, std::string client) : usage_(usage), client_(std::move(client)) {}
  ClientUsage* usage_;
  std::string client_;
};

}  // namespace whit

#endif  // WHIT_SERVER_SECURITY_CLIENT_USAGE_H_
