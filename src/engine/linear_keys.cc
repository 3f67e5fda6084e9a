#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <set>
#include <string>
#include <utility>

#include "engine/block_pass.h"
#include "engine/calibration_text.h"
#include "engine/linear_step.h"
#include "engine/rounded_loss.h"
#include "math/lapack.h"
#include "model/space_map.h"
#include "model/spaces.h"
#include "quantize/key_smoothing.h"
#include "weft/error.h"

// FireQ's smoothing of keys: channels that speak loudly in keys speak more quietly there and louder in queries, so that engines which hold keys in
// few bits lose less.
namespace weft::engine {
namespace {

using model::Role;

constexpr std::uint64_t kTokens = 8192;  // of the text that keys are looked at for

/// The largest key of each channel of a block, before positions turn it: [kv heads, head dims].
class KeyTap final : public BlockTap {
 public:
  KeyTap(const LinearMatrix& keys, std::span<const float> bias) : largest(keys.rows), keys_(keys), bias_(bias) {
    weights_.assign(keys.values.begin(), keys.values.end());
  }
  std::vector<float> largest;

  void linear_input(int, Role role, int, std::size_t, const model::Rows& rows) override {
    if (role != Role::q || rows.num_columns != keys_.columns) return;
    const auto in = static_cast<std::int64_t>(keys_.columns), out = static_cast<std::int64_t>(keys_.rows);
    std::vector<double> x(rows.num_rows * rows.num_columns), y(rows.num_rows * keys_.rows);
    for (std::size_t r = 0; r < rows.num_rows; ++r)
      std::copy_n(rows.row(r), rows.num_columns, x.begin() + static_cast<std::ptrdiff_t>(r * rows.num_columns));
    math::gemm(math::Transpose::no, math::Transpose::yes, static_cast<std::int64_t>(rows.num_rows), out, in, 1.0, x.data(), in, weights_.data(), in,
               0.0, y.data(), out);
    for (std::size_t i = 0; i < y.size(); ++i) {
      const std::size_t channel = i % keys_.rows;
      const double key = y[i] + (bias_.empty() ? 0.0 : static_cast<double>(bias_[channel]));
      largest[channel] = std::max(largest[channel], static_cast<float>(std::fabs(key)));
    }
  }

 private:
  const LinearMatrix& keys_;
  std::span<const float> bias_;
  std::vector<double> weights_;
};

/// Of each block; empty for those whose keys have no matrix of their own.
std::vector<std::vector<float>> largest_keys(RunningModel& running, const std::shared_ptr<const CalibrationTokens>& tokens,
                                             const RunOptions& options) {
  std::vector<std::vector<float>> all(running.config().layers.size());
  BlockPassOptions pass_options;
  static_cast<RunOptions&>(pass_options) = options;
  BlockPass pass(running, tokens, pass_options);
  static_cast<void>(pass.run([&](Block& block) {
    std::optional<LinearMatrix> keys;
    std::vector<float> bias;
    for (const model::BlockTensor& tensor : block.tensors()) {
      if (tensor.slot.role != Role::k) continue;
      if (tensor.tensor->shape.size() == 2)
        keys = block.matrix(tensor.tensor->name);
      else if (tensor.tensor->shape.size() == 1)
        bias = block.values(tensor.tensor->name);
    }
    if (!keys) return;
    if (bias.size() != keys->rows) bias.clear();
    KeyTap tap(*keys, bias);
    block.run(tap);
    all[static_cast<std::size_t>(block.layer())] = std::move(tap.largest);
  }));
  return all;
}

class KeysStep final : public LinearStep {
 public:
  bool change_model(LinearPlan& plan, LazyModel& model) override {
    const double exponent = step_parameter(plan.options, "keys", "exponent");
    std::shared_ptr<const CalibrationTokens> tokens = plan.options.tokens;
    if (tokens == nullptr && !plan.options.calibration)
      refuse_linear("calibration", "'keys' looks at the keys of a text, and there is none", "give --calibration FILE");
    RunOptions options = plan.options;
    options.on_warning = {};  // the job itself says them
    RunningModel running(files_of(model), options);
    if (tokens == nullptr) tokens = read_calibration_text(running, *plan.options.calibration, plan.options.seed).tokens;
    const std::vector<std::vector<float>> largest_of = largest_keys(running, first_tokens(*tokens, kTokens), options);

    const Json& config = *model.parts.config;
    const model::Architecture* architecture = model::find_architecture(config);
    if (architecture == nullptr) architecture = model::find_architecture_family(config);
    const std::shared_ptr<const Checkpoint> checkpoint = checkpoint_of(model);
    const model::NetworkSpaces spaces = architecture == nullptr ? model::NetworkSpaces() : model::spaces_of(*architecture, config, *checkpoint);
    const auto size_of = [&](const std::string& name) -> std::int64_t {
      for (const model::Space& space : spaces.spaces)
        if (space.name == name) return (space.allows & model::kScale) != 0 ? space.size : 0;
      return 0;
    };
    std::vector<model::SpaceMap> maps;
    const auto heads = static_cast<std::size_t>(running.config().kv_heads), dims = static_cast<std::size_t>(running.config().head_dim);
    for (std::size_t layer = 0; layer < largest_of.size(); ++layer) {
      const std::vector<float>& largest = largest_of[layer];
      if (largest.size() != heads * dims) continue;
      const auto pairs = static_cast<std::size_t>(size_of(fmt::format("pair.{}", layer)));
      const std::string rest = size_of(fmt::format("pass.{}", layer)) > 0 ? "pass" : "key";
      const auto alone = static_cast<std::size_t>(size_of(fmt::format("{}.{}", rest, layer)));
      if (pairs == 0 && alone == 0) continue;
      std::vector<double> of_pairs, of_rest;
      for (std::size_t head = 0; head < heads; ++head) {
        const auto own = std::span(largest).subspan(head * dims, dims);
        const std::vector<double> turned = quantize::pair_scales(own.first(2 * pairs), exponent);
        const std::vector<double> still = quantize::channel_scales(own.last(alone), exponent);
        of_pairs.insert(of_pairs.end(), turned.begin(), turned.end());
        of_rest.insert(of_rest.end(), still.begin(), still.end());
      }
      // Queries write these spaces, and keys read them.
      if (pairs > 0) maps.push_back(model::scaled(fmt::format("kv.{} x pair.{}", layer, layer), std::move(of_pairs)));
      if (alone > 0) maps.push_back(model::scaled(fmt::format("kv.{} x {}.{}", layer, rest, layer), std::move(of_rest)));
    }
    if (maps.empty())
      throw Error(ErrorCode::unsupported,
                  "the keys of this architecture cannot be scaled: a norm stands behind them, or they have no matrix of their own",
                  {.file = model.name}, "leave 'keys' out of --method");
    const model::MappedModel mapped = model::map_spaces(checkpoint, config, maps);
    const std::set<std::string> changed(mapped.changed.begin(), mapped.changed.end());
    for (edit::Tensor& part : model.parts.tensors) {
      if (!changed.contains(part.name)) continue;
      part.values = {mapped.checkpoint, &mapped.checkpoint->tensor(part.name)};
      part.steps.emplace_back("keys");
    }
    return true;
  }
};

}  // namespace

std::unique_ptr<LinearStep> make_keys_step(const LinearPlan&) { return std::make_unique<KeysStep>(); }

}  // namespace weft::engine
