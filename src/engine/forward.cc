#include "weft/forward.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <memory>
#include <utility>

#include "base/budget.h"
#include "checkpoint/output.h"
#include "engine/running_model.h"
#include "math/convert.h"
#include "weft/error.h"

namespace weft {
namespace {

using engine::RunningModel;
using model::TokenChunk;

constexpr std::size_t kLogitRows = 64;

/// How many tokens of a text an encoder takes: what its sentence-embedding config says, else its tokenizer's, else its positions.
std::size_t text_limit(RunningModel& running, const ForwardOptions& options) {
  if (options.max_tokens > 0) return static_cast<std::size_t>(options.max_tokens);
  if (running.config().kind != model::NetworkKind::encoder) return 0;
  if (const std::optional<Json> config = running.files().json_file("sentence_bert_config.json")) {
    if (const Json* limit = config->find("max_seq_length"); limit != nullptr && limit->integer().value_or(0) > 2)
      return static_cast<std::size_t>(std::min(*limit->integer(), running.config().context));
  }
  const auto& of_file = running.tokenizer("a text").file_truncation();
  const auto positions = static_cast<std::size_t>(running.config().context);
  return of_file ? std::min(of_file->max_length, positions) : positions;
}

struct Sequence {
  std::vector<std::uint32_t> ids, types;
};

std::vector<Sequence> sequences_of(RunningModel& running, std::span<const ForwardInput> inputs, const ForwardOptions& options) {
  std::vector<Sequence> sequences;
  sequences.reserve(inputs.size());
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    Sequence& sequence = sequences.emplace_back();
    if (!inputs[i].text) {
      sequence.ids = inputs[i].ids;
      sequence.types = inputs[i].types;
    } else {
      model::EncodeOptions encode;
      if (const std::size_t limit = text_limit(running, options); limit > 0) {
        encode.truncation.emplace();
        encode.truncation->max_length = limit;
      }
      model::Encoding encoding = running.tokenizer("a text").encode(*inputs[i].text, encode);
      sequence.ids = std::move(encoding.ids);
      if (running.config().types > 0) sequence.types = std::move(encoding.type_ids);
    }
    if (sequence.ids.empty())
      throw Error(ErrorCode::invalid_argument, fmt::format("input {} has no tokens", i), {},
                  inputs[i].text ? "the text is empty, and the tokenizer puts nothing around it" : "give each line at least one id");
  }
  return sequences;
}

/// The file that is being written: tensors are found by their number.
class Writer {
 public:
  Writer(const std::filesystem::path& output, const std::vector<TensorSpec>& specs, bool force)
      : file_(output, force ? Existing::replace : Existing::refuse) {
    file_.create_files(plan_safetensors(specs, 0, {}));
  }
  void write(std::size_t tensor, std::uint64_t first_element, std::span<const float> values) {
    file_.write_tensor(tensor, first_element * sizeof(float), std::as_bytes(values));
  }
  void commit() { file_.commit(); }
  [[nodiscard]] const std::vector<std::string>& warnings() const { return file_.warnings(); }
  [[nodiscard]] std::uint64_t tensor_bytes() const { return file_.layout().tensor_bytes; }

 private:
  OutputFile file_;
};

class WriteBlocks final : public model::NetworkTap {
 public:
  WriteBlocks(Writer& writer, std::size_t first_tensor, std::span<const TokenChunk> chunks, std::size_t num_layers)
      : writer_(writer), first_tensor_(first_tensor), chunks_(chunks), num_layers_(num_layers) {}
  void block_output(int layer, const model::Rows& rows) override {
    std::size_t row = 0;
    for (std::size_t c = 0; c < chunks_.size(); ++c) {
      const std::size_t count = chunks_[c].ids.size();
      writer_.write(first_tensor_ + c * num_layers_ + static_cast<std::size_t>(layer), 0, {rows.row(row), count * rows.num_columns});
      row += count;
    }
  }

 private:
  Writer& writer_;
  std::size_t first_tensor_;
  std::span<const TokenChunk> chunks_;
  std::size_t num_layers_;
};

std::vector<float> pooled(std::span<const float> rows, std::size_t hidden, const ForwardOptions& options) {
  const std::size_t count = rows.size() / hidden;
  std::vector<float> out(hidden);
  switch (options.pool) {
    case ForwardOptions::Pool::mean: {
      std::vector<double> sums(hidden, 0.0);
      for (std::size_t r = 0; r < count; ++r)
        for (std::size_t i = 0; i < hidden; ++i) sums[i] += static_cast<double>(rows[r * hidden + i]);
      for (std::size_t i = 0; i < hidden; ++i) out[i] = static_cast<float>(sums[i] / static_cast<double>(count));
      break;
    }
    case ForwardOptions::Pool::cls:
      std::copy_n(rows.begin(), hidden, out.begin());
      break;
    case ForwardOptions::Pool::last:
      std::copy_n(rows.end() - static_cast<std::ptrdiff_t>(hidden), hidden, out.begin());
      break;
  }
  if (options.raw) return out;
  double squares = 0;
  for (const float value : out) squares += static_cast<double>(value) * static_cast<double>(value);
  const double length = std::max(std::sqrt(squares), 1e-12);
  for (float& value : out) value = static_cast<float>(static_cast<double>(value) / length);
  return out;
}

}  // namespace

