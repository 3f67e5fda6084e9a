#pragma once
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "codec/packed_linear.h"
#include "codec/scalar_grid.h"
#include "engine/lazy_model.h"
#include "engine/quantize_linear.h"
#include "quantize/solver.h"

// What the options of quantizing linear layers mean: the steps of the method, the numbers that the format holds, and the layers of a model that are
// to be quantized.
namespace weft::engine {

class LinearStep;

enum class LinearFormat : std::uint8_t { gptq, gptq_v2, awq, compressed, bnb4, bnb8, own };

/// Above any row's length, and far from where sums of sizes would overflow.
constexpr std::int64_t kMaxGroup = std::int64_t{1} << 30;

/// A layer that is to be quantized.
struct LinearTarget {
  std::string name;         ///< of the weight, as the network that runs calls it: another than the file's in a model that is more than its text
  std::string module;       ///< without ".weight"
  std::string file_module;  ///< the same as the file names it
  DType dtype = DType::bf16;
  std::int64_t rows = 0, columns = 0;
  int bits = 4;
  int block = -1;
  bool bits_given = false;  ///< by a rule: a budget does not change them
  std::int64_t group = 128;
  std::string solver = {};  ///< by a rule: the step that finds the codes; empty: the method's own
  const TensorInfo* tensor = nullptr;
  std::shared_ptr<const Checkpoint> checkpoint;

  [[nodiscard]] std::string file_name() const { return file_module + ".weight"; }
  [[nodiscard]] std::uint64_t num_weights() const { return static_cast<std::uint64_t>(rows) * static_cast<std::uint64_t>(columns); }
  /// [rows, columns]. Errors: corrupt for values that are NaN or infinite.
  [[nodiscard]] std::vector<float> read_values() const;
  /// Throws corrupt for values that are NaN or infinite.
  void check_values(std::span<const float> values) const;
};

/// The options, understood, and the model's layers.
struct LinearPlan {
  /// Errors: invalid_argument for options that contradict each other or what the format holds.
  explicit LinearPlan(const LinearQuantizeOptions& options);
  ~LinearPlan();
  LinearPlan(const LinearPlan&) = delete;
  LinearPlan& operator=(const LinearPlan&) = delete;

  /// Finds the layers and what the rules say of them. Errors: invalid_argument for rules that match nothing; unsupported for layers that the format
  /// has no place for.
  void find_targets(const LazyModel& model);

  const LinearQuantizeOptions& options;
  std::vector<std::unique_ptr<LinearStep>> steps;  ///< in the order in which they are carried out; one of them finds the codes
  std::string solver;                              ///< that one's name
  /// Steps that find the codes of layers whose rule names another.
  struct Alternative {
    std::unique_ptr<LinearStep> step;
    quantize::SolverOptions solver_options;
  };
  std::map<std::string, Alternative> alternatives;
  LinearFormat format = LinearFormat::gptq;
  codec::CompressedForm form = codec::CompressedForm::pack_quantized;
  codec::Levels levels = codec::Levels::integer;
  bool symmetric = true;
  bool compensates = false;  ///< errors of columns are made good by later ones
  bool blocks = false;       ///< scales of 128 by 128
  int bits = 4;              ///< of most layers
  std::int64_t group = 128;
  quantize::SolverOptions solver_options;

  std::string model_name;        ///< as the user wrote it
  std::filesystem::path output;  ///< large things that are made on the way go beside it
  std::vector<LinearTarget> targets;
  std::map<std::string, const LinearTarget*, std::less<>> by_name;  ///< by both names
  std::map<std::string, std::string, std::less<>> running_names;    ///< of the file's tensors that the network calls otherwise
  std::vector<std::string> kept;                                    ///< modules that rules keep
  std::vector<std::string> plain;                                   ///< modules that are no layer of these formats
  std::vector<std::string> stacks;                                  ///< tensors of several experts' matrices each, which stay as they are
  std::vector<std::string> tower_layers;                            ///< of what sees and hears beside the language model, which stay as they are
  std::uint64_t num_parameters = 0;

  [[nodiscard]] bool integers() const { return levels == codec::Levels::integer; }
  [[nodiscard]] bool is_gptq() const { return format == LinearFormat::gptq || format == LinearFormat::gptq_v2; }
  [[nodiscard]] bool is_bitsandbytes() const { return format == LinearFormat::bnb4 || format == LinearFormat::bnb8; }
  /// By either name; null for what is not quantized.
  [[nodiscard]] const LinearTarget* find(std::string_view weight) const;
  /// What the network that runs calls a tensor of the file.
  [[nodiscard]] std::string_view running_name(std::string_view file_name) const;
  [[nodiscard]] quantize::SolverOptions options_for(const LinearTarget& target) const;
  /// All steps, those that only rules name too.
  [[nodiscard]] std::vector<LinearStep*> all_steps() const;
  /// Those that a layer goes through.
  [[nodiscard]] std::vector<LinearStep*> steps_of(const LinearTarget& target) const;
  /// Layers that the text does not reach stay as they are.
  void leave(const std::set<std::string>& modules);

 private:
  void add_alternative(const LinearRule& rule);
  void index_targets();

  LinearStep* codes_step_ = nullptr;                ///< among the steps
  quantize::SolverOptions before_codes_step_ = {};  ///< as other steps left the options
};

/// Throws invalid_argument.
[[noreturn]] void refuse_linear(const char* key, const std::string& what, const std::string& advice);

}  // namespace weft::engine
