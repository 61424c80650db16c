#include "controller/policy_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "controller/policy_sections.h"
#include "tests/unit/support/process_temp_dir.h"

namespace whit {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::HasSubstr;

constexpr size_t kHeaderBytes = 48, kSectionHeaderBytes = 24, kChecksumBytes = 8;
constexpr size_t kVersionAt = 8, kSectionsAt = 12, kFileBytesAt = 16, kLayersAt = 32;

PolicyFile SmallFile() {
  PolicyFile file = {.model = {.fingerprint = 0x0123456789ABCDEF,
                               .num_layers = 2,
                               .num_kv_heads = 3,
                               .head_dim = 16},
                     .key_means = {},
                     .notes = {{"text", "a.txt: 100 tokens"}, {"text", "b = c"}, {"seed", "1"}}};
  for (size_t i = 0; i < file.model.key_elements(); ++i) {
    file.key_means.push_back(0.125f * static_cast<float>(i) - 3);
  }
  return file;
}

std::vector<float> Floats(size_t count, float first) {
  std::vector<float> floats(count);
  for (size_t i = 0; i < count; ++i) floats[i] = first + 0.25f * static_cast<float>(i % 64);
  return floats;
}

// SmallFile() with everything that a file can hold; 6 query heads.
PolicyFile FullFile() {
  constexpr size_t kPairs = 6, kHidden = ImportanceModel::kHidden;
  PolicyFile file = SmallFile();
  file.importance = {.centers = Floats(kPairs * kNumImportanceFeatures, -3),
                     .spreads = Floats(kPairs * kNumImportanceFeatures, 0.5f),
                     .pair_bias1 = Floats(kPairs * kHidden, -4),
                     .weights1 = Floats(kNumImportanceFeatures * kHidden, -5),
                     .weights2 = Floats(kHidden * kHidden, -6),
                     .bias2 = Floats(kHidden, -7),
                     .weights3 = Floats(kHidden * 2, -8),
                     .pair_bias3 = Floats(kPairs * 2, -9),
                     .query_means = Floats(size_t{2} * 6 * 16, -10),
                     .key_error = {0.2f, 0.01f, 0.0001f},
                     .value_error = {0.3f, 0.02f, 0.0002f}};
  file.prices = {{8.25f, 1e-9f}, {4, 2e-6f}, {4, 3e-6f}, {2.25f, 1}};
  file.sensitivities = Floats(2 * kPairs, 0);
  constexpr size_t kLearnedHidden = LearnedModel::kHidden;
  file.learned = {.centers = {1, 2, 3, 4},
                  .spreads = {5, 6, 7, 8},
                  .weights1 = Floats(LearnedModel::kFeatures * kLearnedHidden, -1),
                  .bias1 = Floats(kLearnedHidden, -2),
                  .weights2 = Floats(kLearnedHidden * kLearnedHidden, -3),
                  .bias2 = Floats(kLearnedHidden, -4),
                  .weights3 = Floats(kLearnedHidden * LearnedModel::kClasses, -5),
                  .bias3 = {9, 10, 11, 12}};
  return file;
}

template <typename T>
void Put(std::string& bytes, size_t offset, T value) {
  std::memcpy(bytes.data() + offset, &value, sizeof(value));
}

// Makes the size and the checksum right again, as an attacker would.
std::string Resealed(std::string bytes) {
  Put(bytes, kFileBytesAt, uint64_t{bytes.size()});
  uint64_t hash = 0xCBF29CE484222325;
  for (size_t i = 0; i < bytes.size() - kChecksumBytes; ++i) {
    hash = (hash ^ static_cast<unsigned char>(bytes[i])) * 0x100000001B3;
  }
  Put(bytes, bytes.size() - kChecksumBytes, hash);
  return bytes;
}

std::string Section(std::string name, const std::string& content) {
  name.resize(16);
  std::string bytes = name + std::string(8, '\0') + content;
  Put(bytes, 16, uint64_t{content.size()});
  return bytes;
}

// SmallFile() with other sections.
std::string WithSections(const std::vector<std::string>& sections) {
  std::string bytes = SerializePolicyFile(SmallFile()).substr(0, kHeaderBytes);
  Put(bytes, kSectionsAt, static_cast<uint32_t>(sections.size()));
  for (const std::string& section : sections) bytes += section;
  return Resealed(bytes + std::string(kChecksumBytes, '\0'));
}

std::string KeyMeansSection() {
  const std::vector<float> means = SmallFile().key_means;
  return Section("key_means",
                 {reinterpret_cast<const char*>(means.data()), means.size() * sizeof(float)});
}

std::string Error(const std::string& bytes) { return ParsePolicyFile(bytes).status().ToString(); }

TEST(PolicyFileTest, RoundTrips) {
  const PolicyFile file = SmallFile();
  const std::string bytes = SerializePolicyFile(file);
  const auto parsed = ParsePolicyFile(bytes);
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(parsed->model, file.model);
  EXPECT_EQ(parsed->key_means, file.key_means);
  EXPECT_EQ(parsed->notes, file.notes);
  EXPECT_EQ(SerializePolicyFile(*parsed), bytes);
}

TEST(PolicyFileTest, WhatItMayHoldRoundTrips) {
  const auto small = ParsePolicyFile(SerializePolicyFile(SmallFile()));
  ASSERT_TRUE(small.ok()) << small.status();
  EXPECT_EQ(small->importance, std::nullopt);
  EXPECT_TRUE(small->prices.empty());
  EXPECT_TRUE(small->sensitivities.empty());
  EXPECT_EQ(small->learned, std::nullopt);

  const PolicyFile file = FullFile();
  const std::string bytes = SerializePolicyFile(file);
  const auto full = ParsePolicyFile(bytes);
  ASSERT_TRUE(full.ok()) << full.status();
  EXPECT_EQ(full->key_means, file.key_means);
  EXPECT_EQ(full->importance, file.importance);
  EXPECT_EQ(full->prices, file.prices);
  EXPECT_EQ(full->sensitivities, file.sensitivities);
  EXPECT_EQ(full->learned, file.learned);
  EXPECT_EQ(full->notes, file.notes);
  EXPECT_EQ(SerializePolicyFile(*full), bytes);
}

// Each section without the others, one byte short, and one long.
TEST(PolicyFileTest, EverySectionHasItsSize) {
  const PolicyFile file = FullFile();
  for (const auto& [name, content] : WritePolicySections(file)) {
    PolicyFile read = {.model = file.model};
    EXPECT_TRUE(ReadPolicySection(name, content, read).ok()) << name;
    if (name == "notes") continue;
    const std::string expected = absl::StrCat("section '", name, "' has ");
    for (size_t size : {size_t{0}, size_t{3}, content.size() - 1, content.size() + 1}) {
      std::string other = content;
      other.resize(size);
      EXPECT_THAT(ReadPolicySection(name, other, read).ToString(), HasSubstr(expected));
    }
    // Nor does a section of this model fit another.
    read.model.num_layers = 1;
    if (name == "learned" || name == "prices") continue;
    EXPECT_THAT(ReadPolicySection(name, content, read).ToString(), HasSubstr(expected));
  }
}

TEST(PolicyFileTest, NotesStayOnTheirLines) {
  PolicyFile file = SmallFile();
  file.notes = {{"model", "two\nlines = x"}};
  const auto parsed = ParsePolicyFile(SerializePolicyFile(file));
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_THAT(parsed->notes, ElementsAre(PolicyFile::Note{"model", "two lines = x"}));
}

TEST(PolicyFileTest, LayoutIsAsDocumented) {
  const std::string bytes = SerializePolicyFile(SmallFile());
  const auto u64 = [&](size_t offset) {
    uint64_t value;
    std::memcpy(&value, bytes.data() + offset, sizeof(value));
    return value;
  };
  EXPECT_EQ(bytes.substr(0, 8), "whitpol\n");
  EXPECT_EQ(u64(kVersionAt), 1 | uint64_t{2} << 32);  // and the number of sections
  EXPECT_EQ(u64(kFileBytesAt), bytes.size());
  EXPECT_EQ(u64(24), 0x0123456789ABCDEF);
  EXPECT_EQ(u64(kLayersAt), 2 | uint64_t{3} << 32);
  EXPECT_EQ(u64(40), 16);
  EXPECT_EQ(bytes.substr(kHeaderBytes, 10), std::string("key_means\0", 10));
  EXPECT_EQ(u64(kHeaderBytes + 16), 2 * 3 * 16 * sizeof(float));
  EXPECT_EQ(Resealed(bytes), bytes);
}

TEST(PolicyFileTest, EveryTruncationIsRefused) {
  const std::string bytes = SerializePolicyFile(SmallFile());
  for (size_t size = 0; size < bytes.size(); ++size) {
    EXPECT_THAT(Error(bytes.substr(0, size)),
                HasSubstr(size < 8 ? "not a policy file" : "DATA_LOSS: truncated"))
        << size;
  }
  EXPECT_THAT(Error(bytes + "x"),
              HasSubstr(absl::StrCat("the file has ", bytes.size() + 1,
                                     " bytes, but was written with ", bytes.size())));
}

TEST(PolicyFileTest, EveryBitFlipIsRefused) {
  const std::string bytes = SerializePolicyFile(SmallFile());
  for (size_t bit = 0; bit < 8 * bytes.size(); ++bit) {
    std::string flipped = bytes;
    flipped[bit / 8] = static_cast<char>(flipped[bit / 8] ^ (1 << bit % 8));
    EXPECT_FALSE(ParsePolicyFile(flipped).ok()) << "bit " << bit;
  }
  std::string flipped = bytes;
  flipped[100] ^= 1;
  EXPECT_THAT(Error(flipped), HasSubstr("DATA_LOSS: damaged: the checksum is "));
}

TEST(PolicyFileTest, OtherFilesAndVersionsAreNamed) {
  EXPECT_THAT(Error("GGUF, and more of it than a header would have, in case that matters here"),
              HasSubstr("INVALID_ARGUMENT: not a policy file"));
  std::string newer = SerializePolicyFile(SmallFile());
  Put(newer, kVersionAt, uint32_t{2});
  EXPECT_THAT(Error(Resealed(newer)), HasSubstr("UNIMPLEMENTED: policy file version 2"));
}

TEST(PolicyFileTest, UnknownSectionsAreSkipped) {
  const auto parsed =
      ParsePolicyFile(WithSections({Section("of_later_times", "anything"), KeyMeansSection()}));
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(parsed->key_means, SmallFile().key_means);
  EXPECT_TRUE(parsed->notes.empty());
}

TEST(PolicyFileTest, ContradictionsAreRefused) {
  EXPECT_THAT(Error(WithSections({Section("notes", "a = b\n")})),
              HasSubstr("there is no section 'key_means'"));
  EXPECT_THAT(Error(WithSections({KeyMeansSection(), KeyMeansSection()})),
              HasSubstr("section 'key_means' occurs twice"));
  EXPECT_THAT(
      Error(WithSections({Section("key_means", "1234")})),
      HasSubstr("section 'key_means' has 4 bytes, but the model (0123456789abcdef, 2 layers "
                "x 3 KV heads x 16) needs 384"));
  EXPECT_THAT(Error(WithSections({KeyMeansSection(), Section("notes", "no separator\n")})),
              HasSubstr("section 'notes': line 1 is not"));
  EXPECT_THAT(Error(WithSections({KeyMeansSection(), Section("notes", "a = b\nc = d")})),
              HasSubstr("section 'notes': line 2 is not"));
  EXPECT_THAT(Error(WithSections({KeyMeansSection() + "stray"})),
              HasSubstr("5 bytes follow the last of 1 sections"));

  std::string beyond = WithSections({KeyMeansSection()});
  Put(beyond, kSectionsAt, uint32_t{3});
  EXPECT_THAT(Error(Resealed(beyond)), HasSubstr("section 2 of 3 begins outside the file"));
  Put(beyond, kSectionsAt, uint32_t{65});
  EXPECT_THAT(Error(Resealed(beyond)), HasSubstr("65 sections are more than 64"));
  std::string too_long = WithSections({KeyMeansSection(), Section("\x01new", "content")});
  Put(too_long, too_long.size() - kChecksumBytes - 7 - 8, ~uint64_t{0});
  EXPECT_THAT(Error(Resealed(too_long)),
              HasSubstr("section '?new' of 18446744073709551615 bytes does not fit into the 7"));
}

TEST(PolicyFileTest, ShapesAreBounded) {
  for (size_t field : {0, 4, 8}) {
    for (uint32_t value : {uint32_t{0}, uint32_t{65537}, ~uint32_t{0}}) {
      std::string bytes = SerializePolicyFile(SmallFile());
      Put(bytes, kLayersAt + field, value);
      EXPECT_THAT(Error(Resealed(bytes)), HasSubstr("is not within [1, 65536]"));
    }
  }
}

TEST(PolicyFileTest, NumbersThatAreNotFiniteAreRefused) {
  for (float bad :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    PolicyFile file = SmallFile();
    file.key_means[7] = bad;
    EXPECT_THAT(Error(SerializePolicyFile(file)),
                HasSubstr(absl::StrCat("'key_means': element 7 is ", bad)));
  }
}

TEST(PolicyFileTest, WhatMakesNoSenseIsRefused) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const auto error_of = [](auto change) {
    PolicyFile file = FullFile();
    change(file);
    return Error(SerializePolicyFile(file));
  };
  EXPECT_THAT(error_of([&](PolicyFile& file) { file.importance->weights2[5] = nan; }),
              HasSubstr("section 'importance': weights2 5 is nan, not a finite number"));
  EXPECT_THAT(error_of([](PolicyFile& file) { file.importance->spreads[3] = 0; }),
              HasSubstr("section 'importance': spreads 3 is 0, not above 0"));
  EXPECT_THAT(error_of([](PolicyFile& file) { file.importance->value_error[1] = -1; }),
              HasSubstr("value_error 1 is -1, not above 0"));
  EXPECT_THAT(error_of([&](PolicyFile& file) { file.learned->bias3[2] = nan; }),
              HasSubstr("section 'learned': bias3 2 is nan"));
  EXPECT_THAT(error_of([](PolicyFile& file) { file.learned->spreads[0] = -2; }),
              HasSubstr("section 'learned': spreads 0 is -2, not above 0"));
  EXPECT_THAT(error_of([&](PolicyFile& file) { file.sensitivities[7] = nan; }),
              HasSubstr("section 'sensitivities': element 7 is nan"));
  EXPECT_THAT(error_of([](PolicyFile& file) { file.sensitivities[7] = -1; }),
              HasSubstr("section 'sensitivities': element 7 is -1, below 0"));
  EXPECT_THAT(error_of([](PolicyFile& file) { file.prices[1].price = 1e-9f; }),
              HasSubstr("section 'prices': from point 0 to 1 bits do not fall"));
  EXPECT_THAT(error_of([](PolicyFile& file) { file.prices[2].bits = 5; }),
              HasSubstr("section 'prices': from point 1 to 2 bits do not fall"));
  for (const PolicyFile::PricePoint point :
       {PolicyFile::PricePoint{nan, 2}, {0, 2}, {17, 2}, {2, nan}, {2, 0}}) {
    EXPECT_THAT(
        error_of([&](PolicyFile& file) { file.prices = {point}; }),
        HasSubstr(absl::StrCat("point 0 has ", point.bits, " bits at price ", point.price)));
  }
}

