#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <numbers>
#include <numeric>
#include <set>

#include "adapt/fold.h"
#include "base/check.h"
#include "base/text.h"
#include "base/torch_random.h"
#include "math/add_product.h"

namespace weft::adapt {
namespace {

using AdapterPointer = std::shared_ptr<const Adapter>;

// ---- Small matrices -----------------------------------------------------------------------------------------------------------------------

struct Matrix {
  std::size_t rows = 0, columns = 0;
  std::vector<float> values;
  [[nodiscard]] float operator()(std::size_t i, std::size_t j) const { return values[i * columns + j]; }
  [[nodiscard]] Matrix transposed() const {
    Matrix out{columns, rows, std::vector<float>(values.size())};
    for (std::size_t i = 0; i < rows; ++i)
      for (std::size_t j = 0; j < columns; ++j) out.values[j * rows + i] = values[i * columns + j];
    return out;
  }
};

std::uint64_t dim(const TensorInfo& tensor, std::size_t axis) {
  return axis < tensor.shape.size() ? static_cast<std::uint64_t>(tensor.shape[axis]) : 1;
}
/// Elements of all axes from this one on.
std::uint64_t dims_from(const TensorInfo& tensor, std::size_t axis) {
  std::uint64_t product = 1;
  for (std::size_t d = axis; d < tensor.shape.size(); ++d) product *= dim(tensor, d);
  return product;
}

/// First axis by all others.
Matrix matrix_of(const Adapter& adapter, const TensorInfo& tensor) {
  return {static_cast<std::size_t>(dim(tensor, 0)), static_cast<std::size_t>(dims_from(tensor, 1)), values_of(adapter, tensor)};
}

using Square = std::vector<double>;  ///< [n, n]

Square product(const Square& a, const Square& b, std::size_t n) {
  Square c(n * n, 0.0);
  for (std::size_t i = 0; i < n; ++i)
    for (std::size_t k = 0; k < n; ++k)
      for (std::size_t j = 0; j < n; ++j) c[i * n + j] += a[i * n + k] * b[k * n + j];
  return c;
}

/// (I - q) (I + q)^-1 of a skew matrix: I + q is never singular. Gauss-Jordan with pivots.
Square cayley(const Square& q, std::size_t n) {
  Square left(n * n), inverse(n * n, 0.0);
  for (std::size_t i = 0; i < n; ++i) {
    inverse[i * n + i] = 1;
    for (std::size_t j = 0; j < n; ++j) left[i * n + j] = q[i * n + j] + (i == j ? 1.0 : 0.0);
  }
  for (std::size_t k = 0; k < n; ++k) {
    std::size_t pivot = k;
    for (std::size_t i = k + 1; i < n; ++i)
      if (std::abs(left[i * n + k]) > std::abs(left[pivot * n + k])) pivot = i;
    for (std::size_t j = 0; j < n; ++j) {
      std::swap(left[k * n + j], left[pivot * n + j]);
      std::swap(inverse[k * n + j], inverse[pivot * n + j]);
    }
    const double scale = 1 / left[k * n + k];
    for (std::size_t j = 0; j < n; ++j) {
      left[k * n + j] *= scale;
      inverse[k * n + j] *= scale;
    }
    for (std::size_t i = 0; i < n; ++i) {
      const double factor = left[i * n + k];
      if (i == k || factor == 0) continue;
      for (std::size_t j = 0; j < n; ++j) {
        left[i * n + j] -= factor * left[k * n + j];
        inverse[i * n + j] -= factor * inverse[k * n + j];
      }
    }
  }
  Square minus(n * n);
  for (std::size_t i = 0; i < n * n; ++i) minus[i] = (i % (n + 1) == 0 ? 1.0 : 0.0) - q[i];
  return product(minus, inverse, n);
}

// ---- Changes ------------------------------------------------------------------------------------------------------------------------------

/// W + left right.
class LowRank final : public Fold {
 public:
  LowRank(const Matrix& left, const Matrix& right, double scale) : LowRank(left, right, std::vector<double>(left.columns, scale)) {}
  /// Each inner index with a factor of its own.
  LowRank(const Matrix& left, const Matrix& right, const std::vector<double>& scales)
      : rank_(left.columns), left_(left.values.size()), right_(math::pack_matrix(right.values, right.rows, right.columns)) {
    WEFT_ASSERT(left.columns == right.rows && scales.size() == left.columns);
    for (std::size_t i = 0; i < left_.size(); ++i) left_[i] = static_cast<double>(left.values[i]) * scales[i % rank_];
    held_bytes = left_.size() * sizeof(double) + right_.panels.size() * sizeof(float);
  }
  void apply(const RowSource& source, std::uint64_t first, std::uint64_t count, std::span<double> values) const override {
    math::add_product(left_.data() + first * rank_, rank_, static_cast<std::size_t>(count), right_, values.data(),
                      static_cast<std::size_t>(source.columns));
  }

 private:
  std::size_t rank_;
  std::vector<double> left_;  ///< [rows, rank], scaled
  math::PanelMatrix right_;
};

/// For each slice of a stack of matrices its own product.
class LowRankStack final : public Fold {
 public:
  LowRankStack(std::vector<std::unique_ptr<Fold>> slices, std::uint64_t rows_of_slice) : slices_(std::move(slices)), rows_of_slice_(rows_of_slice) {
    for (const auto& slice : slices_) held_bytes += slice->held_bytes;
  }
  void apply(const RowSource& source, std::uint64_t first, std::uint64_t count, std::span<double> values) const override {
    while (count > 0) {
      const std::uint64_t inside = first % rows_of_slice_, part = std::min(count, rows_of_slice_ - inside);
      slices_[static_cast<std::size_t>(first / rows_of_slice_)]->apply(source, inside, part, values);
      values = values.subspan(static_cast<std::size_t>(part * source.columns));
      first += part;
      count -= part;
    }
  }

 private:
  std::vector<std::unique_ptr<Fold>> slices_;
  std::uint64_t rows_of_slice_;
};

/// W * (1 + D), or W + D1 * D2 with two products: what is made of products that start at zero.
class OfProducts final : public Fold {
 public:
  enum class Form { multiplies, adds_product };
  OfProducts(Form form, std::unique_ptr<Fold> a, std::unique_ptr<Fold> b, double scale)
      : form_(form), a_(std::move(a)), b_(std::move(b)), scale_(scale) {
    held_bytes = a_->held_bytes + (b_ ? b_->held_bytes : 0);
  }
  void apply(const RowSource& source, std::uint64_t first, std::uint64_t count, std::span<double> values) const override {
    std::vector<double> a(values.size(), 0.0);
    a_->apply(source, first, count, a);
    if (form_ == Form::multiplies) {
      for (std::size_t i = 0; i < values.size(); ++i) values[i] *= 1 + a[i];
      return;
    }
    std::vector<double> b(values.size(), 0.0);
    b_->apply(source, first, count, b);
    for (std::size_t i = 0; i < values.size(); ++i) values[i] += a[i] * b[i] * scale_;
  }

 private:
  Form form_;
  std::unique_ptr<Fold> a_, b_;
  double scale_;
};

/// DoRA: the changed matrix V with every output's norm made the magnitude.
class Dora final : public Fold {
 public:
  enum class OutputAxis { rows, columns };
  Dora(const Adapter& adapter, std::string name, std::unique_ptr<Fold> change, std::vector<float> magnitude, OutputAxis axis, const RowSource& source)
      : adapter_path_(adapter.path.string()), name_(std::move(name)), change_(std::move(change)), magnitude_(std::move(magnitude)), axis_(axis) {
    held_bytes = change_->held_bytes + magnitude_.size() * 12;
    if (axis_ == OutputAxis::rows) return;
    // Columns need a pass over the whole matrix; sums in the order of the rows.
    std::vector<double> squares(static_cast<std::size_t>(source.columns), 0.0);
    const std::uint64_t step = std::max<std::uint64_t>(1, (1 << 16) / std::max<std::uint64_t>(1, source.columns));
    std::vector<double> values;
    for (std::uint64_t first = 0; first < source.rows; first += step) {
      const std::uint64_t count = std::min(step, source.rows - first);
      values.resize(static_cast<std::size_t>(count * source.columns));
      source.read(first, count, values);
      change_->apply(source, first, count, values);
      for (std::size_t i = 0; i < values.size(); ++i) squares[i % squares.size()] += values[i] * values[i];
    }
    factors_.resize(squares.size());
    for (std::size_t j = 0; j < squares.size(); ++j) factors_[j] = factor(j, squares[j]);
  }
  void apply(const RowSource& source, std::uint64_t first, std::uint64_t count, std::span<double> values) const override {
    change_->apply(source, first, count, values);
    const auto columns = static_cast<std::size_t>(source.columns);
    for (std::size_t i = 0; i < static_cast<std::size_t>(count); ++i) {
      const std::span<double> row = values.subspan(i * columns, columns);
      if (axis_ == OutputAxis::columns) {
        for (std::size_t j = 0; j < columns; ++j) row[j] *= factors_[j];
        continue;
      }
      double squares = 0;
      for (const double v : row) squares += v * v;
      const double f = factor(static_cast<std::size_t>(first) + i, squares);
      for (double& v : row) v *= f;
    }
  }

