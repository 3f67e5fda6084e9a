#include "measure/table.h"

#include <algorithm>
#include <cmath>

#include "base/text.h"
#include "weft/error.h"

namespace weft {

const double* Measures::find(std::string_view measure) const noexcept {
  for (const auto& [name, value] : values)
    if (name == measure) return &value;
  return nullptr;
}

const std::string* Measures::find_skipped(std::string_view measure) const noexcept {
  for (const auto& [name, reason] : skipped)
    if (name == measure) return &reason;
  return nullptr;
}

std::vector<MeasurementDescription> list_measurements() {
  constexpr std::string_view kPasses[] = {"elements", "spectrum", "matrix", "block", "pair", "set", "text", "gradient"};
  std::vector<MeasurementDescription> result;
  for (const measure::Group& group : measure::groups()) {
    MeasurementDescription& d = result.emplace_back();
    d.name = group.name;
    d.pass = kPasses[static_cast<std::size_t>(group.pass)];
    d.summary = group.summary;
    d.source = group.source;
    d.determinism = group.determinism;
    d.costly = group.cost == measure::Cost::high;
    d.keys.assign(group.keys.begin(), group.keys.end());
  }
  return result;
}

}  // namespace weft

namespace weft::measure {

std::span<const Group> groups() {
  static const std::vector<Group> table = {
      {"moments",
       Pass::elements,
       Cost::low,
       "A",
       "counts of zeros, NaN and infinities, moments, quantiles of |w|, Gini coefficient, share above one standard deviation (layer importance)",
       "share above one standard deviation: the ZD score of Dumitru et al. 2024",
       {"n",
        "nan",
        "inf",
        "zero",
        "sum",
        "sum_squares",
        "sum_abs",
        "mean",
        "variance",
        "skewness",
        "excess_kurtosis",
        "min",
        "max",
        "max_abs",
        "argmax_abs",
        "abs_quantiles.q0.1",
        "abs_quantiles.q0.5",
        "abs_quantiles.q0.9",
        "abs_quantiles.q0.99",
        "abs_quantiles.q0.999",
        "q90_q10",
        "q99_q50",
        "q999_q50",
        "gini",
        "distinct_abs",
        "above_one_std"}},
      {"weibull",
       Pass::elements,
       Cost::low,
       "C",
       "shape and scale of the distribution of |w|: 1.205 is a Gaussian initialisation",
       "tiexinding/NPM-Weibull-public",
       {"k", "lambda", "r2", "ks", "bins", "counted", "sampling_error"}},
      {"storage",
       Pass::elements,
       Cost::low,
       "C",
       "noise that the stored type's rounding adds, and the singular values that drown in it",
       "uniform rounding errors; edge of a random matrix (Marchenko and Pastur 1967)",
       {"noise_rms", "noise_relative", "noise_floor"}},
      {"ranks",
       Pass::spectrum,
       Cost::low,
       "C",
       "norms, condition, and ways to say how low-rank a matrix is",
       "Roy and Vetterli 2007; Liu et al. 2023, arXiv:2310.08513",
       {"frobenius", "spectral", "smallest", "condition", "stable_rank", "participation", "entropy_rank_s", "entropy_rank_s2", "energy_rank.0.9",
        "energy_rank.0.95", "energy_rank.0.99", "numerical_rank", "rank_1e-6", "weak_rank_loss", "log_norm", "log_spectral_norm", "entropy"}},
      {"powerlaw",
       Pass::spectrum,
       Cost::low,
       "C",
       "exponent of the eigenvalues' tail, as WeightWatcher 0.7.7 fits it, with the runner-up",
       "Martin et al. 2021, arXiv:2002.06716; Clauset et al. 2009",
       {"kept", "alpha", "D", "xmin", "xmax", "sigma", "tail"}},
      {"detX",
       Pass::spectrum,
       Cost::low,
       "C",
       "the tail of the spectrum whose product is one",
       "CalculatedContent/WeightWatcher",
       {"detX_num", "detX_val"}},
      {"mp",
       Pass::spectrum,
       Cost::low,
       "C",
       "Marchenko-Pastur bulk from the median eigenvalue, spikes by Tracy and Widom's 99 % edge",
       "Marchenko and Pastur 1967; Johnstone 2001",
       {"Q", "mp_median", "sigma", "bulk_min", "bulk_max", "spike_bar", "spikes", "softrank", "element_std"}},
      {"clip_xmax",
       Pass::spectrum,
       Cost::low,
       "C",
       "the power law refitted without its largest values (fix_fingers)",
       "CalculatedContent/WeightWatcher",
       {"raw_alpha", "alpha", "num_fingers", "removed"}},
      {"weightwatcher",
       Pass::spectrum,
       Cost::low,
       "C",
       "the columns of WeightWatcher 0.7.7's details table",
       "CalculatedContent/WeightWatcher",
       {"num_evals",
        "N",
        "M",
        "Q",
        "rf",
        "norm",
        "log_norm",
        "spectral_norm",
        "log_spectral_norm",
        "lambda_max",
        "sv_max",
        "sv_min",
        "stable_rank",
        "matrix_rank",
        "rank_loss",
        "weak_rank_loss",
        "entropy",
        "alpha",
        "alpha_weighted",
        "log_alpha_norm",
        "D",
        "xmin",
        "xmax",
        "sigma",
        "num_pl_spikes",
        "detX_num",
        "detX_val",
        "detX_val_unrescaled",
        "num_ERG_spikes",
        "ERG_gap"}},
      {"mp_fit",
       Pass::spectrum,
       Cost::high,
       "C",
       "WeightWatcher's Marchenko-Pastur fit to the smoothed density",
       "CalculatedContent/WeightWatcher",
       {"W_scale", "sigma_mp", "bulk_min", "bulk_max", "num_spikes", "mp_softrank"}},
      {"random",
       Pass::matrix,
       Cost::high,
       "C",
       "the same matrix with its elements permuted: what is left of the spectrum is no structure",
       "CalculatedContent/WeightWatcher; Clauset et al. 2009",
       {"max_rand_eval", "rand_distance", "ww_softrank", "ww_maxdist", "rand_sigma_mp", "rand_bulk_min", "rand_bulk_max", "rand_mp_softrank",
        "rand_num_spikes", "alpha_permuted", "D_permuted", "alpha_gaussian", "D_gaussian", "p_value"}},
      {"orthogonality",
       Pass::matrix,
       Cost::high,
       "C",
       "how far rows and columns are from orthogonal",
       "lshangge/OrthoReg",
       {"penalty", "error", "mean_abs_cos_rows", "mean_abs_cos_cols"}},
      {"conditioning",
       Pass::matrix,
       Cost::high,
       "C",
       "condition number before and after the rows are scaled to length one",
       "weight conditioning by row scaling",
       {"before", "after", "zero_rows", "row_norm_min", "row_norm_max"}},
      {"weight_space",
       Pass::matrix,
       Cost::high,
       "C",
       "how much of a matrix a few of its columns (rows) generate, beside the bound by its spectrum",
       "column-pivoted QR; Chan 1987",
       {}},
      {"gated",
       Pass::block,
       Cost::high,
       "C",
       "gated neurons by what they do to the direction they read",
       "sjgerstner/RW_functionalities",
       {"mean.io", "mean.go", "mean.gi", "analytic_band", "outside_analytic.io", "outside_analytic.go", "outside_analytic.gi"}},
      {"decoding", Pass::block, Cost::high, "C", "which token each neuron reads or writes, through the head", "LM-head decoding of neurons", {}},
      {"difference", Pass::pair, Cost::low, "C", "size and spectrum of what changed", "", {"norm", "relative", "max_abs", "changed", "cos"}},
      {"intruders",
       Pass::pair,
       Cost::low,
       "C",
       "new strong singular directions, the mark of low-rank fine-tuning",
       "Shuttleworth et al. 2024, arXiv:2410.21228",
       {}},
      {"changed", Pass::pair, Cost::low, "A", "elements whose stored bytes differ", "", {"changed", "elements", "share"}},
      {"task_vectors",
       Pass::set,
       Cost::low,
       "C",
       "cosines between what models learned, and where their signs conflict",
       "Ilharco et al. 2022, arXiv:2212.04089",
       {}},
      {"agreement", Pass::set, Cost::high, "C", "share of neurons that decode to the same token in both models", "LM-head decoding of neurons", {}},
      {"scaling",
       Pass::set,
       Cost::low,
       "C",
       "how the largest singular value grows with the width",
       "s_1 ~ sqrt(lr / wd) width^0.75 at matched sublayer gain",
       {}},
      {"word_rules",
       Pass::matrix,
       Cost::low,
       "C",
       "filters over words as lists of the words that they answer to",
       "word rules from the filters of text networks",
       {}},
      {"text", Pass::text, Cost::low, "C", "how many tokens were run, and the loss", "", {"tokens", "window", "loss"}},
      {"channels", Pass::text, Cost::low, "C", "energy and largest input of the linear layers, and the channels that carry most", "", {}},
      {"spectral_alignment",
       Pass::text,
       Cost::high,
       "C",
       "whether inputs lie on one side of a matrix's top singular direction: a warning only when it changes in training",
       "arXiv:2510.04202",
       {"positive", "diversity", "mean_abs", "q05", "q50", "q95", "s2_over_s1", "near_zero"}},
      {"utilized_rank", Pass::text, Cost::high, "C", "share of dimensions that inputs and weights really use together", "arXiv:2407.04797", {}},
      {"w_pca",
       Pass::text,
       Cost::high,
       "C",
       "principal components of the feed-forward layers' hidden states, times the parameters",
       "ra225/W-PCA",
       {}},
      {"heads", Pass::text, Cost::low, "C", "how alike attention heads look, and how their entropies spread", "arXiv:2605.20441", {}},
      {"importance",
       Pass::text,
       Cost::low,
       "C",
       "how much a layer turns its input (LIM, higher matters more), and its share of outlying weights (ZD, lower matters more)",
       "Dumitru et al. 2024",
       {"lim", "zd"}},
      {"residual", Pass::text, Cost::low, "C", "size of the hidden states after each block", "", {}},
      {"cka",
       Pass::text,
       Cost::low,
       "C",
       "similarity of hidden states between layers and, with --base, between models",
       "linear CKA, Kornblith et al. 2019; debiased, Nguyen et al. 2021",
       {}},
      {"super_weights",
       Pass::text,
       Cost::low,
       "C",
       "single weights that carry the model, and what each layer's candidate is worth",
       "arXiv:2411.07191",
       {}},
      {"language_geometry", Pass::text, Cost::low, "C", "distances between texts by the weights that matter for each", "arXiv:2508.11676", {}},
      {"barrier",
       Pass::text,
       Cost::high,
       "C",
       "with --base: loss along the straight line between the models, against the mean of its ends",
       "mode connectivity as Yang et al. 2021 use it",
       {"mc", "at", "height"}},
      {"clamp",
       Pass::text,
       Cost::high,
       "C",
       "what holding one neuron at a value does to the probability of the token that it writes",
       "LM-head decoding of neurons",
       {}},
      {"phases",
       Pass::text,
       Cost::low,
       "C",
       "with several models: phases of the loss landscape by loss, connectivity and similarity, against the medians of the models",
       "Yang et al. 2021, arXiv:2107.11228; bars chosen here",
       {}},
      {"hessian",
       Pass::gradient,
       Cost::high,
       "C",
       "largest eigenvalues, trace and density of the loss's Hessian, by Lanczos over differences of gradients",
       "GabdullinN/loss-landscape-analysis; Ghorbani et al. 2019",
       {"largest", "smallest", "re", "kh", "trace", "asymmetry"}},
      {"landscape",
       Pass::gradient,
       Cost::high,
       "C",
       "the loss along random directions, over the square between two, and along the Hessian's first two",
       "Li et al. 2018, arXiv:1712.09913",
       {"loss", "lowest"}},
  };
  return table;
}

const Group* find_group(std::string_view name) {
  for (const Group& group : groups())
    if (group.name == name) return &group;
  return nullptr;
}

Selection::Selection(std::span<const std::string> what) {
  for (const std::string& name : what) {
    if (name == "all") {
      all_ = true;
      continue;
    }
    if (find_group(name) == nullptr) {
      std::vector<std::string> known = {"all"};
      for (const Group& group : groups()) known.emplace_back(group.name);
      const std::optional<std::string> nearest = nearest_name(name, known);
      std::string list;
      for (const std::string& each : known) list += (list.empty() ? "" : ", ") + each;
      throw Error(ErrorCode::invalid_argument, "there is no group of measures called '" + printable(name) + "'", {.key = "--what"},
                  (nearest ? "did you mean " + *nearest + "? " : std::string()) + "there are: " + list);
    }
    names_.push_back(name);
    // A phase is made of these.
    if (name == "phases") names_.insert(names_.end(), {"text", "cka", "barrier"});
  }
}

bool Selection::wants(std::string_view group) const noexcept {
  return all_ || names_.empty() || std::find(names_.begin(), names_.end(), group) != names_.end();
}

bool Selection::wants_pass(Pass pass) const noexcept {
  return std::any_of(groups().begin(), groups().end(), [&](const Group& group) { return group.pass == pass && wants(group.name); });
}

std::string_view Selection::named(Pass pass) const noexcept {
  for (const Group& group : groups())
    if (group.pass == pass && std::find(names_.begin(), names_.end(), group.name) != names_.end()) return group.name;
  return {};
}

void put(Measures& measures, std::string name, double value, std::string_view reason) {
  if (std::isfinite(value)) {
    measures.values.emplace_back(std::move(name), value);
  } else {
    measures.skipped.emplace_back(std::move(name), std::string(reason));
  }
}

void skip_group(Measures& measures, std::string_view group, std::string_view reason) {
  const Group* found = find_group(group);
  if (found == nullptr || found->keys.empty()) {
    measures.skipped.emplace_back(std::string(group), std::string(reason));
    return;
  }
  for (const std::string_view key : found->keys) {
    std::string name = std::string(group) + "." + std::string(key);
    if (measures.find(name) == nullptr && measures.find_skipped(name) == nullptr) measures.skipped.emplace_back(std::move(name), std::string(reason));
  }
}

}  // namespace weft::measure
