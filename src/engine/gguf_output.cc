#include "engine/gguf_output.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <system_error>

#include "adapt/folded_model.h"
#include "base/file.h"
#include "base/text.h"
#include "checkpoint/arranged_view.h"
#include "checkpoint/gguf.h"
#include "model/architecture.h"
#include "model/gguf_config.h"
#include "model/gguf_names.h"
#include "model/gguf_vocabulary.h"
#include "weft/error.h"

namespace weft::engine {
namespace {

namespace fs = std::filesystem;

std::uint64_t elements_of(const Shape& shape) {
  std::uint64_t count = 1;
  for (const std::int64_t dim : shape) count *= static_cast<std::uint64_t>(dim);
  return count;
}

/// The number that llama.cpp gives to the type that most weights have.
std::uint32_t file_type_of(const std::vector<GgufTensorSpec>& specs) {
  std::map<std::uint32_t, std::uint64_t> sizes;
  for (const GgufTensorSpec& spec : specs)
    if (spec.shape.size() >= 2) sizes[spec.type] += elements_of(spec.shape);
  std::uint32_t type = 0;
  std::uint64_t most = 0;
  for (const auto& [id, size] : sizes)
    if (size > most) {
      most = size;
      type = id;
    }
  constexpr std::pair<std::uint32_t, std::uint32_t> kFileTypes[] = {
      {0, 0},   {1, 1},   {2, 2},   {3, 3},   {6, 8},   {7, 9},   {8, 7},   {10, 10}, {11, 12}, {12, 15}, {13, 17}, {14, 18}, {16, 19}, {17, 20},
      {18, 23}, {19, 24}, {20, 25}, {21, 26}, {22, 28}, {23, 30}, {29, 31}, {30, 32}, {34, 36}, {35, 37}, {39, 38}, {40, 39}, {41, 40}, {42, 41}};
  for (const auto& [id, file_type] : kFileTypes)
    if (id == type) return file_type;
  return 1024;  // "guessed"
}

std::string size_label(std::uint64_t parameters) {
  const auto rounded = [](double scaled, const char* unit) {
    // Two digits at least: 1.7M, 17M, 170M.
    return scaled < 9.5 ? fmt::format("{:.1f}{}", scaled, unit) : fmt::format("{:.0f}{}", scaled, unit);
  };
  const auto count = static_cast<double>(parameters);
  if (count > 1e12) return rounded(count * 1e-12, "T");
  if (count > 1e9) return rounded(count * 1e-9, "B");
  if (count > 1e6) return rounded(count * 1e-6, "M");
  return rounded(count * 1e-3, "K");
}

/// Stores a tensor as the given type, or as near to it as its shape allows.
struct Written {
  GgufTensorSpec spec;
  DType stream = DType::f32;  ///< what the stream gives
  std::string method;
};

Written written(std::string name, const Shape& shape, DType own, bool float32, const GgufWeightType& type) {
  Written out;
  out.spec.name = std::move(name);
  out.spec.shape = shape;
  const auto plain = [&](DType dtype) {
    const std::optional<std::uint32_t> id = gguf_type_of(dtype);
    if (!id)
      throw Error(ErrorCode::unsupported,
                  fmt::format("tensor '{}' is {}, a type that GGUF files do not have", printable(out.spec.name), to_string(own)),
                  {.tensor = out.spec.name}, "leave it out or cast it with 'weft edit'");
    out.spec.type = *id;
    out.spec.dtype = out.stream = dtype;
    out.method = dtype == own ? "copy" : "cast";
  };
  if (!is_decodable_float(own)) {
    plain(own);
  } else if (float32) {
    plain(DType::f32);
  } else if (type.codec != nullptr) {
    if (!shape.empty() && static_cast<std::uint64_t>(shape.back()) % type.codec->block_elements == 0) {
      out.spec.type = type.codec->ggml_id;
      out.spec.codec = type.codec;
      out.stream = DType::f32;
      out.method = fmt::format("encode {}", type.codec->name);
    } else {
      plain(DType::f16);
    }
  } else if (type.dtype) {
    plain(*type.dtype);
  } else if (own == DType::f64) {
    plain(DType::f32);
  } else {
    // Every float of 8 and 4 bits is a bfloat16 without rounding.
    plain(gguf_type_of(own) ? own : DType::bf16);
  }
  return out;
}

/// names: of the model's tensors that it comes from.
void add_tensor(OutputJob& job, const std::string& model, const std::vector<std::string>& names, const TensorRef& source, Written what,
                bool checks_finite) {
  StreamTensor tensor;
  tensor.name = what.spec.name;
  tensor.shape = source.tensor->shape;
  tensor.dtype = what.stream;
  tensor.inputs = {source};
  tensor.input_names = {model};
  tensor.checks_finite = checks_finite;
  PlannedTensor described;
  described.name = what.spec.name;
  described.dtype = what.spec.codec != nullptr ? DType::f32 : what.stream;
  described.shape = what.spec.shape;
  for (const std::string& name : names) described.inputs.push_back(fmt::format("{}:{}", model, name));
  described.method = std::move(what.method);
  job.tensors.push_back(std::move(tensor));
  job.described.push_back(std::move(described));
  job.gguf->encodes.push_back(what.spec.codec != nullptr && what.stream == DType::f32);
  job.gguf->tensors.push_back(std::move(what.spec));
}

/// A tensor of a GGUF file. type: what it becomes; null: it stays what it is, its blocks (own) byte for byte.
void add_held_tensor(OutputJob& job, const std::string& model, const std::shared_ptr<const Checkpoint>& checkpoint,
                     const std::shared_ptr<const Checkpoint>& stored, const TensorInfo& info, const codec::BlockCodec* own,
                     const GgufWeightType* type) {
  if (type == nullptr && own != nullptr) {
    Written what;
    what.spec = {info.name, own->ggml_id, own, DType::f32, info.shape};
    what.stream = DType::u8;
    what.method = "copy";
    add_tensor(job, model, {info.name}, {stored, &stored->tensor(info.name)}, std::move(what), false);
    return;
  }
  Written what = written(info.name, info.shape, info.dtype, false, type == nullptr ? GgufWeightType{} : *type);
  const bool rounds = what.stream != info.dtype || what.spec.codec != nullptr;
  add_tensor(job, model, {info.name}, {checkpoint, &info}, std::move(what), rounds);
}

/// A GGUF file to a GGUF file; where `folded` has a changed tensor, that one takes the place of the file's.
OutputJob copy_job(const std::string& name, const std::shared_ptr<const Checkpoint>& checkpoint, const GgufWeightType& type,
                   const model::GgufTensors* folded, const std::vector<bool>& changed) {
  const GgufCheckpoint* gguf = as_gguf(*checkpoint);
  if (gguf == nullptr) throw Error(ErrorCode::internal, "no GGUF file", {.file = checkpoint->path().string()});
  OutputJob job;
  job.gguf.emplace();
  job.gguf->metadata = gguf->whole_metadata();
  const bool converts = type.dtype || type.codec != nullptr;
  const std::shared_ptr<const Checkpoint> stored = make_stored_view(checkpoint);
  std::map<std::string_view, std::size_t> in_view;
  if (folded != nullptr)
    for (std::size_t i = 0; i < changed.size(); ++i)
      if (changed[i]) in_view.emplace(folded->view->tensors()[i].name, i);
  std::uint64_t num_decoded = 0;
  const auto add_folded = [&](std::size_t i, const codec::BlockCodec* own) {
    const TensorInfo& info = folded->view->tensors()[i];
    GgufWeightType wanted = type;
    // What was decoded has more digits than its blocks had; those of 16 bits hold them well.
    if (!converts && own != nullptr) {
      wanted.dtype = DType::f16;
      ++num_decoded;
    }
    Written what = written(info.name, info.shape, info.dtype, folded->float32[i], wanted);
    add_tensor(job, name, folded->sources[i], {folded->view, &info}, std::move(what), true);
  };
  for (const TensorInfo& info : checkpoint->tensors()) {
    const codec::BlockCodec* own = info.stored_as.empty() ? nullptr : codec::find_block_codec(info.stored_as);
    if (const auto found = in_view.find(info.name); found != in_view.end()) {
      add_folded(found->second, own);
      in_view.erase(found);
      continue;
    }
    // What is float32 for its own sake stays so.
    const bool stays = !converts || !is_decodable_float(info.dtype) || model::is_float32_in_gguf(info.name, info.shape.size()) ||
                       (own != nullptr && own == type.codec);
    add_held_tensor(job, name, checkpoint, stored, info, own, stays ? nullptr : &type);
  }
  for (const auto& [own_name, i] : in_view) {  // a head that is the embedding no more
    const TensorInfo* embedding = checkpoint->find_tensor("token_embd.weight");
    add_folded(i, embedding == nullptr || embedding->stored_as.empty() ? nullptr : codec::find_block_codec(embedding->stored_as));
  }
  if (num_decoded > 0)
    job.warnings.push_back(
        fmt::format("{} tensors that the file holds in blocks were decoded to fold the adapter in, and are written as F16; --dtype "
                    "chooses another type for all",
                    num_decoded));
  if (converts || num_decoded > 0) job.gguf->metadata.set("general.file_type", GgufValue::u32(file_type_of(job.gguf->tensors)));
  return job;
}

}  // namespace

ScratchFolder::ScratchFolder() {
  std::string pattern = (fs::temp_directory_path() / "weft-model-XXXXXX").string();
  if (::mkdtemp(pattern.data()) == nullptr) throw Error(ErrorCode::io, "cannot make a temporary folder", {.file = pattern});
  path_ = pattern;
}
ScratchFolder::ScratchFolder(const fs::path& output) {
  const fs::path own = fs::absolute(output).lexically_normal();
  const fs::path place = own.has_filename() ? own : own.parent_path();
  std::error_code failed;
  fs::create_directories(place.parent_path(), failed);
  std::string pattern = (place.parent_path() / fmt::format(".{}.weft-scratch-XXXXXX", place.filename().string())).string();
  if (::mkdtemp(pattern.data()) == nullptr) throw Error(ErrorCode::io, "cannot make a folder for what is made on the way", {.file = pattern});
  path_ = pattern;
}
ScratchFolder::~ScratchFolder() {
  std::error_code ignored;
  fs::remove_all(path_, ignored);
}

GgufWeightType gguf_weight_type(const std::optional<DType>& dtype, const std::string& block_type) {
  GgufWeightType type{dtype, nullptr};
  const auto refuse = [](const std::string& name) {
    std::string known = "float32, float16, bfloat16";
    for (const codec::BlockCodec& codec : codec::block_codecs())
      if (codec.encode_row != nullptr) known += ", " + std::string(codec.name);
    throw Error(ErrorCode::invalid_argument, fmt::format("cannot convert weights to {} in a GGUF file", printable(name)), {.key = "dtype"},
                "types: " + known);
  };
  if (!block_type.empty()) {
    type.codec = codec::find_block_codec(block_type);
    if (type.codec == nullptr || type.codec->encode_row == nullptr) refuse(block_type);
    type.dtype.reset();
  } else if (dtype && *dtype != DType::f32 && *dtype != DType::f16 && *dtype != DType::bf16) {
    refuse(std::string(to_string(*dtype)));
  }
  return type;
}

std::string title_of(const fs::path& path) {
  std::error_code ignored;
  fs::path whole = fs::absolute(path, ignored).lexically_normal();
  if (whole.filename().empty()) whole = whole.parent_path();
  std::string name = fs::is_directory(path, ignored) ? whole.filename().string() : whole.stem().string();
  bool at_start = true;
  for (char& c : name) {
    if (c == '-' || c == '_') c = ' ';
    if (at_start && c >= 'a' && c <= 'z') c = static_cast<char>(c - 32);
    at_start = c == ' ';
  }
  return is_valid_utf8(name) ? name : printable(name);
}

namespace {

GgufChooser always(const GgufWeightType& type) {
  return [type](const std::vector<GgufCandidate>& candidates, const GgufMetadata&) { return std::vector<GgufWeightType>(candidates.size(), type); };
}

}  // namespace

OutputJob gguf_job(const GgufSource& source, const GgufWeightType& type) { return gguf_job_choosing(source, always(type)); }

OutputJob gguf_copy_job(const std::string& name, const std::shared_ptr<const Checkpoint>& checkpoint, const GgufWeightType& type) {
  return copy_job(name, checkpoint, type, nullptr, {});
}

OutputJob gguf_job_choosing(const GgufSource& source, const GgufChooser& choose) {
  const model::Architecture* architecture = model::find_architecture(source.config);
  if (architecture == nullptr) architecture = model::find_architecture_family(source.config);
  const model::GgufFamily* family = architecture == nullptr ? nullptr : model::gguf_family_of(*architecture);
  if (family == nullptr) {
    const Json* model_type = source.config.find("model_type");
    throw Error(ErrorCode::unsupported,
                fmt::format("weft does not know how llama.cpp names the tensors of a '{}' model",
                            model_type != nullptr && model_type->string() != nullptr ? printable(*model_type->string()) : "nameless"),
                {.file = source.folder.string(), .key = "model_type"},
                "llama, mistral, mixtral, qwen, gemma, phi3, olmo2, gpt2, gptneox and bert can be written");
  }
  OutputJob job;
  job.gguf.emplace();
  model::GgufTensors tensors = model::gguf_tensors_of(source.checkpoint, source.config, *architecture, *family);
  job.warnings = std::move(tensors.warnings);
  std::map<DType, std::vector<std::string>> widened;
  std::uint64_t parameters = 0, rows = 0;
  GgufMetadata& metadata = job.gguf->metadata;
  metadata.set("general.architecture", GgufValue::text(family->name));
  metadata.set("general.type", GgufValue::text("model"));
  if (!source.title.empty()) metadata.set("general.name", GgufValue::text(source.title));
  std::vector<GgufCandidate> candidates;
  for (std::size_t i = 0; i < tensors.view->tensors().size(); ++i) {
    const TensorInfo& info = tensors.view->tensors()[i];
    parameters += info.num_elements;
    std::string quantized_as;
    for (const std::string& name : tensors.sources[i])
      if (const TensorInfo* from = source.checkpoint->find_tensor(name); from != nullptr && quantized_as.empty()) quantized_as = from->stored_as;
    candidates.push_back({.name = info.name,
                          .shape = info.shape,
                          .dtype = info.dtype,
                          .quantized_as = std::move(quantized_as),
                          .fixed = tensors.float32[i] || !is_decodable_float(info.dtype)});
  }
  metadata.set("general.size_label", GgufValue::text(size_label(parameters)));
  model::add_gguf_hyperparameters(metadata, *family, *architecture, source.config, 0, job.warnings);
  const std::vector<GgufWeightType> types = choose(candidates, metadata);
  for (std::size_t i = 0; i < tensors.view->tensors().size(); ++i) {
    const TensorInfo& info = tensors.view->tensors()[i];
    const GgufWeightType& type = types[i];
    Written what = written(info.name, info.shape, info.dtype, tensors.float32[i], type);
    if (!type.dtype && type.codec == nullptr && what.stream == DType::f32 && tensors.original[i] != DType::f32)
      widened[tensors.original[i]].push_back(info.name);
    if (info.name == "token_embd.weight" && !info.shape.empty()) rows = static_cast<std::uint64_t>(info.shape[0]);
    const bool rounds = what.stream != info.dtype || what.spec.codec != nullptr;
    add_tensor(job, source.name, tensors.sources[i], {tensors.view, &info}, std::move(what), rounds);
  }
  metadata.set("general.file_type", GgufValue::u32(file_type_of(job.gguf->tensors)));
  const model::TokenizerFolder tokenizer = model::read_tokenizer(source.folder);
  if (tokenizer.kind() == model::TokenizerKind::none) {
    job.warnings.emplace_back("the model has no tokenizer, so llama.cpp will run the file on token ids only");
    metadata.set("tokenizer.ggml.model", GgufValue::text("none"));
    metadata.set(family->name + ".vocab_size", GgufValue::u32(rows));
  } else {
    model::add_gguf_vocabulary(metadata, model::vocabulary_for_gguf(tokenizer, rows, source.config, job.warnings));
  }
  metadata.set("general.quantization_version", GgufValue::u32(2));
  for (const auto& [dtype, names] : widened)
    metadata.set(std::string(model::kOriginalTypeKey) + std::string(to_string(dtype)), GgufValue::texts(names));
  return job;
}

OutputJob gguf_copy_job_choosing(const std::string& name, const std::shared_ptr<const Checkpoint>& checkpoint, const GgufChooser& choose) {
  const GgufCheckpoint* gguf = as_gguf(*checkpoint);
  if (gguf == nullptr) throw Error(ErrorCode::internal, "no GGUF file", {.file = checkpoint->path().string()});
  OutputJob job;
  job.gguf.emplace();
  job.gguf->metadata = gguf->whole_metadata();
  const std::shared_ptr<const Checkpoint> stored = make_stored_view(checkpoint);
  std::vector<GgufCandidate> candidates;
  for (const TensorInfo& info : checkpoint->tensors()) {
    // What is float32 for its own sake stays so.
    const bool fixed = !is_decodable_float(info.dtype) || model::is_float32_in_gguf(info.name, info.shape.size());
    const codec::BlockCodec* blocks = info.stored_as.empty() ? nullptr : codec::find_block_codec(info.stored_as);
    candidates.push_back({info.name, info.shape, info.dtype, blocks, info.file_index, info.stored_as, fixed});
  }
  const std::vector<GgufWeightType> types = choose(candidates, job.gguf->metadata);
  bool converts = false;
  for (std::size_t i = 0; i < candidates.size(); ++i) {
    const TensorInfo& info = checkpoint->tensors()[i];
    const GgufWeightType& type = types[i];
    const codec::BlockCodec* own = candidates[i].stored;
    const bool asked = type.dtype || type.codec != nullptr;
    converts = converts || asked;
    const bool stays = !asked || candidates[i].fixed || (own != nullptr && own == type.codec);
    add_held_tensor(job, name, checkpoint, stored, info, own, stays ? nullptr : &type);
  }
  if (converts) job.gguf->metadata.set("general.file_type", GgufValue::u32(file_type_of(job.gguf->tensors)));
  return job;
}

OutputJob gguf_fold_job(const std::string& name, const model::HuggingFaceModel& folded, const GgufWeightType& type) {
  const model::Architecture* architecture = model::find_architecture(folded.config);
  if (architecture == nullptr) architecture = model::find_architecture_family(folded.config);
  const model::GgufFamily* family = architecture == nullptr ? nullptr : model::gguf_family_of(*architecture);
  if (family == nullptr) throw Error(ErrorCode::internal, "a GGUF file without a family was folded", {.file = folded.file->path().string()});
  model::GgufTensors tensors = model::gguf_tensors_of(folded.checkpoint, folded.config, *architecture, *family);
  std::vector<bool> changed;
  bool same_shapes = true;
  for (std::size_t i = 0; i < tensors.view->tensors().size(); ++i) {
    const TensorInfo& info = tensors.view->tensors()[i];
    changed.push_back(std::any_of(tensors.sources[i].begin(), tensors.sources[i].end(),
                                  [&](const std::string& source) { return adapt::is_changed(*folded.checkpoint, source); }));
    const TensorInfo* own = folded.file->find_tensor(info.name);
    same_shapes = same_shapes && (own == nullptr || own->shape == info.shape);
  }
  // Layers repeated and vocabularies grown change what the metadata say too: such a model is written anew.
  if (!same_shapes || adapt::repeats_layers(*folded.checkpoint)) {
    const GgufModel opened = open_gguf_model(folded);
    return gguf_job({name, folded.checkpoint, folded.config, opened.folder, title_of(folded.file->path())}, type);
  }
  return copy_job(name, folded.file, type, &tensors, changed);
}

GgufModel open_gguf_model(model::HuggingFaceModel model) {
  auto own = std::make_shared<ScratchFolder>();
  const auto write = [&own](const std::string& name, const std::string& content) {
    const File file(own->path() / name, FileMode::create_new);
    file.write(0, std::as_bytes(std::span(content)));
  };
  write("config.json", write_json(model.config, 2) + "\n");
  for (const auto& [name, content] : model.files) write(name, content);
  GgufModel result;
  result.checkpoint = std::move(model.checkpoint);
  result.config = std::move(model.config);
  result.folder = own->path();
  result.guard = std::move(own);
  result.warnings = std::move(model.warnings);
  return result;
}

}  // namespace weft::engine
