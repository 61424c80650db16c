#include "runtime/text/chat_format.h"
