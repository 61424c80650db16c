#include "runtime/text/jinja_outline.h"

#include <algorithm>
#include <cstddef>
#include <utility>

#include "absl/strings/str_replace.h"

namespace whit {
namespace {

constexpr std::string_view kWhiteSpace = " \t\r\n";

// What a backslash and `c` stand for in a string literal.
char Unescaped(char c) { return c == 'n' ? '\n' : c == 't' ? '\t' : c; }

class Outliner {
 public:
  explicit Outliner(std::string_view source) : rest_(source) {
    // Jinja drops one line end at the end of a template.
    if (rest_.ends_with('\n')) rest_.remove_suffix(1);
  }

  std::string Run() {
    while (!rest_.empty()) {
      const size_t tag = FindTag();
      AddText(rest_.substr(0, tag), tag);
      rest_.remove_prefix(std::min(tag, rest_.size()));
      if (!rest_.empty() && !AddTag()) break;
    }
    return std::move(outline_);
  }

 private:
  size_t FindTag() const {
    for (size_t i = 0; i + 1 < rest_.size(); ++i) {
      if (rest_[i] == '{' && (rest_[i + 1] == '{' || IsBlockOrComment(i))) return i;
    }
    return std::string_view::npos;
  }

  bool IsBlockOrComment(size_t tag) const { return rest_[tag + 1] == '%' || rest_[tag + 1] == '#'; }

  // The text up to the tag at `tag` of rest_.
  void AddText(std::string_view text, size_t tag) {
    bool at_line_begin = after_ == After::kBegin;
    if (after_ == After::kMinus) {
      text.remove_prefix(std::min(text.find_first_not_of(kWhiteSpace), text.size()));
    } else if (after_ == After::kBlock && text.starts_with('\n')) {
      text.remove_prefix(1);
      at_line_begin = true;
    }
    if (tag < rest_.size()) {
      const char sign = tag + 2 < rest_.size() ? rest_[tag + 2] : '\0';
      if (sign == '-') {
        text = text.substr(0, text.find_last_not_of(kWhiteSpace) + 1);
      } else if (sign != '+' && IsBlockOrComment(tag)) {
        // What is before a block on its line goes if it is blank.
        const std::string_view before = text.substr(0, text.find_last_not_of(" \t") + 1);
        if (before.empty() ? at_line_begin : before.back() == '\n') text = before;
      }
    }
    if (text.empty()) return;
    BeginOutput();
    AddLiteral(text);
    outline_ += "}}";
  }

  // The tag that rest_ begins with; false if it has no end.
  bool AddTag() {
    const char kind = rest_[1];
    rest_.remove_prefix(2);
    if (kind == '#') {
      const size_t end = rest_.find("#}");
      if (end == std::string_view::npos) return false;
      const bool minus = end > 0 && rest_[end - 1] == '-';
      rest_.remove_prefix(end + 2);
      after_ = minus ? After::kMinus : After::kBlock;
      return true;
    }
    if (rest_.starts_with('-') || rest_.starts_with('+')) rest_.remove_prefix(1);
    if (kind == '{') {
      BeginOutput();
    } else {
      outline_ += "{%";
    }
    const std::string_view end = kind == '{' ? "}}" : "%}";
    while (!rest_.empty()) {
      if (rest_.starts_with(end) || (rest_[0] == '-' && rest_.substr(1).starts_with(end))) {
        after_ = rest_[0] == '-' ? After::kMinus : kind == '{' ? After::kOutput : After::kBlock;
        rest_.remove_prefix(after_ == After::kMinus ? 3 : 2);
        outline_ += end;
        return true;
      }
      if (rest_[0] == '\'' || rest_[0] == '"') {
        if (!AddQuoted()) return false;
      } else {
        if (kWhiteSpace.find(rest_[0]) == std::string_view::npos) outline_ += rest_[0];
        rest_.remove_prefix(1);
      }
    }
    return false;
  }

  void BeginOutput() {
    if (outline_.ends_with("}}")) {
      outline_.replace(outline_.size() - 2, 2, "+");
    } else {
      outline_ += "{{";
    }
  }

  bool AddQuoted() {
    const char quote = rest_[0];
    size_t end = 1;
    while (end < rest_.size() && rest_[end] != quote) end += rest_[end] == '\\' ? 2 : 1;
    if (end >= rest_.size()) return false;
    AddLiteral(UnescapeLiteral(rest_.substr(1, end - 1)));
    rest_.remove_prefix(end + 1);
    return true;
  }

  void AddLiteral(std::string_view value) {
    // Directly after another literal and a plus it goes on with that one.
    if (literal_end_ > 0 && outline_.size() == literal_end_ + 1 && outline_.back() == '+') {
      outline_.resize(literal_end_ - 1);
    } else {
      outline_ += '\'';
    }
    for (char c : value) {
      switch (c) {
        case '\n':
          outline_ += "\\n";
          break;
        case '\t':
          outline_ += "\\t";
          break;
        case '\'':
        case '\\':
          outline_ += '\\';
          [[fallthrough]];
        default:
          outline_ += c;
      }
    }
    outline_ += '\'';
    literal_end_ = outline_.size();
  }

  std::string_view rest_;
  std::string outline_;
  size_t literal_end_ = 0;  // of the last literal in outline_; 0: none yet
  // How the last tag ended, which decides on the white space that follows it.
  enum class After { kBegin, kOutput, kBlock, kMinus } after_ = After::kBegin;
};

}  // namespace

std::string OutlineJinja(std::string_view source) {
  std::string outline = Outliner(source).Run();
  absl::StrReplaceAll({{"['role']", ".role"}, {"['content']", ".content"}}, &outline);
  return outline;
}

std::string_view OutlineLiteral(std::string_view outline, size_t offset) {
  const size_t begin = offset + 1;
  size_t end = begin;
  while (end < outline.size() && outline[end] != '\'') end += outline[end] == '\\' ? 2 : 1;
  return outline.substr(begin, std::min(end, outline.size()) - begin);
}

std::string UnescapeLiteral(std::string_view escaped) {
  std::string value;
  for (size_t i = 0; i < escaped.size(); ++i) {
    value += escaped[i] == '\\' && i + 1 < escaped.size() ? Unescaped(escaped[++i]) : escaped[i];
  }
  return value;
}

}  // namespace whit