TEST(PolicyFileTest, NetworksOfOtherShapesAreRefused) {
  std::string importance;
  for (const auto& [name, content] : WritePolicySections(FullFile())) {
    if (name == "importance") importance = content;
  }
  const auto error_with = [&](size_t offset, uint32_t value) {
    std::string content = importance;
    Put(content, offset, value);
    return Error(WithSections({KeyMeansSection(), Section("importance", content)}));
  };
  EXPECT_THAT(error_with(0, 0), HasSubstr("0 query heads are no multiple of 3 KV heads"));
  EXPECT_THAT(error_with(0, 7), HasSubstr("7 query heads are no multiple of 3 KV heads"));
  EXPECT_THAT(error_with(0, 0xFFFFFFFF), HasSubstr("4294967295 query heads"));
  EXPECT_THAT(error_with(0, 9), HasSubstr("section 'importance' has "));
  EXPECT_THAT(error_with(4, 9), HasSubstr("a network of 9 features and 64 hidden units"));
  EXPECT_THAT(error_with(8, 32), HasSubstr("a network of 8 features and 32 hidden units"));
}

// Mutations whose size and checksum are right: what is accepted must be sane.
TEST(PolicyFileTest, SurvivesForgedFiles) {
  std::mt19937 rng(1);
  PolicyFile file = FullFile();
  file.importance.reset();  // large sections would take most of the mutations
  file.learned.reset();
  const std::string bytes = SerializePolicyFile(file);
  int accepted = 0;
  for (int i = 0; i < 20000; ++i) {
    std::string forged = bytes;
    for (int edits = 1 + static_cast<int>(rng() % 4); edits > 0; --edits) {
      const size_t at = rng() % (forged.size() - kChecksumBytes);
      switch (rng() % 3) {
        case 0:
          forged[at] = static_cast<char>(rng());
          break;
        case 1:
          forged.erase(at, std::min<size_t>(rng() % 40, forged.size() - kHeaderBytes - at % 8));
          break;
        default:
          forged.insert(at, std::string(rng() % 40, static_cast<char>(rng())));
      }
      if (forged.size() < kHeaderBytes + kChecksumBytes) forged.resize(kHeaderBytes + 8);
    }
    const auto parsed = ParsePolicyFile(Resealed(forged));
    if (!parsed.ok()) continue;
    ++accepted;
    ASSERT_EQ(parsed->key_means.size(), parsed->model.key_elements());
    for (float mean : parsed->key_means) ASSERT_TRUE(std::isfinite(mean));
    for (float sensitivity : parsed->sensitivities) ASSERT_GE(sensitivity, 0);
    for (const PolicyFile::PricePoint& point : parsed->prices) ASSERT_GT(point.price, 0);
  }
  EXPECT_GT(accepted, 100);
}

