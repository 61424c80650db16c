#include "controller/precision_policy.h"
