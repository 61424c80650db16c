#include "runtime/model/gguf.h"