class PolicyFileOnDiskTest : public testing::Test {
 protected:
  PolicyFileOnDiskTest() : folder_(fs::path(ProcessTempDir()) / "policy_file_test") {
    fs::remove_all(folder_);
    fs::create_directories(folder_);
  }
  ~PolicyFileOnDiskTest() override { fs::remove_all(folder_); }
  std::string Path(const char* name) const { return (folder_ / name).string(); }

  const fs::path folder_;
};

TEST_F(PolicyFileOnDiskTest, WritesWhatItLoads) {
  PolicyFile file = SmallFile();
  const std::string path = Path("a.whitpolicy");
  ASSERT_TRUE(WritePolicyFile(path, file).ok());
  file.key_means[0] = 42;
  ASSERT_TRUE(WritePolicyFile(path, file).ok());  // over the old one
  const auto loaded = LoadPolicyFile(path, file.model);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ(loaded->key_means, file.key_means);
  EXPECT_EQ(PeekFingerprint(path), file.model.fingerprint);
  EXPECT_EQ(std::distance(fs::directory_iterator(folder_), {}), 1);  // no temporary file is left
}

TEST_F(PolicyFileOnDiskTest, AnotherModelsFileNamesBoth) {
  const std::string path = Path("a.whitpolicy");
  ASSERT_TRUE(WritePolicyFile(path, SmallFile()).ok());
  ModelIdentity other = SmallFile().model;
  other.fingerprint = 0xFEDC;
  const absl::Status status = LoadPolicyFile(path, other).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(status.ToString(),
              testing::AllOf(HasSubstr(path), HasSubstr("0123456789abcdef"),
                             HasSubstr("000000000000fedc"), HasSubstr("whit-calibrate")));
  // A forged fingerprint does not make means of another shape fit.
  other = SmallFile().model;
  other.num_layers = 3;
  EXPECT_THAT(LoadPolicyFile(path, other).status().ToString(), HasSubstr("3 layers"));
}

