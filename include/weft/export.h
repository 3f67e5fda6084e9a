#pragma once

/// Marks what the shared library shows. Everything else is hidden and may change any day.
#define WEFT_API __attribute__((visibility("default")))
