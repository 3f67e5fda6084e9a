#include "engine/running_model.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "adapt/folded_model.h"
#include "base/budget.h"
#include "base/file.h"
#include "base/text.h"
#include "checkpoint/model_folder.h"
#include "engine/gguf_output.h"
#include "engine/lazy_model.h"
#include "engine/model_config.h"
#include "model/text_part.h"
#include "model/vocabulary.h"
#include "weft/error.h"

namespace weft::engine {

namespace {

void take_text_part(ModelFiles& files) {
  if (std::optional<model::TextPart> text = model::text_part(files.checkpoint, files.config)) {
    files.checkpoint = std::move(text->checkpoint);
    files.config = std::move(text->config);
  }
}

}  // namespace

ModelFiles open_model_files(std::string_view model) {
  ModelFiles files;
  const adapt::ModelWithAdapters parts = adapt::split_adapters(model);
  files.checkpoint = open_checkpoint(parts.model);
  // What an adapter adds is often less than a step of the model's type: it counts in full here, where nothing is stored.
  for (const std::string& adapter : parts.adapters)
    files.checkpoint =
        adapt::fold_adapter(std::move(files.checkpoint), std::make_shared<const adapt::Adapter>(adapt::open_adapter(resolve_model(adapter).path)),
                            {.dtype = DType::f32, .only_changed = true});
  const std::filesystem::path path = files.checkpoint->path();
  if (std::optional<model::HuggingFaceModel> held = adapt::held_model(files.checkpoint)) {
    files.checkpoint = std::move(held->checkpoint);
    files.folder = path;
    files.small_files = std::move(held->files);
    files.warnings = std::move(held->warnings);
    files.config = std::move(held->config);
    return files;
  }
  std::optional<Json> config;
  if (const auto folder = folder_of_model(path)) {
    files.folder = *folder;
    config = read_model_config(*folder);
  }
  if (!config)
    throw Error(ErrorCode::not_found, "there is no config.json beside the weights, which says how they run", {.file = path.string()},
                "name the model's folder");
  files.config = std::move(*config);
  adapt::follow_in_config(*files.checkpoint, files.config, files.warnings);
  take_text_part(files);
  return files;
}

ModelFiles files_of(const LazyModel& model) {
  if (!model.parts.config)
    throw Error(ErrorCode::not_found, "there is no config.json, which says how the weights run", {.file = model.name}, "name the model's folder");
  ModelFiles files;
  files.checkpoint = checkpoint_of(model);
  const auto folder = std::make_shared<const ScratchFolder>();
  write_companions(model, folder->path());
  files.folder = folder->path();
  files.holds = folder;
  files.config = *model.parts.config;
  take_text_part(files);
  return files;
}

std::optional<Json> ModelFiles::json_file(std::string_view name) const {
  for (const auto& [own, content] : small_files)
    if (own == name) return parse_json(content, folder);
  if (!small_files.empty() || path_kind(folder) != PathKind::folder) return std::nullopt;
  const std::filesystem::path file = folder / name;
  if (path_kind(file) != PathKind::file) return std::nullopt;
  return read_json_file(file);
}

RunningModel::RunningModel(std::string_view model, const RunOptions& options, std::shared_ptr<const model::ActivationRounding> rounding)
    : RunningModel(open_model_files(model), options, std::move(rounding)) {}

RunningModel::RunningModel(ModelFiles files, const RunOptions& options, std::shared_ptr<const model::ActivationRounding> rounding)
    : options_(options), files_(std::move(files)) {
  network_ = std::make_unique<model::Network>(files_.checkpoint, files_.config,
                                              model::NetworkOptions{.precision = options.precision,
                                                                    .threads = options.threads,
                                                                    .memory_bytes = options.memory_bytes,
                                                                    .allow_non_finite = options.allow_non_finite,
                                                                    .rounding = std::move(rounding)});
  for (const std::string& warning : files_.checkpoint->warnings()) warn(warning);
  for (const std::string& warning : files_.warnings) warn(warning);
  for (const std::string& warning : network_->warnings()) warn(warning);
}

void RunningModel::warn(const std::string& text) {
  warnings_.push_back(text);
  if (options_.on_warning) options_.on_warning(text);
}

bool RunningModel::has_tokenizer() const {
  if (path_kind(files_.folder) == PathKind::folder) return !model::tokenizer_files(files_.folder).empty();
  for (const auto& [name, content] : files_.small_files)
    if (name == "tokenizer.json") return true;
  return false;
}

const model::Tokenizer& RunningModel::tokenizer(std::string_view why) {
  if (tokenizer_) return *tokenizer_;
  if (!has_tokenizer())
    throw Error(ErrorCode::not_found, fmt::format("the model has no tokenizer, which {} needs", why), {.file = files_.folder.string()},
                "put its tokenizer.json beside config.json, or give token ids");
  if (files_.small_files.empty()) {
    tokenizer_.emplace(model::Tokenizer::open(files_.folder));
  } else {
    const std::optional<Json> config = files_.json_file("tokenizer_config.json");
    tokenizer_.emplace(model::Tokenizer::from_json(*files_.json_file("tokenizer.json"), config ? &*config : nullptr, files_.folder));
  }
  if (static_cast<std::int64_t>(tokenizer_->num_ids()) > config().vocab)
    warn(fmt::format("the tokenizer has ids up to {}, but the model's vocabulary ends at {}: some texts cannot be run", tokenizer_->num_ids() - 1,
                     config().vocab - 1));
  return *tokenizer_;
}

std::size_t RunningModel::rows_at_once() const {
  constexpr std::uint64_t kFew = 64, kUsual = 2048;
  const std::uint64_t budget = MemoryBudget(options_.memory_bytes).limit_bytes();
  const std::uint64_t row_bytes = static_cast<std::uint64_t>(config().hidden + 2 * config().kv_heads * config().head_dim) * sizeof(float);
  if (network_->is_resident())
    return static_cast<std::size_t>(std::clamp((budget - std::min(budget, network_->weight_bytes())) / 4 / row_bytes, kFew, kUsual));
  return static_cast<std::size_t>(std::clamp(budget / 8 / row_bytes, kFew, std::uint64_t{1} << 20));
}

void RunningModel::make_room(std::uint64_t size_bytes) {
  const std::size_t known = network_->warnings().size();
  network_->make_room(size_bytes);
  for (const std::string& warning : network_->warnings().subspan(known)) warn(warning);
}

void RunningModel::check_cancelled() const {
  if (options_.cancel != nullptr && options_.cancel->load()) throw Error(ErrorCode::interrupted, "interrupted", {}, "the same command starts again");
}

}  // namespace weft::engine
