#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "weft/checkpoint.h"

// What a merge method is: a declaration, and for each tensor an object with the phases it needs. Methods know no files, no threads, no progress.
namespace weft::merge {

enum class ParameterType { number, integer, boolean };
enum class ParameterScope { global, per_model };

struct Parameter {
  std::string name = {};
  ParameterType type = ParameterType::number;
  ParameterScope scope = ParameterScope::global;
  std::optional<double> default_value = {};  ///< absent: required, unless optional_value
  std::string help = {};
  double min = -1e300;                  ///< inclusive
  double max = 1e300;
  bool optional_value = false;          ///< absent is a value of its own (passthrough's scale)
  bool ignored = false;                 ///< accepted for the sake of other tools' configs; changes nothing
};

/// Bit-identical for: A any target, thread and chunking; B any thread and chunking on one target; C within a stated bound.
enum class Determinism { A, B, C };

enum class BaseRule {
  unused,      ///< a base, if given, is just another input (linear, karcher, passthrough)
  optional,
  required,
  one_of_two,  ///< required, and counted among the models (slerp, arcee_fusion)
};

/// Values of parameters for one tensor, after filters, gradients and defaults. Booleans are 0 and 1.
class Values {
 public:
  void set(std::string_view name, double value) { values_.insert_or_assign(std::string(name), value); }
  [[nodiscard]] std::optional<double> find(std::string_view name) const;
  /// Throws internal when the declaration promised it and it is absent.
  [[nodiscard]] double number(std::string_view name) const;
  [[nodiscard]] bool flag(std::string_view name) const { return number(name) != 0; }
  [[nodiscard]] const std::map<std::string, double, std::less<>>& all() const noexcept { return values_; }

 private:
  std::map<std::string, double, std::less<>> values_;
};

struct Input {
  std::string model;      ///< as the user wrote it, for messages
  bool is_base = false;
  std::uint32_t index = 0;  ///< among the non-base inputs, in config order (the random streams use it); 0 for the base
  Values values;          ///< per-model parameters
};

/// One output tensor to be merged.
struct TensorContext {
  std::string name;       ///< of the output tensor; seeds the random streams
  Shape shape;
  std::uint64_t num_elements = 0;
  std::vector<Input> inputs;  ///< in config order; the base (if any) may be anywhere
  Values values;          ///< global parameters
  std::uint64_t seed = 0;
  int layer = -1;         ///< of the output; -1: not in a layer
  int num_layers = 0;
  std::vector<std::string>* warnings = nullptr;  ///< may be null; outlives the phases made from this context

  [[nodiscard]] std::optional<std::size_t> base() const noexcept;         ///< position in inputs
  [[nodiscard]] std::vector<std::size_t> non_base() const;                ///< positions in inputs, in order
  /// Elements along the last axis; 1-D: all; rank 0: 1.
  [[nodiscard]] std::uint64_t row_length() const noexcept;
  void warn(std::string text) const;
};

/// How a tensor is cut for the phases. Tiles are fixed by the tensor alone (never by threads or chunk sizes), so sums by tile have one order.
struct Tiling {
  /// rows: a tile holds whole rows (slices along the last axis). whole: the tensor is one tile, for methods that need whole matrices; it is
  /// admitted by what that takes (inputs and output as stored and as float32, and scratch_bytes), and refused by the plan where it can never fit.
  enum class Unit { elements, rows, whole } unit = Unit::elements;
  std::uint64_t elements = 8192;  ///< about how many a tile holds; at least one row. Multiple of 64.
};

/// Part of a tensor in every input, as float32.
struct Tile {
  std::uint64_t first = 0;               ///< flat index of its first element
  std::size_t count = 0;
  std::span<const float* const> inputs;  ///< in the order of TensorContext::inputs; each [count]
  [[nodiscard]] std::span<const float> input(std::size_t i) const { return {inputs[i], count}; }
};

/// What a worker gathers in a pass when sums of doubles are not enough (histograms, candidates). Merged in no fixed order: must not care.
class Tally {
 public:
  virtual ~Tally() = default;
};

enum class Pass { none, sample, whole };

/// The phases of one tensor: passes of `reduce` with a `solve` after each while next_pass() asks for one, then `map`.
/// reduce and map are called from many threads; the others from one.
class TensorMerge {
 public:
  virtual ~TensorMerge() = default;
  [[nodiscard]] virtual Tiling tiling() const { return {}; }

