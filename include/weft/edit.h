#pragma once
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "weft/job.h"

namespace weft {

/// One operation, as `weft edit` takes it: {"rename", "model\\.=backbone."}, {"tie", ""}.
struct EditOperation {
  std::string operation;
  std::string argument;
};

/// What an operation did to the model, or would do.
struct EditEffect {
  std::string operation = {};  ///< "rename model\.=backbone."
  std::uint64_t num_tensors = 0;
  std::string example = {};  ///< of one tensor
};

struct EditReport : JobReport {
  std::vector<EditEffect> effects;  ///< one an operation
};

/// Carries out operations in their order, each on what the one before it gives, in one pass from the model to the output. Files that travel with the
/// weights go along, config.json follows. Patterns are RE2, found anywhere in a name. Memory: that of a copy, and for transposed matrices up to 64
/// MiB each. Errors: invalid_argument (a pattern that matches nothing, names that collide, ...), and those of every job.
[[nodiscard]] WEFT_API EditReport edit_model(std::string_view model, const std::filesystem::path& output,
                                             const std::vector<EditOperation>& operations, const JobOptions& options = {});

/// Writes one tensor as a NumPy array; types that NumPy does not know become float32. Errors: not_found, unsupported, io, no_space, and
/// invalid_argument when the file is there and options.force is not set.
[[nodiscard]] WEFT_API JobReport dump_tensor(std::string_view model, std::string_view tensor, const std::filesystem::path& file,
                                             const JobOptions& options = {});

/// Changes to the metadata of a file.
struct MetadataEdit {
  /// KEY or, for GGUF, KEY:TYPE (u8, i8, ... f64, bool, string), and the value as text. A key that is there keeps its type unless one is given.
  std::vector<std::pair<std::string, std::string>> set;
  std::vector<std::string> remove;
};
/// Writes a GGUF or safetensors file with other metadata and the same tensors. Errors: invalid_argument (a value that does not fit its type, a key that
/// is not there), unsupported for other containers.
[[nodiscard]] WEFT_API JobReport edit_metadata(std::string_view model, const std::filesystem::path& output, const MetadataEdit& change,
                                               const JobOptions& options = {});

}  // namespace weft
