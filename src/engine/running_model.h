#pragma once
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "checkpoint/json.h"
#include "model/network.h"
#include "model/tokenizer.h"
#include "weft/checkpoint.h"
#include "weft/forward.h"

// What every command that runs a model begins with: its weights, config, network and, when asked for, its tokenizer.
namespace weft::engine {

struct LazyModel;

struct ModelFiles {
  std::shared_ptr<const Checkpoint> checkpoint;
  std::filesystem::path folder;  ///< of config.json; for a GGUF file the file itself
  Json config;
  std::vector<std::pair<std::string, std::string>> small_files;  ///< out of a GGUF file: tokenizer.json and its like, name and content
  std::vector<std::string> warnings;
  std::shared_ptr<const void> holds = nullptr;  ///< what is there for as long as these are

  /// Parsed; nothing when the model has no such file. Errors: corrupt.
  [[nodiscard]] std::optional<Json> json_file(std::string_view name) const;
};
/// MODEL, or MODEL+ADAPTER with the changed tensors in float32. Errors: not_found without a config.json, corrupt, unsupported.
[[nodiscard]] ModelFiles open_model_files(std::string_view model);

/// Of a model that exists as views: its small files stand in a folder of their own meanwhile. Errors: not_found without a config.
[[nodiscard]] ModelFiles files_of(const LazyModel& model);

class RunningModel {
 public:
  /// rounding: of what its linear layers read; null: none.
  RunningModel(std::string_view model, const RunOptions& options, std::shared_ptr<const model::ActivationRounding> rounding = nullptr);
  RunningModel(ModelFiles files, const RunOptions& options, std::shared_ptr<const model::ActivationRounding> rounding = nullptr);

  [[nodiscard]] model::Network& network() noexcept { return *network_; }
  [[nodiscard]] const model::NetworkConfig& config() const noexcept { return network_->config(); }
  [[nodiscard]] const Json& json() const noexcept { return files_.config; }
  [[nodiscard]] const ModelFiles& files() const noexcept { return files_; }
  /// Read when first asked for. Errors: not_found, saying what needs it; corrupt for one with ids beyond the model's vocabulary.
  [[nodiscard]] const model::Tokenizer& tokenizer(std::string_view why);
  [[nodiscard]] bool has_tokenizer() const;
  /// Of the model; also told to options.on_warning.
  [[nodiscard]] const std::vector<std::string>& warnings() const noexcept { return warnings_; }
  void warn(const std::string& text);

  /// How many rows to run at once: many where every run reads the weights anew.
  [[nodiscard]] std::size_t rows_at_once() const;
  /// Network::make_room, telling its warnings.
  void make_room(std::uint64_t size_bytes);
  /// Throws interrupted when the job was cancelled.
  void check_cancelled() const;

 private:
  RunOptions options_;
  ModelFiles files_;
  std::unique_ptr<model::Network> network_;
  std::optional<model::Tokenizer> tokenizer_;
  std::vector<std::string> warnings_;
};

}  // namespace weft::engine
