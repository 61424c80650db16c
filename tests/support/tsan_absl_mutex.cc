// Tells ThreadSanitizer what absl::Mutex and absl::CondVar order.
//
// A distribution's Abseil is not built with ThreadSanitizer, which then sees a race in everything
// that a mutex guards. This file, linked into the tests of the tsan build only, defines the members
// in use again; they come first in symbol resolution, call the library's own, and annotate. Needs
// Abseil as shared libraries.
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "absl/base/options.h"
#include "absl/synchronization/mutex.h"

extern "C" {
void __tsan_acquire(void* address);
void __tsan_release(void* address);
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);

// What the library itself does under a lock that is not seen either.
const char* __tsan_default_suppressions() { return "race:synchronization_internal::GraphCycles\n"; }
}

namespace {

#define WHIT_STRING_OF(x) #x
#define WHIT_STRING(x) WHIT_STRING_OF(x)

// The library's own definition, by what follows the namespaces in its mangled name.
template <typename Fn>
Fn* Original(const char* member) {
  constexpr char kNamespace[] = WHIT_STRING(ABSL_OPTION_INLINE_NAMESPACE_NAME);
  const std::string name =
      "_ZN4absl" + std::to_string(std::strlen(kNamespace)) + kNamespace + member;
  void* symbol = dlsym(RTLD_NEXT, name.c_str());
  if (symbol == nullptr) {
    std::fprintf(stderr, "no %s in a shared library\n", name.c_str());
    std::abort();
  }
  return reinterpret_cast<Fn*>(symbol);
}

// The mutex is given up inside the call, if only for a while. The library then evaluates the
// conditions of waiting threads under the mutex; those reads come after the annotation.
class Releasing {
 public:
  explicit Releasing(absl::Mutex* mutex) {
    __tsan_release(mutex);
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
  }
  ~Releasing() { AnnotateIgnoreReadsEnd(__FILE__, __LINE__); }
};

}  // namespace

namespace absl {

void Mutex::Lock() {
  static auto* const original = Original<void(Mutex*)>("5Mutex4LockEv");
  original(this);
  __tsan_acquire(this);
}

void Mutex::Unlock() {
  static auto* const original = Original<void(Mutex*)>("5Mutex6UnlockEv");
  const Releasing releasing(this);
  original(this);
}

void Mutex::Await(const Condition& condition) {
  static auto* const original =
      Original<void(Mutex*, const Condition&)>("5Mutex5AwaitERKNS0_9ConditionE");
  {
    const Releasing releasing(this);
    original(this, condition);
  }
  __tsan_acquire(this);
}

bool Mutex::AwaitWithDeadline(const Condition& condition, Time deadline) {
  static auto* const original = Original<bool(Mutex*, const Condition&, Time)>(
      "5Mutex17AwaitWithDeadlineERKNS0_9ConditionENS0_4TimeE");
  bool result;
  {
    const Releasing releasing(this);
    result = original(this, condition, deadline);
  }
  __tsan_acquire(this);
  return result;
}

void CondVar::Wait(Mutex* mutex) {
  static auto* const original = Original<void(CondVar*, Mutex*)>("7CondVar4WaitEPNS0_5MutexE");
  {
    const Releasing releasing(mutex);
    original(this, mutex);
  }
  __tsan_acquire(mutex);
}

}  // namespace absl
