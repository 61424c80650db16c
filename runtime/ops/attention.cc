#include "runtime/ops/attention.h"
