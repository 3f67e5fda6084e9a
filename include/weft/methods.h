#pragma once
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "weft/export.h"

namespace weft {

struct MethodParameter {
  std::string name;
  std::string type;                     ///< "number", "integer", "boolean"
  std::string scope;                    ///< "global", "model"
  std::optional<double> default_value;  ///< absent: required, or no value
  bool required = false;
  std::string range;                    ///< "0..1", or empty
  std::string help;
};

/// What a method declares about itself.
struct MethodDescription {
  std::string name;
  std::string family;                   ///< "merge", "quantize"
  std::string summary;
  std::string paper;
  std::vector<MethodParameter> parameters;
  std::string models;                   ///< "1 or more", "2"
  std::string base;                     ///< "none", "optional", "required", "one of the two"
  bool calibration = false;             ///< it runs the models on texts
  int passes = 1;
  std::string determinism;              ///< "A", "B", "C"
  std::vector<std::string> formats;     ///< that hold the result: containers, or the formats of `weft quantize`
};

/// Every method of a family ("" for all), sorted. Throws invalid_argument for an unknown family.
[[nodiscard]] WEFT_API std::vector<MethodDescription> list_methods(std::string_view family = {});

}  // namespace weft
