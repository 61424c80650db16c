#include "kvpool/page_pool.h"
