#pragma once
#include "merge/method.h"

// The declarations of all methods; each is defined in the file of its name.
namespace weft::merge {

Method linear();

}  // namespace weft::merge
