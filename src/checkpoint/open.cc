#include <fmt/format.h>

#include <array>
#include <cstring>

#include "base/file.h"
#include "base/text.h"
#include "checkpoint/gguf.h"
#include "checkpoint/json.h"
#include "checkpoint/model_folder.h"
#include "checkpoint/npz.h"
#include "checkpoint/quantized_view.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/torch_file.h"
#include "weft/checkpoint.h"
#include "weft/error.h"

namespace weft {
namespace {

struct Recognised {
  ErrorCode code;
  std::string what;  ///< "a GGUF file"
  std::string advice;
};

bool begins_with_ignoring_case(std::string_view text, std::string_view lower) {
  if (text.size() < lower.size()) return false;
  for (std::size_t i = 0; i < lower.size(); ++i)
    if ((text[i] >= 'A' && text[i] <= 'Z' ? static_cast<char>(text[i] + 32) : text[i]) != lower[i]) return false;
  return true;
}

/// What people mistake for a safetensors file, by its first bytes.
std::optional<Recognised> recognise_other(std::string_view beginning) {
  using namespace std::string_view_literals;
  const auto convert = "convert it first: load the model with transformers and save it with save_pretrained, which writes safetensors";
  const auto download = "it was saved under this name by a failed download; fetch it again, with 'hf download' or a token if the model is gated";
  if (beginning.starts_with("ggml") || beginning.starts_with("lmgg") || beginning.starts_with("fmgg") || beginning.starts_with("tjgg"))
    return Recognised{ErrorCode::unsupported, "a GGML file, a format of the past", "name a model in safetensors"};
  if (beginning.starts_with("\x93NUMPY")) return Recognised{ErrorCode::unsupported, "a NumPy array (.npy)", "name a model in safetensors"};
  if (beginning.starts_with("\x89HDF\r\n\x1a\n"sv)) return Recognised{ErrorCode::unsupported, "an HDF5 file (Keras)", convert};
  if (beginning.starts_with("version https://git-lfs"))
    return Recognised{ErrorCode::corrupt, "a git-lfs pointer, not the file that it stands for",
                      "run 'git lfs pull' in the folder, or fetch the model with 'hf download'"};
  if (beginning.starts_with("\x1f\x8b") || beginning.starts_with("\x28\xb5\x2f\xfd") ||
      beginning.starts_with("\xfd"
                            "7zXZ") ||
      beginning.starts_with("7z\xbc\xaf") || beginning.starts_with("BZh"))
    return Recognised{ErrorCode::unsupported, "a compressed archive", "unpack it first"};
  if (beginning.size() > 262 && beginning.substr(257, 5) == "ustar") return Recognised{ErrorCode::unsupported, "a tar archive", "unpack it first"};

  std::string_view text = beginning;
  while (!text.empty() && (text.front() == ' ' || text.front() == '\n' || text.front() == '\r' || text.front() == '\t')) text.remove_prefix(1);
  for (const std::string_view page : {"<!doctype html"sv, "<html"sv, "<?xml"sv, "<error"sv})
    if (begins_with_ignoring_case(text, page)) return Recognised{ErrorCode::corrupt, "a web page, not a checkpoint", download};
  for (const std::string_view answer :
       {"Entry not found"sv, "Invalid username or password"sv, "Access to model"sv, "Invalid credentials"sv, "Repository not found"sv})
    if (text.starts_with(answer))
      return Recognised{ErrorCode::corrupt, fmt::format("an answer of the Hub ('{}'), not a checkpoint", answer), download};
  return std::nullopt;
}

enum class Form { safetensors, json, torch, gguf };

/// Which reader a file is for; the content decides. Throws for what is neither.
Form recognise(const File& file) {
  std::array<char, 512> buffer{};
  const std::string_view beginning(buffer.data(), file.read_some(0, std::as_writable_bytes(std::span(buffer))));
  const std::string path = file.path().string();
  if (beginning.empty())
    throw Error(ErrorCode::corrupt, "the file is empty", {.file = path}, "the download failed or the disk was full; fetch it again");
  // A plausible safetensors file is one, whatever else its length may spell.
  if (beginning.size() > 8) {
    std::uint64_t length = 0;
    for (std::size_t i = 8; i-- > 0;) length = length << 8 | static_cast<unsigned char>(beginning[i]);
    if (length <= kMaxSafetensorsHeaderBytes && beginning[8] == '{') return Form::safetensors;
  }
  if (beginning.starts_with("GGUF")) return Form::gguf;
  if (beginning.starts_with("PK\3\4") || beginning.starts_with("PK\5\6")) return Form::torch;
  if (beginning.size() > 1 && beginning[0] == '\x80' && beginning[1] >= 2 && beginning[1] <= 5) return Form::torch;
  if (const std::optional<Recognised> other = recognise_other(beginning))
    throw Error(other->code, "the file is " + other->what, {.file = path}, other->advice);
  const std::size_t first = beginning.find_first_not_of(" \t\r\n");
  if (first != std::string_view::npos && (beginning[first] == '{' || beginning[first] == '[')) return Form::json;
  if (beginning.find_first_not_of('\0') == std::string_view::npos && beginning.size() >= 16)
    throw Error(ErrorCode::corrupt, "the file begins with zeros only", {.file = path},
                "the download was cut off after the space was reserved; fetch it again");
  return Form::safetensors;
}

bool is_zip(const File& file) {
  std::array<char, 2> beginning{};
  return file.read_some(0, std::as_writable_bytes(std::span(beginning))) == 2 && beginning[0] == 'P' && beginning[1] == 'K';
}

/// Shards are of the form of the first one; what is called safetensors is not looked at twice.
std::shared_ptr<const Checkpoint> open_shards(const std::filesystem::path& index_path, const std::filesystem::path& named,
                                              std::vector<std::string> warnings, const OpenOptions& options) {
  ShardIndex index = read_shard_index(index_path);
  if (!index.shards.empty() && !index.shards.front().ends_with(".safetensors") &&
      recognise(File(shard_path(index_path, index.shards.front()), FileMode::read)) == Form::torch) {
    std::vector<std::filesystem::path> paths;
    for (const std::string& shard : index.shards) paths.push_back(shard_path(index_path, shard));
    OpenOptions as_named = options;
    as_named.keep_prefix = true;  // the index has the names as they are stored
    return open_torch_files(paths, named, std::move(warnings), as_named, &index, index_path);
  }
  return open_safetensors_shards(index_path, index, named, std::move(warnings));
}

/// config.json, with what other files of the folder say about how the weights are packed where it says nothing.
Json quantization_of_folder(const std::filesystem::path& folder) {
  Json config = Json::Object{};
  if (path_kind(folder / "config.json") == PathKind::file)
    if (Json read = read_json_file(folder / "config.json"); read.is_object()) config = std::move(read);
  if (config.find("quantization_config") != nullptr || config.find("compression_config") != nullptr) return config;
  for (const auto& [name, method] : {std::pair("quantize_config.json", "gptq"), std::pair("quant_config.json", "awq")}) {
    if (path_kind(folder / name) != PathKind::file) continue;
    Json beside = read_json_file(folder / name);
    if (!beside.is_object()) continue;
    if (beside.find("quant_method") == nullptr) beside.set("quant_method", method);
    config.set("quantization_config", std::move(beside));
    break;
  }
  return config;
}

}  // namespace

std::shared_ptr<const Checkpoint> open_weights_file(const std::filesystem::path& file, const std::filesystem::path& named,
                                                    std::vector<std::string> warnings, const OpenOptions& options) {
  switch (recognise(File(file, FileMode::read))) {
    case Form::json:
      return open_shards(file, named, std::move(warnings), options);
    case Form::torch:
      if (const File zip(file, FileMode::read); is_zip(zip) && is_npz(file_source(zip))) return open_npz(file, named, std::move(warnings));
      return open_torch_files({file}, named, std::move(warnings), options);
    case Form::gguf:
      return std::make_shared<GgufCheckpoint>(file, named, std::move(warnings));
    case Form::safetensors:
      break;
  }
  return open_safetensors_file(file, named, std::move(warnings));
}

std::shared_ptr<const Checkpoint> open_stored_model(std::string_view model, const OpenOptions& options) {
  const std::filesystem::path path = resolve_model(model).path;
  if (path_kind(path) != PathKind::folder) return open_weights_file(path, path, {}, options);
  FolderWeights weights = find_weights(path);
  std::shared_ptr<const Checkpoint> stored = open_weights_file(weights.file, path, weights.warnings, options);
  if (!has_packed_tensors(*stored)) return stored;
  std::string not_read;
  std::shared_ptr<const Checkpoint> values = decode_quantized(stored, quantization_of_folder(path), not_read);
  if (not_read.empty()) return values;
  weights.warnings.push_back(std::move(not_read));
  return open_weights_file(weights.file, path, std::move(weights.warnings), options);
}

}  // namespace weft
