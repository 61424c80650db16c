#include "runtime/text/stop_matcher.h"
