// Zip files whose members are stored as they are. For a file that a gateway fetches once from
// beside it, compression would not be worth a library and its handles.
#ifndef WHIT_SERVER_VLLM_STORED_ZIP_H_
#define WHIT_SERVER_VLLM_STORED_ZIP_H_

#include <string>
#include <string_view>

#include "absl/types/span.h"

namespace whit {

struct ZipMember {
  std::string_view name;  // ASCII, at most 65,535 bytes
  std::string_view content;
};

// The same members are the same bytes: all are of the format's first day, 1980-01-01. Together they
// are less than 4 GiB, and fewer than 65,536.
std::string MakeStoredZip(absl::Span<const ZipMember> members);

}  // namespace whit

#endif  // WHIT_SERVER_VLLM_STORED_ZIP_H_
