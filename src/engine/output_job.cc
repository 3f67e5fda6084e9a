#include "engine/output_job.h"

#include <fmt/format.h>

#include <chrono>
#include <utility>

#include "base/budget.h"
#include "checkpoint/output.h"
#include "weft/error.h"

namespace weft::engine {
namespace {

namespace fs = std::filesystem;

void refuse_input_as_output(const FolderJob& job, const fs::path& output) {
  std::error_code ignored;
  const fs::path out = fs::weakly_canonical(output, ignored);
  for (const fs::path& input : job.input_paths) {
    const fs::path in = fs::weakly_canonical(input, ignored);
    if (out != in && !(fs::is_regular_file(in, ignored) && out == in.parent_path())) continue;
    throw Error(ErrorCode::invalid_argument, fmt::format("the output '{}' is also an input", output.string()), {.file = output.string()},
                "choose another output; an input is never replaced while it is read");
  }
}

}  // namespace

JobReport run_folder_job(FolderJob job, const fs::path& output, const JobOptions& options) {
  const auto start = std::chrono::steady_clock::now();
  refuse_input_as_output(job, output);

  JobReport report;
  report.output = output;
  report.dry_run = options.dry_run;
  report.num_tensors = job.tensors.size();
  std::vector<TensorSpec> specs;
  specs.reserve(job.tensors.size());
  for (const StreamTensor& tensor : job.tensors) {
    specs.push_back({tensor.name, tensor.dtype, tensor.shape});
    report.num_parameters += tensor.inputs.front().tensor->num_elements;
  }
  job.header_metadata.insert({"format", "pt"});
  OutputLayout layout = plan_safetensors(specs, job.single_file ? 0 : options.max_shard_bytes, job.header_metadata, "model", job.index_metadata);
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
  const auto tell = [&options, &report](std::size_t from) {
    if (!options.on_warning) return;
    for (std::size_t i = from; i < report.warnings.size(); ++i) options.on_warning(report.warnings[i]);
  };
  tell(0);
  if (options.dry_run) {
    report.peak_memory_bytes = estimate_stream_memory(job.tensors, options);
    return report;
  }

  OutputFolder folder(output, job.write_into_existing ? Existing::write_into : options.force ? Existing::replace : Existing::refuse);
  folder.create_files(std::move(layout));
  const StreamResult result = run_tensor_stream(
      job.tensors, [&folder](std::size_t tensor, std::uint64_t offset, std::span<const std::byte> data) { folder.write_tensor(tensor, offset, data); }, options,
      job.what);
  for (const auto& input : job.inputs) input->check_unchanged();
  for (const CompanionFile& file : job.companions) {
    if (file.copy_of) folder.copy_file(*file.copy_of, file.name);
    else folder.write_text(file.name, file.content);
  }
  folder.commit();

  const std::size_t told = report.warnings.size();
  report.warnings.insert(report.warnings.end(), result.warnings.begin(), result.warnings.end());
  tell(told);
  report.bytes_read = result.bytes_read;
  report.bytes_written = result.bytes_written;
  report.elapsed_seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  report.peak_memory_bytes = peak_resident_bytes();
  return report;
}

}  // namespace weft::engine
