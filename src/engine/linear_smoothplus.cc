#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/linear_scales.h"
#include "engine/linear_step.h"
#include "quantize/scale_fold.h"
#include "weft/error.h"

// SmoothQuant+: one exponent of smoothing for the whole model, found by what the whole quantized model loses on the calibration text.
namespace weft::engine {
namespace {

/// Sum of -log p of each sequence's next tokens, and how many there are.
struct TextLoss {
  double sum = 0;
  std::size_t count = 0;
};
void add_loss(model::Network& network, const CalibrationTokens& tokens, const Activations::Batch& batch, const std::vector<float>& rows,
              TextLoss& loss) {
  constexpr std::size_t kRows = 256;
  const auto hidden = static_cast<std::size_t>(network.config().hidden), vocab = static_cast<std::size_t>(network.config().vocab);
  std::vector<float> logits(kRows * vocab);
  std::size_t first = 0;
  for (std::size_t s = batch.first_sequence; s < batch.first_sequence + batch.num_sequences; ++s) {
    const std::vector<std::uint32_t>& ids = tokens.sequences[s];
    for (std::size_t begin = 0; begin + 1 < ids.size(); begin += kRows) {
      const std::size_t count = std::min(kRows, ids.size() - 1 - begin);
      network.logits({rows.data() + (first + begin) * hidden, count, hidden, hidden}, std::span(logits).first(count * vocab));
      for (std::size_t r = 0; r < count; ++r) {
        const float* row = logits.data() + r * vocab;
        const float most = *std::max_element(row, row + vocab);
        double sum = 0;
        for (std::size_t v = 0; v < vocab; ++v) sum += std::exp(static_cast<double>(row[v] - most));
        loss.sum += std::log(sum) - static_cast<double>(row[ids[begin + r + 1]] - most);
        ++loss.count;
      }
    }
    first += ids.size();
  }
}

/// The first sequences, of so many tokens at least.
std::shared_ptr<const CalibrationTokens> some_of(const CalibrationTokens& tokens, std::uint64_t num_tokens) {
  auto out = std::make_shared<CalibrationTokens>();
  for (std::size_t s = 0; s < tokens.sequences.size() && out->num_tokens() < num_tokens; ++s) {
    if (std::find(tokens.groups.begin(), tokens.groups.end(), s) != tokens.groups.end()) out->groups.push_back(s);
    out->sequences.push_back(tokens.sequences[s]);
  }
  return out;
}

class SmoothPlusStep final : public LinearStep {
 public:
  explicit SmoothPlusStep(const LinearPlan& plan)
      : step_(step_parameter(plan.options, "smoothplus", "step")), num_tokens_(step_parameter(plan.options, "smoothplus", "tokens")) {}

  void before_pass(LinearPlan& plan, RunningModel& model, std::shared_ptr<const CalibrationTokens>& tokens) override {
    if (!model.network().has_head())
      throw Error(ErrorCode::unsupported, "smoothplus compares the losses of a text, and the model has no head to predict one",
                  {.file = plan.model_name}, "use smooth");
    const std::shared_ptr<const CalibrationTokens> some = some_of(*tokens, static_cast<std::uint64_t>(num_tokens_));
    // Without any scales first, so that what is taken is never worse than rounding by its own measure.
    std::optional<double> best;
    double least = loss_with(plan, model, some, std::nullopt), plain = least;
    const auto count = static_cast<int>(std::floor(1 / step_ + 1e-9));
    for (int i = 0; i <= count; ++i) {
      const double exponent = std::min(1.0, step_ * i);
      const double loss = loss_with(plan, model, some, exponent);
      if (!(loss < least)) continue;
      least = loss;
      best = exponent;
    }
    exponent_ = best;
    told_ = best ? fmt::format("smoothplus smooths by {:g}: a loss of {:.5f} on {} tokens, {:.5f} without", *best, least, some->num_tokens(), plain)
                 : fmt::format("smoothplus smooths nothing: no exponent gives less than {:.5f} on {} tokens", plain, some->num_tokens());
  }

  void before_block(LinearPlan& plan, Block& block) override {
    if (block.layer() == 0) block.note("warning smoothplus", told_);
    smooth(plan, block, exponent_);
  }

 private:
  static void smooth(LinearPlan& plan, Block& block, std::optional<double> exponent) {
    if (!exponent) return;
    fold_scales(
        plan, block,
        [&](std::span<const quantize::Reader> readers, const InputStatistics& read, const LinearTarget& target) {
          return quantize::smooth_scales(readers, target.columns, read.max_abs, *exponent);
        },
        false);
  }

  /// Of the model whose layers are rounded after smoothing.
  static double loss_with(LinearPlan& plan, RunningModel& model, const std::shared_ptr<const CalibrationTokens>& tokens,
                          std::optional<double> exponent) {
    BlockPassOptions options;
    static_cast<RunOptions&>(options) = plan.options;
    BlockPass pass(model, tokens, options);
    TextLoss loss;
    static_cast<void>(pass.run([&](Block& block) {
      smooth(plan, block, exponent);
      for (const model::BlockTensor* tensor : block.linears()) {
        const LinearTarget* target = plan.find(tensor->tensor->name);
        if (target == nullptr) continue;
        LinearMatrix matrix = block.matrix(target->name);
        target->check_values(matrix.values);
        matrix.values = quantize::round_to_nearest(matrix.values, target->rows, target->columns, plan.options_for(*target)).decoded();
        block.set_matrix(target->name, matrix);
      }
      if (block.layer() + 1 < block.num_layers()) return;
      for (const Activations::Batch& batch : block.batches()) add_loss(block.network(), *tokens, batch, block.run(batch, block.input(batch)), loss);
    }));
    return loss.count == 0 ? 0 : loss.sum / static_cast<double>(loss.count);
  }

  double step_, num_tokens_;
  std::optional<double> exponent_;
  std::string told_;
};

}  // namespace

std::unique_ptr<LinearStep> make_smoothplus_step(const LinearPlan& plan) { return std::make_unique<SmoothPlusStep>(plan); }

}  // namespace weft::engine
