#pragma once
// The whole public interface.
#include "weft/checkpoint.h"
#include "weft/dtype.h"
#include "weft/edit.h"
#include "weft/error.h"
#include "weft/inspect.h"
#include "weft/job.h"
#include "weft/merge.h"
#include "weft/methods.h"
#include "weft/recipe.h"
#include "weft/version.h"
