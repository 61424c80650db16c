#include "runtime/ops/cpu_extension.h"

#if defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace whit {

CpuExtension DetectCpuExtension() {
#if defined(__aarch64__) && defined(__linux__)
  static const bool dot_product = (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
  if (dot_product) return CpuExtension::kDotProduct;
#endif
  return CpuExtension::kNone;
}

}  // namespace whit
