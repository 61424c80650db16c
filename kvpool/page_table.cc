#include "kvpool/page_table.h"
