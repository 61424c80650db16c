// API messages as JSON for programs: the proto's own field names, all numbers as numbers.
#ifndef WHIT_SERVER_CLI_JSON_OUTPUT_H_
#define WHIT_SERVER_CLI_JSON_OUTPUT_H_

#include <google/protobuf/message.h>

#include <nlohmann/json.hpp>

#include "whit/v1/text_generation.pb.h"

namespace whit {

// Fields in the order of the proto. Scalars and lists are always there; messages and optional
// fields only if set. Enums by name; bytes in base64; numbers that JSON lacks (NaN, infinities) are
// null.
nlohmann::ordered_json ToJson(const google::protobuf::Message& message);

// Of a stream's messages only the last has finish_reason and what follows it.
nlohmann::ordered_json StreamPieceToJson(const v1::GenerateStreamResponse& piece);

// One line on standard output, at once.
void PrintJson(const nlohmann::ordered_json& json);

}  // namespace whit

#endif  // WHIT_SERVER_CLI_JSON_OUTPUT_H_
