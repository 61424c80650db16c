#include "kvpool/rung.h"
