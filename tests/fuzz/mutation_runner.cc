// Runs a fuzz target without libFuzzer: a bounded, repeatable number of mutations of a tiny model.
//   usage: NAME_fuzzer [MUTATIONS]
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <random>
#include <vector>

#include "tests/unit/support/tiny_model.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

using Bytes = std::vector<uint8_t>;

// Numbers at which sizes, signs and products overflow.
constexpr uint64_t kInteresting[] = {0,
                                     1,
                                     31,
                                     0x7F,
                                     0xFF,
                                     0xFFFF,
                                     0x7FFFFFFF,
                                     0x80000000,
                                     0xFFFFFFFF,
                                     uint64_t{1} << 32,
                                     uint64_t{1} << 58,
                                     uint64_t{1} << 61,
                                     ~uint64_t{0} >> 1,
                                     uint64_t{1} << 63,
                                     ~uint64_t{0} - 31,
                                     ~uint64_t{0}};

void Mutate(Bytes& bytes, size_t directory_bytes, std::mt19937& rng) {
  // Mostly in metadata and directory; the weights behind them are many and alike.
  const size_t range = rng() % 8 == 0 ? bytes.size() : std::min(directory_bytes, bytes.size());
  if (range < 16) return;
  const size_t at = rng() % (range - 8);
  switch (rng() % 6) {
    case 0:
      bytes[at] ^= static_cast<uint8_t>(1 << rng() % 8);
      break;
    case 1:
      bytes[at] = static_cast<uint8_t>(rng());
      break;
    case 2:
    case 3: {
      const uint64_t number = kInteresting[rng() % std::size(kInteresting)];
      std::memcpy(&bytes[at], &number, rng() % 2 == 0 ? 4 : 8);
      break;
    }
    case 4: {  // overwrite with another part of the file
      const size_t size = std::min<size_t>(1 + rng() % 64, bytes.size() - at);
      const size_t from = rng() % (bytes.size() - size + 1);
      std::memmove(&bytes[at], &bytes[from], size);
      break;
    }
    case 5:
      if (rng() % 4 == 0) bytes.resize(rng() % bytes.size());
      break;
  }
}

}  // namespace

int main(int argc, char** argv) {
  const long mutations = argc > 1 ? std::atol(argv[1]) : 20000;
  const whit::GgufWriter model = whit::MakeTinyModel(
      {.hidden_size = 32, .ffn_size = 32, .num_layers = 1, .num_heads = 2, .num_kv_heads = 1});
  const std::vector<std::byte> built = model.Build();
  const auto* begin = reinterpret_cast<const uint8_t*>(built.data());
  const Bytes valid(begin, begin + built.size());
  size_t weights = 0;
  for (const auto& tensor : model.tensors) weights += tensor.data.size();

  std::mt19937 rng(1);
  for (long i = 0; i < mutations; ++i) {
    Bytes bytes = valid;
    for (uint32_t n = 1 + rng() % 3; n > 0; --n) Mutate(bytes, valid.size() - weights, rng);
    bytes.shrink_to_fit();  // so that a sanitizer sees reads past the end
    LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
  }
  std::printf("%ld mutations\n", mutations);
}