 private:
  [[nodiscard]] double factor(std::size_t output, double squares) const {
    if (!(squares > 0))
      throw Error(ErrorCode::corrupt, fmt::format("output {} of '{}' has norm 0, so its direction cannot be scaled (DoRA)", output, printable(name_)),
                  {.file = adapter_path_, .tensor = printable(name_)}, "the adapter was made for another model, or is broken");
    return static_cast<double>(magnitude_[output]) / std::sqrt(squares);
  }
  std::string adapter_path_, name_;
  std::unique_ptr<Fold> change_;
  std::vector<float> magnitude_;
  OutputAxis axis_;
  std::vector<double> factors_;  ///< of columns
};

/// A change given as a function on one row.
class ByRow final : public Fold {
 public:
  using Row = std::function<void(std::uint64_t row, std::span<double> values)>;
  ByRow(Row row, std::uint64_t bytes) : row_(std::move(row)) { held_bytes = bytes; }
  void apply(const RowSource& source, std::uint64_t first, std::uint64_t count, std::span<double> values) const override {
    const auto columns = static_cast<std::size_t>(source.columns);
    for (std::size_t i = 0; i < static_cast<std::size_t>(count); ++i) row_(first + i, values.subspan(i * columns, columns));
  }

 private:
  Row row_;
};

/// One change after another.
class InTurn final : public Fold {
 public:
  explicit InTurn(std::vector<std::unique_ptr<Fold>> parts) : parts_(std::move(parts)) {
    for (const auto& one : parts_) held_bytes += one->held_bytes;
  }
  void apply(const RowSource& source, std::uint64_t first, std::uint64_t count, std::span<double> values) const override {
    for (const auto& one : parts_) one->apply(source, first, count, values);
  }

 private:
  std::vector<std::unique_ptr<Fold>> parts_;
};

/// Each row cut into blocks, each block times a matrix of its own: W' = W diag(blocks). The blocks in turn where there are fewer than places.
/// order: column i of the row is column order[i] among the blocks'; empty: as they are.
class BlockRotation final : public Fold {
 public:
  BlockRotation(std::vector<math::PanelMatrix> blocks, std::vector<float> row_scales, std::vector<std::size_t> order = {})
      : blocks_(std::move(blocks)), row_scales_(std::move(row_scales)), order_(std::move(order)) {
    held_bytes += order_.size() * sizeof(std::size_t);
    for (const math::PanelMatrix& block : blocks_) held_bytes += block.panels.size() * sizeof(float);
  }
  void apply(const RowSource& source, std::uint64_t first, std::uint64_t count, std::span<double> values) const override {
    const auto columns = static_cast<std::size_t>(source.columns);
    const std::size_t b = blocks_.front().columns;
    std::vector<double> turned(values.size(), 0.0), ordered;
    const double* from = values.data();
    if (!order_.empty()) {
      ordered.resize(values.size());
      for (std::size_t row = 0; row < values.size(); row += columns)
        for (std::size_t i = 0; i < columns; ++i) ordered[row + order_[i]] = values[row + i];
      from = ordered.data();
    }
    for (std::size_t k = 0; k < columns / b; ++k)
      math::add_product(from + k * b, columns, static_cast<std::size_t>(count), blocks_[k % blocks_.size()], turned.data() + k * b, columns);
    if (order_.empty()) {
      std::copy(turned.begin(), turned.end(), values.begin());
    } else {
      for (std::size_t row = 0; row < values.size(); row += columns)
        for (std::size_t i = 0; i < columns; ++i) values[row + i] = turned[row + order_[i]];
    }
    if (row_scales_.empty()) return;
    for (std::size_t i = 0; i < values.size(); ++i) values[i] *= static_cast<double>(row_scales_[static_cast<std::size_t>(first) + i / columns]);
  }

 private:
  std::vector<math::PanelMatrix> blocks_;
  std::vector<float> row_scales_;
  std::vector<std::size_t> order_;
};

/// RoAD: rows of a group turned in pairs.
class PairRotation final : public Fold {
 public:
  PairRotation(std::vector<double> cosines, std::vector<double> sines, std::uint64_t group)
      : cosines_(std::move(cosines)), sines_(std::move(sines)), group_(group) {
    held_bytes = 16 * cosines_.size();
  }
  void apply(const RowSource& source, std::uint64_t first, std::uint64_t count, std::span<double> values) const override {
    const auto columns = static_cast<std::size_t>(source.columns);
    const std::uint64_t half = group_ / 2;
    std::vector<double> partners;
    for (std::uint64_t done = 0; done < count;) {
      const std::uint64_t row = first + done, inside = row % half;
      const bool is_first = row % group_ < half;
      const std::uint64_t run = std::min(count - done, half - inside);
      partners.resize(static_cast<std::size_t>(run) * columns);
      source.read(is_first ? row + half : row - half, run, partners);
      for (std::size_t i = 0; i < partners.size(); ++i) {
        const std::size_t at = static_cast<std::size_t>(row) + i / columns;
        double& value = values[static_cast<std::size_t>(done) * columns + i];
        value = value * cosines_[at] + (is_first ? -partners[i] : partners[i]) * sines_[at];
      }
      done += run;
    }
  }

 private:
  std::vector<double> cosines_, sines_;
  std::uint64_t group_;
};

// ---- From the parts of a module to changes ------------------------------------------------------------------------------------------------

class Planner {
 public:
  Planner(const AdapterPointer& adapter, const AdapterModule& module, const BaseTensors& base) : a_(adapter), module_(module), base_(base) {}

  std::vector<ChangedTensor> run() {
    whole_tensors();
    const auto has = [&](const char* part) { return module_.parts.contains(part); };
    if (has("lora_A") || has("lora_B")) {
      if (a_->kind == "ADALORA" || has("lora_E"))
        adalora();
      else if (is_parameter())
        parameter();
      else
        lora();
    } else if (has("lora_embedding_A") || has("lora_embedding_B"))
      embedding("lora_embedding_A", "lora_embedding_B", false);
    else if (has("hira_embedding_A"))
      embedding("hira_embedding_A", "hira_embedding_B", true);
    else if (has("hira_A"))
      hira();
    else if (has("ia3_l"))
      ia3();
    else if (has("hada_w1_a"))
      loha();
    else if (has("lokr_w1") || has("lokr_w1_a"))
      lokr();
    else if (has("vera_lambda_b"))
      vera();
    else if (has("oft_R") || has("oft_embedding_R"))
      oft();
    else if (has("boft_R"))
      boft();
    else if (has("vblora_logits_A") || has("vblora_logits_A_topk_indices"))
      vblora();
    else if (has("miss_block") || has("bone_block"))
      miss();
    else if (has("trainable_tokens_delta"))
      tokens();
    else if (has("shira_weight"))
      shira();
    else if (has("c3a_kernel"))
      c3a();
    else if (has("randlora_lambda"))
      randlora();
    else if (has("hra_u"))
      hra();
    else if (has("delora_A"))
      delora();
    else if (has("road_theta"))
      road();
    else if (has("gralora_A"))
      gralora();
    else if (has("fourierft_spectrum"))
      fourierft();
    for (const auto& [name, part] : module_.parts) {
      if (used_.contains(name)) continue;
      throw a_->error(
          ErrorCode::unsupported,
          fmt::format("'{}' of module '{}' is no part that an adapter of the kind {} has", printable(name), printable(module_.name), a_->kind),
          part->name);
    }
    return std::move(out_);
  }

 private:
  // ---- Looking things up ----

  const TensorInfo* find_part(const std::string& name) {
    used_.insert(name);
    const auto found = module_.parts.find(name);
    return found == module_.parts.end() ? nullptr : found->second;
  }
  const TensorInfo& part(const std::string& name) {
    if (const TensorInfo* found = find_part(name)) return *found;
    throw a_->error(ErrorCode::corrupt, fmt::format("module '{}' has no '{}' beside its other parts", printable(module_.name), name), {},
                    "the adapter is incomplete; fetch it again");
  }
  const TensorInfo& shared(const std::string& name, const std::string& advice) {
    used_.insert(name);  // some writers repeat it under every module
    if (const auto found = a_->shared.find(name); found != a_->shared.end()) return *found->second;
    if (const auto found = module_.parts.find(name); found != module_.parts.end()) return *found->second;
    throw a_->error(ErrorCode::unsupported, fmt::format("the adapter does not hold '{}', which all its modules share", name), {}, advice);
  }
  [[noreturn]] void bad(const TensorInfo& tensor, const std::string& why) const {
    throw a_->error(ErrorCode::corrupt, fmt::format("'{}' {} {}", printable(tensor.name), to_string(tensor.shape), why), tensor.name);
  }
  /// The model's tensor of this module.
  const TensorInfo& base_tensor(std::string_view leaf = "weight") {
    const std::optional<std::string> name = base_.find(module_.name, leaf);
    if (!name)
      throw a_->error(ErrorCode::invalid_argument,
                      fmt::format("the model has no '{}{}{}', which the adapter changes", printable(module_.name), leaf.empty() ? "" : ".", leaf),
                      module_.parts.begin()->second->name, "the adapter was made for another model: " + base_model());
    return base_.tensor(*name);
  }
  [[nodiscard]] std::string base_model() const {
    const std::string name = a_->text("base_model_name_or_path");
    return name.empty() ? "adapter_config.json does not say which" : fmt::format("'{}'", printable(name));
  }
  /// The adapter's part has a size that the model's tensor has not.
  [[noreturn]] void misfit(const TensorInfo& tensor, const TensorInfo& weight) const {
    throw a_->error(ErrorCode::invalid_argument,
                    fmt::format("module '{}': '{}' is {} but the model's '{}' is {}", printable(module_.name), printable(tensor.name),
                                to_string(tensor.shape), printable(weight.name), to_string(weight.shape)),
                    tensor.name, "the adapter was made for another model: " + base_model());
  }
  void expect(bool fits, const TensorInfo& tensor, const TensorInfo& weight) const {
    if (!fits) misfit(tensor, weight);
  }
  [[nodiscard]] bool transposed() const { return a_->flag("fan_in_fan_out"); }
  /// Sizes of the layer, whichever way it is stored.
  [[nodiscard]] std::uint64_t outputs(const TensorInfo& weight) const { return transposed() ? dims_from(weight, 1) : dim(weight, 0); }
  [[nodiscard]] std::uint64_t inputs(const TensorInfo& weight) const { return transposed() ? dim(weight, 0) : dims_from(weight, 1); }
  void require_matrix(const TensorInfo& weight) const {
    if (weight.shape.size() < 2) misfit(*module_.parts.begin()->second, weight);
  }

