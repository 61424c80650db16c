#include "server/cli/json_output.h"

#include <google/protobuf/descriptor.h>

#include <array>
#include <charconv>
#include <cstdio>
#include <string>
#include <vector>

#include "absl/strings/escaping.h"

namespace whit {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;
using nlohmann::ordered_json;

// A float's shortest decimal form, so that 0.1f is 0.1 and not 0.10000000149011612.
double Shortest(float value) {
  std::array<char, 32> text;
  const auto [end, error] = std::to_chars(text.data(), text.data() + text.size(), value);
  double result = value;
  std::from_chars(text.data(), end, result);
  return result;
}

// `index` is -1 for a field that is not repeated.
ordered_json FieldToJson(const Message& message, const FieldDescriptor& field, int index) {
  const Reflection& reflection = *message.GetReflection();
  const bool repeated = index >= 0;
  const auto get = [&](auto single, auto one_of_many) {
    return repeated ? (reflection.*one_of_many)(message, &field, index)
                    : (reflection.*single)(message, &field);
  };
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_INT32:
      return get(&Reflection::GetInt32, &Reflection::GetRepeatedInt32);
    case FieldDescriptor::CPPTYPE_INT64:
      return get(&Reflection::GetInt64, &Reflection::GetRepeatedInt64);
    case FieldDescriptor::CPPTYPE_UINT32:
      return get(&Reflection::GetUInt32, &Reflection::GetRepeatedUInt32);
    case FieldDescriptor::CPPTYPE_UINT64:
      return get(&Reflection::GetUInt64, &Reflection::GetRepeatedUInt64);
    case FieldDescriptor::CPPTYPE_DOUBLE:
      return get(&Reflection::GetDouble, &Reflection::GetRepeatedDouble);
    case FieldDescriptor::CPPTYPE_FLOAT:
      return Shortest(get(&Reflection::GetFloat, &Reflection::GetRepeatedFloat));
    case FieldDescriptor::CPPTYPE_BOOL:
      return get(&Reflection::GetBool, &Reflection::GetRepeatedBool);
    case FieldDescriptor::CPPTYPE_ENUM:
      return get(&Reflection::GetEnum, &Reflection::GetRepeatedEnum)->name();
    case FieldDescriptor::CPPTYPE_STRING: {
      const std::string text = get(&Reflection::GetString, &Reflection::GetRepeatedString);
      return field.type() == FieldDescriptor::TYPE_BYTES ? absl::Base64Escape(text) : text;
    }
    case FieldDescriptor::CPPTYPE_MESSAGE:
      return ToJson(repeated ? reflection.GetRepeatedMessage(message, &field, index)
                             : reflection.GetMessage(message, &field));
  }
  return nullptr;
}

}  // namespace

ordered_json ToJson(const Message& message) {
  const Reflection& reflection = *message.GetReflection();
  const google::protobuf::Descriptor& type = *message.GetDescriptor();
  ordered_json json = ordered_json::object();
  for (int i = 0; i < type.field_count(); ++i) {
    const FieldDescriptor& field = *type.field(i);
    if (field.is_repeated()) {
      ordered_json& list = json[field.name()] = ordered_json::array();
      for (int n = 0; n < reflection.FieldSize(message, &field); ++n) {
        list.push_back(FieldToJson(message, field, n));
      }
    } else if (!field.has_presence() || reflection.HasField(message, &field)) {
      json[field.name()] = FieldToJson(message, field, -1);
    }
  }
  return json;
}

ordered_json StreamPieceToJson(const v1::GenerateStreamResponse& piece) {
  ordered_json json = ToJson(piece);
  if (piece.logprobs().empty()) json.erase("logprobs");
  if (piece.error_message().empty()) json.erase("error_message");
  if (piece.finish_reason() == v1::FINISH_REASON_UNSPECIFIED) {
    json.erase("finish_reason");
    json.erase("request_id");
  }
  return json;
}

void PrintJson(const ordered_json& json) {
  const std::string line =
      json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
  std::fwrite(line.data(), 1, line.size(), stdout);
  std::fflush(stdout);
}

}  // namespace whit
