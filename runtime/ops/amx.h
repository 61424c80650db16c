// Tiles of Intel's AMX, for kernels that run where DetectCpuExtension() is kAmx.
//
// A tile register has 16 rows of 64 bytes. MultiplyTiles takes
//   a  [16 rows][32 columns] bfloat16
//   b  [16 pairs of columns][16 outputs][2] bfloat16
// and adds their product to c, [16 rows][16 outputs] f32. Each element sums its 32 products in the
// same order, whatever the rest of its tile holds.
#ifndef WHIT_RUNTIME_OPS_AMX_H_
#define WHIT_RUNTIME_OPS_AMX_H_

#include <cstddef>
#include <cstdint>

namespace whit::amx {

inline constexpr size_t kTileRows = 16;
inline constexpr size_t kTileRowBytes = 64;
// Of bfloat16:
inline constexpr size_t kTileColumns = 32;
inline constexpr size_t kTileElements = kTileRows * kTileColumns;

#if defined(__x86_64__)

// While it exists, its thread may use all eight tiles, each of the full size. What another library
// had configured for the thread is so again afterwards.
class Tiles {
 public:
  Tiles() {
    asm volatile("sttilecfg %0" : "=m"(previous_));
    Configuration all;
    all.palette = 1;
    for (int tile = 0; tile < 8; ++tile) {
      all.row_bytes[tile] = kTileRowBytes;
      all.rows[tile] = kTileRows;
    }
    asm volatile("ldtilecfg %0" ::"m"(all));
  }
  ~Tiles() {
    if (previous_.palette != 0) {
      asm volatile("ldtilecfg %0" ::"m"(previous_));
    } else {
      asm volatile("tilerelease");  // else the operating system would go on saving them
    }
  }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;

 private:
  struct alignas(64) Configuration {
    uint8_t palette = 0;
    uint8_t start_row = 0;
    uint8_t reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
  };
  Configuration previous_;
};

template <int kTile>
inline void ZeroTile() {
  asm volatile("tilezero %%tmm%c0" ::"i"(kTile));
}

// Rows lie `stride` bytes apart.
template <int kTile>
inline void LoadTile(const void* from, size_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(kTile) : "memory");
}

// Hints that the rows need not stay in the first-level cache.
template <int kTile>
inline void StreamTile(const void* from, size_t stride) {
  asm volatile("tileloaddt1 (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(kTile) : "memory");
}

template <int kTile>
inline void StoreTile(void* to, size_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(kTile) : "memory");
}

template <int kC, int kA, int kB>
inline void MultiplyTiles() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kC), "i"(kA), "i"(kB));
}

#endif  // __x86_64__

}  // namespace whit::amx

#endif  // WHIT_RUNTIME_OPS_AMX_H_
