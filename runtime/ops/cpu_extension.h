// What this CPU has beyond the SIMD target that Highway chose for it.
#ifndef WHIT_RUNTIME_OPS_CPU_EXTENSION_H_
#define WHIT_RUNTIME_OPS_CPU_EXTENSION_H_

#include <cstdint>

namespace whit {

enum class CpuExtension : uint8_t {
  kNone,
  // Arm's sdot and udot: optional from Armv8.2 on, absent from the Cortex-A53 and A72 (Raspberry Pi
  // 4), there from the A55 and A76 on. None of Highway's targets before 1.1 includes them.
  kDotProduct,
  // Intel's tiles of bfloat16 (AMX), with AVX-512: in Xeons from Sapphire Rapids on.
  kAmx,
};

// Asks the operating system for what it gives only to who asks.
CpuExtension DetectCpuExtension();

}  // namespace whit

#endif  // WHIT_RUNTIME_OPS_CPU_EXTENSION_H_