  ChangedTensor& add(const TensorInfo& weight, MakeFold make) {
    // A whole tensor that the adapter brings is what is changed.
    for (ChangedTensor& changed : out_) {
      if (changed.name != weight.name || changed.make) continue;
      changed.make = std::move(make);
      return changed;
    }
    ChangedTensor& changed = out_.emplace_back();
    changed.name = weight.name;
    changed.make = std::move(make);
    return changed;
  }

  // ---- Tensors as a whole ----

  void whole_tensors() {
    for (const auto& [name, part] : module_.parts) {
      std::string leaf = name;
      const bool is_bases = leaf.starts_with("base_layer.");
      if (is_bases) leaf.erase(0, std::string_view("base_layer.").size());
      if (leaf != "weight" && leaf != "bias" && !leaf.empty()) continue;
      used_.insert(name);
      const std::optional<std::string> in_model = base_.find(module_.name, leaf);
      if (!in_model)
        throw a_->error(ErrorCode::invalid_argument,
                        fmt::format("the model has no '{}{}{}', which the adapter replaces", printable(module_.name), leaf.empty() ? "" : ".", leaf),
                        part->name, "the adapter was made for another model: " + base_model());
      const TensorInfo& weight = base_.tensor(*in_model);
      // Vocabularies may have grown; nothing else may differ.
      const bool grown = weight.shape.size() == 2 && part->shape.size() == 2 && weight.shape[1] == part->shape[1] && leaf == "weight" &&
                         base_.is_embedding(weight.name);
      if (weight.shape != part->shape && !grown) misfit(*part, weight);
      ChangedTensor& changed = out_.emplace_back();
      changed.name = weight.name;
      changed.replacement = TensorRef{a_->tensors, part};
    }
  }
  /// The tensor with the rows that are to be changed: the adapter's, where it brings one.
  const TensorInfo& changed_weight() {
    const TensorInfo& weight = base_tensor();
    for (const ChangedTensor& changed : out_)
      if (changed.name == weight.name && changed.replacement) {
        replaced_ = *changed.replacement->tensor;
        replaced_.name = weight.name;
        return replaced_;
      }
    return weight;
  }

  // ---- LoRA and its kin ----

  double lora_scale(double rank) const { return a_->alpha_of(module_.name) / (a_->flag("use_rslora") ? std::sqrt(rank) : rank); }

  void check_rank(const TensorInfo& tensor, std::uint64_t rank) const {
    const double want = a_->rank_of(module_.name);
    if (static_cast<double>(rank) != want)
      throw a_->error(ErrorCode::corrupt,
                      fmt::format("module '{}' has rank {} by adapter_config.json but '{}' is {}", printable(module_.name), want,
                                  printable(tensor.name), to_string(tensor.shape)),
                      tensor.name, "config and weights are of different versions; fetch them again");
  }

  void lora() {
    const TensorInfo &left = part("lora_B"), &right = part("lora_A"), &weight = changed_weight();
    require_matrix(weight);
    const std::uint64_t rank = dim(right, 0);
    if (dims_from(left, 1) != rank)
      bad(left,
          fmt::format("does not fit '{}' {}: their ranks are {} and {}", printable(right.name), to_string(right.shape), dims_from(left, 1), rank));
    expect(dim(left, 0) == outputs(weight), left, weight);
    expect(dims_from(right, 1) == inputs(weight), right, weight);
    check_rank(right, rank);
    const double scale = lora_scale(static_cast<double>(rank));
    const TensorInfo* magnitude = find_part("lora_magnitude_vector");
    if (magnitude && magnitude->num_elements != outputs(weight)) misfit(*magnitude, weight);
    if (a_->flag("use_dora") != (magnitude != nullptr))
      throw a_->error(ErrorCode::corrupt, fmt::format("use_dora is {} but module '{}' has {} magnitudes", a_->flag("use_dora"),
                                                      printable(module_.name), magnitude ? "its" : "no"));
    const bool turn = transposed();
    add(weight, [a = a_, l = &left, r = &right, magnitude, scale, turn, name = weight.name](const RowSource& source) -> std::unique_ptr<Fold> {
      auto change = low_rank(*a, *l, *r, scale, turn);
      if (!magnitude) return change;
      return std::make_unique<Dora>(*a, name, std::move(change), values_of(*a, *magnitude), turn ? Dora::OutputAxis::columns : Dora::OutputAxis::rows,
                                    source);
    });
    if (const TensorInfo* bias = find_part("lora_B.bias")) add_to_bias(*bias, scale);
  }

  static std::unique_ptr<Fold> low_rank(const Adapter& a, const TensorInfo& b, const TensorInfo& a_matrix, double scale, bool turn) {
    const Matrix left = matrix_of(a, b), right = matrix_of(a, a_matrix);
    if (turn) return std::make_unique<LowRank>(right.transposed(), left.transposed(), scale);
    return std::make_unique<LowRank>(left, right, scale);
  }

  void add_to_bias(const TensorInfo& bias, double scale) {
    const std::optional<std::string> name = base_.find(module_.name, "bias");
    if (!name)
      throw a_->error(ErrorCode::invalid_argument,
                      fmt::format("the adapter changes the bias of '{}', but the model has none there", printable(module_.name)), bias.name,
                      "the adapter was made for another model: " + base_model());
    const TensorInfo& base = base_.tensor(*name);
    expect(bias.num_elements == base.num_elements, bias, base);
    add(base, [a = a_, b = &bias, scale](const RowSource&) {
      std::vector<float> values = values_of(*a, *b);
      const std::uint64_t bytes = values.size() * sizeof(float);
      return std::make_unique<ByRow>(
          [v = std::move(values), scale](std::uint64_t row, std::span<double> x) { x[0] += static_cast<double>(v[row]) * scale; }, bytes);
    });
  }

  void embedding(const char* part_a, const char* part_b, bool multiplies) {
    const TensorInfo &a = part(part_a), &b = part(part_b), &weight = changed_weight();
    const std::uint64_t rank = dim(a, 0);
    if (dims_from(b, 1) != rank) bad(b, fmt::format("does not fit '{}' {}: their ranks differ", printable(a.name), to_string(a.shape)));
    expect(dims_from(a, 1) == dim(weight, 0), a, weight);
    expect(dim(b, 0) == dims_from(weight, 1), b, weight);
    check_rank(a, rank);
    const double scale = multiplies ? 1 : lora_scale(static_cast<double>(rank));
    const TensorInfo* magnitude = find_part("lora_magnitude_vector");
    if (magnitude && magnitude->num_elements != dims_from(weight, 1)) misfit(*magnitude, weight);
    add(weight, [p = a_, l = &a, r = &b, magnitude, scale, multiplies, name = weight.name](const RowSource& source) -> std::unique_ptr<Fold> {
      auto change = low_rank(*p, *r, *l, scale, true);
      if (multiplies) return std::make_unique<OfProducts>(OfProducts::Form::multiplies, std::move(change), nullptr, 1);
      if (!magnitude) return change;
      return std::make_unique<Dora>(*p, name, std::move(change), values_of(*p, *magnitude), Dora::OutputAxis::columns, source);
    });
  }

  void hira() {
    const TensorInfo &left = part("hira_B"), &right = part("hira_A"), &weight = changed_weight();
    if (dims_from(left, 1) != dim(right, 0)) bad(left, "does not fit hira_A: their ranks differ");
    expect(dim(left, 0) == outputs(weight), left, weight);
    expect(dims_from(right, 1) == inputs(weight), right, weight);
    add(weight, [a = a_, l = &left, r = &right, turn = transposed()](const RowSource&) {
      return std::make_unique<OfProducts>(OfProducts::Form::multiplies, low_rank(*a, *l, *r, 1, turn), nullptr, 1);
    });
  }

  void adalora() {
    const TensorInfo &left = part("lora_B"), &right = part("lora_A"), &weight = changed_weight();
    const TensorInfo& middle = part("lora_E");
    const TensorInfo* count = find_part("ranknum");
    const std::uint64_t rank = dim(right, 0);
    if (dims_from(left, 1) != rank || middle.num_elements != rank) bad(middle, "does not fit lora_A and lora_B: their ranks differ");
    expect(dim(left, 0) == outputs(weight), left, weight);
    expect(dims_from(right, 1) == inputs(weight), right, weight);
    add(weight, [a = a_, l = &left, r = &right, e = &middle, count, turn = transposed(), name = module_.name](const RowSource&) {
      // The rank that divides is the one that training began with; the file may say what is left of it.
      double divisor = a->number("init_r").value_or(12);
      if (count) divisor = static_cast<double>(values_of(*a, *count).at(0));
      const double alpha = a->number("lora_alpha").value_or(8);
      const double scale = (alpha > 0 ? alpha : divisor) / (divisor + 1e-5);
      std::vector<double> scales;
      for (const float v : values_of(*a, *e)) scales.push_back(static_cast<double>(v) * scale);
      const Matrix b = matrix_of(*a, *l), m = matrix_of(*a, *r);
      return turn ? std::make_unique<LowRank>(m.transposed(), b.transposed(), scales) : std::make_unique<LowRank>(b, m, scales);
    });
  }

  // ---- target_parameters: a stack of matrices that is no module's weight ----

  [[nodiscard]] std::vector<std::string> parameters() const {
    std::vector<std::string> names;
    const Json* listed = a_->config.find("target_parameters");
    if (!listed || !listed->array()) return names;
    for (const Json& item : *listed->array()) {
      if (!item.string()) continue;
      const std::string& path = *item.string();
      const std::string leaf = path.substr(path.rfind('.') == std::string::npos ? 0 : path.rfind('.') + 1);
      const std::string full = module_.name + "." + leaf;
      if (full == path || full.ends_with("." + path)) names.push_back(leaf);
    }
    return names;
  }
  [[nodiscard]] bool is_parameter() const { return module_.nesting > 0 || !parameters().empty(); }

