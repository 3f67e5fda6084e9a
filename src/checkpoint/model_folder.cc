#include "checkpoint/model_folder.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <system_error>

#include "base/file.h"
#include "base/text.h"
#include "checkpoint/gguf.h"
#include "weft/error.h"

namespace fs = std::filesystem;

namespace weft {

bool is_plain_file_name(std::string_view name) noexcept {
  if (name.empty() || name.size() > 255 || name.front() == '.' || name.front() == '~') return false;
  if (name.size() > 1 && name[1] == ':') return false;  // a drive
  return std::none_of(name.begin(), name.end(), [](char c) { return c == '/' || c == '\\' || static_cast<unsigned char>(c) < 0x20 || c == 0x7F; });
}

namespace {

bool is_below(const fs::path& folder, const fs::path& path) {
  const auto [end, rest] = std::mismatch(folder.begin(), folder.end(), path.begin(), path.end());
  return end == folder.end() && rest != path.end();
}

}  // namespace

bool stays_inside(const fs::path& folder, const fs::path& path) {
  std::error_code error;
  const fs::path real = fs::canonical(path, error);
  if (error) return false;
  const fs::path real_folder = fs::canonical(folder.empty() ? fs::path(".") : folder, error);
  if (error) return false;
  if (is_below(real_folder, real)) return true;
  // models--org--name/snapshots/COMMIT[/SUBFOLDER] holds links into models--org--name/blobs.
  for (fs::path part = real_folder; part.has_relative_path(); part = part.parent_path())
    if (part.filename() == "snapshots" && is_below(part.parent_path() / "blobs", real)) return true;
  return false;
}

// ---- The hub's cache ----------------------------------------------------------------------------------------------------------------------

namespace {

std::string variable(const char* name) {
  const char* value = std::getenv(name);
  return value ? value : "";
}

fs::path expand_home(const std::string& path) {
  if (path == "~" || path.starts_with("~/")) return fs::path(variable("HOME")) / (path.size() > 2 ? path.substr(2) : "");
  return path;
}

fs::path default_cache() {
  for (const char* name : {"HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"})
    if (const std::string value = variable(name); !value.empty()) return expand_home(value);
  if (const std::string home = variable("HF_HOME"); !home.empty()) return expand_home(home) / "hub";
  if (const std::string cache = variable("XDG_CACHE_HOME"); !cache.empty()) return expand_home(cache) / "huggingface" / "hub";
  return fs::path(variable("HOME")) / ".cache" / "huggingface" / "hub";
}

/// The hub's rule for one half of "org/name".
bool is_hub_name(std::string_view name) {
  const auto is_allowed = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '_' || c == '.';
  };
  return !name.empty() && name.size() <= 96 && std::all_of(name.begin(), name.end(), is_allowed) && name.front() != '.' && name.front() != '-' &&
         name.back() != '.' && name.back() != '-' && name.find("--") == std::string_view::npos && name.find("..") == std::string_view::npos;
}

/// A branch, tag, "refs/pr/1" or commit; becomes part of a path.
bool is_revision(std::string_view revision) {
  if (revision.empty() || revision.size() > 255 || revision.front() == '/' || revision.back() == '/') return false;
  for (std::size_t begin = 0; begin <= revision.size();) {
    const std::size_t end = std::min(revision.find('/', begin), revision.size());
    if (!is_plain_file_name(revision.substr(begin, end - begin))) return false;
    begin = end + 1;
  }
  return true;
}

std::vector<std::string> names_in(const fs::path& folder) {
  return path_kind(folder) == PathKind::folder ? list_directory(folder) : std::vector<std::string>();
}

std::string download_advice(std::string_view id, std::string_view revision) {
  return revision.empty() ? fmt::format("get it with 'hf download {}', or name a folder or file", id)
                          : fmt::format("get it with 'hf download {} --revision {}', or name a folder or file", id, revision);
}

/// The snapshot of a revision, or nothing.
std::optional<fs::path> find_snapshot(const fs::path& repository, const std::string& revision, const std::string& written) {
  const fs::path snapshots = repository / "snapshots";
  const std::string wanted = revision.empty() ? "main" : revision;
  if (const fs::path ref = repository / "refs" / wanted; path_kind(ref) == PathKind::file) {
    std::string commit = read_text_file(ref, 4096);
    while (!commit.empty() && (commit.back() == '\n' || commit.back() == '\r' || commit.back() == ' ')) commit.pop_back();
    if (!is_plain_file_name(commit))
      throw Error(ErrorCode::corrupt, fmt::format("the cache's ref '{}' holds '{}', which is no commit", wanted, printable(commit)),
                  {.file = ref.string()}, "remove this entry of the cache and download the model again");
    if (path_kind(snapshots / commit) == PathKind::folder) return snapshots / commit;
    return std::nullopt;
  }
  const std::vector<std::string> commits = names_in(snapshots);
  // Downloading a commit by its hash leaves no ref; then there is no doubt which one is meant.
  if (revision.empty()) return commits.size() == 1 ? std::optional(snapshots / commits.front()) : std::nullopt;
  std::vector<std::string> matching;
  for (const std::string& commit : commits)
    if (commit.starts_with(revision)) matching.push_back(commit);
  // Four characters are what git itself takes for an abbreviated hash.
  if (revision.size() < 4 || matching.empty()) return std::nullopt;
  if (matching.size() > 1)
    throw Error(ErrorCode::invalid_argument,
                fmt::format("'{}' fits {} commits in the Hugging Face cache: {}", written, matching.size(), fmt::join(matching, ", ")),
                {.file = snapshots.string()}, "give more characters of the commit");
  return snapshots / matching.front();
}

std::vector<std::string> known_revisions(const fs::path& repository) {
  std::vector<std::string> known = names_in(repository / "refs");
  for (const std::string& commit : names_in(repository / "snapshots")) known.push_back(commit.substr(0, 12));
  return known;
}

}  // namespace

