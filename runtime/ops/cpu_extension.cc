#include "runtime/ops/cpu_extension.h"

#if defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#elif defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>
#endif

namespace whit {
namespace {

#if defined(__x86_64__) && defined(__linux__)

// The kernel gives a process tile registers, and the room to save them, only on request.
bool RequestTiles() {
  constexpr int kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr int kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

bool HasAmx() {
  uint32_t eax, ebx, ecx, edx;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return false;
  constexpr uint32_t kAvx512 = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31;  // F, DQ, BW, VL
  constexpr uint32_t kBFloat16Tiles = 1u << 22 | 1u << 24;
  return (ebx & kAvx512) == kAvx512 && (edx & kBFloat16Tiles) == kBFloat16Tiles && RequestTiles();
}

#endif

CpuExtension Detect() {
#if defined(__aarch64__) && defined(__linux__)
  if ((getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0) return CpuExtension::kDotProduct;
#elif defined(__x86_64__) && defined(__linux__)
  if (HasAmx()) return CpuExtension::kAmx;
#endif
  return CpuExtension::kNone;
}

}  // namespace

CpuExtension DetectCpuExtension() {
  static const CpuExtension extension = Detect();
  return extension;
}

}  // namespace whit
