#include "weft/edit.h"

#include <fmt/format.h>

#include <chrono>
#include <utility>

#include "base/budget.h"
#include "checkpoint/npy.h"
#include "engine/lazy_model.h"
#include "weft/error.h"

namespace weft {

EditReport edit_model(std::string_view model, const std::filesystem::path& output, const std::vector<EditOperation>& operations,
                      const JobOptions& options) {
  if (operations.empty())
    throw Error(ErrorCode::invalid_argument, "nothing is to be done to the model", {},
                "give at least one operation, such as --drop PATTERN; 'weft edit --help' lists them");
  std::vector<edit::Request> requests;
  std::vector<std::unique_ptr<edit::Operation>> parsed;
  for (const EditOperation& operation : operations) {
    requests.push_back({operation.operation, operation.argument});
    parsed.push_back(edit::parse_operation(requests.back()));
  }
  engine::LazyModel lazy = engine::open_lazy_model(model);
  EditReport report;
  for (edit::Effect& effect : engine::apply_operations(lazy, parsed, requests))
    report.effects.push_back({std::move(effect.operation), effect.num_tensors, std::move(effect.example)});
  engine::JobBatch batch(options, "editing");
  engine::OutputJob job = engine::output_job_of(std::move(lazy), output);
  std::string text;
  for (const edit::Request& request : requests) text += "--" + request.operation + " " + request.argument + "\n";
  job.ingredients = {{"the operations", std::move(text)}};
  batch.add(std::move(job), output);
  static_cast<JobReport&>(report) = std::move(batch.run().front());
  return report;
}

JobReport dump_tensor(std::string_view model, std::string_view tensor, const std::filesystem::path& file, const JobOptions& options) {
  const auto start = std::chrono::steady_clock::now();
  const std::shared_ptr<const Checkpoint> checkpoint = open_checkpoint(model);
  const TensorInfo& info = checkpoint->tensor(tensor);
  const DType written = npy_dtype(info.dtype);
  JobReport report;
  report.output = file;
  report.dry_run = options.dry_run;
  report.files = {file.filename().string()};
  report.num_tensors = 1;
  report.num_parameters = info.num_elements;
  report.size_bytes = info.num_elements * static_cast<std::uint64_t>(weft::info(written).bits) / 8;
  PlannedTensor planned;
  planned.name = info.name;
  planned.dtype = written;
  planned.shape = info.shape;
  planned.inputs = {fmt::format("{}:{}", model, info.name)};
  planned.method = written == info.dtype ? "copy" : "cast";
  planned.file = report.files.front();
  planned.offset_bytes = make_npy_header(written, info.shape).size();
  planned.size_bytes = report.size_bytes;
  report.tensors.push_back(std::move(planned));
  if (options.dry_run) return report;
  write_npy(*checkpoint, info, file, options.force);
  checkpoint->check_unchanged();
  report.bytes_read = info.size_bytes;
  report.bytes_written = report.size_bytes;
  report.elapsed_seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  report.peak_memory_bytes = peak_resident_bytes();
  return report;
}

}  // namespace weft