ModelPath resolve_model(std::string_view model, const std::optional<fs::path>& cache) {
  const std::string written(model);
  if (written.empty())
    throw Error(ErrorCode::invalid_argument, "the name of the model is empty", {},
                "name a folder, a file, or org/name of the local Hugging Face cache");
  if (written.find('\0') != std::string::npos)
    throw Error(ErrorCode::invalid_argument, fmt::format("'{}' is no name of a model: it holds a NUL byte", printable(written)));
  const PathKind kind = path_kind(written);
  if (kind == PathKind::link)
    throw Error(ErrorCode::not_found, fmt::format("'{}' is a link that leads nowhere", printable(written)), {.file = written},
                "download or copy the model again");
  if (kind != PathKind::nothing) return {written, written, false};

  const std::size_t at = written.find('@');
  const std::string id = written.substr(0, at);
  const std::string revision = at == std::string::npos ? "" : written.substr(at + 1);
  const std::size_t slash = id.find('/');
  const bool is_id = slash == std::string::npos
                         ? is_hub_name(id)
                         : is_hub_name(std::string_view(id).substr(0, slash)) && is_hub_name(std::string_view(id).substr(slash + 1));
  const auto looks_like_file = [&id] {
    for (const std::string_view ending : {".safetensors", ".gguf", ".bin", ".pt", ".pth", ".json", ".yml", ".yaml"})
      if (id.ends_with(ending)) return true;
    return false;
  };
  if (!is_id || looks_like_file()) {
    const bool is_path = written.find('/') != std::string::npos || looks_like_file() || written.starts_with(".") || written.starts_with("~");
    throw Error(is_path ? ErrorCode::not_found : ErrorCode::invalid_argument,
                is_path ? fmt::format("there is no file or folder '{}'", printable(written))
                        : fmt::format("'{}' is neither a path that exists nor a name of the Hugging Face Hub", printable(written)),
                {.file = written}, "name a folder, a file, or org/name[@revision] of the local Hugging Face cache");
  }
  if (at != std::string::npos && !is_revision(revision))
    throw Error(ErrorCode::invalid_argument, fmt::format("'{}' is no revision of a model", printable(revision)), {.key = printable(written)},
                "give a branch, a tag or a commit behind the '@'");

  const fs::path folder = cache ? *cache : default_cache();
  std::string directory = "models--" + id;
  if (slash != std::string::npos) directory.replace(8 + slash, 1, "--");
  const fs::path repository = folder / directory;
  if (path_kind(repository) != PathKind::folder)
    throw Error(ErrorCode::not_found, fmt::format("'{}' is neither a path nor a model in the Hugging Face cache", written),
                {.file = repository.string()}, download_advice(id, revision));
  if (const std::optional<fs::path> snapshot = find_snapshot(repository, revision, written)) return {*snapshot, written, true};
  const std::vector<std::string> known = known_revisions(repository);
  throw Error(ErrorCode::not_found,
              fmt::format("the Hugging Face cache has '{}' but not its revision '{}'{}", id, revision.empty() ? "main" : revision,
                          known.empty() ? std::string() : fmt::format("; it has {}", fmt::join(known, ", "))),
              {.file = repository.string()}, download_advice(id, revision));
}

// ---- What a folder holds ------------------------------------------------------------------------------------------------------------------

