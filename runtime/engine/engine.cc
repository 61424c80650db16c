#include "runtime/engine/engine.h"
