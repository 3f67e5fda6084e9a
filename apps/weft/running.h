#pragma once
#include <string>
#include <vector>

#include "command.h"
#include "common.h"
#include "weft/forward.h"

// What the commands that run a model share: forward, eval, generate.
namespace weft::app {

struct RunningOptions {
  CommonOptions common;
  std::string precision = "float32";
  std::vector<std::string> overlays;
};

/// --precision, and --overlay unless the command has its own.
void add_running_options(Command& command, RunningOptions& options);
/// Common options, precision.
void fill_running(Console& console, const RunningOptions& from, RunOptions& to);
/// The model with the overlays behind it: MODEL+ADAPTER+...
[[nodiscard]] std::string with_overlays(const std::string& model, const RunningOptions& options);

/// Lines of token ids: a JSON array, or an object with `ids` and perhaps `types`. Errors: invalid_argument, naming file and line.
[[nodiscard]] std::vector<ForwardInput> read_id_lines(const std::string& file);
/// One text a line, without its end of line; the last may lack it.
[[nodiscard]] std::vector<std::string> read_text_lines(const std::string& file);

}  // namespace weft::app
