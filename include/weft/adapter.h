#pragma once
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "weft/export.h"
#include "weft/inspect.h"
#include "weft/job.h"

namespace weft {

/// What an adapter is, from its config and headers alone.
struct AdapterInfo {
  std::filesystem::path path;
  std::string kind;                     ///< "LORA", "IA3", ...
  std::string base_model;               ///< as its config names it; empty when it does not
  std::uint64_t num_parameters = 0;
  std::uint64_t size_bytes = 0;
  std::vector<std::pair<std::string, std::string>> settings;  ///< of the config, those that change how it acts: "use_dora", "true"
  struct Module {
    std::string name;
    std::optional<std::uint64_t> rank;  ///< of low-rank kinds
    std::optional<double> scale;        ///< of the product of its matrices
    bool replaces = false;              ///< the module is saved whole
    std::uint64_t num_parameters = 0;
  };
  std::vector<Module> modules;
};
/// adapter: a folder with adapter_config.json, a LoRA in a GGUF file, or a hub id in the local cache. Errors: not_found, corrupt, unsupported.
[[nodiscard]] WEFT_API AdapterInfo inspect_adapter(std::string_view adapter);

struct FoldAdapterOptions : ConvertOptions {
  double scale = 1;            ///< how far to go from the model (0) to the folded one (1)
  bool residual_base = false;  ///< the model is the residual that PiSSA, OLoRA and their like leave
};
/// Writes the model with the adapter folded in. Errors: as of opening MODEL+ADAPTER.
[[nodiscard]] WEFT_API JobReport fold_adapter(std::string_view model, std::string_view adapter, const std::filesystem::path& output,
                                              const FoldAdapterOptions& options = {});

struct ExtractOptions : JobOptions {
  std::optional<std::uint64_t> rank;       ///< at most; absent with energy: as many as that takes
  std::optional<double> energy;            ///< share of the squared norm of each difference to keep, above 0 and at most 1
  double smallest = 0;                     ///< singular values up to this are dropped
  std::string modules;                     ///< RE2, found in a module's name: only these become low-rank; empty: all
  std::string exclude;                     ///< and these do not
  bool embeddings = false;                 ///< make embeddings and head low-rank too, instead of saving them whole
  std::vector<std::string> save_modules;   ///< names (or their ends) of modules to save whole
  bool skip_undecomposable = false;        ///< leave out what cannot be low-rank (norms), instead of saving it whole
  std::optional<DType> dtype;              ///< of the adapter; absent: of the tuned model's tensors
};
/// How well one module was caught.
struct ExtractedModule {
  std::string name;
  std::uint64_t rank = 0;       ///< 0: saved whole
  double norm = 0;              ///< of the difference (Frobenius)
  double error = 0;             ///< of what was dropped, before rounding to the adapter's type
  bool randomized = false;      ///< by a randomized SVD; error is exact all the same
};
struct ExtractReport : JobReport {
  std::vector<ExtractedModule> modules;
};
/// Writes a LoRA adapter (PEFT) that turns base into tuned as nearly as its rank allows. Class C (LAPACK).
[[nodiscard]] WEFT_API ExtractReport extract_adapter(std::string_view base, std::string_view tuned, const std::filesystem::path& output,
                                                     const ExtractOptions& options);

struct CombineOptions : JobOptions {
  std::string how = "linear";        ///< "linear" (sums of the factors), "cat" (exact, ranks add up), "svd" (best of one rank)
  std::vector<double> weights;       ///< one for each adapter; empty: 1 each
  std::optional<std::uint64_t> rank; ///< for svd; absent: the largest of the adapters'
};
/// One LoRA adapter out of several, as PEFT's add_weighted_adapter. Errors: invalid_argument (weights, ranks that differ), unsupported (other kinds).
[[nodiscard]] WEFT_API JobReport combine_adapters(const std::vector<std::string>& adapters, const std::filesystem::path& output, const CombineOptions& options);

/// The adapter with its effect multiplied. Errors: unsupported for kinds whose effect is no product.
[[nodiscard]] WEFT_API JobReport scale_adapter(std::string_view adapter, const std::filesystem::path& output, double factor, const JobOptions& options = {});

/// The same LoRA under the names of another tool. to: "peft" (a folder), "gguf" (a file for llama.cpp), "kohya", "diffusers" (a .safetensors
/// file). base: a model whose names tell apart what kohya's names do not, and whose config tells how llama.cpp orders rows (needed from kohya and to and
/// from GGUF). Errors: unsupported, invalid_argument.
[[nodiscard]] WEFT_API JobReport convert_adapter(std::string_view adapter, const std::filesystem::path& output, std::string_view to, std::string_view base,
                                                 const JobOptions& options = {});

}  // namespace weft
