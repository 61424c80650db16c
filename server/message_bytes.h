// Requests as bytes. gRPC itself answers a request it cannot parse with an empty UNIMPLEMENTED;
// here the client learns which field is at fault.
#ifndef WHIT_SERVER_MESSAGE_BYTES_H_
#define WHIT_SERVER_MESSAGE_BYTES_H_

#include <google/protobuf/message.h>
#include <grpcpp/support/byte_buffer.h>

#include <string_view>

#include "absl/status/status.h"

namespace whit {

// INVALID_ARGUMENT names the first string field that is not UTF-8 and the offset in it; other bytes
// that are no such message are named as that.
absl::Status ParseMessage(const grpc::ByteBuffer& bytes, google::protobuf::Message& message);
absl::Status ParseMessage(std::string_view bytes, google::protobuf::Message& message);

grpc::ByteBuffer SerializeMessage(const google::protobuf::Message& message);

}  // namespace whit

#endif  // WHIT_SERVER_MESSAGE_BYTES_H_
