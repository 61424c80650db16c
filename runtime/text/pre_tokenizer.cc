#include "runtime/text/pre_tokenizer.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "runtime/text/quoted.h"

namespace whit {
namespace {

// The expressions are those of the models' own tokenizer.json. Every character is matched by one of
// the alternatives, so a match begins where the last one ended.

constexpr std::string_view kGpt2 =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

// SmolLM first cuts out each digit, then uses GPT-2's expression on what lies between. As a single
// expression: a space before a digit is at the end of its stretch, so it stays with the spaces
// before.
constexpr std::string_view kSmolLm =
    R"(\p{N}|'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+)";

constexpr std::string_view kLlama3 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3})"
    R"(| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

constexpr std::string_view kQwen2 = R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N})"
                                    R"(| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

struct KnownPreTokenizer {
  std::string_view name;
  std::string_view regex;
  bool whole_words_first = false;
  bool add_bos = false;
};

// The names are llama.cpp's; so is which of them share an expression.
constexpr KnownPreTokenizer kKnown[] = {
    {"", kGpt2},  // files older than the key
    {"default", kGpt2},
    {"gpt-2", kGpt2},
    {"phi-2", kGpt2},
    {"olmo", kGpt2},
    {"mpt", kGpt2},
    {"jais", kGpt2},
    {"trillion", kGpt2},
    {"exaone4", kGpt2},
    {"gigachat", kGpt2},
    {"mellum", kGpt2},
    {"a.x-4.0", kGpt2},
    {"granite-docling", kGpt2},
    {"smollm", kSmolLm},
    {"starcoder", kSmolLm},
    {"refact", kSmolLm},
    {"command-r", kSmolLm},
    {"codeshell", kSmolLm},
    {"exaone", kSmolLm},
    {"minerva-7b", kSmolLm},
    {"llama-bpe", kLlama3, true, true},
    {"llama3", kLlama3, true, true},
    {"llama-v3", kLlama3, true, true},
    {"falcon3", kLlama3, true, true},
    {"falcon-h1", kLlama3, true, true},
    {"pixtral", kLlama3, true, true},
    {"midm-2.0", kLlama3, true, true},
    {"lfm2", kLlama3, true, true},
    {"dbrx", kLlama3},
    {"smaug-bpe", kLlama3},
    {"glm4", kLlama3},
    {"chatglm-bpe", kLlama3},
    {"qwen2", kQwen2},
    {"stablelm2", kQwen2},
    {"deepseek-r1-qwen", kQwen2},
    {"megrez", kQwen2},
    {"hunyuan", kQwen2},
    {"grok-2", kQwen2},
};

std::string Pcre2Message(int code) {
  PCRE2_UCHAR message[128];
  pcre2_get_error_message(code, message, sizeof(message));
  return reinterpret_cast<const char*>(message);
}

template <auto Free>
struct Freer {
  template <typename T>
  void operator()(T* object) const {
    Free(object);
  }
};
using Code = std::unique_ptr<pcre2_code, Freer<pcre2_code_free>>;
using MatchData = std::unique_ptr<pcre2_match_data, Freer<pcre2_match_data_free>>;
using MatchContext = std::unique_ptr<pcre2_match_context, Freer<pcre2_match_context_free>>;

}  // namespace

struct PreTokenizer::Regex {
  Code code;
  MatchContext context;
};

PreTokenizer::PreTokenizer() = default;
PreTokenizer::~PreTokenizer() = default;

absl::StatusOr<std::unique_ptr<PreTokenizer>> PreTokenizer::Create(std::string_view name) {
  const KnownPreTokenizer* known = nullptr;
  for (const KnownPreTokenizer& candidate : kKnown) {
    if (candidate.name == name) known = &candidate;
  }
  if (known == nullptr) {
    return absl::UnimplementedError(
        absl::StrCat("pre-tokenizer ", Quoted(name),
                     " is not supported (tokenizer.ggml.pre; supported are those of the gpt-2, "
                     "smollm, llama-bpe and qwen2 families)"));
  }

  // PCRE2's \s also matches U+180E, which has not been white space since Unicode 6.3.
  const std::string pattern =
      absl::StrReplaceAll(absl::string_view(known->regex.data(), known->regex.size()),
                          {{R"(\s)", R"(\p{White_Space})"}, {R"(\S)", R"(\P{White_Space})"}});
  int error = 0;
  size_t error_offset = 0;
  Code code(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                          PCRE2_UTF | PCRE2_UCP | PCRE2_ANCHORED, &error, &error_offset, nullptr));
  MatchContext context(pcre2_match_context_create(nullptr));
  if (code == nullptr || context == nullptr) {
    return absl::InternalError(absl::StrCat(
        "the pre-tokenizer's regular expression: ", Pcre2Message(error), " at ", error_offset));
  }
  // Without it, where code may not be written at run time, the interpreter does the same more
  // slowly.
  pcre2_jit_compile(code.get(), PCRE2_JIT_COMPLETE);
  // A word may be as long as the text and each of its characters be given back once: that is no
  // runaway.
  pcre2_set_match_limit(context.get(), UINT32_MAX);

  std::unique_ptr<PreTokenizer> result(new PreTokenizer());
  result->regex_ = std::make_unique<Regex>(Regex{std::move(code), std::move(context)});
  result->expression_ = known->regex;
  result->whole_words_first_ = known->whole_words_first;
  result->add_bos_by_default_ = known->add_bos;
  return result;
}

absl::Status PreTokenizer::Split(std::string_view text,
                                 absl::FunctionRef<void(std::string_view)> use) const {
  const MatchData match(pcre2_match_data_create_from_pattern(regex_->code.get(), nullptr));
  if (match == nullptr) return absl::InternalError("no memory for pre-tokenizing");
  for (size_t offset = 0; offset < text.size();) {
    // Checking the UTF-8 anew for each match would take quadratic time.
    const int result =
        pcre2_match(regex_->code.get(), reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(),
                    offset, PCRE2_NO_UTF_CHECK, match.get(), regex_->context.get());
    if (result < 0) {
      return absl::InternalError(
          absl::StrCat("pre-tokenizing failed at byte ", offset, ": ", Pcre2Message(result)));
    }
    const size_t end = pcre2_get_ovector_pointer(match.get())[1];
    use(text.substr(offset, end - offset));
    offset = end;
  }
  return absl::OkStatus();
}

}  // namespace whit