  void parameter() {
    const std::vector<std::string> names = parameters();
    const auto nesting = static_cast<std::size_t>(module_.nesting);
    if (nesting >= names.size())
      throw a_->error(ErrorCode::corrupt, fmt::format("module '{}' has parts for {} parameters, but target_parameters names {} of it",
                                                      printable(module_.name), nesting + 1, names.size()));
    const std::string& leaf = names[names.size() - 1 - nesting];
    const TensorInfo &left = part("lora_B"), &right = part("lora_A"), &weight = base_tensor(leaf);
    if (weight.shape.size() != 2 && weight.shape.size() != 3) misfit(right, weight);
    const bool is_stack = weight.shape.size() == 3;
    const std::uint64_t experts = is_stack ? dim(weight, 0) : 1;
    const std::uint64_t middle = dim(weight, is_stack ? 1 : 0), last = dim(weight, is_stack ? 2 : 1);
    if (experts == 0 || dim(right, 0) % experts != 0 || dims_from(left, 1) != dim(right, 0)) misfit(right, weight);
    const std::uint64_t rank = dim(right, 0) / experts;
    const bool plain = dims_from(right, 1) == last && dim(left, 0) == middle;
    const bool turned = dims_from(right, 1) == middle && dim(left, 0) == last;
    if (!plain && !turned) misfit(right, weight);
    check_rank(right, rank);
    const double scale = lora_scale(static_cast<double>(rank));
    ChangedTensor& changed = add(weight, [a = a_, l = &left, r = &right, experts, rank, scale, turn = !plain, middle](const RowSource&) {
      const Matrix b = matrix_of(*a, *l), m = matrix_of(*a, *r);
      std::vector<std::unique_ptr<Fold>> slices;
      for (std::uint64_t e = 0; e < experts; ++e) {
        Matrix right_of{static_cast<std::size_t>(rank), m.columns, {}}, left_of{b.rows, static_cast<std::size_t>(rank), {}};
        const auto begin = m.values.begin() + static_cast<std::ptrdiff_t>(e * rank * m.columns);
        right_of.values.assign(begin, begin + static_cast<std::ptrdiff_t>(rank * m.columns));
        for (std::size_t o = 0; o < b.rows; ++o)
          for (std::uint64_t k = 0; k < rank; ++k) left_of.values.push_back(b(o, static_cast<std::size_t>(k * experts + e)));
        slices.push_back(turn ? std::make_unique<LowRank>(right_of.transposed(), left_of.transposed(), scale)
                              : std::make_unique<LowRank>(left_of, right_of, scale));
      }
      return std::make_unique<LowRankStack>(std::move(slices), middle);
    });
    changed.matrix_of_last_axis = true;
  }

  // ---- The other kinds ----

  void ia3() {
    const TensorInfo &factors = part("ia3_l"), &weight = changed_weight();
    const bool feedforward = a_->lists("feedforward_modules", module_.name);
    const std::uint64_t channels = feedforward ? (transposed() ? dim(weight, 0) : dim(weight, 1)) : outputs(weight);
    expect(factors.num_elements == channels, factors, weight);
    const bool by_column = feedforward != transposed();
    const std::uint64_t repeat = by_column ? dims_from(weight, 1) / channels : 1;
    add(weight, [a = a_, f = &factors, by_column, repeat](const RowSource&) {
      std::vector<float> v = values_of(*a, *f);
      const std::uint64_t bytes = v.size() * sizeof(float);
      return std::make_unique<ByRow>(
          [v = std::move(v), by_column, repeat](std::uint64_t row, std::span<double> x) {
            for (std::size_t j = 0; j < x.size(); ++j) x[j] *= static_cast<double>(v[by_column ? j / repeat : row]);
          },
          bytes);
    });
    if (feedforward) return;
    if (const std::optional<std::string> bias = base_.find(module_.name, "bias"))
      add(base_.tensor(*bias), [a = a_, f = &factors](const RowSource&) {
        std::vector<float> v = values_of(*a, *f);
        const std::uint64_t bytes = v.size() * sizeof(float);
        return std::make_unique<ByRow>([v = std::move(v)](std::uint64_t row, std::span<double> x) { x[0] *= static_cast<double>(v[row]); }, bytes);
      });
  }

  /// left right, or, with a core t [r, r, kh, kw], the Tucker form: left [r, out], right [r, in].
  std::unique_ptr<Fold> tucker(const TensorInfo& left, const TensorInfo& right, const TensorInfo* core) const {
    return tucker(*a_, left, right, core);
  }
  static std::unique_ptr<Fold> tucker(const Adapter& a, const TensorInfo& left, const TensorInfo& right, const TensorInfo* core) {
    const Matrix l = matrix_of(a, left), r = matrix_of(a, right);
    if (!core) return std::make_unique<LowRank>(l, r, 1.0);
    const auto [joined_left, joined_right] = tucker_factors(a, l, r, *core);
    return std::make_unique<LowRank>(joined_left, joined_right, 1.0);
  }
  static std::pair<Matrix, Matrix> tucker_factors(const Adapter& a, const Matrix& l, const Matrix& r, const TensorInfo& core) {
    const std::vector<float> t = values_of(a, core);
    const std::size_t rank = l.rows, kernel = static_cast<std::size_t>(dims_from(core, 2));
    Matrix right{rank, r.columns * kernel, std::vector<float>(rank * r.columns * kernel)};
    for (std::size_t i = 0; i < rank; ++i)
      for (std::size_t q = 0; q < r.columns; ++q)
        for (std::size_t k = 0; k < kernel; ++k) {
          double sum = 0;
          for (std::size_t j = 0; j < r.rows; ++j) sum += static_cast<double>(t[(i * r.rows + j) * kernel + k]) * static_cast<double>(r(j, q));
          right.values[i * right.columns + q * kernel + k] = static_cast<float>(sum);
        }
    return {l.transposed(), std::move(right)};
  }
  /// Sizes of what tucker() gives.
  static std::pair<std::uint64_t, std::uint64_t> tucker_shape(const TensorInfo& left, const TensorInfo& right, const TensorInfo* core) {
    return core ? std::pair{dims_from(left, 1), dims_from(right, 1) * dims_from(*core, 2)} : std::pair{dim(left, 0), dims_from(right, 1)};
  }
  void check_tucker(const TensorInfo& left, const TensorInfo& right, const TensorInfo* core) const {
    const bool fits =
        core ? core->shape.size() >= 2 && dim(*core, 0) == dim(left, 0) && dim(*core, 1) == dim(right, 0) : dims_from(left, 1) == dim(right, 0);
    if (!fits) bad(left, fmt::format("does not fit '{}' {}: their ranks differ", printable(right.name), to_string(right.shape)));
  }

  void loha() {
    const TensorInfo &w1a = part("hada_w1_a"), &w1b = part("hada_w1_b"), &w2a = part("hada_w2_a"), &w2b = part("hada_w2_b"),
                     &weight = changed_weight();
    const TensorInfo *t1 = find_part("hada_t1"), *t2 = find_part("hada_t2");
    check_tucker(w1a, w1b, t1);
    check_tucker(w2a, w2b, t2);
    const std::pair want{dim(weight, 0), dims_from(weight, 1)};
    expect(tucker_shape(w1a, w1b, t1) == want, w1b, weight);
    expect(tucker_shape(w2a, w2b, t2) == want, w2b, weight);
    const double scale = a_->alpha_of(module_.name) / a_->rank_of(module_.name);
    add(weight, [=, a = a_, w1a = &w1a, w1b = &w1b, w2a = &w2a, w2b = &w2b](const RowSource&) {
      return std::make_unique<OfProducts>(OfProducts::Form::adds_product, tucker(*a, *w1a, *w1b, t1), tucker(*a, *w2a, *w2b, t2), scale);
    });
  }

  void lokr() {
    const TensorInfo* w1 = find_part("lokr_w1");
    const TensorInfo* w2 = find_part("lokr_w2");
    const TensorInfo* core = find_part("lokr_t2");
    const TensorInfo *w1a = w1 ? nullptr : &part("lokr_w1_a"), *w1b = w1 ? nullptr : &part("lokr_w1_b");
    const TensorInfo *w2a = w2 ? nullptr : &part("lokr_w2_a"), *w2b = w2 ? nullptr : &part("lokr_w2_b");
    if (w1a) check_tucker(*w1a, *w1b, nullptr);
    if (w2a) check_tucker(*w2a, *w2b, core);
    const TensorInfo& weight = changed_weight();
    const auto [o1, i1] = w1 ? std::pair{dim(*w1, 0), dims_from(*w1, 1)} : tucker_shape(*w1a, *w1b, nullptr);
    const auto [o2, i2] = w2 ? std::pair{dim(*w2, 0), dims_from(*w2, 1)} : tucker_shape(*w2a, *w2b, core);
    expect(o1 != 0 && o2 != 0 && checked_mul(o1, o2, "outputs") == dim(weight, 0) && checked_mul(i1, i2, "inputs") == dims_from(weight, 1),
           w1 ? *w1 : *w1a, weight);
    const double scale = a_->alpha_of(module_.name) / a_->rank_of(module_.name);
    add(weight, [=, a = a_, o1 = o1, i1 = i1, o2 = o2, i2 = i2](const RowSource&) -> std::unique_ptr<Fold> {
      const auto whole = [&](const TensorInfo* given, const TensorInfo* left, const TensorInfo* right, const TensorInfo* t, std::uint64_t rows,
                             std::uint64_t columns) {
        if (given) {
          const std::vector<float> v = values_of(*a, *given);
          return std::vector<double>(v.begin(), v.end());
        }
        std::vector<double> v(checked_size(checked_mul(rows, columns, "factor"), "factor"), 0.0);
        RowSource zero{rows, columns, {}};
        tucker(*a, *left, *right, t)->apply(zero, 0, rows, v);
        return v;
      };
      std::vector<double> f1 = whole(w1, w1a, w1b, nullptr, o1, i1), f2 = whole(w2, w2a, w2b, core, o2, i2);
      const std::uint64_t bytes = 8 * (f1.size() + f2.size());
      return std::make_unique<ByRow>(
          [f1 = std::move(f1), f2 = std::move(f2), o2 = o2, i1 = i1, i2 = i2, scale](std::uint64_t row, std::span<double> x) {
            const double* r1 = f1.data() + row / o2 * i1;
            const double* r2 = f2.data() + row % o2 * i2;
            for (std::size_t i = 0; i < i1; ++i)
              for (std::size_t j = 0; j < i2; ++j) x[i * i2 + j] += r1[i] * r2[j] * scale;
          },
          bytes);
    });
  }