TEST_F(PolicyFileOnDiskTest, ErrorsNameThePath) {
  const ModelIdentity model = SmallFile().model;
  const auto error = [&](const std::string& path) {
    return LoadPolicyFile(path, model).status().ToString();
  };
  EXPECT_EQ(error(Path("none")), absl::StrCat("NOT_FOUND: ", Path("none"), ": no such file"));
  EXPECT_THAT(error(folder_.string()), HasSubstr(": not a regular file"));
  const std::string path = Path("short.whitpolicy");
  std::ofstream(path, std::ios::binary) << SerializePolicyFile(SmallFile()).substr(0, 100);
  EXPECT_THAT(error(path), HasSubstr(absl::StrCat(path, ": truncated")));
  fs::resize_file(path, uintmax_t{100} << 20);
  EXPECT_THAT(error(path), HasSubstr("it has 104857600 bytes"));
  EXPECT_EQ(PeekFingerprint(Path("none")), std::nullopt);
  EXPECT_EQ(PeekFingerprint(folder_.string()), std::nullopt);

  const absl::Status status = WritePolicyFile(Path("none/a.whitpolicy"), SmallFile());
  EXPECT_THAT(status.ToString(), HasSubstr("none/a.whitpolicy: cannot write: No such file"));
}

}  // namespace
}  // namespace whit
