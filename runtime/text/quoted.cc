#include "runtime/text/quoted.h"

#include <algorithm>
#include <cstddef>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace whit {

std::string Quoted(std::string_view text) {
  constexpr size_t kMaxShown = 64;
  const absl::string_view shown(text.data(), std::min(text.size(), kMaxShown));
  return absl::StrCat("'", absl::CHexEscape(shown), text.size() > kMaxShown ? "…'" : "'");
}

}  // namespace whit
