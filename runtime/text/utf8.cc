#include "runtime/text/utf8.h"