  /// A matrix that PEFT draws instead of saving it: uniform within the bound of Kaiming's start for ReLU.
  static Matrix drawn(TorchRandom& random, std::uint64_t rows, std::uint64_t columns) {
    Matrix out{static_cast<std::size_t>(rows), static_cast<std::size_t>(columns), {}};
    out.values.resize(out.rows * out.columns);
    const auto bound = static_cast<float>(std::sqrt(3.0) * (std::sqrt(2.0) / std::sqrt(static_cast<double>(columns))));
    random.uniform(-bound, bound, out.values);
    return out;
  }

  void vera() {
    const TensorInfo &lambda_b = part("vera_lambda_b"), &lambda_d = part("vera_lambda_d"), &weight = changed_weight();
    const std::uint64_t rank = lambda_d.num_elements, out = outputs(weight), in = inputs(weight);
    expect(lambda_b.num_elements == out, lambda_b, weight);
    const Json* saved = a_->config.find("save_projection");
    const TensorInfo *a = nullptr, *b = nullptr;
    std::uint64_t most_in = in, most_out = out;
    if (saved && saved->boolean() == false && !a_->shared.contains("vera_A") && !module_.parts.contains("vera_A")) {
      // Drawn once, as large as the largest module on each side.
      for (const AdapterModule& other : a_->modules) {
        if (!other.parts.contains("vera_lambda_b")) continue;
        const std::optional<std::string> name = base_.find(other.name, "weight");
        if (!name) continue;  // told of where that module is looked at
        most_in = std::max(most_in, inputs(base_.tensor(*name)));
        most_out = std::max(most_out, outputs(base_.tensor(*name)));
      }
      check_rank(lambda_d, rank);
      // What is drawn is not in the file, so it is to be in proportion to the model.
      constexpr std::uint64_t kMostRank = 8192;
      if (rank > std::max({kMostRank, most_in, most_out}))
        throw a_->error(ErrorCode::unsupported, fmt::format("projections of rank {} would have to be drawn for '{}'", rank, printable(module_.name)),
                        lambda_d.name, "save the adapter again with save_projection");
    } else {
      const std::string advice = "the adapter is incomplete; fetch it again";
      a = &shared("vera_A", advice);
      b = &shared("vera_B", advice);
      if (dim(*a, 0) != rank || dims_from(*b, 1) != rank) bad(lambda_d, "does not fit vera_A and vera_B: their ranks differ");
      expect(dims_from(*a, 1) >= in, *a, weight);
      expect(dim(*b, 0) >= out, *b, weight);
    }
    const auto seed = static_cast<std::uint64_t>(integer_setting("projection_prng_key", 0));
    add(weight, [p = a_, lb = &lambda_b, ld = &lambda_d, a, b, out, in, rank, most_in, most_out, seed, turn = transposed()](const RowSource&) {
      const std::vector<float> vb = values_of(*p, *lb), vd = values_of(*p, *ld);
      TorchRandom random(seed);
      const Matrix wide_a = a ? matrix_of(*p, *a) : drawn(random, rank, most_in);
      const Matrix wide_b = b ? matrix_of(*p, *b) : drawn(random, most_out, rank);
      // Products of two float32 rounded once: a rank-r sum of them stays within a few units of the last place.
      Matrix left{static_cast<std::size_t>(out), wide_b.columns, {}}, right{wide_a.rows, static_cast<std::size_t>(in), {}};
      for (std::size_t o = 0; o < left.rows; ++o)
        for (std::size_t k = 0; k < left.columns; ++k) left.values.push_back(vb[o] * wide_b(o, k));
      for (std::size_t k = 0; k < right.rows; ++k)
        for (std::size_t i = 0; i < right.columns; ++i) right.values.push_back(wide_a(k, i));
      const std::vector<double> scales(vd.begin(), vd.end());
      return turn ? std::make_unique<LowRank>(right.transposed(), left.transposed(), scales) : std::make_unique<LowRank>(left, right, scales);
    });
  }

  /// A whole number of the config.
  [[nodiscard]] std::int64_t integer_setting(const char* key, std::int64_t otherwise) const {
    const Json* value = a_->config.find(key);
    if (!value || value->is_null()) return otherwise;
    if (!value->integer() || *value->integer() < 0)
      throw a_->error(ErrorCode::corrupt, fmt::format("'{}' in adapter_config.json is no whole number from 0 up", key));
    return *value->integer();
  }

  /// delta[p, q] = scale / (out in) sum over k of s_k cos(2 pi (r_k p / out + c_k q / in)): the real part of an inverse Fourier transform of few
  /// frequencies, at places (r, c) that PEFT draws. A cosine of a sum is two products, so this is a product of rank 2n at most.
  void fourierft() {
    const TensorInfo &spectrum = part("fourierft_spectrum"), &weight = changed_weight();
    require_matrix(weight);
    const std::uint64_t out = outputs(weight), in = inputs(weight), size = checked_mul(out, in, "frequencies");
    expect(spectrum.num_elements <= size && size > 0, spectrum, weight);
    const double scale = a_->number("scaling").value_or(150) / static_cast<double>(size);
    const auto seed = static_cast<std::uint64_t>(integer_setting("random_loc_seed", 777));
    add(weight, [a = a_, s = &spectrum, out, in, size, scale, seed, turn = transposed()](const RowSource&) {
      const std::vector<float> values = values_of(*a, *s);
      const std::vector<std::uint64_t> places = TorchRandom(seed).permutation(size, values.size());
      const auto waves = [](std::uint64_t length) {
        std::vector<std::pair<float, float>> table(static_cast<std::size_t>(length));
        for (std::size_t i = 0; i < table.size(); ++i) {
          const double angle = 2 * std::numbers::pi * static_cast<double>(i) / static_cast<double>(length);
          table[i] = {static_cast<float>(std::cos(angle)), static_cast<float>(std::sin(angle))};
        }
        return table;
      };
      const std::vector<std::pair<float, float>> down = waves(out), across = waves(in);
      // Frequencies of one row of the spectrum share their waves down the matrix.
      std::map<std::uint64_t, std::vector<std::size_t>> rows;
      for (std::size_t k = 0; k < places.size(); ++k) rows[places[k] / in].push_back(k);
      Matrix left{static_cast<std::size_t>(out), 2 * rows.size(), {}}, right{2 * rows.size(), static_cast<std::size_t>(in), {}};
      left.values.resize(left.rows * left.columns);
      right.values.resize(right.rows * right.columns);
      std::vector<double> cosines(right.columns), sines(right.columns);
      std::size_t at = 0;
      for (const auto& [row, members] : rows) {
        std::fill(cosines.begin(), cosines.end(), 0.0);
        std::fill(sines.begin(), sines.end(), 0.0);
        for (const std::size_t k : members) {
          const std::uint64_t column = places[k] % in;
          std::uint64_t angle = 0;
          for (std::size_t q = 0; q < right.columns; ++q) {
            cosines[q] += static_cast<double>(values[k]) * static_cast<double>(across[static_cast<std::size_t>(angle)].first);
            sines[q] += static_cast<double>(values[k]) * static_cast<double>(across[static_cast<std::size_t>(angle)].second);
            angle += column;
            if (angle >= in) angle -= in;
          }
        }
        for (std::size_t q = 0; q < right.columns; ++q) {
          right.values[at * right.columns + q] = static_cast<float>(cosines[q]);
          right.values[(at + 1) * right.columns + q] = static_cast<float>(-sines[q]);
        }
        std::uint64_t angle = 0;
        for (std::size_t p = 0; p < left.rows; ++p) {
          left.values[p * left.columns + at] = down[static_cast<std::size_t>(angle)].first;
          left.values[p * left.columns + at + 1] = down[static_cast<std::size_t>(angle)].second;
          angle += row;
          if (angle >= out) angle -= out;
        }
        at += 2;
      }
      return turn ? std::make_unique<LowRank>(right.transposed(), left.transposed(), scale) : std::make_unique<LowRank>(left, right, scale);
    });
  }

  /// W diag(blocks): block k is given as `turn` (a matrix R with W' = (R W^T)^T, so it is laid out transposed unless `as_is`).
  static math::PanelMatrix packed(const Square& block, std::size_t n, bool as_is) {
    std::vector<float> values(n * n);
    for (std::size_t i = 0; i < n; ++i)
      for (std::size_t j = 0; j < n; ++j) values[i * n + j] = static_cast<float>(as_is ? block[i * n + j] : block[j * n + i]);
    return math::pack_matrix(values, n, n);
  }

