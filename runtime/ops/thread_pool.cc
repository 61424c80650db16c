#include "runtime/ops/thread_pool.h"
