#include "engine/gradient_scores.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <span>

#include "base/budget.h"
#include "base/check.h"
#include "base/text.h"
#include "engine/computed_checkpoint.h"
#include "engine/measure_input.h"
#include "model/block_gradient.h"
#include "weft/error.h"

namespace weft::engine {
namespace {

/// Sequences of which the gradient is taken together.
constexpr std::size_t kTokensAtOnce = 4096;

std::span<const std::vector<std::uint32_t>> first_sequences(const CalibrationTokens& tokens, std::size_t count) {
  const std::span<const std::vector<std::uint32_t>> all(tokens.sequences);
  return count == 0 || count >= all.size() ? all : all.first(count);
}

/// What is left of the budget for the gradient itself.
std::uint64_t admit(const Checkpoint& model, const std::vector<std::string>& names, std::uint64_t memory_bytes) {
  std::uint64_t size = 0;
  for (const std::string& name : names) size += model.tensor(name).num_elements * sizeof(float);
  const std::uint64_t budget = MemoryBudget(memory_bytes).limit_bytes();
  if (size >= budget)
    throw Error(ErrorCode::out_of_memory,
                fmt::format("a score for each weight takes {}, but the budget is {}", format_size(size), format_size(budget)), {},
                "raise it with --memory, or choose weights by size and inputs: the step 'exact'");
  return budget - size;
}

void check_cancelled(const GradientScoreOptions& options) {
  if (options.cancel != nullptr && options.cancel->load()) throw Error(ErrorCode::interrupted, "taking gradients was interrupted");
}

std::vector<float> values_of(const Checkpoint& checkpoint, const std::string& name) {
  const TensorInfo& tensor = checkpoint.tensor(name);
  std::vector<float> values(checked_size(tensor.num_elements, "matrix"));
  read_floats(checkpoint, tensor, 0, values);
  return values;
}

}  // namespace

ChosenPositions choose_by_gradient(const std::shared_ptr<const Checkpoint>& model, const Json& config, const CalibrationTokens& tokens,
                                   const std::vector<std::string>& names, double share, const GradientScoreOptions& options) {
  model::LossGradientOptions how{options.threads, admit(*model, names, options.memory_bytes)};
  std::map<std::string, std::vector<float>, std::less<>> scores;
  for (const std::string& name : names) scores[name].resize(checked_size(model->tensor(name).num_elements, "matrix"));
  const auto sequences = first_sequences(tokens, options.num_sequences);
  // One by one: gradients of several sequences would cancel each other.
  for (std::size_t s = 0; s < sequences.size(); ++s) {
    check_cancelled(options);
    static_cast<void>(model::loss_gradient(
        model, config, sequences.subspan(s, 1),
        [&](const TensorInfo& tensor, std::span<const float> gradient) {
          const auto found = scores.find(tensor.name);
          if (found == scores.end()) return;
          for (std::size_t i = 0; i < gradient.size(); ++i) found->second[i] += std::fabs(gradient[i]);
        },
        how));
    if (options.on_progress) options.on_progress(static_cast<double>(s + 1) / static_cast<double>(sequences.size()));
  }
  ChosenPositions chosen;
  for (auto& [name, own] : scores) {
    chosen.emplace(name, quantize::largest_scores(own, static_cast<std::size_t>(std::llround(share * static_cast<double>(own.size())))));
    std::vector<float>().swap(own);
  }
  return chosen;
}

PathScores score_path(const std::shared_ptr<const Checkpoint>& model, const std::shared_ptr<const Checkpoint>& quantized, const Json& config,
                      const CalibrationTokens& tokens, const std::vector<std::string>& names, int num_points, const GradientScoreOptions& options) {
  model::LossGradientOptions how{options.threads, admit(*model, names, options.memory_bytes)};
  const auto sequences = first_sequences(tokens, options.num_sequences);
  std::vector<std::span<const std::vector<std::uint32_t>>> groups;
  std::size_t first = 0, held = 0, all = 0;
  for (std::size_t s = 0; s < sequences.size(); ++s) {
    if (s > first && held + sequences[s].size() > kTokensAtOnce) {
      groups.push_back(sequences.subspan(first, s - first));
      first = s;
      held = 0;
    }
    held += sequences[s].size();
    all += sequences[s].size() - 1;
  }
  groups.push_back(sequences.subspan(first));
  PathScores scores;
  std::vector<float> sum;
  const std::vector<double> points = quantize::path_points(num_points);
  std::size_t done = 0;
  for (const double t : points) {
    const std::shared_ptr<const Checkpoint> at = between(model, quantized, t);
    // The mean over all predicted tokens; with several groups they are added up by tokens in the one sum that PathGradient keeps.
    for (const auto& group : groups) {
      check_cancelled(options);
      std::size_t own = 0;
      for (const auto& sequence : group) own += sequence.size() - 1;
      const float weight = static_cast<float>(static_cast<double>(own * groups.size()) / static_cast<double>(all));
      static_cast<void>(model::loss_gradient(
          at, config, group,
          [&](const TensorInfo& tensor, std::span<const float> gradient) {
            if (std::find(names.begin(), names.end(), tensor.name) == names.end()) return;
            sum.assign(gradient.begin(), gradient.end());
            for (float& value : sum) value *= weight;
            scores.gradients[tensor.name].add(sum);
          },
          how));
      ++done;
      if (options.on_progress) options.on_progress(static_cast<double>(done) / static_cast<double>(points.size() * groups.size()));
    }
  }
  for (const auto& [name, gradient] : scores.gradients) scores.change += gradient.change(values_of(*model, name), values_of(*quantized, name));
  return scores;
}

}  // namespace weft::engine