namespace {

/// "model.safetensors.index.json" and, of a variant, "model.safetensors.index.fp16.json".
bool is_shard_index(std::string_view name) { return name.find(".safetensors.index.") != std::string_view::npos && name.ends_with(".json"); }

/// "model-00001-of-00003.safetensors"
bool is_shard(std::string_view name) {
  constexpr std::string_view kEnding = "-00001-of-00003.safetensors";
  if (name.size() <= kEnding.size()) return false;
  const std::string_view end = name.substr(name.size() - kEnding.size());
  for (std::size_t i = 0; i < end.size(); ++i) {
    const bool is_digit = end[i] >= '0' && end[i] <= '9';
    if (kEnding[i] >= '0' && kEnding[i] <= '9' ? !is_digit : end[i] != kEnding[i]) return false;
  }
  return true;
}

/// Beginnings of names that PyTorch's pickles have which are no models.
constexpr std::string_view kTrainerFiles[] = {"training_args", "optimizer", "scheduler", "rng_state", "scaler", "adapter_", "random_states", "global_step"};

bool ends_with_any(std::string_view name, std::initializer_list<std::string_view> endings) {
  return std::any_of(endings.begin(), endings.end(), [name](std::string_view ending) { return name.ends_with(ending); });
}

[[noreturn]] void throw_no_weights(const fs::path& folder, const std::vector<std::string>& names) {
  const auto has = [&names](std::string_view name) { return std::find(names.begin(), names.end(), name) != names.end(); };
  const auto first_with = [&names](std::initializer_list<std::string_view> endings) {
    const auto found = std::find_if(names.begin(), names.end(), [&](const std::string& name) { return ends_with_any(name, endings); });
    return found == names.end() ? std::string() : *found;
  };
  const auto fail = [&folder](ErrorCode code, std::string message, std::string advice) {
    throw Error(code, std::move(message), {.file = folder.string()}, std::move(advice));
  };
  if (const std::string shard = first_with({".safetensors"}); is_shard(shard))
    fail(ErrorCode::not_found, fmt::format("the folder holds shards ('{}', ...) but no model.safetensors.index.json", printable(shard)),
         "the download is incomplete; run 'hf download' again, or copy the index into the folder");
  if (has("model_index.json"))
    fail(ErrorCode::unsupported, "the folder is a pipeline of several models (model_index.json)",
         "name one of its subfolders, such as 'unet' or 'transformer'");
  if (const std::string other = first_with({".h5", ".msgpack", ".onnx", ".npz", ".ot", ".tflite"}); !other.empty())
    fail(ErrorCode::unsupported, fmt::format("the folder holds only weights of another format ('{}')", printable(other)),
         "convert them first: load the model with transformers and save it with save_pretrained, which writes safetensors");
  fail(ErrorCode::not_found, names.empty() ? "the folder is empty" : "the folder holds no weights (no .safetensors file, no shard index)",
       has("config.json") ? "the download is incomplete; run 'hf download' again" : "name a folder that holds a model, or a .safetensors file");
  std::abort();  // unreachable: fail throws
}

/// PyTorch files, where there is no safetensors; what a trainer leaves beside a model is none.
std::optional<FolderWeights> find_pickled_weights(const fs::path& folder, const std::vector<std::string>& names) {
  const auto has = [&names](std::string_view name) { return std::find(names.begin(), names.end(), name) != names.end(); };
  for (const std::string stem : {"pytorch_model", "diffusion_pytorch_model", "model"}) {
    if (has(stem + ".bin")) return FolderWeights{folder / (stem + ".bin"), false, {}};
    if (has(stem + ".bin.index.json")) return FolderWeights{folder / (stem + ".bin.index.json"), true, {}};
  }
  std::vector<std::string> found;
  for (const std::string& name : names) {
    if (!ends_with_any(name, {".bin", ".pt", ".pth", ".ckpt"}) || name.starts_with(".")) continue;
    const bool is_other = std::any_of(std::begin(kTrainerFiles), std::end(kTrainerFiles), [&](std::string_view stem) { return name.starts_with(stem); });
    if (!is_other) found.push_back(name);
  }
  if (found.size() == 1) return FolderWeights{folder / found.front(), false, {}};
  if (found.empty()) return std::nullopt;
  if (found.size() > 8) found.resize(8);
  for (std::string& name : found) name = printable(name);
  throw Error(ErrorCode::invalid_argument,
              fmt::format("the folder holds several PyTorch files and none is called pytorch_model.bin: {}", fmt::join(found, ", ")),
              {.file = folder.string()}, "name the one that you mean");
}

/// The only GGUF file of a folder, or the first part of the only one that was split. What projects images is no model by itself.
std::optional<fs::path> find_gguf(const fs::path& folder, const std::vector<std::string>& names) {
  std::vector<std::string> found;
  for (const std::string& name : names) {
    if (!name.ends_with(".gguf") || name.starts_with(".") || name.starts_with("mmproj")) continue;
    if (const auto part = parse_gguf_part_name(name); !part || part->number == 1) found.push_back(printable(name));
  }
  if (found.size() > 1)
    throw Error(ErrorCode::invalid_argument, fmt::format("the folder holds several GGUF models: {}", fmt::join(found, ", ")),
                {.file = folder.string()}, "name the one that you mean");
  return found.empty() ? std::nullopt : std::optional(folder / found.front());
}

}  // namespace

