#include "server/vllm/stored_zip.h"

#include <zlib.h>

#include <cstdint>

// The layout is that of PKWARE's APPNOTE.TXT: for each member a local header (4.3.7) and its bytes,
// then for each a central header (4.3.12), then the end record (4.3.16). Numbers are little-endian.
namespace whit {
namespace {

constexpr uint16_t kVersionNeeded = 10;  // 1.0: stored members
constexpr uint16_t kFirstDay = 0x21;     // 1980-01-01

void Append16(uint32_t value, std::string& out) {
  out += static_cast<char>(value);
  out += static_cast<char>(value >> 8);
}

void Append32(uint32_t value, std::string& out) {
  Append16(value, out);
  Append16(value >> 16, out);
}

// What local and central headers have in common.
void AppendDescription(const ZipMember& member, std::string& out) {
  const auto size = static_cast<uint32_t>(member.content.size());
  Append16(kVersionNeeded, out);
  Append16(0, out);  // flags
  Append16(0, out);  // method: stored
  Append16(0, out);  // time
  Append16(kFirstDay, out);
  Append32(
      static_cast<uint32_t>(crc32(0, reinterpret_cast<const Bytef*>(member.content.data()), size)),
      out);
  Append32(size, out);  // compressed
  Append32(size, out);
  Append16(static_cast<uint32_t>(member.name.size()), out);
  Append16(0, out);  // extra field
}

}  // namespace

std::string MakeStoredZip(absl::Span<const ZipMember> members) {
  std::string zip, directory;
  for (const ZipMember& member : members) {
    const auto offset = static_cast<uint32_t>(zip.size());
    zip += "PK\3\4";
    AppendDescription(member, zip);
    zip += member.name;
    zip += member.content;

    directory += "PK\1\2";
    Append16(kVersionNeeded, directory);  // made by
    AppendDescription(member, directory);
    Append16(0, directory);  // comment
    Append16(0, directory);  // disk
    Append16(0, directory);  // internal attributes
    Append32(0, directory);  // external attributes
    Append32(offset, directory);
    directory += member.name;
  }
  const auto count = static_cast<uint32_t>(members.size());
  const auto directory_offset = static_cast<uint32_t>(zip.size());
  zip += directory;
  zip += "PK\5\6";
  Append16(0, zip);  // this disk
  Append16(0, zip);  // the directory's disk
  Append16(count, zip);
  Append16(count, zip);
  Append32(static_cast<uint32_t>(directory.size()), zip);
  Append32(directory_offset, zip);
  Append16(0, zip);  // comment
  return zip;
}

}  // namespace whit
