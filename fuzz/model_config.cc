// Whatever the text, what is read of a config.json is refused with an Error, or it is the same after the config was written and read again.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/json.h"
#include "engine/model_config.h"
#include "model/architecture.h"
#include "model/config_json.h"
#include "weft/error.h"

namespace weft::fuzz {

/// All that is asked of a config, as a text; of one that is refused the message.
inline std::string read_of_config(const Json& config) {
  std::string said = architecture_class(config) + describe_quantization(config);
  try {
    if (const auto dtype = model::config_dtype(config)) said += to_string(*dtype);
    const model::Architecture* architecture = model::find_architecture(config);
    if (architecture == nullptr) return said;
    const int num_layers = model::num_layers(*architecture, config);
    said += std::to_string(num_layers) + (model::is_tied(*architecture, config) ? " tied" : " untied");
    // A model may have thousands of layers; the first few show what the rules make of the numbers.
    for (const model::TensorSlot& slot : model::tensor_slots(*architecture, config, num_layers < 3 ? num_layers : 3))
      said += slot.name + (slot.shape ? to_string(*slot.shape) : "");
  } catch (const Error& error) {
    if (error.exit_status() != 2 || error.message().empty()) std::abort();
    said += error.message();
  }
  return said;
}

}  // namespace weft::fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  weft::Json config;
  try {
    config = weft::parse_json(text, "config.json");
  } catch (const weft::Error&) {
    return 0;
  }
  if (!config.is_object()) return 0;
  const std::string said = weft::fuzz::read_of_config(config);
  if (weft::fuzz::read_of_config(weft::parse_json(weft::write_json(config, 2), "again.json")) != said) std::abort();
  weft::model::set_dtype(config, weft::DType::bf16);
  weft::model::set_tie_word_embeddings(config, true);
  weft::model::set_vocab_size(config, 17);
  (void)weft::parse_json(weft::write_json(config, 2, true), "edited.json");
  return 0;
}
