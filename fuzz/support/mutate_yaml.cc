// For configs in YAML: works on lines, which is where their structure is: doubles, drops, moves and indents them, and puts other values behind a key.
#include <algorithm>
#include <cstring>

#include "json_mutator.h"

namespace {

const char* const kValues[] = {"linear",
                               "slerp",
                               "ties",
                               "passthrough",
                               "x",
                               "a/b",
                               "&a x",
                               "*a",
                               "null",
                               "~",
                               "yes",
                               "0.5",
                               "-1",
                               ".inf",
                               ".nan",
                               "1e-3",
                               "[0, 4]",
                               "[4, 0]",
                               "[]",
                               "{}",
                               "[{filter: q_proj, value: 1}, {value: 0}]",
                               "[0, 0.5, 1]",
                               "{<<: *a}",
                               "|",
                               ">-",
                               "\"\\u0000\"",
                               "!!python/object:os.system x",
                               "99999999999999999999",
                               "bfloat16",
                               "union",
                               "{source: base}"};
const char* const kKeys[] = {"merge_method",  "models",  "model",   "slices", "sources",   "layer_range", "base_model",       "parameters",
                             "weight",        "density", "t",       "dtype",  "out_dtype", "tokenizer",   "tokenizer_source", "tokens",
                             "chat_template", "name",    "modules", "filter", "value",     "<<"};

}  // namespace

extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size, std::size_t max_size, unsigned seed) {
  using weft::fuzz::below;
  weft::fuzz::Random random(seed);
  if (below(random, 4) == 0) return LLVMFuzzerMutate(data, size, max_size);
  std::vector<std::string> lines(1);
  for (std::size_t i = 0; i < size; ++i) {
    if (data[i] == '\n')
      lines.emplace_back();
    else
      lines.back() += static_cast<char>(data[i]);
  }
  for (std::size_t count = 1 + below(random, 3); count > 0; --count) {
    const std::size_t i = below(random, lines.size());
    std::string& line = lines[i];
    const std::size_t colon = line.find(':');
    switch (below(random, 8)) {
      case 0:
        lines.insert(lines.begin() + static_cast<std::ptrdiff_t>(i), std::string(line));
        break;
      case 1:
        if (lines.size() > 1) lines.erase(lines.begin() + static_cast<std::ptrdiff_t>(i));
        break;
      case 2:
        std::swap(line, lines[below(random, lines.size())]);
        break;
      case 3:
        line.insert(0, 1 + below(random, 3), ' ');
        break;
      case 4:
        line.erase(0, std::min(line.find_first_not_of(' '), 1 + below(random, 3)));
        break;
      case 5:
        if (colon != std::string::npos) line = line.substr(0, colon + 1) + " " + kValues[below(random, std::size(kValues))];
        break;
      case 6:
        if (colon != std::string::npos)
          line = line.substr(0, std::min(line.find_first_not_of(" -"), colon)) + kKeys[below(random, std::size(kKeys))] + line.substr(colon);
        break;
      default:
        lines.insert(
            lines.begin() + static_cast<std::ptrdiff_t>(i),
            below(random, 4) == 0 ? "---" : std::string(kKeys[below(random, std::size(kKeys))]) + ": " + kValues[below(random, std::size(kValues))]);
        break;
    }
  }
  std::string made;
  for (const std::string& line : lines) made += (made.empty() ? "" : "\n") + line;
  made.resize(std::min(made.size(), max_size));
  std::memcpy(data, made.data(), made.size());
  return made.size();
}
