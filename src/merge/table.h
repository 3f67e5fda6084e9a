#pragma once
#include "merge/method.h"

// The declarations of all methods; each is defined in the file of its name.
namespace weft::merge {

Method arcee_fusion();
Method breadcrumbs();
Method breadcrumbs_ties();
Method cabs();
Method dare_linear();
Method dare_ties();
Method della();
Method della_linear();
Method karcher();
Method lcsc();
Method linear();
Method model_stock();
Method multislerp();
Method nearswap();
Method negmerge();
Method nuslerp();
Method passthrough();
Method ram();
Method ramplus_tl();
Method restore_layers();
Method rtvq();
Method sce();
Method slerp();
Method task_analogy();
Method task_arithmetic();
Method ties();
Method time_vectors();
Method transfer();
Method tvq();

}  // namespace weft::merge