  /// When the result is one input unchanged: its position. The engine then copies the stored bytes.
  [[nodiscard]] virtual std::optional<std::size_t> copied_input() const { return std::nullopt; }
  /// Which inputs the phases look at (those with weight 0 need not be read; tiles hold zeros for them). Default: all.
  [[nodiscard]] virtual bool reads_input(std::size_t) const { return true; }

  /// Before the first pass: to keep to about this many bytes in what the passes gather besides sums (selectors and the tallies of so many workers),
  /// if need be with more passes. Returns the most that will be held, which is more where the bytes do not suffice.
  virtual std::uint64_t limit_memory(std::uint64_t /*bytes*/, int /*workers*/) { return 0; }
  /// Memory that reduce and map work in, of each worker, beyond the few KiB that fit the first levels of the cache.
  [[nodiscard]] virtual std::uint64_t scratch_bytes() const { return 0; }
  /// The most that num_sums() will be in any pass.
  [[nodiscard]] virtual std::size_t most_sums() const { return num_sums(); }

  /// Bytes in which a pass over all tiles could leave what map would otherwise work out again. 0: there is nothing to leave.
  [[nodiscard]] virtual std::uint64_t cache_bytes() const { return 0; }
  /// There is room for them: called once, before the first pass, or not at all. They are given back in finish().
  virtual void use_cache() {}

  [[nodiscard]] virtual Pass next_pass() const { return Pass::none; }
  /// In a sample pass: whether this tile is wanted.
  [[nodiscard]] virtual bool wants_tile(std::uint64_t /*first*/, std::size_t /*count*/) const { return true; }
  /// Doubles per tile that this pass sums; the engine adds the tiles' in order.
  [[nodiscard]] virtual std::size_t num_sums() const { return 0; }
  [[nodiscard]] virtual std::unique_ptr<Tally> new_tally() const { return nullptr; }
  /// sums: [num_sums()], zero on entry. tally: from new_tally(), or null.
  virtual void reduce(const Tile&, std::span<double> /*sums*/, Tally* /*tally*/) const {}
  /// totals: [num_sums()]; tallies: those of the workers that saw a tile, in no fixed order.
  virtual void solve(std::span<const double> /*totals*/, std::span<const std::unique_ptr<Tally>> /*tallies*/) {}

  /// out: [tile.count].
  virtual void map(const Tile& tile, std::span<float> out) const = 0;
  /// Called from one thread once every tile is mapped: the last chance to warn, of what only map could see.
  virtual void finish() {}
};

/// The phases of a tensor that is one input unchanged.
[[nodiscard]] std::unique_ptr<TensorMerge> copy_of(std::size_t input);

/// What merging copies of one model gives, with weights that sum to one and the other parameters at their defaults.
enum class Identity {
  exact,    ///< that model, bit for bit
  rounded,  ///< that model up to the rounding of base + (model - base) in float32
  none,     ///< something else (a step of limited size, a threshold on the change)
};

/// A row of the method table.
struct Method {
  std::string name;
  std::string summary;   ///< one line
  std::string paper;     ///< title or arXiv number; "" for none
  std::vector<Parameter> parameters;
  int min_models = 1;    ///< non-base models, except for one_of_two where the base counts
  int max_models = 1 << 20;
  BaseRule base = BaseRule::unused;
  Determinism determinism = Determinism::A;
  int passes = 1;        ///< times the data is read, usually
  bool symmetric = true; ///< permuting the non-base models, with their parameters, changes no more than rounding
  Identity identity = Identity::exact;
  /// Makes the phases; throws invalid_argument for what the ranges of the parameters cannot express. With a single-tensor context; no I/O.
  /// To be called through make_merge.
  std::unique_ptr<TensorMerge> (*make)(const TensorContext&) = nullptr;
};

/// Checks every value against its declaration (present, finite, in range, whole where it must be), then makes the phases.
/// Throws invalid_argument naming the parameter, the model and the tensor.
[[nodiscard]] std::unique_ptr<TensorMerge> make_merge(const Method& method, const TensorContext& context);

/// All methods, sorted by name.
[[nodiscard]] std::span<const Method> methods();
[[nodiscard]] const Method* find_method(std::string_view name) noexcept;

}  // namespace weft::merge