  void oft() {
    const bool is_embedding = module_.parts.contains("oft_embedding_R");
    const TensorInfo &r = part(is_embedding ? "oft_embedding_R" : "oft_R"), &weight = changed_weight();
    if (transposed()) throw a_->error(ErrorCode::unsupported, "OFT does not know weights that are stored transposed (fan_in_fan_out)", r.name);
    const std::uint64_t per_block = dims_from(r, 1), blocks = dim(r, 0), in = dims_from(weight, 1);
    const auto n = static_cast<std::uint64_t>(std::llround((1 + std::sqrt(1 + 8 * static_cast<double>(per_block))) / 2));
    if (n < 2 || n * (n - 1) / 2 != per_block || blocks == 0) bad(r, "is no upper triangle for each block");
    expect(in % n == 0 && (blocks * n == in || blocks == 1), r, weight);
    const bool neumann = !a_->config.find("use_cayley_neumann") || a_->flag("use_cayley_neumann");
    const double terms = a_->number("num_cayley_neumann_terms").value_or(5);
    if (terms < 1 || terms > 64 || terms != std::floor(terms))
      throw a_->error(ErrorCode::corrupt, fmt::format("num_cayley_neumann_terms is {}", terms));
    add(weight, [a = a_, t = &r, n = static_cast<std::size_t>(n), neumann, terms = static_cast<int>(terms), as_is = is_embedding](const RowSource&) {
      const Matrix upper = matrix_of(*a, *t);
      std::vector<math::PanelMatrix> blocks_of;
      for (std::size_t k = 0; k < upper.rows; ++k) {
        Square q(n * n, 0.0);
        std::size_t at = 0;
        for (std::size_t i = 0; i < n; ++i)
          for (std::size_t j = i + 1; j < n; ++j, ++at) {
            q[i * n + j] = static_cast<double>(upper(k, at));
            q[j * n + i] = -q[i * n + j];
          }
        blocks_of.push_back(packed(neumann ? cayley_neumann(q, n, terms) : cayley(q, n), n, as_is));
      }
      return std::make_unique<BlockRotation>(std::move(blocks_of), std::vector<float>());
    });
  }
  /// I + 2Q + 2Q^2 + ... + 2Q^(N-2) + Q^(N-1); for N = 3 I + 2Q + 2Q^2 + Q^3, N = 2 I + 2Q, N = 1 I.
  static Square cayley_neumann(const Square& q, std::size_t n, int terms) {
    Square sum(n * n, 0.0), power = q;
    for (std::size_t i = 0; i < n; ++i) sum[i * n + i] = 1;
    const auto add_power = [&](double factor) {
      for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += factor * power[i];
    };
    if (terms < 2) return sum;
    add_power(2);
    if (terms < 3) return sum;
    const int last = std::max(terms - 1, 3);
    for (int k = 2; k < last; ++k) {
      power = product(power, q, n);
      add_power(2);
    }
    power = product(power, q, n);
    add_power(1);
    return sum;
  }

  /// W' = (D_n ... D_1 W^T)^T with rows scaled. Factor i is block-diagonal once the inputs are permuted: within each group of 2^i blocks those
  /// half blocks that stand at even places come first. The first factor's permutation is none.
  void boft() {
    const TensorInfo &r = part("boft_R"), &s = part("boft_s"), &weight = changed_weight();
    if (r.shape.size() != 4 || r.shape[2] != r.shape[3]) bad(r, "is no stack of square blocks");
    const std::uint64_t factors = dim(r, 0), num_blocks = dim(r, 1), block = dim(r, 2);
    expect(num_blocks * block == dims_from(weight, 1) && block > 0, r, weight);
    expect(s.num_elements == dim(weight, 0), s, weight);
    if (factors == 0 || factors > 32 || (factors > 1 && (block % 2 != 0 || num_blocks % (std::uint64_t{1} << (factors - 1)) != 0)))
      bad(r, fmt::format("does not make {} butterfly factors: the blocks cannot be grouped so often", factors));
    add(weight, [a = a_, t = &r, s = &s, factors = static_cast<std::size_t>(factors), num_blocks = static_cast<std::size_t>(num_blocks),
                 n = static_cast<std::size_t>(block)](const RowSource&) {
      const std::vector<float> v = values_of(*a, *t);
      std::vector<std::unique_ptr<Fold>> turns;
      for (std::size_t f = 0; f < factors; ++f) {
        std::vector<math::PanelMatrix> blocks;
        for (std::size_t k = f * num_blocks; k < (f + 1) * num_blocks; ++k) {
          Square q(n * n);
          for (std::size_t i = 0; i < n; ++i)
            for (std::size_t j = 0; j < n; ++j)
              q[i * n + j] = (static_cast<double>(v[(k * n + i) * n + j]) - static_cast<double>(v[(k * n + j) * n + i])) / 2;
          blocks.push_back(packed(cayley(q, n), n, false));
        }
        std::vector<std::size_t> order;
        if (f > 0) {
          const std::size_t group = n << f, half = n / 2, halves = group / half;
          for (std::size_t begin = 0; begin < n * num_blocks; begin += group)
            for (const std::size_t first : {std::size_t{0}, std::size_t{1}})
              for (std::size_t piece = first; piece < halves; piece += 2)
                for (std::size_t i = 0; i < half; ++i) order.push_back(begin + piece * half + i);
        }
        const bool last = f + 1 == factors;
        turns.push_back(std::make_unique<BlockRotation>(std::move(blocks), last ? values_of(*a, *s) : std::vector<float>(), std::move(order)));
      }
      return factors == 1 ? std::move(turns.front()) : std::make_unique<InTurn>(std::move(turns));
    });
  }

  void vblora() {
    const TensorInfo &bank = shared("vblora_vector_bank", "the adapter is incomplete; fetch it again"), &weight = changed_weight();
    const std::uint64_t length = dims_from(bank, 1), out = outputs(weight), in = inputs(weight);
    struct Mixture {
      const TensorInfo *logits, *indices, *weights;
    };
    const auto mixture = [&](const std::string& name) {
      Mixture m{find_part(name), find_part(name + "_topk_indices"), find_part(name + "_topk_weights")};
      if (!m.logits && (!m.indices || !m.weights)) (void)part(name);
      return m;
    };
    const Mixture ma = mixture("vblora_logits_A"), mb = mixture("vblora_logits_B");
    const TensorInfo &sa = ma.logits ? *ma.logits : *ma.indices, &sb = mb.logits ? *mb.logits : *mb.indices;
    const double topk = a_->number("topk").value_or(2);
    if (length == 0 || sa.shape.size() != 3 || sb.shape.size() != 3 || dim(sa, 0) != dim(sb, 1))
      bad(sa, "does not fit its counterpart: their ranks differ");
    expect(dim(sa, 1) * length == in, sa, weight);
    expect(dim(sb, 0) * length == out, sb, weight);
    add(weight, [a = a_, bank = &bank, ma, mb, topk = static_cast<std::size_t>(std::max(1.0, topk)), length = static_cast<std::size_t>(length),
                 turn = transposed()](const RowSource&) {
      const Matrix vectors = matrix_of(*a, *bank);
      /// [places, length]
      const auto mixed = [&](const Mixture& m) {
        std::vector<float> out_values;
        std::vector<std::int64_t> indices;
        std::vector<float> numbers;
        std::size_t k = topk, width = 0, places = 0;
        if (m.logits) {
          numbers = values_of(*a, *m.logits);
          width = static_cast<std::size_t>(dim(*m.logits, 2));
          places = width == 0 ? 0 : numbers.size() / width;
          k = std::min(k, width);
        } else {
          indices = integers_of(*a, *m.indices);
          numbers = values_of(*a, *m.weights);
          k = static_cast<std::size_t>(dim(*m.indices, 2));
          places = k == 0 ? 0 : indices.size() / k;
          if (numbers.size() != places * (k - std::min<std::size_t>(k, 1)))
            throw a->error(ErrorCode::corrupt, "the stored weights of vblora do not fit its indices", m.weights->name);
        }
        for (std::size_t p = 0; p < places; ++p) {
          std::vector<std::pair<std::size_t, double>> chosen;
          if (m.logits) {
            std::vector<std::size_t> order(width);
            std::iota(order.begin(), order.end(), std::size_t{0});
            const float* logits = numbers.data() + p * width;
            std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(k), order.end(),
                              [&](std::size_t x, std::size_t y) { return logits[x] != logits[y] ? logits[x] > logits[y] : x < y; });
            double sum = 0;
            for (std::size_t c = 0; c < k; ++c) {
              chosen.emplace_back(order[c], std::exp(static_cast<double>(logits[order[c]]) - static_cast<double>(logits[order[0]])));
              sum += chosen.back().second;
            }
            for (auto& [index, share] : chosen) share /= sum;
          } else {
            double rest = 1;
            for (std::size_t c = 0; c < k; ++c) {
              const double share = c + 1 < k ? static_cast<double>(numbers[p * (k - 1) + c]) : rest;
              rest -= share;
              chosen.emplace_back(static_cast<std::size_t>(indices[p * k + c]), share);
            }
          }
          std::vector<double> sum(length, 0.0);
          for (const auto& [index, share] : chosen) {
            if (index >= vectors.rows)
              throw a->error(ErrorCode::corrupt, fmt::format("an index of vblora is {}, but the bank holds {} vectors", index, vectors.rows),
                             bank->name);
            for (std::size_t i = 0; i < length; ++i) sum[i] += share * static_cast<double>(vectors(index, i));
          }
          for (const double v : sum) out_values.push_back(static_cast<float>(v));
        }
        return out_values;
      };
      const TensorInfo& of_a = ma.logits ? *ma.logits : *ma.indices;
      const auto rank = static_cast<std::size_t>(dim(of_a, 0));
      std::vector<float> va = mixed(ma), vb = mixed(mb);
      Matrix right{rank, va.size() / rank, std::move(va)};
      // [tiles, rank, length] -> [tiles * length, rank]
      const std::size_t tiles = vb.size() / (rank * length);
      Matrix left{tiles * length, rank, std::vector<float>(vb.size())};
      for (std::size_t t = 0; t < tiles; ++t)
        for (std::size_t k = 0; k < rank; ++k)
          for (std::size_t i = 0; i < length; ++i) left.values[(t * length + i) * rank + k] = vb[(t * rank + k) * length + i];
      return turn ? std::make_unique<LowRank>(right.transposed(), left.transposed(), 1.0) : std::make_unique<LowRank>(left, right, 1.0);
    });
  }

