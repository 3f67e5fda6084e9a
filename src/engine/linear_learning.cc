#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <utility>

#include "base/text.h"
#include "checkpoint/json.h"
#include "engine/linear_format.h"
#include "engine/linear_step.h"
#include "engine/quantize_learn.h"
#include "quantize/reconstruct.h"
#include "weft/error.h"

// Codes that are learned: from what a block gave before (OmniQuant, FlexRound, LRQ, scales alone), or a layer (AdaQuant).
namespace weft::engine {
namespace {

using quantize::Learned;

void refuse_other_numbers(const LinearPlan& plan, std::string_view step) {
  if (!plan.integers()) refuse_linear("method", fmt::format("'{}' learns integer codes", step), "use --numbers int");
  if (plan.is_bitsandbytes())
    refuse_linear("method", fmt::format("bitsandbytes rounds by itself: nothing that '{}' learns is stored", step), "use another format");
  for (const std::string& name : split_steps(plan.options.method))
    if (name == "lorc") refuse_linear("method", fmt::format("'{}' changes the codes whose loss 'lorc' has made good", step), "leave one of them out");
}

class BlockLearningStep final : public LinearStep {
 public:
  BlockLearningStep(std::string_view name, Learned what) : name_(name), what_(what) {}

  void configure(LinearPlan& plan) override {
    refuse_other_numbers(plan, name_);
    const auto number = [&](std::string_view parameter) { return step_parameter(plan.options, name_, parameter); };
    options_.codes.what = what_;
    options_.codes.seed = options_.steps.seed = plan.options.seed;
    if (what_ == Learned::low_rank) options_.codes.rank = static_cast<std::int64_t>(number("rank"));
    options_.steps.rate = number("rate");
    options_.steps.epochs = static_cast<int>(number("epochs"));
    options_.steps.gain_rate = number("gains");
    options_.unit_tokens = static_cast<std::size_t>(number("tokens"));
    // From the best range there is less far to go than from the whole one, with which --search none begins.
    if (plan.options.search.empty() && plan.solver != "hqq") plan.solver_options.format.search = codec::Search::shrink;
  }
  [[nodiscard]] bool two_streams(const LinearPlan&) const override { return true; }
  void before_block(LinearPlan&, Block&) override {
    layers_.clear();
    originals_.clear();
  }
  void after_codes(LinearLayer& layer) override {
    if (layer.tries || layer.statistics == nullptr) return;
    layers_.push_back({layer.target.name, layer.values, layer.need_codes(), layer.solver});
    originals_.push_back({&layer.target, std::vector<float>(layer.original.begin(), layer.original.end()), layer.method});
  }
  void after_block(LinearPlan& plan, Block& block) override {
    if (layers_.empty()) return;
    const std::vector<std::string> chain = split_steps(plan.options.method);
    options_.codes.keeps_codes = plan.solver != "rtn" || std::any_of(chain.begin(), chain.end(),
                                                                     [](const std::string& step) { return step == "refine" || step == "adaquant"; });
    const JobOptions& job = plan.options;
    options_.steps.on_progress = [&](double done) {
      if (job.cancel != nullptr && job.cancel->load()) throw Error(ErrorCode::interrupted, "learning was interrupted");
      if (!job.on_progress) return;
      constexpr std::uint64_t kParts = 1000;
      const auto at = static_cast<std::uint64_t>((block.layer() + done) * kParts);
      job.on_progress({.what = "learning codes", .done_bytes = at, .total_bytes = static_cast<std::uint64_t>(block.num_layers()) * kParts});
    };
    const LearnedBlock learned = learn_block(block, layers_, options_);
    for (std::size_t i = 0; i < layers_.size(); ++i) {
      const LinearTarget& target = *originals_[i].target;
      PackedLayer packed = pack_layer(plan, target, layers_[i].weights, &learned.result.codes[i]);
      originals_[i].bits = 8.0 * static_cast<double>(packed.size_bytes()) / static_cast<double>(target.num_weights());
      for (codec::StoredTensor& part : packed.parts)
        block.emit({fmt::format("{}.{}", target.module, part.name), part.dtype, std::move(part.shape), std::move(part.bytes)});
      LinearMatrix matrix = block.matrix(target.name);
      matrix.values = std::move(packed.decoded);
      block.set_matrix(target.name, matrix);
    }
    for (const auto& [tensor, values] : learned.gains) {
      block.emit(tensor->tensor->name, tensor->tensor->dtype, tensor->tensor->shape, values);
      block.set_values(tensor->tensor->name, values);
    }
    block.note(fmt::format("learned {}", name_), write_json(Json::Object{{"before", learned.result.before},
                                                                         {"after", learned.result.after},
                                                                         {"learned_before", learned.result.learned_before},
                                                                         {"learned_after", learned.result.learned_after},
                                                                         {"epoch", learned.result.best_epoch}}));
    if (learned.result.kept_start)
      block.note("warning learned",
                 fmt::format("block {}: nothing that '{}' learned was better on the part of the text that is held out: it stays as '{}' "
                             "left it",
                             block.layer(), name_, plan.solver));
    tell_losses(block);
    layers_.clear();
    originals_.clear();
  }

