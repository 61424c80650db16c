#include "server/security/client_table.h"

#include <string>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace whit {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

std::string Hex(const Sha256Digest& digest) {
  return absl::BytesToHexString(
      absl::string_view(reinterpret_cast<const char*>(digest.data()), digest.size()));
}

// "NAME sha256:HEX" for a token.
std::string Line(const std::string& name, const std::string& token,
                 const std::string& limits = "") {
  return absl::StrCat(name, " sha256:", Hex(Sha256(token)), limits, "\n");
}

TEST(ClientTableTest, Sha256IsThatOfTheStandard) {
  EXPECT_EQ(Hex(Sha256("abc")), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

TEST(ClientTableTest, DigestsDifferByAnyBit) {
  const Sha256Digest digest = Sha256("abc");
  EXPECT_TRUE(ConstantTimeEqual(digest, Sha256("abc")));
  for (size_t i = 0; i < digest.size(); ++i) {
    Sha256Digest other = digest;
    other[i] ^= 1 << (i % 8);
    EXPECT_FALSE(ConstantTimeEqual(digest, other)) << i;
  }
}

TEST(ClientTableTest, FindsClientsByTheirTokens) {
  const absl::StatusOr<ClientTable> table = ClientTable::Parse(
      "# who may call\n\n" + Line("mobile", "secret-1", " max-requests=8") + "  " +
      Line("batch.night_2", "secret-2", "\tmax-queued-prompt-tokens=4000 max-requests=2\r") +
      Line("mobile", "secret-3", " max-requests=8"));
  ASSERT_TRUE(table.ok()) << table.status();
  EXPECT_EQ(table->size(), 3u);
  ASSERT_NE(table->FindByToken("secret-1"), nullptr);
  EXPECT_EQ(table->FindByToken("secret-1")->name, "mobile");
  EXPECT_EQ(table->FindByToken("secret-3")->name, "mobile");  // the next token, or the last
  EXPECT_EQ(table->FindByToken("secret-2")->name, "batch.night_2");
  for (const char* token : {"", "secret", "secret-11", "Secret-1", "mobile", " secret-1"}) {
    EXPECT_EQ(table->FindByToken(token), nullptr) << token;
  }

  EXPECT_EQ(table->LimitsOf("mobile").max_requests, 8);
  EXPECT_EQ(table->LimitsOf("mobile").max_queued_prompt_tokens, kNoLimit);
  EXPECT_EQ(table->LimitsOf("batch.night_2"),
            (ClientLimits{.max_requests = 2, .max_queued_prompt_tokens = 4000}));
  EXPECT_EQ(table->LimitsOf("nobody"), ClientLimits{});
}

TEST(ClientTableTest, NamesTheLineThatIsBadAndNeverWhatIsInIt) {
  const std::string good = Line("first", "secret-1");
  const std::string digest = Hex(Sha256("secret-2"));
  for (const auto& [line, message] : {
           std::pair<std::string, std::string>{"mobile", "sha256: and 64"},
           {"mobile t0psecret", "sha256: and 64"},
           {"mobile sha256:t0psecret", "sha256: and 64"},
           {"mobile sha256:" + digest + "t0psecret", "sha256: and 64"},
           {"mobile sha1:" + digest, "sha256: and 64"},
           {"mobile SHA256:" + digest.substr(2) + "zz", "sha256: and 64"},
           {"m/t0psecret sha256:" + digest, "letters, digits"},
           {std::string(65, 'm') + " sha256:" + digest, "letters, digits"},
           {"mobile sha256:" + digest + " max-requests=0", "max-requests is no whole number"},
           {"mobile sha256:" + digest + " max-requests=t0psecret", "max-requests is no whole"},
           {"mobile sha256:" + digest + " max-requests=", "max-requests is no whole number"},
           {"mobile sha256:" + digest + " max-requests=99999999999999999999", "no whole number"},
           {"mobile sha256:" + digest + " max-requests=1 max-requests=1", "given twice"},
           {"mobile sha256:" + digest + " t0psecret", "max-requests=N and"},
           {Line("second", "secret-1"), "client first above has the same token"},
           {Line("first", "secret-2", " max-requests=1"), "client first has other limits above"},
       }) {
    const absl::StatusOr<ClientTable> table = ClientTable::Parse("# comment\n" + good + line);
    ASSERT_FALSE(table.ok()) << line;
    EXPECT_EQ(table.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(table.status().message()),
                AllOf(HasSubstr("line 3: "), HasSubstr(message), Not(HasSubstr("t0psecret"))));
  }
}

TEST(ClientTableTest, AFileThatLetsNobodyInIsAMistake) {
  for (const char* text : {"", "\n\n", "# mobile sha256:00\n"}) {
    EXPECT_THAT(std::string(ClientTable::Parse(text).status().message()), HasSubstr("no client"));
  }
  std::string crowd;
  for (int i = 0; i <= 1000; ++i) crowd += Line("c", std::to_string(i));
  EXPECT_THAT(std::string(ClientTable::Parse(crowd).status().message()),
              HasSubstr("line 1001: more than 1000 tokens"));
}

}  // namespace
}  // namespace whit
