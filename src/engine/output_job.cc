#include "engine/output_job.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <utility>

#include "base/budget.h"
#include "checkpoint/output.h"
#include "weft/error.h"

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
  job.header_metadata.insert({"format", "pt"});
  OutputLayout layout = plan_safetensors(specs, job.single_file ? 0 : options_.max_shard_bytes, job.header_metadata, "model", job.index_metadata);
  if (job.single_file) layout.files.front().name = output.filename().string();
  report.size_bytes = layout.tensor_bytes;
  for (const OutputLayout::FilePlan& file : layout.files) report.files.push_back(file.name);
  if (!layout.index_json.empty()) report.files.emplace_back("model.safetensors.index.json");
  for (const CompanionFile& file : job.companions) report.files.push_back(file.name);
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

  Result result;
  result.folder = output;
  const auto write_companions = [&job](const auto& text, const auto& copy) {
    for (const CompanionFile& file : job.companions) {
      if (file.copy_of) copy(*file.copy_of, file.name);
      else text(file.name, file.content);
    }
  };
  if (!options_.dry_run) {
    const Existing existing = job.write_into_existing ? Existing::write_into : options_.force ? Existing::replace : Existing::refuse;
    if (job.single_file) {
      entry->output = std::make_unique<OutputFile>(output, existing);
    } else {
      auto folder = std::make_unique<OutputFolder>(output, existing);
      write_companions([&](const std::string& name, const std::string& text) { folder->write_text(name, text); },
                       [&](const fs::path& from, const std::string& name) { folder->copy_file(from, name); });
      entry->output = std::move(folder);
    }
    result.folder = entry->output->working_folder();
    entry->output->create_files(std::move(layout));
  } else if (needs_folder) {
    entry->temporary = std::make_unique<TemporaryFolder>();
    result.folder = entry->temporary->path();
    write_companions(
        [&](const std::string& name, const std::string& text) {
          File file(result.folder / name, FileMode::create_new);
          file.write(0, std::as_bytes(std::span(text)));
        },
        [&](const fs::path& from, const std::string& name) { fs::copy_file(from, result.folder / name); });
  }
  entry->layout = std::move(layout);
  entry->job = std::move(job);
  if (needs_folder) {
    const OutputLayout& planned = entry->output ? entry->output->layout() : entry->layout;
    entry->result = std::make_shared<ResultCheckpoint>(planned, entry->job.tensors, output, entry->output.get());
    result.checkpoint = entry->result;
  }
  entries_.push_back(std::move(entry));
  return result;
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
  const StreamResult done = run_tensor_stream(
      walk,
      [&](std::size_t tensor, std::uint64_t offset, std::span<const std::byte> data) {
        entries_[places[tensor].first]->output->write_tensor(places[tensor].second, offset, data);
      },
      options_, what_);
  for (const auto& entry : entries_) {
    for (const auto& input : entry->job.inputs) input->check_unchanged();
  }
  for (std::size_t i = 0; i < walk.size(); ++i) {
    std::vector<std::string>& warnings = entries_[places[i].first]->report.warnings;
    for (const std::string& warning : *walk[i].warnings) {
      warnings.push_back(warning);
      if (options_.on_warning) options_.on_warning(warning);
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
    report.bytes_written = report.size_bytes;
    report.elapsed_seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    report.peak_memory_bytes = peak_resident_bytes();
    reports.push_back(std::move(report));
  }
  entries_.clear();
  return reports;
}

}  // namespace weft::engine
