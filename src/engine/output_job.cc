#include "engine/output_job.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <new>
#include <numeric>
#include <utility>

#include "base/budget.h"
#include "base/check.h"
#include "base/checksum.h"
#include "base/text.h"
#include "checkpoint/model_folder.h"
#include "engine/checksum_check.h"
#include "engine/tensor_warnings.h"
#include "weft/error.h"
#include "weft/version.h"

namespace weft::engine {
namespace {

namespace fs = std::filesystem;

void refuse_input_as_output(const OutputJob& job, const fs::path& output) {
  std::error_code ignored;
  const fs::path out = fs::weakly_canonical(output, ignored);
  for (const fs::path& input : job.input_paths) {
    const fs::path in = fs::weakly_canonical(input, ignored);
    if (out != in && !(fs::is_regular_file(in, ignored) && out == in.parent_path())) continue;
    throw Error(ErrorCode::invalid_argument, fmt::format("the output '{}' is also an input", output.string()), {.file = output.string()},
                "choose another output; an input is never replaced while it is read");
  }
}

/// A folder for the small files of a dry run's results.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string pattern = (fs::temp_directory_path() / "weft-plan-XXXXXX").string();
    if (::mkdtemp(pattern.data()) == nullptr) throw Error(ErrorCode::io, "cannot make a temporary folder", {.file = pattern});
    path_ = pattern;
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  [[nodiscard]] const fs::path& path() const { return path_; }

