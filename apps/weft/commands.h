#pragma once
#include "command.h"

namespace weft::app {

Command info_command();
Command verify_command();
Command diff_command();
Command measure_command();
Command convert_command();
Command quantize_command();
Command merge_command();
Command search_command();
Command run_command();
Command layershuffle_command();
Command edit_command();
Command edit_dump_command();
Command edit_spaces_command();
Command edit_tokens_command();
Command adapter_info_command();
Command adapter_fold_command();
Command adapter_extract_command();
Command adapter_combine_command();
Command adapter_scale_command();
Command adapter_convert_command();
Command edit_metadata_command();
Command tokenize_command();
Command forward_command();
Command calibrate_command();
Command eval_command();
Command generate_text_command();
Command chat_command();
Command methods_command();
Command jobs_command();

// The merge command as mergekit's programs of these names.
Command mergekit_yaml_command();
Command mergekit_multi_command();

}  // namespace weft::app
