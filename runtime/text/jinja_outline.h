// OutlineJinja: a Jinja template in a normal form in which ways to write the same thing look the
// same.
#ifndef WHIT_RUNTIME_TEXT_JINJA_OUTLINE_H_
#define WHIT_RUNTIME_TEXT_JINJA_OUTLINE_H_

#include <cstddef>
#include <string>
#include <string_view>

namespace whit {

// Nothing is executed. In the outline
// - white space is settled as Hugging Face's transformers has it (trim_blocks, lstrip_blocks),
// comments
//   are gone, and tags have no white space outside string literals, so words run together;
// - text between tags is written as an output of a string literal, and neighbouring outputs and
//   literals are joined: "a{{ b }}{{ 'c' + 'd' }}" is "{{'a'+b+'cd'}}";
// - literals are in single quotes, with \n, \t, \' and \\ escaped;
// - x['role'] and x['content'] are x.role and x.content.
// An unfinished tag ends the outline.
std::string OutlineJinja(std::string_view source);

// The literal that begins with the quote at `offset` of an outline, without quotes but still
// escaped.
std::string_view OutlineLiteral(std::string_view outline, size_t offset);
std::string UnescapeLiteral(std::string_view escaped);

}  // namespace whit

#endif  // WHIT_RUNTIME_TEXT_JINJA_OUTLINE_H_