JobReport forward(std::string_view model_name, std::span<const ForwardInput> inputs, const std::filesystem::path& output,
                  const ForwardOptions& options) {
  using What = ForwardOptions::What;
  const auto started = std::chrono::steady_clock::now();
  if (inputs.empty()) throw Error(ErrorCode::invalid_argument, "there is nothing to run: no input", {}, "give one sequence a line");
  RunningModel running(model_name, options);
  model::Network& network = running.network();
  const model::NetworkConfig& config = network.config();
  if (options.what == What::logits && !network.has_head())
    throw Error(ErrorCode::unsupported, "the model has no head that gives logits", {.file = running.files().folder.string()},
                "ask for --what embedding or --what blocks");
  const std::vector<Sequence> sequences = sequences_of(running, inputs, options);

  const auto hidden = static_cast<std::size_t>(config.hidden), vocab = static_cast<std::size_t>(config.vocab);
  const std::size_t num_layers = config.layers.size();
  std::vector<TensorSpec> specs;
  for (std::size_t i = 0; i < sequences.size(); ++i) {
    const auto tokens = static_cast<std::int64_t>(sequences[i].ids.size());
    const auto add = [&](const std::string& name, Shape shape) { specs.push_back({fmt::format("{}.{}", i, name), DType::f32, std::move(shape)}); };
    if (options.what == What::logits) add("logits", {tokens, config.vocab});
    if (options.what == What::blocks)
      for (std::size_t layer = 0; layer < num_layers; ++layer) add(fmt::format("block{}", layer), {tokens, config.hidden});
    if (options.what == What::embedding) {
      add("embedding", {config.hidden});
      add("hidden", {tokens, config.hidden});
      if (network.has_pooler()) add("pooler", {config.hidden});
    }
  }
  const std::size_t tensors_each = specs.size() / sequences.size();
  Writer writer(output, specs, options.force);

  const std::size_t rows_at_once = running.rows_at_once();
  std::vector<float> logits;
  for (std::size_t first = 0; first < sequences.size();) {
    running.check_cancelled();
    std::vector<TokenChunk> chunks;
    std::size_t rows = 0, next = first;
    while (next < sequences.size() && (chunks.empty() || rows + sequences[next].ids.size() <= rows_at_once)) {
      chunks.push_back({nullptr, sequences[next].ids, sequences[next].types});
      rows += sequences[next++].ids.size();
    }
    WriteBlocks blocks(writer, first * tensors_each, chunks, num_layers);
    std::vector<float> x = network.run(chunks, options.what == What::blocks ? &blocks : nullptr);
    if (options.what == What::embedding) network.normalise(x);
    std::size_t row = 0;
    for (std::size_t c = 0; c < chunks.size(); ++c) {
      const std::size_t count = chunks[c].ids.size();
      const std::span<const float> own(x.data() + row * hidden, count * hidden);
      const std::size_t tensor = (first + c) * tensors_each;
      if (options.what == What::logits)
        for (std::size_t r = 0; r < count; r += kLogitRows) {
          const std::size_t taken = std::min(kLogitRows, count - r);
          logits.resize(taken * vocab);
          network.logits({own.data() + r * hidden, taken, hidden, hidden}, logits);
          writer.write(tensor, r * vocab, logits);
        }
      if (options.what == What::embedding) {
        writer.write(tensor, 0, pooled(own, hidden, options));
        writer.write(tensor + 1, 0, own);
        if (network.has_pooler()) writer.write(tensor + 2, 0, network.pool(own.first(hidden)));
      }
      row += count;
    }
    first = next;
  }
  running.files().checkpoint->check_unchanged();
  writer.commit();

  JobReport report;
  report.output = output;
  report.files = {output.filename().string()};
  report.num_tensors = specs.size();
  report.size_bytes = writer.tensor_bytes();
  report.num_parameters = report.size_bytes / sizeof(float);
  report.bytes_written = report.size_bytes;
  report.bytes_read = network.weight_bytes();
  report.peak_memory_bytes = peak_resident_bytes();
  report.warnings = running.warnings();
  report.warnings.insert(report.warnings.end(), writer.warnings().begin(), writer.warnings().end());
  report.elapsed_seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count();
  return report;
}

}  // namespace weft
