#pragma once
#include "merge/method.h"

// The declarations of all methods; each is defined in the file of its name.
namespace weft::merge {

Method arcee_fusion();
Method karcher();
Method linear();
Method model_stock();
Method multislerp();
Method nuslerp();
Method passthrough();
Method sce();
Method slerp();

}  // namespace weft::merge