  void miss() {
    const TensorInfo &block = part(module_.parts.contains("miss_block") ? "miss_block" : "bone_block"), &weight = changed_weight();
    std::string form = a_->text("init_weights");
    const std::uint64_t out = dim(weight, 0), in = dims_from(weight, 1);
    if (block.shape.size() == 3) {  // "bat"
      const std::uint64_t n = dim(block, 1);
      expect(n != 0 && dim(block, 2) == n && dim(block, 0) * n == out && in % n == 0, block, weight);
      add(weight, [a = a_, b = &block, n = static_cast<std::size_t>(n)](const RowSource&) {
        std::vector<float> v = values_of(*a, *b);
        const std::uint64_t bytes = v.size() * sizeof(float);
        return std::make_unique<ByRow>(
            [v = std::move(v), n](std::uint64_t row, std::span<double> x) {
              const float* m = v.data() + row / n * n * n;
              std::vector<double> changed(n);
              for (std::size_t k = 0; k + n <= x.size(); k += n) {
                for (std::size_t j = 0; j < n; ++j) changed[j] = static_cast<double>(m[row % n * n + j]);
                for (std::size_t i = 0; i < n; ++i)
                  for (std::size_t j = 0; j < n; ++j) changed[j] += x[k + i] * static_cast<double>(m[i * n + j]);
                for (std::size_t j = 0; j < n; ++j) x[k + j] += changed[j];
              }
            },
            bytes);
      });
      return;
    }
    const std::uint64_t n = dim(block, 0), wide = dims_from(block, 1);
    expect(n != 0 && wide != 0 && out % wide == 0, block, weight);  // narrower: repeated ("mini")
    add(weight, [a = a_, b = &block, n, wide](const RowSource&) {
      std::vector<float> v = values_of(*a, *b);
      const std::uint64_t bytes = v.size() * sizeof(float);
      return std::make_unique<ByRow>(
          [v = std::move(v), n, wide](std::uint64_t row, std::span<double> x) {
            for (std::size_t j = 0; j < x.size(); ++j) x[j] += static_cast<double>(v[j % n * wide + row % wide]);
          },
          bytes);
    });
  }

  void tokens() {
    const TensorInfo &rows = part("trainable_tokens_delta"), &weight = changed_weight();
    const Json* listed = a_->config.find("token_indices");
    if (const Json* trainable = a_->config.find("trainable_token_indices"); trainable && !trainable->is_null()) listed = trainable;
    if (listed && listed->is_object()) {  // by module
      const Json* own = nullptr;
      for (const auto& [name, indices] : *listed->object())
        if (module_.name == name || module_.name.ends_with("." + name)) own = &indices;
      listed = own;
    }
    if (!listed || !listed->array())
      throw a_->error(ErrorCode::corrupt, fmt::format("adapter_config.json does not list the tokens of '{}'", printable(module_.name)), rows.name);
    std::map<std::uint64_t, std::size_t> place;
    for (const Json& item : *listed->array()) {
      const std::optional<std::int64_t> index = item.integer();
      if (!index || *index < 0 || static_cast<std::uint64_t>(*index) >= dim(weight, 0))
        throw a_->error(ErrorCode::corrupt,
                        fmt::format("token {} of '{}' is outside of its {} rows", item.number_text() ? *item.number_text() : "?",
                                    printable(module_.name), dim(weight, 0)),
                        rows.name);
      place[static_cast<std::uint64_t>(*index)] = place.size();
    }
    if (dim(rows, 0) != place.size()) bad(rows, fmt::format("has {} rows but adapter_config.json lists {} tokens", dim(rows, 0), place.size()));
    expect(dims_from(rows, 1) == dims_from(weight, 1), rows, weight);
    add(weight, [a = a_, r = &rows, place](const RowSource&) {
      Matrix m = matrix_of(*a, *r);
      const std::uint64_t bytes = m.values.size() * sizeof(float);
      return std::make_unique<ByRow>(
          [m = std::move(m), place](std::uint64_t row, std::span<double> x) {
            const auto found = place.find(row);
            if (found == place.end()) return;
            for (std::size_t j = 0; j < x.size(); ++j) x[j] = static_cast<double>(m(found->second, j));
          },
          bytes);
    });
  }

  void shira() {
    const TensorInfo &indices = part("shira_indices"), &values = part("shira_weight"), &weight = changed_weight();
    if (dim(indices, 0) != 2 || dims_from(indices, 1) != values.num_elements) bad(indices, "does not fit shira_weight");
    add(weight, [a = a_, i = &indices, v = &values, name = weight.name](const RowSource& source) {
      const std::vector<std::int64_t> places = integers_of(*a, *i);
      const std::vector<float> changes = values_of(*a, *v);
      std::map<std::uint64_t, std::vector<std::pair<std::size_t, double>>> by_row;
      for (std::size_t k = 0; k < changes.size(); ++k) {
        const std::int64_t row = places[k], column = places[changes.size() + k];
        if (row < 0 || column < 0 || static_cast<std::uint64_t>(row) >= source.rows || static_cast<std::uint64_t>(column) >= source.columns)
          throw a->error(ErrorCode::corrupt, fmt::format("element ({}, {}) is outside of '{}'", row, column, printable(name)), i->name);
        by_row[static_cast<std::uint64_t>(row)].emplace_back(static_cast<std::size_t>(column), static_cast<double>(changes[k]));
      }
      return std::make_unique<ByRow>(
          [by_row = std::move(by_row)](std::uint64_t row, std::span<double> x) {
            const auto found = by_row.find(row);
            if (found == by_row.end()) return;
            for (const auto& [column, change] : found->second) x[column] += change;
          },
          changes.size() * 64);
    });
  }

  void c3a() {
    const TensorInfo &kernel = part("c3a_kernel"), &weight = changed_weight();
    if (kernel.shape.size() != 3 || dim(kernel, 2) == 0) bad(kernel, "is no stack of kernels");
    const std::uint64_t n = dim(kernel, 2);
    expect(dim(kernel, 0) * n == dim(weight, 0) && dim(kernel, 1) * n == dims_from(weight, 1), kernel, weight);
    add(weight, [a = a_, k = &kernel, n = static_cast<std::size_t>(n)](const RowSource&) {
      std::vector<float> v = values_of(*a, *k);
      const std::uint64_t bytes = v.size() * sizeof(float);
      return std::make_unique<ByRow>(
          [v = std::move(v), n](std::uint64_t row, std::span<double> x) {
            const float* kernels = v.data() + row / n * (x.size() / n) * n;
            const std::size_t p = static_cast<std::size_t>(row) % n;
            for (std::size_t j = 0; j < x.size(); ++j)
              x[j] += static_cast<double>(kernels[j / n * n + (j % n + n - p) % n]) / static_cast<double>(x.size());
          },
          bytes);
    });
  }

  void randlora() {
    const std::string advice =
        "it was saved without its bases, which PyTorch's random numbers would have to make; save it again with save_projection, or fold it with PEFT";
    const TensorInfo &lambda = part("randlora_lambda"), &gamma = part("randlora_gamma"), &a = shared("randlora_A", advice),
                     &b = shared("randlora_B", advice);
    const TensorInfo& weight = changed_weight();
    const std::uint64_t out = outputs(weight), in = inputs(weight), low = std::min(out, in), high = std::max(out, in);
    const std::uint64_t rank = dim(lambda, 0), bases = dims_from(lambda, 1);
    if (a.shape.size() != 3 || b.shape.size() != 3 || dim(a, 0) != rank || dim(b, 2) != rank || dim(b, 1) < bases || dim(gamma, 0) != bases)
      bad(lambda, "does not fit the bases: their ranks differ");
    expect(dims_from(gamma, 1) == low, gamma, weight);
    expect(dim(a, 2) >= low && dim(a, 1) >= 1, a, weight);
    expect(dim(b, 0) >= high, b, weight);
    const double scale = a_->number("randlora_alpha").value_or(640) / a_->rank_of(module_.name);
    add(weight,
        [p = a_, l = &lambda, g = &gamma, a = &a, b = &b, low = static_cast<std::size_t>(low), high = static_cast<std::size_t>(high),
         rank = static_cast<std::size_t>(rank), bases = static_cast<std::size_t>(bases), scale, turn = transposed() != (out < in)](const RowSource&) {
          const Matrix lm = matrix_of(*p, *l), gm = matrix_of(*p, *g);
          const std::vector<float> va = values_of(*p, *a), vb = values_of(*p, *b);
          const std::size_t wide = static_cast<std::size_t>(dims_from(*a, 1)), stored_bases = static_cast<std::size_t>(dim(*b, 1));
          Matrix left{high, bases * rank, {}}, right{bases * rank, low, {}};
          for (std::size_t h = 0; h < high; ++h)
            for (std::size_t n = 0; n < bases; ++n)
              for (std::size_t i = 0; i < rank; ++i) left.values.push_back(vb[(h * stored_bases + n) * rank + i]);
          // Flattened rank first: B and A meet position by position, as the reference lets them.
          for (std::size_t i = 0; i < rank; ++i)
            for (std::size_t n = 0; n < bases; ++n)
              for (std::size_t j = 0; j < low; ++j) right.values.push_back(lm(i, n) * va[i * wide + j] * gm(n, j));
          return turn ? std::make_unique<LowRank>(right.transposed(), left.transposed(), scale) : std::make_unique<LowRank>(left, right, scale);
        });
  }

