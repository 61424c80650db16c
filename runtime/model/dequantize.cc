#include "runtime/model/dequantize.h"