 private:
  struct Original {
    const LinearTarget* target;
    std::vector<float> values;
    std::string method;
    double bits = 0;
  };

  /// The table's losses, as they are now.
  void tell_losses(Block& block) {
    StatisticsRequest request;
    request.gram = true;
    for (const Original& one : originals_) {
      const model::BlockTensor& tensor = block.tensor(one.target->name);
      const InputPoint point = input_point(tensor.slot.role, tensor.slot.expert);
      if (std::find(request.points.begin(), request.points.end(), point) == request.points.end()) request.points.push_back(point);
    }
    for (const InputStatistics& statistics : block.statistics(request))
      for (const std::string& name : statistics.weights)
        for (std::size_t i = 0; i < originals_.size(); ++i) {
          const LinearTarget& target = *originals_[i].target;
          if (target.name != name) continue;
          const double loss = quantize::relative_loss(originals_[i].values, block.matrix(name).values, target.rows, target.columns, statistics.gram);
          block.note("layer " + name, write_json(Json::Object{{"method", originals_[i].method}, {"bits", originals_[i].bits}, {"loss", loss}}));
        }
  }

  std::string name_;
  Learned what_;
  LearnOptions options_;
  std::vector<LearnedLayer> layers_;
  std::vector<Original> originals_;
};

/// Each layer by its own outputs.
class AdaQuantStep final : public LinearStep {
 public:
  void configure(LinearPlan& plan) override {
    refuse_other_numbers(plan, "adaquant");
    rate_ = step_parameter(plan.options, "adaquant", "rate");
    steps_ = static_cast<int>(step_parameter(plan.options, "adaquant", "steps"));
    seed_ = plan.options.seed;
    keeps_codes_ = plan.solver != "rtn";
    if (plan.options.search.empty() && plan.solver != "hqq") plan.solver_options.format.search = codec::Search::shrink;
  }
  [[nodiscard]] bool in_sequence() const override { return true; }
  void new_statistics() override { moments_of_ = nullptr; }
  void after_codes(LinearLayer& layer) override {
    if (layer.statistics == nullptr || layer.block == nullptr) return;
    if (moments_of_ != layer.statistics) {
      const InputPoint points[] = {layer.statistics->point};
      held_ = std::move(held_out_moments(*layer.block, points, kHeldOut).front().held);
      learned_ = layer.statistics->gram;
      for (std::size_t i = 0; i < held_.size(); ++i) learned_[i] -= held_[i];
      // Where all tokens are in one batch nothing can be held out.
      if (held_.empty()) held_ = learned_;
      moments_of_ = layer.statistics;
    }
    const codec::QuantizedLinear start = layer.need_codes();
    quantize::LearnedCodes<float> codes(layer.values, start, layer.solver, {.what = Learned::weight, .seed = seed_, .keeps_codes = keeps_codes_},
                                        layer.target.name);
    layer.codes = quantize::reconstruct_layer(layer.block->network().team(), layer.original, start, codes, learned_, held_, rate_, steps_).codes;
  }

 private:
  static constexpr double kHeldOut = 0.2;
  double rate_ = 0;
  int steps_ = 0;
  std::uint64_t seed_ = 0;
  bool keeps_codes_ = false;
  const InputStatistics* moments_of_ = nullptr;
  std::vector<double> held_, learned_;
};

}  // namespace

std::unique_ptr<LinearStep> make_omniquant_step(const LinearPlan&) { return std::make_unique<BlockLearningStep>("omniquant", Learned::clip); }
std::unique_ptr<LinearStep> make_flexround_step(const LinearPlan&) { return std::make_unique<BlockLearningStep>("flexround", Learned::divisor); }
std::unique_ptr<LinearStep> make_lrq_step(const LinearPlan&) { return std::make_unique<BlockLearningStep>("lrq", Learned::low_rank); }
std::unique_ptr<LinearStep> make_tune_step(const LinearPlan&) { return std::make_unique<BlockLearningStep>("tune", Learned::scale); }
std::unique_ptr<LinearStep> make_adaquant_step(const LinearPlan&) { return std::make_unique<AdaQuantStep>(); }

}  // namespace weft::engine
