// Vocabulary: the tokens of a GGUF file, what they stand for, and which of them play a special
// part.
#ifndef WHIT_RUNTIME_TEXT_VOCABULARY_H_
#define WHIT_RUNTIME_TEXT_VOCABULARY_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "runtime/model/gguf.h"

namespace whit {

// Numbers are the file format's own.
enum class TokenKind : uint8_t {
  kUndefined = 0,
  kNormal = 1,
  kUnknown = 2,
  kControl = 3,
  kUserDefined = 4,
  kUnused = 5,
  kByte = 6,
};

// Threads: immutable after Read; any thread may read.
class Vocabulary {
 public:
  // Token ids by the tokens' spelling. The keys point into the file.
  using Index = absl::flat_hash_map<std::string_view, int32_t>;

  // INVALID_ARGUMENT for duplicate tokens, arrays of different lengths, and ids or kinds out of
  // range. Fills `index`, which is needed only as long as the tokenizer is being built.
  static absl::StatusOr<Vocabulary> Read(const GgufFile& file, Index& index);

  int size() const { return static_cast<int>(kinds_.size()); }
  // The bytes that a token stands for; for one that text is never made of, its own spelling.
  std::string_view bytes(int32_t id) const {
    return std::string_view(bytes_).substr(offsets_[id], offsets_[id + 1] - offsets_[id]);
  }
  TokenKind kind(int32_t id) const { return kinds_[id]; }
  bool IsSpecial(int32_t id) const {
    return kinds_[id] == TokenKind::kControl || kinds_[id] == TokenKind::kUnknown;
  }

  int32_t bos_id() const { return bos_id_; }  // -1 if none
  int32_t eos_id() const { return eos_id_; }  // -1 if none
  absl::Span<const int32_t> end_of_generation_ids() const { return end_of_generation_ids_; }

 private:
  absl::Status ReadKinds(const GgufFile& file, size_t num_tokens);
  absl::Status FindSpecialTokens(const GgufFile& file, const Index& index);
  void DecodeBytes(absl::Span<const std::string_view> spellings);

  std::vector<TokenKind> kinds_;
  std::string bytes_;            // of all tokens, one after the other
  std::vector<size_t> offsets_;  // of each token in bytes_, and of the end
  int32_t bos_id_ = -1;
  int32_t eos_id_ = -1;
  std::vector<int32_t> end_of_generation_ids_;  // sorted
};

}  // namespace whit

#endif  // WHIT_RUNTIME_TEXT_VOCABULARY_H_
