#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <unordered_map>

#include "base/file.h"
#include "base/text.h"
#include "base/writable.h"
#include "report/assets.h"
#include "report/page.h"
#include "weft/error.h"
#include "weft/report.h"

namespace weft {
namespace {

using report::NameParts;
using report::Page;
using report::Table;

constexpr double kUnknown = std::numeric_limits<double>::quiet_NaN();

struct Rows {
  std::vector<std::string> names, kinds;
  std::vector<double> blocks;
  void add(const std::string& name) {
    NameParts parts = report::parts_of(name);
    names.push_back(name);
    kinds.push_back(std::move(parts.kind));
    blocks.push_back(parts.block >= 0 ? parts.block : kUnknown);
  }
  void put(Table& table) const {
    table.words("name", "tensor", names);
    table.words("kind", "kind", kinds);
    table.numbers("block", "layer", blocks);
  }
};

double changed_share(const TensorDiff& diff) {
  if (!diff.comparable || diff.num_elements == 0) return kUnknown;
  return static_cast<double>(diff.num_changed) / static_cast<double>(diff.num_elements);
}
double relative(const TensorDiff& diff) { return diff.comparable && diff.l2_a > 0 ? diff.l2_diff / diff.l2_a : kUnknown; }
std::string percent(double share) { return std::isnan(share) ? "-" : fmt::format("{:.1f} %", 100 * share); }

std::uint64_t stored_bytes(const Shape& shape, DType dtype) {
  double bits = info(dtype).bits;
  for (const std::int64_t dim : shape) bits *= static_cast<double>(dim);
  return static_cast<std::uint64_t>(bits / 8);
}

void add_missing(const DiffReport& diff, const std::string& a, const std::string& b, Page& page) {
  for (const auto& [names, model] : {std::pair(&diff.only_in_a, &a), std::pair(&diff.only_in_b, &b)}) {
    if (names->empty()) continue;
    page.findings.push_back(
        {"warning", "tensors that the other lacks", *model, fmt::format("{} tensors, the first {}", names->size(), names->front())});
  }
  std::size_t shapes = 0;
  const TensorDiff* first = nullptr;
  for (const TensorDiff& tensor : diff.tensors) {
    if (tensor.comparable) continue;
    ++shapes;
    if (first == nullptr) first = &tensor;
  }
  if (first != nullptr)
    page.findings.push_back(
        {"warning", "tensors of different shapes", a + " and " + b,
         fmt::format("{} tensors, the first {}: {} and {}", shapes, first->name, to_string(first->shape_a), to_string(first->shape_b))});
}

}  // namespace

bool can_write_reports() noexcept { return !report::vega_script().empty(); }

void require_reports(const std::filesystem::path& output, const std::filesystem::path& made_by_job) {
  if (!can_write_reports())
    throw Error(ErrorCode::unsupported, "this weft was built without what reports are drawn with", {.key = "--report"},
                "install the package libjs-vega and build weft again; --json has the same numbers");
  if (output.empty()) return;
  const auto place = [](const std::filesystem::path& path) { return std::filesystem::absolute(path).lexically_normal(); };
  if (!made_by_job.empty() && place(output).parent_path() == place(made_by_job / "report").parent_path()) return;
  require_writable(output, "report", "--report");
}

void write_report(const DiffReport& diff, const std::string& a, const std::string& b, const std::filesystem::path& output) {
  Page page;
  page.command = "diff";
  page.title = printable(a) + " and " + printable(b);
  std::size_t differing = 0;
  const TensorDiff* most = nullptr;
  Rows rows;
  std::vector<double> changed, largest, change, cosine, norm;
  std::vector<std::uint64_t> sizes;
  std::vector<std::string> types;
  for (const TensorDiff& tensor : diff.tensors) {
    differing += !tensor.equal_bytes;
    if (!std::isnan(relative(tensor)) && tensor.l2_diff > 0 && (most == nullptr || relative(tensor) > relative(*most))) most = &tensor;
    rows.add(tensor.name);
    changed.push_back(changed_share(tensor));
    largest.push_back(tensor.comparable ? tensor.max_abs : kUnknown);
    change.push_back(relative(tensor));
    cosine.push_back(tensor.comparable ? tensor.cosine : kUnknown);
    norm.push_back(tensor.comparable ? tensor.l2_diff : kUnknown);
    sizes.push_back(stored_bytes(tensor.shape_b, tensor.dtype_b));
    types.push_back(tensor.dtype_a == tensor.dtype_b ? std::string(to_string(tensor.dtype_b))
                                                     : fmt::format("{}, {}", to_string(tensor.dtype_a), to_string(tensor.dtype_b)));
  }
  page.facts = {{"common tensors", std::to_string(diff.tensors.size())},
                {"of which differ", std::to_string(differing)},
                {"changed elements", percent(changed_share(diff.total))},
                {"relative change", fmt::format("{:.4g}", diff.total.l2_a > 0 ? diff.total.l2_diff / diff.total.l2_a : 0)},
                {"cosine", fmt::format("{:.6f}", diff.total.cosine)}};
  if (diff.equal) page.findings.push_back({"note", "the models are the same", a + " and " + b, fmt::format("{} tensors", diff.tensors.size())});
  add_missing(diff, a, b, page);
  if (most != nullptr) page.findings.push_back({"note", "changed most, relative to its size", most->name, fmt::format("{:.4g}", relative(*most))});
  if (differing > 0 && differing < diff.tensors.size())
    page.findings.push_back({"note", "some tensors are the same in both", a + " and " + b,
                             fmt::format("{} of {}", diff.tensors.size() - differing, diff.tensors.size())});
  Table table(diff.tensors.size());
  rows.put(table);
  table.words("dtype", "type", types);
  table.bytes("bytes", "size", sizes);
  table.numbers("changed", "changed", changed, true, "share of elements");
  table.numbers("relative", "relative", change, true, "norm of the change over that of the first");
  table.numbers("norm", "norm", norm, true, "of the change");
  table.numbers("largest", "largest", largest, true, "largest change of an element");
  table.numbers("cosine", "cosine", cosine);
  page.add_table("tensors", std::move(table));
  page.add_section("heat", "What changed", "",
                   {{"table", Json("tensors")}, {"metrics", Json(Json::Array{Json("relative"), Json("changed"), Json("largest"), Json("cosine")})}});
  page.add_section("table", "Tensors", "", {{"table", Json("tensors")}, {"sort", Json("relative")}});
  page.add_section("bytes", "Bytes by layer", "", {{"table", Json("tensors")}});
  report::write_page(std::move(page), output);
}

void write_report(const JobReport& job, const std::string& what, std::span<const InputDiff> inputs, const std::filesystem::path& output) {
  Page page;
  page.command = what;
  page.title = printable(job.output.string());
  page.facts = {{"tensors", std::to_string(job.num_tensors)},
                {"parameters", format_count(job.num_parameters)},
                {"stored", format_size(job.size_bytes)},
                {"time", format_seconds(job.elapsed_seconds)},
                {"peak memory", format_size(job.peak_memory_bytes)}};
  if (job.dry_run) page.findings.push_back({"note", "a plan: nothing was written", job.output.string(), "--dry-run"});
  page.warnings = job.warnings;
  Rows rows;
  std::vector<std::string> methods, parameters, sources, files, types;
  std::vector<std::uint64_t> sizes;
  std::map<std::string, std::size_t> by_method;
  for (const PlannedTensor& tensor : job.tensors) {
    rows.add(tensor.name);
    methods.push_back(tensor.method);
    ++by_method[tensor.method];
    std::string text;
    for (const auto& [name, value] : tensor.parameters) text += (text.empty() ? "" : ", ") + name + " " + value;
    parameters.push_back(std::move(text));
    std::string from;
    for (const std::string& input : tensor.inputs) from += (from.empty() ? "" : ", ") + input;
    sources.push_back(std::move(from));
    files.push_back(tensor.file);
    types.emplace_back(to_string(tensor.dtype));
    sizes.push_back(tensor.size_bytes);
  }
  for (const auto& [method, count] : by_method) page.facts.emplace_back("by " + method, fmt::format("{} tensors", count));
  Table table(job.tensors.size());
  rows.put(table);
  table.words("dtype", "type", types);
  table.bytes("bytes", "size", sizes);
  table.words("method", "method", methods);
  // How far each tensor came out from each model that went in.
  Json::Array metrics;
  for (std::size_t m = 0; m < inputs.size(); ++m) {
    const InputDiff& input = inputs[m];
    std::unordered_map<std::string_view, const TensorDiff*> known;
    for (const TensorDiff& tensor : input.diff.tensors) known.emplace(tensor.name, &tensor);
    std::vector<double> change, cosine;
    for (const PlannedTensor& tensor : job.tensors) {
      const auto found = known.find(tensor.name);
      change.push_back(found == known.end() ? kUnknown : relative(*found->second));
      cosine.push_back(found == known.end() || !found->second->comparable ? kUnknown : found->second->cosine);
    }
    const std::string key = fmt::format("change{}", m);
    table.numbers(key, "change of " + printable(input.model), change, true, "norm of the difference to this model over that of the model");
    table.numbers(fmt::format("cosine{}", m), "cosine with " + printable(input.model), cosine, false);
    metrics.emplace_back(key);
    const TensorDiff& total = input.diff.total;
    page.findings.push_back({"note", fmt::format("the result differs by {:.3g} of its norm", total.l2_a > 0 ? total.l2_diff / total.l2_a : 0),
                             input.model, fmt::format("cosine {:.6f}, {} of the elements changed", total.cosine, percent(changed_share(total)))});
    add_missing(input.diff, input.model, job.output.string(), page);
  }
  table.words("parameters", "parameters", parameters);
  table.words("inputs", "made from", sources, inputs.empty());
  table.words("file", "file", files, false);
  page.add_table("tensors", std::move(table));
  if (!metrics.empty())
    page.add_section("heat", "How far the result is from what went in", "", {{"table", Json("tensors")}, {"metrics", Json(std::move(metrics))}});
  page.add_section("bytes", "Bytes by layer", "", {{"table", Json("tensors")}});
  page.add_section("table", "Tensors", "", {{"table", Json("tensors")}});
  report::write_page(std::move(page), output);
}

}  // namespace weft
