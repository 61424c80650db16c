#include "controller/policy_lookup.h"
#include "tests/unit/support/process_temp_dir.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <string>

namespace whit {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

PolicyFile FileFor(uint64_t fingerprint) {
  PolicyFile file = {
      .model = {.fingerprint = fingerprint, .num_layers = 1, .num_kv_heads = 1, .head_dim = 16},
      .key_means = {},
      .notes = {}};
  file.key_means.resize(file.model.key_elements());
  return file;
}

// models/m.gguf, policies/ with a file for the model of fingerprint 1 and one for that of 2.
class PolicyLookupTest : public testing::Test {
 protected:
  PolicyLookupTest() : folder_(fs::path(ProcessTempDir()) / "policy_lookup_test") {
    fs::remove_all(folder_);
    fs::create_directories(folder_ / "models");
    fs::create_directories(folder_ / "policies");
    EXPECT_TRUE(WritePolicyFile(Path("policies/a.whitpolicy"), FileFor(2)).ok());
    EXPECT_TRUE(WritePolicyFile(Path("policies/b.whitpolicy"), FileFor(1)).ok());
    EXPECT_TRUE(WritePolicyFile(Path("policies/c.whitpolicy"), FileFor(1)).ok());
    lookup_ = {.path = "", .model_path = Path("models/m.gguf"), .directory = Path("policies")};
  }
  ~PolicyLookupTest() override { fs::remove_all(folder_); }

  std::string Path(const char* name) const { return (folder_ / name).string(); }
  // The path found, "none", or the error.
  std::string Find(uint64_t fingerprint) const {
    const auto found = FindPolicy(lookup_, FileFor(fingerprint).model);
    if (!found.ok()) return found.status().ToString();
    if (!found->has_value()) return "none";
    EXPECT_EQ((*found)->file.model.fingerprint, fingerprint);
    return fs::path((*found)->path).lexically_relative(folder_).string();
  }

  const fs::path folder_;
  PolicyLookup lookup_;
};

TEST_F(PolicyLookupTest, TheDirectoryIsSearchedByFingerprint) {
  EXPECT_EQ(Find(1), "policies/b.whitpolicy");  // the first by name
  EXPECT_EQ(Find(2), "policies/a.whitpolicy");
  EXPECT_EQ(Find(3), "none");
  lookup_.directory = Path("nowhere");
  EXPECT_EQ(Find(1), "none");
}

TEST_F(PolicyLookupTest, OtherFilesInTheDirectoryDoNotMatter) {
  std::ofstream(Path("policies/0.whitpolicy")) << "not a policy file, though it says so";
  ASSERT_TRUE(WritePolicyFile(Path("policies/0.other"), FileFor(1)).ok());
  EXPECT_EQ(Find(1), "policies/b.whitpolicy");
}

TEST_F(PolicyLookupTest, TheFileBesideTheModelComesFirst) {
  ASSERT_TRUE(WritePolicyFile(Path("models/m.whitpolicy"), FileFor(1)).ok());
  EXPECT_EQ(Find(1), "models/m.whitpolicy");
  // It claims to be the model's, so it is not passed over.
  EXPECT_THAT(Find(2), HasSubstr("models/m.whitpolicy: made for another model"));
}

TEST_F(PolicyLookupTest, AFileThatIsAskedForIsTheOnlyOne) {
  ASSERT_TRUE(WritePolicyFile(Path("models/m.whitpolicy"), FileFor(1)).ok());
  lookup_.path = Path("policies/c.whitpolicy");
  EXPECT_EQ(Find(1), "policies/c.whitpolicy");
  EXPECT_THAT(Find(2), HasSubstr("FAILED_PRECONDITION"));
  lookup_.path = Path("gone.whitpolicy");
  EXPECT_THAT(Find(1), HasSubstr("gone.whitpolicy: no such file"));
}

TEST_F(PolicyLookupTest, OffIsNone) {
  ASSERT_TRUE(WritePolicyFile(Path("models/m.whitpolicy"), FileFor(1)).ok());
  lookup_.path = "off";
  EXPECT_EQ(Find(1), "none");
}

TEST_F(PolicyLookupTest, ADamagedFileIsAnError) {
  fs::resize_file(Path("policies/b.whitpolicy"), 60);
  EXPECT_THAT(Find(1), HasSubstr("policies/b.whitpolicy: truncated"));
  EXPECT_EQ(Find(2), "policies/a.whitpolicy");
}

TEST(PolicyPathBesideTest, ReplacesTheModelsExtensionOnly) {
  EXPECT_EQ(PolicyPathBeside("models/m.Q4_1.gguf"), "models/m.Q4_1.whitpolicy");
  EXPECT_EQ(PolicyPathBeside("m.Q4_1"), "m.Q4_1.whitpolicy");
}

TEST(ShippedPolicyDirectoryTest, IsBesideTheFolderOfTheExecutable) {
  const fs::path directory = ShippedPolicyDirectory();
  const fs::path executable = fs::read_symlink("/proc/self/exe");
  EXPECT_EQ(directory, executable.parent_path().parent_path() / "share/whit/policies");
}

}  // namespace
}  // namespace whit
