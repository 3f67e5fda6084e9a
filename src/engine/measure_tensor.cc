#include "engine/measure_tensor.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <new>

#include "math/convert.h"
#include "math/lapack.h"
#include "measure/marchenko_pastur.h"
#include "measure/powerlaw.h"
#include "measure/structure.h"
#include "measure/weightwatcher.h"

namespace weft::engine {
namespace {

using measure::Pass;

// Beyond these a costly group is left out unless named: about a second a tensor.
constexpr std::uint64_t kSparedElements = 4'000'000;
constexpr std::int64_t kSparedSide = 1024;
// A float64 copy above this is avoided where blocks of rows will do.
constexpr std::uint64_t kLargeMatrixBytes = 256 << 20;
constexpr std::uint64_t kBlockBytes = 16 << 20;
constexpr std::uint64_t kFixedBytes = 8 << 20;

}  // namespace

TensorMeasurement::TensorMeasurement(const MeasuredInput& input, const TensorInfo& tensor, const measure::Selection& selection,
                                     const MeasureOptions& options, MeasuredTensor& out)
    : input_(input), tensor_(tensor), selection_(selection), seed_(options.seed), weightwatcher_(options.weightwatcher), out_(out) {
  out.name = tensor.name;
  const model::Role role = input.role(tensor.name);
  out.role = role == model::Role::unknown ? "" : std::string(model::to_string(role));
  out.block = input.block(tensor.name);
  out.shape = tensor.shape;
  out.dtype = tensor.dtype;
  out.size_bytes = tensor.size_bytes;
  reason_ = unreadable_reason(tensor);
  if (const auto shape = matrix_shape(tensor)) shape_ = *shape;
  if (role == model::Role::qkv) out.notes.emplace_back("q, k and v are fused: measured as one matrix, so kinds are mixed");
  if (role == model::Role::gate_up) out.notes.emplace_back("gate and up are fused: measured as one matrix, so kinds are mixed");
  if (tensor.shape.size() > 2 && shape_.rows > 0) {
    out.notes.push_back(fmt::format("{} axes: read as [{}, {}]", tensor.shape.size(), shape_.rows, shape_.columns));
    if (tensor.shape.size() == 4)
      out.notes.push_back(fmt::format("a convolution: weightwatcher pools its {} slices [{}, {}]", tensor.shape[2] * tensor.shape[3], tensor.shape[0],
                                      tensor.shape[1]));
  }
  if (role == model::Role::embed && tensor.shape.size() == 2 && input.config) {
    const Json* tied = input.config->find("tie_word_embeddings");
    if (tied != nullptr && tied->boolean() && *tied->boolean() && input.head() == &tensor)
      out.notes.emplace_back("tied: it is also the head through which neurons are decoded");
  }
  if (!tensor.stored_as.empty()) out.notes.push_back(fmt::format("stored as {} blocks: measured as their decoded values", tensor.stored_as));
  if (info(tensor.dtype).bits <= 8 && reason_.empty())
    out.notes.push_back(fmt::format("{} values are measured as stored: scales beside them are not applied", to_string(tensor.dtype)));

  wants_spectrum_ = selection.wants_pass(Pass::spectrum) || selection.wants_pass(Pass::matrix) || selection.wants("storage");
  spared_ = selection.spares() && (tensor.num_elements > kSparedElements || std::min(shape_.rows, shape_.columns) > kSparedSide);
  if (is_matrix() && wants_spectrum_) {
    const bool needs_matrix = tensor.shape.size() == 4 || (!spared_ && selection.wants_pass(Pass::matrix));
    by_blocks_ = 8 * tensor.num_elements > kLargeMatrixBytes && shape_.rows >= shape_.columns && !needs_matrix;
  }
}

bool TensorMeasurement::wants_elements() const { return selection_.wants_pass(Pass::elements); }

std::uint64_t TensorMeasurement::block_rows() const {
  return std::max<std::uint64_t>(64, kBlockBytes / (8 * static_cast<std::uint64_t>(std::max<std::int64_t>(1, shape_.columns))));
}

bool TensorMeasurement::wants_costly(const char* group) {
  if (!selection_.wants(group)) return false;
  if (!spared_) return true;
  measure::skip_group(out_.measures, group, fmt::format("costly for a matrix of this size: ask for it with --what {}", group));
  return false;
}

std::uint64_t TensorMeasurement::memory_bytes() const {
  if (!reason_.empty()) return kFixedBytes;
  const std::uint64_t n = tensor_.num_elements;
  // Elements that are not counted are sorted, in the type that they have.
  const std::uint64_t elements = measure::is_counted(tensor_.dtype) || !wants_elements() ? 0 : (tensor_.dtype == DType::f64 ? 8 : 4) * n;
  if (!is_matrix() || !wants_spectrum_) return kFixedBytes + elements;
  const auto side = static_cast<std::uint64_t>(std::min(shape_.rows, shape_.columns));
  if (by_blocks_) return kFixedBytes + elements + 8 * 3 * side * side + 2 * block_rows() * 8 * static_cast<std::uint64_t>(shape_.columns);
  std::uint64_t later = measure::spectrum_bytes(shape_.rows, shape_.columns);
  if (!spared_ && selection_.wants_pass(Pass::matrix)) later += measure::structure_bytes(shape_.rows, shape_.columns);
  return kFixedBytes + 8 * n + std::max(elements, later);
}

void TensorMeasurement::run() {
  Measures& out = out_.measures;
  if (!reason_.empty()) {
    for (const measure::Group& group : measure::groups())
      if (group.pass <= Pass::matrix && selection_.wants(group.name)) measure::skip_group(out, group.name, reason_);
    return;
  }
  read();
  add_notes();
  if (wants_spectrum_) {
    const char* reason = !summary_.finite            ? "non-finite"
                         : tensor_.num_elements == 0 ? "empty"
                         : summary_.zero             ? "zero tensor"
                         : !is_matrix()              ? "vector"
                                                     : nullptr;
    if (reason == nullptr) {
      measure_matrix();
    } else {
      for (const measure::Group& group : measure::groups())
        if ((group.pass == Pass::spectrum || group.pass == Pass::matrix) && selection_.wants(group.name))
          measure::skip_group(out, group.name, reason);
      if (selection_.wants("storage")) measure::skip_group(out, "storage", reason);
    }
  }
  matrix_ = {};
  gram_ = {};
}

/// What is unusual about the elements, in words.
void TensorMeasurement::add_notes() {
  const auto number = [this](const char* name) {
    const double* value = out_.measures.find(name);
    return value == nullptr ? std::numeric_limits<double>::quiet_NaN() : *value;
  };
  if (const double bad = number("moments.nan") + number("moments.inf"); bad > 0)
    out_.notes.push_back(fmt::format("{:.0f} of {} elements are NaN or infinite, the first is number {:.0f}: only counts are measured", bad,
                                     tensor_.num_elements, number("moments.first_nonfinite")));
  const double least = number("moments.min");
  if (tensor_.num_elements > 1 && !summary_.zero && least == number("moments.max"))
    out_.notes.push_back(
        fmt::format("constant: every element is {:.6g}, so that the distribution has no shape{}", least, is_matrix() ? " and the rank is 1" : ""));
}

void TensorMeasurement::read() {
  const std::uint64_t n = tensor_.num_elements;
  const bool counted = measure::is_counted(tensor_.dtype);
  const bool doubles_wanted = tensor_.dtype == DType::f64;
  const bool matrix = is_matrix() && wants_spectrum_;
  const auto columns = static_cast<std::size_t>(std::max<std::int64_t>(1, shape_.columns));
  if (matrix) (by_blocks_ ? gram_.resize(columns * columns) : matrix_.resize(static_cast<std::size_t>(n)));
  std::vector<float> floats;
  std::vector<double> doubles;
  if (!counted && wants_elements()) (doubles_wanted ? doubles.resize(static_cast<std::size_t>(n)) : floats.resize(static_cast<std::size_t>(n)));
  std::optional<measure::PatternCounts> counts;
  if (counted) counts.emplace(tensor_.dtype);

  // Whole rows where blocks of them are summed, and an even number of elements, for types of half a byte.
  const auto bits = static_cast<std::uint64_t>(info(tensor_.dtype).bits);
  std::uint64_t step = by_blocks_ ? block_rows() * columns : 1 << 19;
  if (step % 2 != 0) step *= 2;
  std::vector<std::byte> bytes(static_cast<std::size_t>((std::min(step, n) * bits + 7) / 8));
  std::vector<float> decoded;
  std::vector<double> block;
  const std::unique_ptr<XXH3_state_t, decltype(&XXH3_freeState)> hash(XXH3_createState(), &XXH3_freeState);
  if (hash == nullptr) throw std::bad_alloc();
  XXH3_64bits_reset(hash.get());
  for (std::uint64_t at = 0; at < n; at += step) {
    const auto count = static_cast<std::size_t>(std::min(step, n - at));
    const auto offset = static_cast<std::size_t>(at);
    const std::span<std::byte> piece = std::span(bytes).first((count * bits + 7) / 8);
    input_.checkpoint->read_bytes(tensor_, at * bits / 8, piece);
    XXH3_64bits_update(hash.get(), piece.data(), piece.size());
    if (counts) counts->add({reinterpret_cast<const std::uint16_t*>(piece.data()), count});
    if (doubles_wanted) {
      if (!doubles.empty()) std::memcpy(&doubles[offset], piece.data(), piece.size());
      if (!matrix_.empty()) std::memcpy(&matrix_[offset], piece.data(), piece.size());
      if (!gram_.empty()) {
        block.resize(count);
        std::memcpy(block.data(), piece.data(), piece.size());
      }
    } else if (matrix || !floats.empty()) {
      decoded.resize(count);
      math::decode(tensor_.dtype, piece, decoded);
      if (!floats.empty()) std::copy(decoded.begin(), decoded.end(), floats.begin() + static_cast<std::ptrdiff_t>(offset));
      if (!matrix_.empty()) std::copy(decoded.begin(), decoded.end(), matrix_.begin() + static_cast<std::ptrdiff_t>(offset));
      if (!gram_.empty()) block.assign(decoded.begin(), decoded.end());
    }
    if (!gram_.empty()) math::add_gram(math::GramOf::columns, block.data(), static_cast<std::int64_t>(count / columns), shape_.columns, gram_);
  }
  hash_ = XXH3_64bits_digest(hash.get());

  Measures& out = out_.measures;
  if (!wants_elements()) {
    // Only whether there is anything to decompose.
    summary_.num_elements = n;
    for (const auto* values : {&matrix_, &gram_}) {
      for (const double value : *values) {
        summary_.finite = summary_.finite && std::isfinite(value);
        summary_.zero = summary_.zero && value == 0;
      }
    }
  } else if (counts) {
    summary_ = measure::measure_elements(*counts, selection_, out);
  } else if (doubles_wanted) {
    summary_ = measure::measure_elements(std::span(doubles), selection_, out);
  } else {
    summary_ = measure::measure_elements(std::span(floats), tensor_.stored_as.empty() ? tensor_.dtype : DType::u8, selection_, out);
  }
}

void TensorMeasurement::measure_matrix() {
  Measures& out = out_.measures;
  const measure::Matrix matrix{matrix_, shape_.rows, shape_.columns};
  const measure::Spectrum spectrum = by_blocks_ ? measure::spectrum_from_gram(gram_, shape_.rows, shape_.columns) : measure::spectrum_of(matrix);
  if (by_blocks_) out_.notes.emplace_back("singular values by the Gram matrix alone: those below 1e-7 of the largest are noise");
  const std::vector<double> l = spectrum.eigenvalues();
  if (!(l.back() > 0) || !std::isfinite(l.back())) {
    // Squares of such elements leave the range of float64.
    for (const measure::Group& group : measure::groups())
      if ((group.pass == Pass::spectrum || group.pass == Pass::matrix) && selection_.wants(group.name))
        measure::skip_group(out, group.name, "elements too small or too large to be squared");
    return;
  }
  if (selection_.wants("storage") && summary_.noise_rms > 0) measure::measure_noise_floor(spectrum, summary_.noise_rms, out);
  measure::put_spectrum_curve(spectrum, out);
  if (selection_.wants("ranks")) measure::measure_ranks(spectrum, "ranks", out);
  measure::measure_powerlaw(l, selection_, out);
  if (selection_.wants("detX")) measure::measure_detx(l, out);
  if (selection_.wants("mp"))
    measure::measure_mp(spectrum, wants_elements() ? std::sqrt(summary_.variance) : std::numeric_limits<double>::quiet_NaN(), out);
  if (selection_.wants("weightwatcher")) measure::measure_weightwatcher(slices(spectrum), weightwatcher_, out);
  if (wants_costly("mp_fit")) measure::measure_mp_fit(spectrum, out);
  if (wants_costly("random")) measure::measure_random(matrix, spectrum, tensor_.name, seed_, out);
  if (wants_costly("orthogonality")) measure::measure_orthogonality(matrix, "orthogonality", out);
  if (wants_costly("conditioning")) measure::measure_conditioning(matrix, spectrum, out);
  if (wants_costly("weight_space")) measure::measure_weight_space(matrix, spectrum, out);
}

/// Of a convolution [out, in, height, width] the spectra of its [out, in] slices.
std::vector<measure::Spectrum> TensorMeasurement::slices(const measure::Spectrum& whole) const {
  if (tensor_.shape.size() != 4 || matrix_.empty()) return {whole};
  const auto receptive = static_cast<std::size_t>(tensor_.shape[2] * tensor_.shape[3]);
  std::vector<measure::Spectrum> result;
  std::vector<double> slice(matrix_.size() / receptive);
  for (std::size_t r = 0; r < receptive; ++r) {
    for (std::size_t i = 0; i < slice.size(); ++i) slice[i] = matrix_[i * receptive + r];
    result.push_back(measure::spectrum_of({slice, tensor_.shape[0], tensor_.shape[1]}));
  }
  return result;
}

}  // namespace weft::engine
