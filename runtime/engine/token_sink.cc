#include "runtime/engine/token_sink.h"