  void hra() {
    const TensorInfo &u = part("hra_u"), &weight = changed_weight();
    expect(dim(u, 0) == dims_from(weight, 1), u, weight);
    add(weight, [a = a_, t = &u, orthogonal = a_->flag("apply_GS")](const RowSource&) {
      const Matrix m = matrix_of(*a, *t).transposed();  // [r, in]
      std::vector<std::vector<double>> vectors;
      for (std::size_t k = 0; k < m.rows; ++k) {
        std::vector<double> v(m.values.begin() + static_cast<std::ptrdiff_t>(k * m.columns),
                              m.values.begin() + static_cast<std::ptrdiff_t>((k + 1) * m.columns));
        if (orthogonal)
          for (const std::vector<double>& other : vectors) {
            const double along = std::inner_product(v.begin(), v.end(), other.begin(), 0.0);
            for (std::size_t i = 0; i < v.size(); ++i) v[i] -= along * other[i];
          }
        const double norm = std::sqrt(std::inner_product(v.begin(), v.end(), v.begin(), 0.0));
        if (!(norm > 0)) throw a->error(ErrorCode::corrupt, fmt::format("vector {} of '{}' is zero", k, printable(t->name)), t->name);
        for (double& x : v) x /= norm;
        vectors.push_back(std::move(v));
      }
      const std::uint64_t bytes = m.values.size() * sizeof(double);
      // Mirrors along orthogonal vectors do not depend on each other, so one loop serves both forms.
      return std::make_unique<ByRow>(
          [vectors = std::move(vectors)](std::uint64_t, std::span<double> x) {
            for (const std::vector<double>& v : vectors) {
              const double along = 2 * std::inner_product(v.begin(), v.end(), x.begin(), 0.0);
              for (std::size_t i = 0; i < v.size(); ++i) x[i] -= along * v[i];
            }
          },
          bytes);
    });
  }

  void delora() {
    const TensorInfo &left = part("delora_B"), &right = part("delora_A"), &lambda = part("delora_lambda"), &weight = changed_weight();
    const TensorInfo& norms = part("delora_w_norm");
    const std::uint64_t rank = dim(right, 0);
    if (dims_from(left, 1) != rank) bad(left, "does not fit delora_A: their ranks differ");
    if (lambda.num_elements != 1) bad(lambda, "is not one number");
    expect(dim(left, 0) == dim(weight, 0), left, weight);
    expect(dims_from(right, 1) == dims_from(weight, 1) && norms.num_elements == dims_from(weight, 1), right, weight);
    check_rank(right, rank);
    add(weight, [a = a_, l = &left, r = &right, lambda = &lambda, norms = &norms](const RowSource&) {
      const Matrix b = matrix_of(*a, *l);
      Matrix m = matrix_of(*a, *r);
      const std::vector<float> w = values_of(*a, *norms);
      const double strength = static_cast<double>(values_of(*a, *lambda)[0]) / static_cast<double>(m.rows);
      std::vector<double> scales(m.rows);
      for (std::size_t k = 0; k < m.rows; ++k) {
        double of_a = 0, of_b = 0;
        for (std::size_t i = 0; i < m.columns; ++i) of_a += static_cast<double>(m(k, i)) * static_cast<double>(m(k, i));
        for (std::size_t o = 0; o < b.rows; ++o) of_b += static_cast<double>(b(o, k)) * static_cast<double>(b(o, k));
        scales[k] = strength / (std::max(std::sqrt(of_a), 1e-4) * std::max(std::sqrt(of_b), 1e-4));
      }
      for (std::size_t i = 0; i < m.values.size(); ++i) m.values[i] *= w[i % m.columns];
      return std::make_unique<LowRank>(b, m, scales);
    });
  }

  void road() {
    const TensorInfo &theta = part("road_theta"), &alpha = part("road_alpha"), &weight = changed_weight();
    const std::string variant = a_->text("variant").empty() ? "road_1" : a_->text("variant");
    const double size = a_->number("group_size").value_or(64);
    const std::uint64_t out = dim(weight, 0);
    const std::uint64_t per_output = variant == "road_1" ? 1 : variant == "road_2" ? 2 : variant == "road_4" ? 4 : 0;
    if (per_output == 0) throw a_->error(ErrorCode::unsupported, fmt::format("RoAD's variant '{}' is unknown", printable(variant)));
    if (size < 2 || size != std::floor(size) || static_cast<std::uint64_t>(size) % 2 != 0)
      throw a_->error(ErrorCode::corrupt, fmt::format("RoAD's group_size is {}", size));
    const auto group = static_cast<std::uint64_t>(size);
    expect(out % group == 0 && theta.num_elements == out * per_output / 2 && alpha.num_elements == theta.num_elements, theta, weight);
    const MakeFold make = [a = a_, t = &theta, s = &alpha, per_output, group, out](const RowSource&) {
      const std::vector<float> angles = values_of(*a, *t), sizes = values_of(*a, *s);
      std::vector<double> cosines(static_cast<std::size_t>(out)), sines(cosines.size());
      for (std::uint64_t i = 0; i < out; ++i) {
        // road_1: one number for a pair; road_2: one for each row; road_4: for each row one of the first and one of the second column.
        std::uint64_t first = i, second = i;
        if (per_output == 1) first = second = i / group * (group / 2) + i % (group / 2);
        if (per_output == 4) {
          first = i / group * 2 * group + i % group;
          second = first + group;
        }
        cosines[i] = static_cast<double>(sizes[first]) * std::cos(static_cast<double>(angles[first]));
        sines[i] = static_cast<double>(sizes[second]) * std::sin(static_cast<double>(angles[second]));
      }
      return std::make_unique<PairRotation>(std::move(cosines), std::move(sines), group);
    };
    add(weight, make);
    if (const std::optional<std::string> bias = base_.find(module_.name, "bias")) add(base_.tensor(*bias), make);
  }

  void gralora() {
    const TensorInfo &left = part("gralora_B"), &right = part("gralora_A"), &weight = changed_weight();
    const TensorInfo *general_a = find_part("gralora_A_general"), *general_b = find_part("gralora_B_general");
    if (left.shape.size() != 3 || right.shape.size() != 3 || dim(left, 0) != dim(right, 0) || dim(left, 1) != dim(right, 2) || dim(right, 0) == 0 ||
        dim(right, 2) % dim(right, 0) != 0)
      bad(right, "does not fit gralora_B");
    const std::uint64_t k = dim(right, 0), rank = dim(right, 2), out = outputs(weight), in = inputs(weight);
    expect(dim(left, 2) * k == out, left, weight);
    expect(dim(right, 1) * k == in, right, weight);
    const bool hybrid = general_a && general_b && general_a->num_elements > 0;
    const double scale = a_->alpha_of(module_.name) / static_cast<double>(rank + (hybrid ? dim(*general_a, 0) : 0));
    // Written as one product over all pairs of blocks: inner index (input block, j), with the other input blocks' parts of the right side zero.
    add(weight,
        [a = a_, l = &left, r = &right, general_a, general_b, hybrid, scale, k = static_cast<std::size_t>(k), rank = static_cast<std::size_t>(rank),
         out = static_cast<std::size_t>(out), in = static_cast<std::size_t>(in), turn = transposed()](const RowSource&) -> std::unique_ptr<Fold> {
          std::vector<float> va = values_of(*a, *r), vb = values_of(*a, *l);
          std::unique_ptr<Fold> general;
          if (hybrid) general = low_rank(*a, *general_b, *general_a, scale, turn);
          const std::uint64_t bytes = 4 * (va.size() + vb.size()) + (general ? general->held_bytes : 0);
          const std::size_t q = rank / k, ib = in / k, ob = out / k;
          const auto element = [va = std::move(va), vb = std::move(vb), q, ib, ob, rank, scale](std::size_t o, std::size_t i) {
            const std::size_t m = o / ob, n = i / ib;
            double sum = 0;
            for (std::size_t j = 0; j < q; ++j)
              sum += static_cast<double>(va[(n * ib + i % ib) * rank + m * q + j]) * static_cast<double>(vb[(m * rank + n * q + j) * ob + o % ob]);
            return sum * scale;
          };
          auto blocks = std::make_unique<ByRow>(
              [element, turn](std::uint64_t row, std::span<double> x) {
                for (std::size_t j = 0; j < x.size(); ++j)
                  x[j] += turn ? element(j, static_cast<std::size_t>(row)) : element(static_cast<std::size_t>(row), j);
              },
              bytes);
          if (!general) return blocks;
          std::vector<std::unique_ptr<Fold>> both;
          both.push_back(std::move(blocks));
          both.push_back(std::move(general));
          return std::make_unique<Sequence>(std::move(both));
        });
  }

  /// One after the other.
  class Sequence final : public Fold {
   public:
    explicit Sequence(std::vector<std::unique_ptr<Fold>> folds) : folds_(std::move(folds)) {
      for (const auto& fold : folds_) held_bytes += fold->held_bytes;
    }
    void apply(const RowSource& source, std::uint64_t first, std::uint64_t count, std::span<double> values) const override {
      for (const auto& fold : folds_) fold->apply(source, first, count, values);
    }

   private:
    std::vector<std::unique_ptr<Fold>> folds_;
  };

  AdapterPointer a_;
  const AdapterModule& module_;
  const BaseTensors& base_;
  std::vector<ChangedTensor> out_;
  std::set<std::string> used_;
  TensorInfo replaced_;
};

}  // namespace

std::vector<ChangedTensor> changes_of(const AdapterPointer& adapter, const AdapterModule& module, const BaseTensors& base) {
  return Planner(adapter, module, base).run();
}

}  // namespace weft::adapt