 private:
  fs::path path_;
};

/// Throws for the first input that is not what its list of checksums says.
void verify_inputs(OutputJob& job, const JobOptions& options) {
  for (const fs::path& input : job.input_paths) {
    const std::optional<ChecksumCheck> check = check_checksums(input, options);
    if (!check) {
      job.warnings.push_back(fmt::format("'{}' has no list of checksums, so it was not verified", printable(input.string(), 4096)));
    } else if (!check->problems.empty()) {
      const VerifyProblem& first = check->problems.front();
      throw Error(ErrorCode::corrupt, fmt::format("input '{}' is damaged: {}", printable(input.string(), 4096), first.message),
                  {.file = input.string(), .tensor = first.tensor}, "fetch it again; 'weft verify' lists all of its damage");
    }
  }
}

/// Parts are made only when asked for: what splits GGUF files is the hub's limit, not a custom.
OutputLayout plan_gguf_output(const OutputJob& job, const fs::path& output, std::uint64_t max_shard_bytes) {
  const std::uint64_t limit = max_shard_bytes == JobOptions{}.max_shard_bytes ? 0 : max_shard_bytes;
  return plan_gguf(job.gguf->tensors, job.gguf->metadata, limit, job.single_file ? output.stem().string() : "model", job.gguf->parts);
}

/// Writes part of a tensor of the walk, encoded where its file holds blocks.
void write_part(Output& output, const OutputJob& job, std::size_t tensor, std::uint64_t offset, std::span<const std::byte> data) {
  const codec::BlockCodec* codec = job.gguf ? job.gguf->tensors[tensor].codec : nullptr;
  if (codec == nullptr || !job.gguf->encodes[tensor]) return output.write_tensor(tensor, offset, data);
  const std::uint64_t block_values_bytes = std::uint64_t{codec->block_elements} * sizeof(float);
  WEFT_ASSERT(offset % block_values_bytes == 0 && data.size() % block_values_bytes == 0);
  WEFT_ASSERT(reinterpret_cast<std::uintptr_t>(data.data()) % alignof(float) == 0);
  thread_local std::vector<std::uint8_t> blocks;
  encode_rows(job.gguf->tensors[tensor], job.gguf->encodings.empty() ? Encoding{} : job.gguf->encodings[tensor], tensor, offset / sizeof(float),
              {reinterpret_cast<const float*>(data.data()), data.size() / sizeof(float)}, job.gguf->errors.get(), blocks);
  output.write_tensor(tensor, offset / block_values_bytes * codec->block_bytes, std::as_bytes(std::span(blocks)));
}

template <typename Text, typename Copy>
void write_companions(const OutputJob& job, const Text& text, const Copy& copy) {
  for (const CompanionFile& file : job.companions) {
    if (file.copy_of) copy(*file.copy_of, file.name);
    else text(file.name, file.content);
  }
}

/// Everything that decides the bytes of the output. Not threads, memory or chunk sizes, which never do.
std::vector<JournalHead::Ingredient> ingredients_of(const OutputJob& job, const std::vector<PlannedTensor>& tensors, const OutputLayout& layout,
                                                    const JobOptions& options) {
  std::vector<JournalHead::Ingredient> all = job.ingredients;
  const auto add_input = [&all](const fs::path& path, const FileIdentity& identity) {
    std::error_code ignored;
    // Not the device: its number may change whenever the machine starts.
    all.push_back({fmt::format("input '{}'", fs::weakly_canonical(path, ignored).string()),
                   fmt::format("{} bytes, inode {}, modified {}.{:09}", identity.size_bytes, identity.inode, identity.modified_ns / 1'000'000'000,
                               identity.modified_ns % 1'000'000'000)});
  };
  for (const auto& input : job.inputs) {
    for (const CheckpointFile& file : input->files()) {
      if (file.inode != 0) {
        add_input(file.path, {0, file.inode, file.size_bytes, file.modified_ns});
      } else if (path_kind(file.path) == PathKind::file) {  // otherwise made by this very job
        add_input(file.path, File(file.path, FileMode::read).identity());
      }
    }
  }
  // Configs and tokenizers decide too: which rows belong together, what a tensor is.
  for (const fs::path& input : job.input_paths) {
    if (path_kind(input) != PathKind::folder) continue;
    for (const std::string& name : companion_files(input)) {
      const fs::path path = input / name;
      add_input(path, File(path, FileMode::read).identity());
    }
  }
  all.push_back({"--max-shard-size", std::to_string(job.single_file ? 0 : options.max_shard_bytes)});
  all.push_back({"the seed", std::to_string(options.seed)});
  all.push_back({"whether NaN and infinities are let through", options.allow_non_finite ? "yes" : "no"});
  all.push_back({"the version of weft", fmt::format("{} ({}, {})", version(), commit(), simd_target())});
  Hasher plan;
  const auto add = [](Hasher& to, const auto&... parts) {
    const std::string line = (fmt::format("{}\n", parts) + ...);
    to.add(std::as_bytes(std::span(line)));
  };
  for (const PlannedTensor& tensor : tensors) {
    add(plan, tensor.name, to_string(tensor.dtype), to_string(tensor.shape), tensor.method);
    for (const std::string& input : tensor.inputs) add(plan, input);
    for (const auto& [key, value] : tensor.parameters) add(plan, key, value);
  }
  all.push_back({"how the tensors are made", to_string(plan.checksum())});
  Hasher files;
  for (const OutputLayout::FilePlan& file : layout.files) add(files, file.name, file.size_bytes, file.header);
  all.push_back({"the files of the output", to_string(files.checksum())});
  return all;
}

}  // namespace

/// The tensors of an output that is being written, read back from where they were put.
class JobBatch::ResultCheckpoint final : public Checkpoint {
 public:
  ResultCheckpoint(const OutputLayout& layout, const std::vector<StreamTensor>& tensors, const fs::path& name, const Output* output) : output_(output) {
    container_ = "safetensors";
    path_ = name;
    for (const OutputLayout::FilePlan& file : layout.files) files_.push_back({name / file.name, file.size_bytes});
    for (std::size_t i = 0; i < tensors.size(); ++i) {
      TensorInfo row;
      row.name = tensors[i].name;
      row.dtype = tensors[i].dtype;
      row.shape = tensors[i].shape;
      row.num_elements = tensors[i].inputs.front().tensor->num_elements;
      row.size_bytes = layout.tensors[i].size_bytes;
      row.file_index = layout.tensors[i].file_index;
      row.offset_bytes = layout.tensors[i].offset_bytes;
      tensors_.push_back(std::move(row));
    }
    index_tensors();
  }

  void read_bytes(const TensorInfo& tensor, std::uint64_t offset, std::span<std::byte> out) const override {
    if (output_ == nullptr) throw Error(ErrorCode::internal, "a planned tensor has no bytes yet", {.tensor = tensor.name});
    output_->read_tensor(number(tensor), offset, out);
  }
  /// Number of a tensor in the job that writes it.
  [[nodiscard]] std::size_t number(const TensorInfo& tensor) const { return static_cast<std::size_t>(&tensor - tensors_.data()); }

 private:
  const Output* output_;  ///< null in a dry run; outlives the walk
};

struct JobBatch::Entry {
  OutputJob job;
  JobReport report;
  OutputLayout layout;                         ///< of a dry run; otherwise the output has it
  std::unique_ptr<Output> output;
  std::unique_ptr<TemporaryFolder> temporary;
  std::shared_ptr<ResultCheckpoint> result;    ///< set when later outputs may read it
};

JobBatch::JobBatch(const JobOptions& options, const char* what) : options_(options), what_(what) {}
JobBatch::~JobBatch() = default;

JobBatch::Result JobBatch::add(OutputJob job, const fs::path& output, bool needs_folder) {
  refuse_input_as_output(job, output);
  static_cast<void>(estimate_stream_memory(job.tensors, options_));  // what can never fit is refused before any work
  if (options_.verify_input && !options_.dry_run) verify_inputs(job, options_);
  auto entry = std::make_unique<Entry>();
  JobReport& report = entry->report;
  report.output = output;
  report.dry_run = options_.dry_run;
  report.num_tensors = job.tensors.size();
  std::vector<TensorSpec> specs;
  specs.reserve(job.tensors.size());
  for (const StreamTensor& tensor : job.tensors) {
    specs.push_back({tensor.name, tensor.dtype, tensor.shape});
    report.num_parameters += tensor.inputs.front().tensor->num_elements;
  }
  if (job.gguf) {
    report.num_parameters = 0;  // blocks that are copied are bytes to the stream
    for (const GgufTensorSpec& spec : job.gguf->tensors)
      report.num_parameters += std::accumulate(spec.shape.begin(), spec.shape.end(), std::uint64_t{1},
                                               [](std::uint64_t n, std::int64_t d) { return n * static_cast<std::uint64_t>(d); });
  }
  job.header_metadata.insert({"format", "pt"});
  OutputLayout layout = job.gguf ? plan_gguf_output(job, output, options_.max_shard_bytes)
                                 : plan_safetensors(specs, job.single_file ? 0 : options_.max_shard_bytes, job.header_metadata, "model", job.index_metadata);
  // A GGUF model of several parts is a folder.
  const fs::path destination = job.gguf && job.single_file && layout.files.size() > 1 ? fs::path(output).replace_extension() : output;
  if (destination != output) {
    job.single_file = false;
    report.output = destination;
    refuse_input_as_output(job, destination);
  }
  if (job.single_file) layout.files.front().name = output.filename().string();
  report.size_bytes = layout.tensor_bytes;
  for (const OutputLayout::FilePlan& file : layout.files) report.files.push_back(file.name);
  if (!layout.index_json.empty()) report.files.emplace_back("model.safetensors.index.json");
  for (const CompanionFile& file : job.companions) report.files.push_back(file.name);
  if (!job.single_file) report.files.emplace_back(kChecksumsName);
  for (std::size_t i = 0; i < job.described.size(); ++i) {
    PlannedTensor& tensor = job.described[i];
    const OutputLayout::Tensor& place = layout.tensors[i];
    tensor.file = layout.files[place.file_index].name;
    tensor.offset_bytes = place.offset_bytes;
    tensor.size_bytes = place.size_bytes;
  }
  report.tensors = std::move(job.described);
  report.warnings = std::move(job.warnings);
  if (options_.on_warning) std::for_each(report.warnings.begin(), report.warnings.end(), options_.on_warning);

  if (!options_.dry_run) {
    entry->job = std::move(job);
    entries_.push_back(std::move(entry));
    try {
      make_output(*entries_.back(), std::move(layout), destination);
    } catch (const Error& e) {
      fail(e);
    }
    return give_result(*entries_.back(), needs_folder);
  }
  if (needs_folder) {
    entry->temporary = std::make_unique<TemporaryFolder>();
    const fs::path& folder = entry->temporary->path();
    write_companions(
        job,
        [&](const std::string& name, const std::string& text) {
          File file(folder / name, FileMode::create_new);
          file.write(0, std::as_bytes(std::span(text)));
        },
        [&](const fs::path& from, const std::string& name) { fs::copy_file(from, folder / name); });
  }
  entry->layout = std::move(layout);
  entry->job = std::move(job);
  entries_.push_back(std::move(entry));
  return give_result(*entries_.back(), needs_folder);
}

JobBatch::Result JobBatch::give_result(Entry& entry, bool needs_folder) {
  Result result;
  result.folder = entry.output ? entry.output->working_folder() : entry.temporary ? entry.temporary->path() : entry.report.output;
  if (!needs_folder) return result;
  const OutputLayout& planned = entry.output ? entry.output->layout() : entry.layout;
  entry.result = std::make_shared<ResultCheckpoint>(planned, entry.job.tensors, entry.report.output, entry.output.get());
  result.checkpoint = entry.result;
  return result;
}

void JobBatch::make_output(Entry& entry, OutputLayout layout, const fs::path& output) {
  const OutputJob& job = entry.job;
  const Existing existing = job.write_into_existing ? Existing::write_into : options_.force ? Existing::replace : Existing::refuse;
  OutputOptions how;
  how.head.what = what_;
  how.checksums = true;
  // Without them nobody could tell whether a later command is the same.
  if (!job.ingredients.empty()) how.head.ingredients = ingredients_of(job, entry.report.tensors, layout, options_);
  how.journal_bytes = options_.journal_bytes;
  how.journal_seconds = options_.journal_seconds;
  how.read_back = options_.read_back;
  if (job.single_file) {
    entry.output = std::make_unique<OutputFile>(output, existing, true);
    entry.output->create_files(std::move(layout), std::move(how));
    return;
  }
  auto made = std::make_unique<OutputFolder>(output, existing, true);
  OutputFolder& folder = *made;
  entry.output = std::move(made);
  folder.create_files(std::move(layout), std::move(how));
  write_companions(
      job, [&](const std::string& name, const std::string& text) { folder.write_text(name, text); },
      [&](const fs::path& from, const std::string& name) { folder.copy_file(from, name); });
}

/// Failures leave what is finished, so that the same command can go on with it; a wrong request leaves nothing.
void JobBatch::fail(const Error& error) {
  std::vector<std::string> kept;
  if (error.exit_status() == 1) {
    for (const auto& entry : entries_) {
      if (entry->output == nullptr) continue;
      if (const fs::path folder = entry->output->suspend(); !folder.empty()) kept.push_back("'" + printable(folder.string(), 4096) + "'");
    }
  }
  std::string advice = error.advice();
  if (!kept.empty()) {
    if (!advice.empty()) advice += "\n";
    advice += fmt::format("the same command goes on where this one stopped; what is finished is kept in {}", fmt::join(kept, ", "));
  } else if (error.code() == ErrorCode::interrupted) {
    advice = "no tensor was finished yet, so nothing is kept; the same command starts again";
  }
  throw Error(error.code(), error.message(), error.place(), advice, error.system_error());
}

/// One list of all tensors: those at the same depth of their outputs beside each other, and every tensor after those whose bytes it reads.
std::vector<StreamTensor> JobBatch::interleave(std::vector<std::pair<std::size_t, std::size_t>>& places) {
  struct Item {
    double depth;
    std::size_t entry;
    std::size_t tensor;
  };
  std::vector<Item> items;
  for (std::size_t e = 0; e < entries_.size(); ++e) {
    const std::size_t count = entries_[e]->job.tensors.size();
    for (std::size_t t = 0; t < count; ++t) items.push_back({static_cast<double>(t) / static_cast<double>(count), e, t});
  }
  std::stable_sort(items.begin(), items.end(), [](const Item& a, const Item& b) { return a.depth < b.depth; });

  std::vector<StreamTensor> walk;
  std::vector<std::vector<std::size_t>> at(entries_.size());  // place in the walk, or npos
  constexpr std::size_t kUnplaced = static_cast<std::size_t>(-1);
  for (std::size_t e = 0; e < entries_.size(); ++e) at[e].assign(entries_[e]->job.tensors.size(), kUnplaced);

  // Outputs only read outputs that were added before them, so this ends.
  const auto place = [&](const auto& self, std::size_t e, std::size_t t) -> void {
    if (at[e][t] != kUnplaced) return;
    std::vector<std::size_t> after;
    const auto needs = [&](std::size_t earlier, std::size_t number) {
      self(self, earlier, number);
      after.push_back(at[earlier][number]);
    };
    for (const TensorRef& input : entries_[e]->job.tensors[t].inputs) {
      bool direct = false;
      for (std::size_t earlier = 0; earlier < e; ++earlier) {
        if (entries_[earlier]->result == nullptr || input.checkpoint != entries_[earlier]->result) continue;
        needs(earlier, entries_[earlier]->result->number(*input.tensor));
        direct = true;
      }
      const auto& opened = entries_[e]->job.inputs;
      if (direct || std::find(opened.begin(), opened.end(), input.checkpoint) != opened.end()) continue;
      // A view may read any rows of what its output reads.
      for (std::size_t earlier = 0; earlier < e; ++earlier) {
        if (std::find(opened.begin(), opened.end(), entries_[earlier]->result) == opened.end()) continue;
        for (std::size_t number = 0; number < at[earlier].size(); ++number) needs(earlier, number);
      }
    }
    StreamTensor& tensor = entries_[e]->job.tensors[t];
    tensor.after = std::move(after);
    at[e][t] = walk.size();
    walk.push_back(std::move(tensor));
    places.emplace_back(e, t);
  };
  for (const Item& item : items) place(place, item.entry, item.tensor);
  return walk;
}

std::vector<JobReport> JobBatch::run() {
  try {
    return carry_out();
  } catch (const Error& e) {
    fail(e);
  } catch (const std::bad_alloc&) {
    fail(Error(ErrorCode::out_of_memory, "the system gave no more memory", {}, "give a smaller --memory, or close other programs"));
  } catch (const std::exception& e) {
    fail(Error(ErrorCode::internal, e.what(), {}, "this is a bug of weft; please report it"));
  }
}

std::vector<JobReport> JobBatch::carry_out() {
  const auto start = std::chrono::steady_clock::now();
  std::vector<std::pair<std::size_t, std::size_t>> places;
  std::vector<StreamTensor> walk = interleave(places);
  std::vector<JobReport> reports;
  if (options_.dry_run) {
    const std::uint64_t memory_bytes = estimate_stream_memory(walk, options_);
    for (const auto& entry : entries_) {
      entry->report.peak_memory_bytes = memory_bytes;
      reports.push_back(std::move(entry->report));
    }
    return reports;
  }
  for (const auto& entry : entries_) entry->output->check_recorded(options_.threads, options_.cancel);
  for (std::size_t i = 0; i < walk.size(); ++i) {
    const Output& output = *entries_[places[i].first]->output;
    if (!output.is_recorded(places[i].second)) continue;
    walk[i].finished = true;
    *walk[i].warnings = output.recorded_warnings(places[i].second);
    if (const OutputJob& job = entries_[places[i].first]->job; job.on_finished) job.on_finished(places[i].second);
  }
  for (const auto& entry : entries_) entry->output->begin();
  const StreamResult done = run_tensor_stream(
      walk,
      [&](std::size_t tensor, std::uint64_t offset, std::span<const std::byte> data) {
        const Entry& entry = *entries_[places[tensor].first];
        write_part(*entry.output, entry.job, places[tensor].second, offset, data);
      },
      options_, what_, [&](std::size_t tensor) {
        const Entry& entry = *entries_[places[tensor].first];
        entry.output->finish_tensor(places[tensor].second, *walk[tensor].warnings);
        if (entry.job.on_finished) entry.job.on_finished(places[tensor].second);
      });
  if (options_.cancel != nullptr && options_.cancel->load()) throw Error(ErrorCode::interrupted, "interrupted");
  for (const auto& entry : entries_) {
    for (const auto& input : entry->job.inputs) input->check_unchanged();
  }
  std::vector<std::vector<std::string>> warnings_of(entries_.size());
  for (std::size_t i = 0; i < walk.size(); ++i) {
    std::vector<std::string>& warnings = warnings_of[places[i].first];
    warnings.insert(warnings.end(), walk[i].warnings->begin(), walk[i].warnings->end());
  }
  for (std::size_t e = 0; e < entries_.size(); ++e) {
    for (std::string& warning : said_once(std::move(warnings_of[e]))) {
      if (options_.on_warning) options_.on_warning(warning);
      entries_[e]->report.warnings.push_back(std::move(warning));
    }
  }
  for (const auto& entry : entries_) {
    entry->output->commit();
    for (const std::string& warning : entry->output->warnings()) {
      entry->report.warnings.push_back(warning);
      if (options_.on_warning) options_.on_warning(warning);
    }
  }
  for (const auto& entry : entries_) {
    JobReport& report = entry->report;
    // Of a walk that is shared, each output tells its own bytes written and the walk's bytes read.
    report.bytes_read = done.bytes_read;
    report.bytes_resumed = entry->output->recorded_bytes();
    report.bytes_written = report.size_bytes - report.bytes_resumed;
    report.elapsed_seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    report.peak_memory_bytes = peak_resident_bytes();
    reports.push_back(std::move(report));
  }
  entries_.clear();
  return reports;
}

}  // namespace weft::engine
