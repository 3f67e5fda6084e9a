#pragma once
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "weft/job.h"

namespace weft {

/// Merging weights that are no models: whatever tensors the files hold, by name, without architecture, layers, config or tokenizer (as mergekit-pytorch
/// does). Gradients count at their beginning.
enum class PlainFiles {
  no,
  same_tensors,  ///< a tensor that some input lacks is an error
  intersection,  ///< it is left out
  all_tensors,   ///< it is merged from the inputs that have it
};

/// How a merge config is read and carried out, beside what every job takes.
struct MergeOptions : JobOptions {
  bool strict = false;                        ///< unknown keys and parameters are errors, not warnings
  bool allow_crimes = false;                  ///< models of different architectures
  bool unsafe_truncate_embeddings = false;    ///< cut vocabularies of unequal size to the smallest
  bool copy_tokenizer = true;
  bool write_model_card = true;
  PlainFiles plain_files = PlainFiles::no;
  bool write_into_existing = false;           ///< as mergekit does: put the files into an existing output folder
  std::optional<std::filesystem::path> transformers_cache;  ///< where hub ids are looked up
  std::optional<DType> lora_merge_dtype;      ///< type in which adapters are folded
};

/// Carries out a mergekit config (YAML text); paths in it are relative to the current folder, as for mergekit.
/// Errors: invalid_argument (config), not_found, corrupt, unsupported (inputs), io, no_space, out_of_memory.
/// Source: the grammar of mergekit 0.1.5.
[[nodiscard]] WEFT_API JobReport merge_models(std::string_view config_text, const std::filesystem::path& config_name, const std::filesystem::path& output,
                                              const MergeOptions& options = {});

struct MultiMergeOptions : MergeOptions {
  std::optional<std::filesystem::path> intermediate_dir;  ///< where named results go
  bool lazy = true;                                       ///< skip a named result that is already complete
};
/// Several documents separated by ---, each a config with a `name`; a name used as a model means that result. Runs in order of dependency.
[[nodiscard]] WEFT_API std::vector<JobReport> merge_multi(std::string_view config_text, const std::filesystem::path& config_name,
                                                          const std::optional<std::filesystem::path>& output, const MultiMergeOptions& options = {});

}  // namespace weft
