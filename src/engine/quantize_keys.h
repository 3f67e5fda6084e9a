#pragma once
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "weft/quantize.h"

// Options of quantizing as texts: those of recipes, and rules in files.
namespace weft::engine {

/// Sets an option by the name that it has on the command line, without dashes. Options that may be given again take one value at a time.
/// Errors: invalid_argument for a key that there is not, naming the nearest, and for a value that is none of its kind.
void set_quantize_key(QuantizeOptions& options, const std::string& key, const std::string& value);
/// "3.2bpw", or a size in bytes ("2.1GiB", "1595263B"). Errors: invalid_argument.
void set_quantize_budget(LinearQuantization& linear, const std::string& text);

/// PATTERN, WHAT for each rule of a file: words PATTERN=WHAT, several to a line or one a line, # begins a comment; or a JSON object as GPTQModel's
/// "dynamic" is one ("+:PATTERN": {"bits": 4, "group_size": 64}, "-:PATTERN": {}), whose patterns match the beginning of a layer's name.
/// Errors: invalid_argument, corrupt.
[[nodiscard]] std::vector<std::pair<std::string, std::string>> read_quantize_rules(std::string_view text);

}  // namespace weft::engine
