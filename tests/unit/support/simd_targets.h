// Runs a test body once for every SIMD target that was compiled in and that this machine has.
#ifndef WHIT_TESTS_UNIT_SUPPORT_SIMD_TARGETS_H_
#define WHIT_TESTS_UNIT_SUPPORT_SIMD_TARGETS_H_

// As in the kernels: HWY_TARGETS would lack this target otherwise.
#define HWY_WANT_AVX3_DL 1

#include <gtest/gtest.h>

#include <cstdint>

#include "hwy/highway.h"
#include "hwy/targets.h"

#if defined(__x86_64__) && !defined(HWY_DISABLED_TARGETS)
static_assert((HWY_TARGETS & HWY_AVX3_DL) != 0, "include this header before Highway's");
#endif

namespace whit {

template <typename Fn>
void ForEachSimdTarget(Fn body) {
  int64_t targets = hwy::SupportedTargets() & HWY_TARGETS;
  ASSERT_NE(targets, 0);
  while (targets != 0) {
    const int64_t target = targets & -targets;
    targets &= targets - 1;
    SCOPED_TRACE(hwy::TargetName(target));
    hwy::SetSupportedTargetsForTest(target);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
    body();
  }
  hwy::SetSupportedTargetsForTest(0);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

}  // namespace whit

#endif  // WHIT_TESTS_UNIT_SUPPORT_SIMD_TARGETS_H_
