#include <fmt/format.h>

#include <cmath>
#include <limits>
#include <map>

#include "base/text.h"
#include "report/page.h"
#include "weft/report.h"

namespace weft {
namespace {

using report::NameParts;
using report::Page;
using report::Table;

constexpr double kUnknown = std::numeric_limits<double>::quiet_NaN();

/// Names with what they say of layer and kind.
void put_names(const std::vector<std::string>& names, Table& table) {
  std::vector<std::string> kinds;
  std::vector<double> blocks;
  for (const std::string& name : names) {
    NameParts parts = report::parts_of(name);
    kinds.push_back(std::move(parts.kind));
    blocks.push_back(parts.block >= 0 ? parts.block : kUnknown);
  }
  table.words("name", "tensor", names);
  table.words("kind", "kind", kinds);
  table.numbers("block", "layer", blocks);
}

void add_layers(const QuantizeReport& made, Page& page) {
  std::vector<std::string> names, methods;
  std::vector<double> bits, losses;
  std::map<std::string, std::size_t> by_method;
  const QuantizedLayer* worst = nullptr;
  for (const QuantizedLayer& layer : made.layers) {
    names.push_back(layer.name);
    methods.push_back(layer.method);
    ++by_method[layer.method];
    bits.push_back(layer.bits);
    losses.push_back(layer.relative_loss.value_or(kUnknown));
    if (layer.relative_loss && (worst == nullptr || *layer.relative_loss > *worst->relative_loss)) worst = &layer;
  }
  for (const auto& [method, count] : by_method) page.facts.emplace_back("as " + method, fmt::format("{} weights", count));
  if (worst != nullptr)
    page.findings.push_back({"note", "loses most", worst->name,
                             fmt::format("{:.3g} of its squares, at {:.4g} bits as {}", *worst->relative_loss, worst->bits, worst->method)});
  Table table(made.layers.size());
  put_names(names, table);
  table.words("method", "as", methods);
  table.numbers("bits", "bits", bits, true, "a weight, with scales and all");
  table.numbers("loss", "loss", losses, true, "squared error as a share of the squares, of outputs where a text was read");
  page.add_table("layers", std::move(table));
  page.add_section("heat", "What the weights lost", "", {{"table", Json("layers")}, {"metrics", Json(Json::Array{Json("loss"), Json("bits")})}});
  page.add_section("table", "Quantized weights", "", {{"table", Json("layers")}, {"sort", Json("loss")}});
}

}  // namespace

void write_report(const QuantizeReport& made, const std::string& model, std::uint64_t model_bytes, std::span<const TextScore> texts,
                  const std::filesystem::path& output) {
  Page page;
  page.command = "quantize";
  page.title = printable(model) + " to " + printable(made.output.string());
  page.facts = {{"parameters", format_count(made.num_parameters)}, {"size", format_size(made.size_bytes)}};
  if (model_bytes > 0) {
    page.facts.emplace_back("size before", format_size(model_bytes));
    page.facts.emplace_back("of that", fmt::format("{:.1f} %", 100.0 * static_cast<double>(made.size_bytes) / static_cast<double>(model_bytes)));
  }
  if (made.bits_per_weight > 0) page.facts.emplace_back("bits a weight", fmt::format("{:.3f}", made.bits_per_weight));
  if (made.linear_bits_per_weight > 0) page.facts.emplace_back("of quantized layers", fmt::format("{:.3f}", made.linear_bits_per_weight));
  page.facts.emplace_back("time", format_seconds(made.elapsed_seconds));
  page.facts.emplace_back("peak memory", format_size(made.peak_memory_bytes));
  if (made.dry_run) page.findings.push_back({"note", "a plan: nothing was written", made.output.string(), "--dry-run"});
  for (const TextScore& text : texts) {
    const Closeness closeness = text.closeness.value_or(Closeness{});
    page.findings.push_back(
        {"note", fmt::format("perplexity {:.4f}, before {:.4f}", text.perplexity, std::exp(text.nll_per_token - closeness.delta_nll)),
         text.file.string(),
         fmt::format("loss {:+.4f} ({:+.4f} to {:+.4f}), divergence {:.5f} nats, {:.1f} % the same first choice", closeness.delta_nll,
                     closeness.delta_ci95[0], closeness.delta_ci95[1], closeness.kl_mean, 100 * closeness.top1_agreement)});
  }
  page.warnings = made.warnings;
  if (!made.layers.empty()) add_layers(made, page);
  std::vector<std::string> names, types;
  std::vector<std::uint64_t> sizes;
  for (const PlannedTensor& tensor : made.tensors) {
    names.push_back(tensor.name);
    types.emplace_back(to_string(tensor.dtype));
    sizes.push_back(tensor.size_bytes);
  }
  Table table(made.tensors.size());
  put_names(names, table);
  table.words("dtype", "type", types, false);
  table.bytes("bytes", "size", sizes);
  page.add_table("tensors", std::move(table));
  page.add_section("bytes", "Bytes by layer", "", {{"table", Json("tensors")}});
  report::write_page(std::move(page), output);
}

}  // namespace weft
