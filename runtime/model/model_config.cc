#include "runtime/model/model_config.h"