FolderWeights find_weights(const fs::path& folder) {
  const std::vector<std::string> names = list_directory(folder);
  const auto has = [&names](std::string_view name) { return std::find(names.begin(), names.end(), name) != names.end(); };
  for (const std::string stem : {"model", "diffusion_pytorch_model"}) {
    const std::string single = stem + ".safetensors", index = single + ".index.json";
    if (has(single)) {
      FolderWeights weights{folder / single, false, {}};
      // As transformers does: what is left over of an earlier save must not win.
      if (has(index))
        weights.warnings.push_back(
            fmt::format("the folder has both '{}' and '{}'; the single file is read and the index passed over", single, index));
      return weights;
    }
    if (has(index)) return {folder / index, true, {}};
  }
  const bool is_adapter = has("adapter_config.json") || has("adapter_model.safetensors") || has("adapter_model.bin");
  if (is_adapter && !has("config.json"))
    throw Error(ErrorCode::unsupported, "the folder holds an adapter, not a model", {.file = folder.string()},
                "an adapter is a change to a model: name MODEL+ADAPTER, or look into the adapter with 'weft adapter info'");

  std::vector<std::string> singles, indices;
  bool has_shards = false;
  for (const std::string& name : names) {
    if (is_shard_index(name)) indices.push_back(name);
    if (!name.ends_with(".safetensors") || name.starts_with(".")) continue;
    if (is_shard(name)) {
      has_shards = true;
    } else if (!(is_adapter && name.starts_with("adapter_"))) {
      singles.push_back(name);
    }
  }
  // An only file, whatever its name: a variant (model.fp16.safetensors), consolidated.safetensors, pytorch_model.safetensors.
  if (singles.size() + indices.size() == 1 && !(has_shards && indices.empty())) {
    if (indices.empty()) return {folder / singles.front(), false, {}};
    return {folder / indices.front(), true, {}};
  }
  if (singles.size() + indices.size() > 1) {
    singles.insert(singles.end(), indices.begin(), indices.end());
    if (singles.size() > 8) singles.resize(8);
    for (std::string& name : singles) name = printable(name);
    throw Error(ErrorCode::invalid_argument,
                fmt::format("the folder holds several checkpoints and none is called model.safetensors: {}", fmt::join(singles, ", ")),
                {.file = folder.string()}, "name the one that you mean");
  }
  if (std::optional<FolderWeights> pickled = find_pickled_weights(folder, names)) return std::move(*pickled);
  if (const std::optional<fs::path> gguf = has_shards ? std::nullopt : find_gguf(folder, names)) return {*gguf, false, {}};
  throw_no_weights(folder, names);
}

namespace {

bool is_companion(const std::string& name) {
  if (name.starts_with(".")) return false;
  // What training leaves behind, and how weights were packed that are unpacked as they are read.
  constexpr std::array<std::string_view, 7> kRunFiles = {"trainer_state.json", "all_results.json",    "train_results.json", "eval_results.json",
                                                         "adapter_config.json", "quantize_config.json", "quant_config.json"};
  if (std::find(kRunFiles.begin(), kRunFiles.end(), name) != kRunFiles.end()) return false;
  if (name.find(".index.") != std::string::npos && name.ends_with(".json")) return false;  // of shards, in whatever format
  if (name == "vocab.txt" || name == "merges.txt") return true;
  if (ends_with_any(name, {".json", ".jinja", ".model", ".tiktoken", ".py"})) return true;
  for (const std::string_view stem : {"LICENSE", "LICENCE", "NOTICE", "COPYING", "USE_POLICY", "Notice", "License"})
    if (name.starts_with(stem)) return !ends_with_any(name, {".safetensors", ".bin", ".gguf"});
  return false;
}

}  // namespace

std::vector<std::string> companion_files(const fs::path& folder) {
  std::vector<std::string> found;
  const auto add = [&](const std::string& name) {
    if (path_kind(folder / name) == PathKind::file && stays_inside(folder, folder / name)) found.push_back(name);
  };
  for (const std::string& name : list_directory(folder))
    if (is_companion(name)) add(name);
  // The one subfolder that tokenizers use.
  const std::string templates = "additional_chat_templates";
  if (path_kind(folder / templates) == PathKind::folder && stays_inside(folder, folder / templates))
    for (const std::string& name : list_directory(folder / templates))
      if (name.ends_with(".jinja") && !name.starts_with(".")) add(templates + "/" + name);
  std::sort(found.begin(), found.end());
  return found;
}

}  // namespace weft
