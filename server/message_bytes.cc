#include "server/message_bytes.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/wire_format_lite.h>
#include <grpcpp/impl/codegen/proto_utils.h>

#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_format.h"
#include "runtime/text/utf8.h"

namespace whit {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::internal::WireFormatLite;
using google::protobuf::io::CodedInputStream;

// Deeper messages than any of ours nest.
constexpr int kMaxDepth = 16;

// Walks serialized bytes of `type` for the first string that is not UTF-8, and says where. None if
// there is none or the bytes are malformed before it.
std::optional<std::string> FindBadString(std::string_view bytes, const Descriptor& type,
                                         const std::string& path, int depth) {
  CodedInputStream input(reinterpret_cast<const uint8_t*>(bytes.data()),
                         static_cast<int>(bytes.size()));
  std::vector<int> occurrences(type.field_count(), 0);
  while (const uint32_t tag = input.ReadTag()) {
    const FieldDescriptor* field = type.FindFieldByNumber(WireFormatLite::GetTagFieldNumber(tag));
    if (field == nullptr ||
        WireFormatLite::GetTagWireType(tag) != WireFormatLite::WIRETYPE_LENGTH_DELIMITED) {
      if (!WireFormatLite::SkipField(&input, tag)) return std::nullopt;
      continue;
    }
    uint32_t size = 0;
    if (!input.ReadVarint32(&size)) return std::nullopt;
    const size_t begin = input.CurrentPosition();
    if (size > bytes.size() - begin) return std::nullopt;
    const std::string_view value = bytes.substr(begin, size);
    input.Skip(static_cast<int>(size));

    std::string name = path + field->name();
    if (field->is_repeated()) absl::StrAppendFormat(&name, "[%d]", occurrences[field->index()]++);
    if (field->type() == FieldDescriptor::TYPE_STRING) {
      const size_t offset = FindInvalidUtf8(value);
      if (offset != std::string_view::npos) {
        return absl::StrFormat("%s is not UTF-8 from byte %d on", name, offset);
      }
    } else if (field->type() == FieldDescriptor::TYPE_MESSAGE && depth < kMaxDepth) {
      if (auto bad = FindBadString(value, *field->message_type(), name + ".", depth + 1)) {
        return bad;
      }
    }
  }
  return std::nullopt;
}

}  // namespace

absl::Status ParseMessage(std::string_view bytes, google::protobuf::Message& message) {
  if (bytes.size() > std::numeric_limits<int>::max()) {
    return absl::InvalidArgumentError(
        absl::StrFormat("the request has %d bytes, more than protobuf can read", bytes.size()));
  }
  if (message.ParseFromArray(bytes.data(), static_cast<int>(bytes.size()))) {
    return absl::OkStatus();
  }
  const Descriptor& type = *message.GetDescriptor();
  return absl::InvalidArgumentError(
      FindBadString(bytes, type, "", 0)
          .value_or(
              absl::StrFormat("the request's %d bytes are no %s", bytes.size(), type.full_name())));
}

absl::Status ParseMessage(const grpc::ByteBuffer& bytes, google::protobuf::Message& message) {
  grpc::Slice slice;
  if (const grpc::Status status = bytes.DumpToSingleSlice(&slice); !status.ok()) {
    return absl::InvalidArgumentError("the request cannot be read: " + status.error_message());
  }
  return ParseMessage(std::string_view(reinterpret_cast<const char*>(slice.begin()), slice.size()),
                      message);
}

grpc::ByteBuffer SerializeMessage(const google::protobuf::Message& message) {
  grpc::Slice slice(message.ByteSizeLong());
  message.SerializeWithCachedSizesToArray(const_cast<uint8_t*>(slice.begin()));
  return grpc::ByteBuffer(&slice, 1);
}

}  // namespace whit
