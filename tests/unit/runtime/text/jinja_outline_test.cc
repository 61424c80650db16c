#include "runtime/text/jinja_outline.h"

#include <gtest/gtest.h>

#include <string_view>
#include <utility>
#include <vector>

namespace whit {
namespace {

void ExpectOutlines(const std::vector<std::pair<std::string_view, std::string_view>>& cases) {
  for (const auto& [source, outline] : cases) EXPECT_EQ(OutlineJinja(source), outline) << source;
}

TEST(OutlineJinjaTest, WaysToWriteTheSameLookTheSame) {
  ExpectOutlines({
      {"", ""},
      {"text", "{{'text'}}"},
      {"a{{ b }}{{ 'c' + \"d\" }}", "{{'a'+b+'cd'}}"},
      {"{{'x' + message['role'] +\n  message[\"content\"]|trim}}",
       "{{'x'+message.role+message.content|trim}}"},
      {"{% if a  == 'b c' %}x{% endif %}", "{%ifa=='b c'%}{{'x'}}{%endif%}"},
      {R"({{ "it's" }}{{ 'it\'s\\' }})", R"({{'it\'sit\'s\\'}})"},
      {"{{ '\n' }}{{ '\\n' }}", R"({{'\n\n'}})"},
      {"{{ '+' }}", "{{'+'}}"},
      {"{{ a + '+' + '%}' }}", "{{a+'+%}'}}"},
      {"a{# {{ no }} #}b", "{{'ab'}}"},
      {"{ { % }}", "{{'{ { % }}'}}"},
  });
}

TEST(OutlineJinjaTest, SettlesWhiteSpaceAsTransformersDoes) {
  ExpectOutlines({
      // The line end after a block goes, the one after an output stays.
      {"{% a %}\nx", "{%a%}{{'x'}}"},
      {"{% a %}\n\nx", R"({%a%}{{'\nx'}})"},
      {"{{ a }}\nx", R"({{a+'\nx'}})"},
      // Blanks before a block at the beginning of its line go.
      {"  {% a %}", "{%a%}"},
      {"x\n  {% a %}", R"({{'x\n'}}{%a%})"},
      {"x  {% a %}", "{{'x  '}}{%a%}"},
      {"{% a %}\n  {% b %}", "{%a%}{%b%}"},
      {"{% a %}  {% b %}", "{%a%}{{'  '}}{%b%}"},
      {"{{ a }}  {% b %}", "{{a+'  '}}{%b%}"},
      {"  {# c #}\nx", "{{'x'}}"},
      {"  {{ a }}", "{{'  '+a}}"},
      // Signs.
      {"x \n {%- a -%} \n y", "{{'x'}}{%a%}{{'y'}}"},
      {"x \n {{- a -}} \n y", "{{'x'+a+'y'}}"},
      {"x \n {#- c -#} \n y", "{{'xy'}}"},
      // One line end at the very end.
      {"x\n\n", R"({{'x\n'}})"},
  });
}

TEST(OutlineJinjaTest, AnUnfinishedTagEndsIt) {
  ExpectOutlines({{"a{{ b", "{{'a'+b"},
                  {"a{% b 'c", "{{'a'}}{%b"},
                  {"a{# b", "{{'a'}}"},
                  {"a{{ 'b\\", "{{'a'+"},
                  {"{", "{{'{'}}"},
                  {"{{", "{{"},
                  {"{%-", "{%"}});
}

TEST(OutlineLiteralTest, FindsTheEndAndKeepsEscapes) {
  const std::string_view outline = R"({{'a\'b\n'+c}})";
  EXPECT_EQ(OutlineLiteral(outline, 2), R"(a\'b\n)");
  EXPECT_EQ(UnescapeLiteral(OutlineLiteral(outline, 2)), "a'b\n");
  EXPECT_EQ(OutlineLiteral("'open", 0), "open");
  EXPECT_EQ(OutlineLiteral("'open\\", 0), "open\\");
  EXPECT_EQ(OutlineLiteral("'", 0), "");
}

}  // namespace
}  // namespace whit
