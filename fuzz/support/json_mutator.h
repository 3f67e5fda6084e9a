#pragma once
#include <cstddef>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "checkpoint/json.h"
#include "weft/error.h"

extern "C" std::size_t LLVMFuzzerMutate(std::uint8_t* data, std::size_t size, std::size_t max_size);

namespace weft::fuzz {

using Random = std::minstd_rand;

inline std::size_t below(Random& random, std::size_t limit) { return limit == 0 ? 0 : random() % limit; }

inline std::string mutated_text(Random& random, std::string text) {
  static const char* const kTexts[] = {"",
                                       "..",
                                       "../../etc/passwd",
                                       "/",
                                       "F32",
                                       "BF16",
                                       "F4",
                                       "I64",
                                       "__metadata__",
                                       "format",
                                       "dtype",
                                       "shape",
                                       "data_offsets",
                                       "weight_map",
                                       "metadata",
                                       "model-00001-of-00002.safetensors",
                                       "LlamaForCausalLM",
                                       "architectures",
                                       "num_hidden_layers",
                                       "text_config",
                                       "\xc3\xa9",
                                       "a\x01z"};
  if (below(random, 3) == 0) return kTexts[below(random, std::size(kTexts))];
  const std::size_t size = text.size();
  text.resize(size + 16);
  text.resize(LLVMFuzzerMutate(reinterpret_cast<std::uint8_t*>(text.data()), size, text.size()));
  return text;
}

inline Json mutated_scalar(Random& random, const Json& value) {
  static const char* const kNumbers[] = {
      "0",     "1",   "-1", "7",      "2147483648", "4294967296", "9223372036854775807", "18446744073709551615", "18446744073709551616",
      "1e308", "1.5", "-0", "1e-400", "100000001"};
  switch (below(random, 6)) {
    case 0:
      return Json();
    case 1:
      return Json(below(random, 2) == 0);
    case 2:
      return Json(mutated_text(random, value.string() != nullptr ? *value.string() : std::string("x")));
    case 3:
      return Json(Json::Array{value, value});
    default:
      return Json(Json::Number{kNumbers[below(random, std::size(kNumbers))]});
  }
}

/// Changes one place of the tree: a value, a name, the number of members. Duplicate names are on purpose.
inline void mutate(Random& random, Json& value) {
  if (Json::Object* members = value.object(); members != nullptr && !members->empty()) {
    const std::size_t i = below(random, members->size());
    switch (below(random, 8)) {
      case 0:
        members->push_back((*members)[i]);
        return;
      case 1:
        members->erase(members->begin() + static_cast<std::ptrdiff_t>(i));
        return;
      case 2:
        (*members)[i].first = mutated_text(random, (*members)[i].first);
        return;
      case 3:
        std::swap((*members)[i].second, (*members)[below(random, members->size())].second);
        return;
      default:
        mutate(random, (*members)[i].second);
        return;
    }
  }
  if (Json::Array* items = value.array(); items != nullptr && !items->empty()) {
    const std::size_t i = below(random, items->size());
    switch (below(random, 6)) {
      case 0:
        items->push_back((*items)[i]);
        return;
      case 1:
        items->erase(items->begin() + static_cast<std::ptrdiff_t>(i));
        return;
      default:
        mutate(random, (*items)[i]);
        return;
    }
  }
  value = mutated_scalar(random, value);
}

/// Another JSON text made of this one; empty when this is none, or the result has no room.
inline std::string mutated_json(Random& random, std::string_view text, std::size_t max_size) {
  try {
    Json tree = parse_json(text, "mutator");
    for (std::size_t count = 1 + below(random, 4); count > 0; --count) mutate(random, tree);
    std::string written = write_json(tree, 0, below(random, 2) == 0);
    return written.size() <= max_size ? written : std::string();
  } catch (const Error&) {
    return {};
  }
}

}  // namespace weft::fuzz
