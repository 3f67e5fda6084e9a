#include <fmt/format.h>

#include <memory>

#include "base/text.h"
#include "commands.h"
#include "common.h"
#include "result.h"
#include "weft/inspect.h"

namespace weft::app {
namespace {

struct Arguments {
  CommonOptions common;
  std::string model;
  std::string output;
  std::string to;
  std::string dtype;
  OpenOptions open;
};

int run_convert(const Arguments& arguments) {
  Console console(arguments.common);
  ConvertOptions options;
  console.fill(options);
  options.to = arguments.to;
  options.open = arguments.open;
  // Types of blocks, such as Q8_0, are no element types; the library knows which there are.
  const bool blocks = arguments.dtype.size() > 1 && (arguments.dtype[0] | 0x20) == 'q' && arguments.dtype[1] >= '0' && arguments.dtype[1] <= '9';
  if (blocks)
    options.block_type = arguments.dtype;
  else if (!arguments.dtype.empty())
    options.dtype = dtype_argument(arguments.dtype, "--dtype");
  const JobReport report = convert(arguments.model, arguments.output, options);
  console.finish();
  print_report(report, arguments.common, "converted " + arguments.model);
  return 0;
}

}  // namespace

Command convert_command() {
  auto arguments = std::make_shared<Arguments>();
  Command command;
  command.name = "convert";
  command.family = "Make";
  command.summary = "change the type of the weights, the shards, the container";
  command.synopsis = "IN OUT [OPTION]...";
  command.description =
      "OUT is a folder, or a single file when its name ends in .safetensors, .gguf or .npz. What is not weights (config, tokenizer, templates, licence) goes "
      "along into a folder, and into the metadata of a GGUF file. Values are rounded to nearest even; integer tensors keep their type.\n\n"
      "A GGUF file has llama.cpp's names and order of rows, and keeps norms and biases in float32; a GGUF file converted to a folder becomes a Hugging "
      "Face model again, its blocks decoded to float32 unless --dtype says otherwise. From GGUF to GGUF blocks are copied. With --max-shard-size a GGUF "
      "model that is larger becomes a folder of parts.\n\n"
      "NumPy does not know bfloat16 and the eight-bit floats: in a .npz file they become float32.";
  command.example = "weft convert models/tiny-base out/tiny-base-f32 --dtype float32";
  command.positional("IN", arguments->model, "a model");
  command.positional("OUT", arguments->output, "a folder or a file that does not exist");
  command.group("Converting");
  command.value({"--dtype"}, "TYPE", arguments->dtype,
                "type of the floating-point tensors: float32, bfloat16, float16, float8_e4m3fn, ...; for GGUF also Q8_0, Q4_K and other blocks")
      .default_text = "as stored";
  Option& to = command.value({"--to"}, "FORM", arguments->to, "what OUT is");
  to.kind = ValueKind::choice;
  to.choices = {"folder", "safetensors", "gguf", "npz"};
  to.default_text = "from the name of OUT";
  command.group("PyTorch files");
  command.value({"--root"}, "KEY", arguments->open.root, "the dictionary that is the model, as KEY or KEY.KEY").default_text = "found by the usual names";
  command.flag({"--keep-prefix"}, arguments->open.keep_prefix, "keep a 'module.' or '_orig_mod.' that all names begin with");
  add_output_options(command, arguments->common);
  add_job_options(command, arguments->common);
  add_print_options(command, arguments->common);
  command.run = [arguments] { return run_convert(*arguments); };
  return command;
}

}  // namespace weft::app
