// PolicyFile: what whit-calibrate has learned about one model, as a small file (`.whitpolicy`).
//
// Little-endian, from the front:
//   8 bytes  magic, "whitpol\n"
//   4        version, 1
//   4        number of sections
//   8        size of the whole file in bytes
//   8        fingerprint of the model (GgufFile::fingerprint)
//   4 x 3    its layers, KV heads and head_dim
//   4        zero
//   the sections, each: 16 bytes of name, padded with zeros; 8 of content size; the content
//   8        checksum: FNV-1a, 64 bits, of all bytes before it
//
// Sections:
//   key_means      f32 [layer][KV head][head_dim]: the mean key before RoPE and before rotation,
//                  which KeyMeans (kvpool/key_means.h) turns into what pages subtract
//   importance     u32 query heads, features (8), hidden units (64), zero; then the f32 arrays of
//                  ImportanceModel (importance.h) in their order
//   prices         f32 pairs (bits, price): bits falling, price rising
//   sensitivities  f32 [layer][KV head][2]
//   learned        the f32 arrays of LearnedModel (learned_model.h) in their order
//   notes          UTF-8 lines "name = value", for people: how the file was made, and figures
//                  measured on text held out
// Only key_means must be there. Sections that a reader does not know are skipped, so a newer file
// with more in it serves an older server. The version changes only when an older reader would
// misunderstand.
#ifndef WHIT_CONTROLLER_POLICY_FILE_H_
#define WHIT_CONTROLLER_POLICY_FILE_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "controller/importance.h"
#include "controller/learned_model.h"

namespace whit {

// The model that a policy file belongs to.
struct ModelIdentity {
  uint64_t fingerprint = 0;
  int num_layers = 0;
  int num_kv_heads = 0;
  int head_dim = 0;

  size_t key_elements() const { return size_t{1} * num_layers * num_kv_heads * head_dim; }
  // "0123456789abcdef, 30 layers x 3 KV heads x 64"
  std::string ToString() const;
  bool operator==(const ModelIdentity&) const = default;
};

struct PolicyFile {
  struct Note {
    std::string name;   // without " = "
    std::string value;  // line ends in it are written as spaces
    bool operator==(const Note&) const = default;
  };

  // `bits` per element, codes and scales, are what tokens got at this price on text held out.
  struct PricePoint {
    float bits = 0;
    float price = 0;
    bool operator==(const PricePoint&) const = default;
  };

  ModelIdentity model = {};
  std::vector<float> key_means = {};  // model.key_elements() of them
  // What follows may be absent: the policies that need it are then refused.
  std::optional<ImportanceModel> importance = {};  // adaptive
  std::vector<PricePoint> prices = {};             // adaptive; bits falling, price rising
  // [layer][KV head][2]: mean of importance * |k - mean|^2, and of importance * |v|^2, over tokens;
  // static-allocated.
  std::vector<float> sensitivities = {};
  std::optional<LearnedModel> learned = {};  // learned
  std::vector<Note> notes = {};
};

// The bytes of the file; the same for the same content.
std::string SerializePolicyFile(const PolicyFile& file);

// Untrusted input: INVALID_ARGUMENT (not a policy file, or one that contradicts itself), DATA_LOSS
// (truncated or damaged), UNIMPLEMENTED (another version).
absl::StatusOr<PolicyFile> ParsePolicyFile(std::string_view bytes);

// Replaces what is at `path` in one step: a reader sees the old file or the new one.
absl::Status WritePolicyFile(const std::string& path, const PolicyFile& file);

// Errors as ParsePolicyFile, NOT_FOUND if there is no such file, and FAILED_PRECONDITION if it was
// made for another model. Messages begin with the path.
absl::StatusOr<PolicyFile> LoadPolicyFile(const std::string& path, const ModelIdentity& model);

// The fingerprint in the file's header, with nothing checked; nullopt if the file cannot be read or
// is no policy file.
std::optional<uint64_t> PeekFingerprint(const std::string& path);

}  // namespace whit

#endif  // WHIT_CONTROLLER_POLICY_FILE_H_
