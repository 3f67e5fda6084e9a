#include "measure/findings.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <set>
#include <string>

namespace weft::measure {
namespace {

enum Rule : std::size_t {
  kNonFinite,
  kZeroTensor,
  kDuplicate,
  kZeroRows,
  kRankDeficient,
  kRandomLike,
  kHeavyTail,
  kNoPowerLaw,
  kOutlier,
  kSparse,
  kUnderNoise,
  kStrongSelection,
  kNotMeasured,
  kIntruders,
  kLowRankChange,
  kUnchanged,
  kMismatch,
  kAligned,
  kConflict,
  kMemorised,
  kSuperWeight,
  kNoSuperWeight,
  kHeadsAlike,
  kAlignmentCollapse,
  kBarrier,
  kUnusedExpert,
  kSaddle,
  kClampedDown
};

// Null rates were measured on Gaussian matrices of 64 x 64 to 768 x 256; findings_test.cc repeats that. Those of what needs a text are upper ends of
// 95 % intervals from random models.
constexpr FindingRule kRules[] = {
    {"non-finite", "problem", 0, "NaN or infinite elements", "no computation survives them", 0},
    {"zero tensor", "warning", 0, "elements that are not zero", "a matrix of zeros passes nothing on", 0},
    {"duplicate", "note", 0, "tensors of the same bytes", "tied or copied weights", 0},
    {"zero rows", "warning", 0, "rows of zeros", "an output that is always zero", 0},
    {"rank deficient", "note", 1, "of full rank", "numerical rank below full rank", 0},
    {"random-like", "note", 0, "singular values beyond the edge of a random matrix, with |k - 1.205| below three sampling errors",
     "Marchenko-Pastur with Tracy and Widom's 99 % edge; Weibull shape of a Gaussian", 1},
    {"heavy tail", "warning", 2, "alpha, where D is below 0.1 and half of a permuted matrix's", "WeightWatcher's over-trained below 2", 0.01},
    {"weak tail", "note", 6, "alpha, where D is below 0.1 and half of a permuted matrix's", "WeightWatcher's under-trained above 6", 0.01},
    {"outlier", "note", 20, "standard deviations of the largest element", "normal elements reach 6 among a thousand million", 0},
    {"sparse", "note", 0.2, "share of zeros", "pruned", 0},
    {"under storage noise", "note", 0.1, "share of singular values below the noise of the stored type", "rounding errors as a random matrix", 0.01},
    {"strong selection", "note", 0.95, "Weibull k", "NPM-Weibull's class of strong selection", 0},
    {"not measured", "note", 0, "tensors without measures", "", 0},
    {"intruder dimensions", "warning", 0.5, "largest cosine with any base direction, less than 0.9 of it in the base's top 30",
     "Shuttleworth et al. 2024; the subspace keeps random changes out", 0.02},
    {"low-rank change", "note", 0.25, "of full rank holds 99 % of the change", "an adapter of that rank", 0},
    {"unchanged", "note", 0, "changed elements", "", 0},
    {"not comparable", "warning", 0, "tensors that have no counterpart", "", 0},
    {"aligned task vectors", "note", 0.15, "cosine between task vectors",
     "adding aligned ones in full lost most in six pairs; random ones are below 0.01", 0},
    {"sign conflicts", "note", 0.2, "share of changed elements that some model raises and some lowers", "TIES, Yadav et al. 2023", 1},
    {"collapsed directions", "note", 3, "stable rank", "a few directions carry the matrix", 0},
    {"super weight", "warning", 50, "largest input and output of a down projection, both", "arXiv:2411.07191", 0},
    {"no super weight", "note", 50, "largest input and output of a down projection, not both", "arXiv:2411.07191", 1},
    {"heads alike", "note", 0.95, "mean cosine of heads, with entropies that spread by less than 0.05",
     "arXiv:2605.20441, for small arithmetic models; a random initialisation looks like this too", 1},
    {"alignment collapse", "note", 0.333, "of a layer's running median diversity, three times in a row", "arXiv:2510.04202", 0},
    {"loss barrier", "note", 0.1, "nats by which the loss between the models exceeds that of its ends", "mode connectivity", 0},
    {"unused expert", "warning", 128, "tokens for each expert of the layer, had they been spread evenly; fewer tell nothing",
     "of 4224 experts of random mixtures so many tokens missed 3, of 1024 with a quarter of them 39; claims/measure_null_rates.py", 0.01},
    {"negative curvature", "note", 0.5, "smallest eigenvalue of the Hessian over the largest, in magnitude",
     "a minimum has none; random symmetric matrices have as much below zero as above", 1},
    {"neuron without its token", "note", 0, "nats that holding a neuron adds to the token that it decodes to",
     "LM-head decoding; 4 of 120 neurons of random models did; claims/measure_null_rates.py", 0.08},
};

std::string kind_of(const MeasuredTensor& tensor) {
  if (!tensor.role.empty()) return tensor.role;
  const std::size_t dot = tensor.name.rfind('.');
  const std::string path = dot == std::string::npos ? tensor.name : tensor.name.substr(0, dot);
  return path.substr(path.rfind('.') + 1);
}

/// "0-2, 5" of sorted numbers.
std::string ranges_text(const std::set<int>& numbers) {
  std::string text;
  for (auto at = numbers.begin(); at != numbers.end();) {
    const int first = *at;
    int last = first;
    while (++at != numbers.end() && *at == last + 1) last = *at;
    text += (text.empty() ? "" : ", ") + (first == last ? std::to_string(first) : fmt::format("{}-{}", first, last));
  }
  return text;
}

/// Tensors on which a rule fired.
struct Hits {
  std::map<std::string, std::vector<std::pair<const MeasuredTensor*, double>>> kinds;
  void add(const MeasuredTensor& tensor, double value) { kinds[kind_of(tensor)].emplace_back(&tensor, value); }
};

/// Which end of a measure is the worse.
enum class Worst { least, most };

class Collector {
 public:
  explicit Collector(std::vector<MeasureFinding>& out) : out_(out) {}

  template <typename Say>
  void tell(Rule rule, const std::string& model, const Hits& hits, Worst worst, Say&& say) {
    if (hits.kinds.empty()) return;
    std::string where;
    std::size_t count = 0;
    auto extreme = hits.kinds.begin()->second.front();
    for (const auto& [kind, tensors] : hits.kinds) {
      std::set<int> blocks;
      for (const auto& hit : tensors) {
        ++count;
        if (hit.first->block >= 0) blocks.insert(hit.first->block);
        if (worst == Worst::most ? hit.second > extreme.second : hit.second < extreme.second) extreme = hit;
      }
      where += where.empty() ? "" : "; ";
      where += blocks.empty() ? kind : fmt::format("{} of layer{} {}", kind, blocks.size() > 1 ? "s" : "", ranges_text(blocks));
    }
    add(rule, say(count), model + ": " + where, evidence(extreme, count), count);
  }
  void add(Rule rule, std::string what, std::string where, std::string evidence, std::uint64_t count = 1) {
    out_.push_back({kRules[rule].severity, std::move(what), std::move(where), std::move(evidence), kRules[rule].name, count, kRules[rule].null_rate});
  }
  std::string (*number)(double) = [](double value) { return fmt::format("{:.4g}", value); };
  std::string measure;  ///< of which evidence is given

 private:
  std::string evidence(const std::pair<const MeasuredTensor*, double>& extreme, std::size_t count) const {
    return count > 1 ? fmt::format("worst {}: {} {}", extreme.first->name, measure, number(extreme.second))
                     : fmt::format("{}: {} {}", extreme.first->name, measure, number(extreme.second));
  }
  std::vector<MeasureFinding>& out_;
};

double value_or(const Measures& measures, const char* name, double otherwise) {
  const double* value = measures.find(name);
  return value == nullptr ? otherwise : *value;
}

/// Whether the text was long enough that an expert without tokens says something.
bool reached_by_many(const MeasuredBlock& block) {
  double choices = 0;
  int experts = 0;
  for (;; ++experts) {
    const double* tokens = block.measures.find(fmt::format("channels.experts.{}.tokens", experts));
    if (tokens == nullptr) break;
    choices += *tokens;
  }
  return choices >= kRules[kUnusedExpert].threshold * experts;
}

/// What a text showed.
void text_findings(const MeasuredModel& model, Collector& collect) {
  if (const double* count = model.model.find("super_weights.count")) {
    for (int i = 0; i < static_cast<int>(*count); ++i) {
      const auto at = [&](const char* field) { return value_or(model.model, fmt::format("super_weights.found.{}.{}", i, field).c_str(), 0); };
      collect.add(kSuperWeight, "a super weight: one number that the model may break without; keep it out of quantization and pruning",
                  fmt::format("{}: down of layer {:.0f}, row {:.0f}, column {:.0f}", model.path, at("layer"), at("row"), at("col")),
                  fmt::format("value {:.4g}", at("value")));
    }
    const MeasuredBlock* largest = nullptr;
    const MeasuredBlock* worst = nullptr;
    for (const MeasuredBlock& block : model.blocks) {
      const auto both = [](const MeasuredBlock& b) {
        return std::min(value_or(b.measures, "super_weights.in", 0), value_or(b.measures, "super_weights.out", 0));
      };
      if (largest == nullptr || both(block) > both(*largest)) largest = &block;
      if (const double* change = block.measures.find("super_weights.loss_change");
          change != nullptr && (worst == nullptr || *change > *worst->measures.find("super_weights.loss_change")))
        worst = &block;
    }
    if (*count == 0 && largest != nullptr) {
      std::string evidence = fmt::format("closest is layer {}: input {:.3g}, output {:.3g}", largest->block,
                                         value_or(largest->measures, "super_weights.in", 0), value_or(largest->measures, "super_weights.out", 0));
      if (worst != nullptr)
        evidence += fmt::format("; losing row {:.0f}, column {:.0f} of layer {} costs most, {:.2g} nats",
                                value_or(worst->measures, "super_weights.out_channel", 0), value_or(worst->measures, "super_weights.in_channel", 0),
                                worst->block, *worst->measures.find("super_weights.loss_change"));
      collect.add(kNoSuperWeight, "no super weight", model.path, std::move(evidence));
    }
  }
  double unused = 0, layers_with_unused = 0;
  for (const MeasuredBlock& block : model.blocks)
    if (const double* count = block.measures.find("channels.experts.unused"); count != nullptr && *count > 0 && reached_by_many(block)) {
      unused += *count;
      layers_with_unused += 1;
    }
  if (unused > 0)
    collect.add(kUnusedExpert, "experts that no token of the text reached", fmt::format("{}: {:.0f} layers", model.path, layers_with_unused),
                fmt::format("{:.0f} experts over {:.0f} tokens", unused, value_or(model.model, "text.tokens", 0)),
                static_cast<std::uint64_t>(unused));
  if (const double* ratio = model.model.find("hessian.re"); ratio != nullptr && *ratio > kRules[kSaddle].threshold)
    collect.add(kSaddle, "the loss curves down almost as much as up: the model is at no minimum of it", model.path,
                fmt::format("largest eigenvalue {:.3g}, smallest {:.3g}", value_or(model.model, "hessian.largest", 0),
                            value_or(model.model, "hessian.smallest", 0)));
  std::vector<std::string> lowered;
  for (int c = 0; c < static_cast<int>(value_or(model.model, "clamp.count", 0)); ++c)
    if (value_or(model.model, fmt::format("clamp.{}.raised", c).c_str(), 0) < kRules[kClampedDown].threshold)
      lowered.push_back(fmt::format("neuron {:.0f} of layer {:.0f}", value_or(model.model, fmt::format("clamp.{}.neuron", c).c_str(), 0),
                                    value_or(model.model, fmt::format("clamp.{}.layer", c).c_str(), 0)));
  if (!lowered.empty())
    collect.add(kClampedDown, "holding these neurons makes the token rarer that they decode to: decoding does not say what they do",
                fmt::format("{}: {}", model.path, fmt::join(lowered, ", ")),
                fmt::format("{} of {:.0f} that were held", lowered.size(), value_or(model.model, "clamp.count", 0)), lowered.size());
  std::set<int> alike;
  double most = 0;
  for (const MeasuredBlock& block : model.blocks) {
    const double* cosine = block.measures.find("heads.without_first_two.head_cosine");
    if (cosine == nullptr || *cosine < kRules[kHeadsAlike].threshold || value_or(block.measures, "heads.without_first_two.entropy_std", 1) > 0.05)
      continue;
    alike.insert(block.block);
    most = std::max(most, *cosine);
  }
  if (!alike.empty())
    collect.add(kHeadsAlike, "attention heads look alike: untrained, or collapsed",
                fmt::format("{}: layer{} {}", model.path, alike.size() > 1 ? "s" : "", ranges_text(alike)), fmt::format("cosine {:.3f}", most),
                alike.size());
}

/// Along a path of models: a layer whose inputs come to lie on one side of its top direction.
void path_findings(const MeasureReport& report, Collector& collect) {
  constexpr std::size_t kInARow = 3;
  constexpr double kHealthy = 0.3;
  if (report.models.size() < kInARow + 1) return;
  for (const MeasuredTensor& tensor : report.models.front().tensors) {
    std::vector<double> before;
    std::size_t fallen = 0;
    for (const MeasuredModel& model : report.models) {
      const MeasuredTensor* own = nullptr;
      for (const MeasuredTensor& each : model.tensors)
        if (each.name == tensor.name) own = &each;
      const double* diversity = own == nullptr ? nullptr : own->measures.find("spectral_alignment.diversity");
      if (diversity == nullptr) break;
      std::vector<double> sorted = before;
      std::sort(sorted.begin(), sorted.end());
      const double median = sorted.empty() ? 0 : sorted[sorted.size() / 2];
      fallen = median > kHealthy && *diversity < kRules[kAlignmentCollapse].threshold * median ? fallen + 1 : 0;
      if (fallen == 0) before.push_back(*diversity);
      if (fallen < kInARow) continue;
      collect.add(kAlignmentCollapse,
                  "inputs have come to lie on one side of the top singular direction: usual while a model leaves its initialisation, later a sign "
                  "that the loss may explode",
                  tensor.name + " at " + model.path, fmt::format("diversity {:.3f} against {:.3f} before", *diversity, median));
      break;
    }
  }
}

void model_findings(const MeasuredModel& model, Collector& collect) {
  Hits duplicate, non_finite, zero, rows, rank, random_like, heavy, weak, outlier, sparse, noise, selection, collapsed;
  for (const MeasuredTensor& tensor : model.tensors) {
    const Measures& m = tensor.measures;
    for (const std::string& note : tensor.notes)
      if (note.starts_with("the same bytes as ") && value_or(m, "moments.zero", 0) < value_or(m, "moments.n", 1)) duplicate.add(tensor, 1);
    const auto get = [&m](const char* name) { return m.find(name); };
    const double bad = value_or(m, "moments.nan", 0) + value_or(m, "moments.inf", 0);
    if (bad > 0) non_finite.add(tensor, bad);
    const double n = value_or(m, "moments.n", 0);
    if (tensor.shape.size() >= 2 && n > 0 && value_or(m, "moments.zero", 0) == n) {
      zero.add(tensor, n);
      continue;
    }
    if (const double* zeros = get("conditioning.zero_rows"); zeros != nullptr && *zeros > 0) rows.add(tensor, *zeros);
    const double short_side = tensor.shape.size() >= 2 ? static_cast<double>(std::min(tensor.shape[0], tensor.shape[1])) : 0;
    if (const double* r = get("ranks.numerical_rank"); r != nullptr && tensor.shape.size() == 2 && *r < kRules[kRankDeficient].threshold * short_side)
      rank.add(tensor, *r);
    const double* k = get("weibull.k");
    const double* spikes = get("mp.spikes");
    if (k != nullptr && spikes != nullptr && *spikes == 0 && short_side >= 32 &&
        std::abs(*k - 1.205) < std::max(0.01, 3 * value_or(m, "weibull.sampling_error", 0)))
      random_like.add(tensor, *k);
    const double* alpha = get("powerlaw.alpha");
    const double* permuted = get("random.D_permuted");
    const double D = value_or(m, "powerlaw.D", 1);
    if (alpha != nullptr && permuted != nullptr && D < 0.1 && D < 0.5 * *permuted && short_side >= 50) {
      if (*alpha < kRules[kHeavyTail].threshold) heavy.add(tensor, *alpha);
      if (*alpha > kRules[kNoPowerLaw].threshold) weak.add(tensor, *alpha);
    }
    const double deviation = std::sqrt(value_or(m, "moments.variance", 0));
    if (deviation > 0 && tensor.shape.size() >= 2) {
      const double largest = value_or(m, "moments.max_abs", 0) / deviation;
      if (largest > kRules[kOutlier].threshold) outlier.add(tensor, largest);
    }
    if (n > 0 && tensor.shape.size() >= 2 && value_or(m, "moments.zero", 0) / n > kRules[kSparse].threshold)
      sparse.add(tensor, value_or(m, "moments.zero", 0) / n);
    // Directions that are not there at all are another finding.
    const bool full_rank = value_or(m, "ranks.numerical_rank", 0) >= short_side;
    if (const double* below = get("storage.below_noise");
        below != nullptr && full_rank && short_side > 0 && *below / short_side > kRules[kUnderNoise].threshold)
      noise.add(tensor, *below / short_side);
    if (k != nullptr && *k < kRules[kStrongSelection].threshold && value_or(m, "weibull.r2", 0) >= 0.95) selection.add(tensor, *k);
    if (const double* stable = get("ranks.stable_rank"); stable != nullptr && short_side >= 64 && *stable < kRules[kMemorised].threshold)
      collapsed.add(tensor, *stable);
  }
  const std::string& path = model.path;
  const auto many = [](std::size_t count) { return count > 1 ? fmt::format("{} matrices have ", count) : std::string("the matrix has "); };
  collect.measure = "count";
  collect.tell(kNonFinite, path, non_finite, Worst::most, [](std::size_t) { return "NaN or infinite elements: spectra are not measured there"; });
  collect.measure = "copies";
  collect.tell(kDuplicate, path, duplicate, Worst::most, [](std::size_t count) {
    return fmt::format("{} the same bytes as another: tied, or copied",
                       count > 1 ? fmt::format("{} matrices have", count) : std::string("a matrix has"));
  });
  collect.measure = "count";
  collect.tell(kZeroTensor, path, zero, Worst::most, [](std::size_t) { return "nothing but zeros"; });
  collect.tell(kZeroRows, path, rows, Worst::most, [&](std::size_t count) { return many(count) + "rows of zeros: outputs that are always zero"; });
  collect.measure = "rank";
  collect.tell(kRankDeficient, path, rank, Worst::least, [&](std::size_t count) { return many(count) + "less than full rank"; });
  collect.measure = "k";
  collect.tell(kRandomLike, path, random_like, Worst::most, [](std::size_t) {
    return "cannot be told from a random initialisation: no direction stands out of the noise, and elements are normal";
  });
  collect.tell(kStrongSelection, path, selection, Worst::least,
               [](std::size_t) { return "elements are far from normal: few large ones carry the matrix"; });
  collect.measure = "alpha";
  collect.tell(kHeavyTail, path, heavy, Worst::least, [](std::size_t) { return "a very heavy spectral tail (WeightWatcher says over-trained)"; });
  collect.tell(kNoPowerLaw, path, weak, Worst::most, [](std::size_t) { return "a light spectral tail (WeightWatcher says under-trained)"; });
  collect.measure = "largest element in standard deviations";
  collect.tell(kOutlier, path, outlier, Worst::most, [](std::size_t) { return "single huge elements: keep them out of low-bit quantization"; });
  collect.measure = "share";
  collect.tell(kSparse, path, sparse, Worst::most, [](std::size_t) { return "many zeros: this looks pruned"; });
  collect.tell(kUnderNoise, path, noise, Worst::most,
               [](std::size_t) { return "singular values drown in the rounding of the stored type: their directions mean nothing"; });
  collect.measure = "stable rank";
  collect.tell(kMemorised, path, collapsed, Worst::least, [](std::size_t) { return "a few directions carry the matrix"; });
  text_findings(model, collect);
}

void comparison_findings(const ModelComparison& comparison, Collector& collect) {
  if (const double* height = comparison.total.find("barrier.height"); height != nullptr && *height > kRules[kBarrier].threshold)
    collect.add(kBarrier, "a loss barrier lies between the models: averages of them are worse than either",
                comparison.models.front() + " against " + comparison.base, fmt::format("{:.2f} nats above the ends", *height));
  if (comparison.kind == "pair") {
    Hits intruders, broad, low_rank;
    double changed = 0, unchanged = 0, missing = 0;
    std::string first_missing;
    for (const MeasuredTensor& tensor : comparison.tensors) {
      const Measures& m = tensor.measures;
      const double short_side = tensor.shape.size() == 2 ? static_cast<double>(std::min(tensor.shape[0], tensor.shape[1])) : 0;
      const double* r = m.find("difference.energy_rank.0.99");
      const bool is_low = r != nullptr && short_side >= 32 && *r <= kRules[kLowRankChange].threshold * short_side;
      if (is_low) low_rank.add(tensor, *r);
      if (const double* alarms = m.find("intruders.outside_subspace"); alarms != nullptr && *alarms > 0)
        (is_low ? intruders : broad).add(tensor, *alarms);
      if (const double* count = m.find("changed.changed")) (*count > 0 ? changed : unchanged) += 1;
      if (const std::string* reason = m.find_skipped("changed.changed"); reason != nullptr && !reason->starts_with("stored in")) {
        if (missing++ == 0) first_missing = tensor.name + ": " + *reason;
      }
    }
    const std::string where = comparison.models.front() + " against " + comparison.base;
    collect.measure = "intruders";
    collect.tell(kIntruders, where, intruders, Worst::most, [](std::size_t) {
      return "intruder dimensions: strong new directions that the base does not have, in a change of low rank: this looks like a LoRA fine-tune";
    });
    collect.tell(kIntruders, where, broad, Worst::most, [](std::size_t) {
      return "intruder dimensions: strong new directions that the base does not have, though the change has many: the fine-tune was strong here";
    });
    collect.measure = "rank of 99 % of the change";
    collect.tell(kLowRankChange, where, low_rank, Worst::most, [](std::size_t) { return "the change has low rank: an adapter would hold it"; });
    if (changed == 0 && unchanged > 0) {
      collect.add(kUnchanged, "the models are the same", where, fmt::format("{:.0f} tensors, no element changed", unchanged));
    } else if (unchanged > 0) {
      collect.add(kUnchanged, "some tensors did not change: they were frozen", where,
                  fmt::format("{:.0f} of {:.0f} tensors", unchanged, unchanged + changed));
    }
    if (missing > 0)
      collect.add(kMismatch, "some tensors have no counterpart", where, fmt::format("{:.0f} tensors, the first {}", missing, first_missing));
  }
  if (comparison.kind == "set") {
    const std::size_t n = comparison.models.size();
    for (std::size_t i = 0; i < n; ++i) {
      for (std::size_t j = i + 1; j < n; ++j) {
        const double* cosine = comparison.total.find(fmt::format("task_vectors.cosine.all tensors.{}.{}", i, j));
        if (cosine == nullptr || !(*cosine > kRules[kAligned].threshold)) continue;
        collect.add(kAligned, "their changes point the same way: added in full they overshoot, so scale the sum",
                    comparison.models[i] + " and " + comparison.models[j], fmt::format("cosine of task vectors {:.3f}", *cosine));
      }
    }
    const double changed = value_or(comparison.total, "task_vectors.signs.changed_by_two_or_more", 0);
    const double conflicting = value_or(comparison.total, "task_vectors.signs.conflicting", 0);
    if (changed > 0 && conflicting / changed > kRules[kConflict].threshold)
      collect.add(kConflict, "many elements are raised by one model and lowered by another: a sign election (ties) keeps more than a plain sum",
                  fmt::format("{} models on {}", n, comparison.base),
                  fmt::format("{:.1f} % of the elements that two or more changed", 100 * conflicting / changed));
  }
}

}  // namespace

std::span<const FindingRule> finding_rules() { return kRules; }

std::vector<MeasureFinding> find_findings(const MeasureReport& report) {
  std::vector<MeasureFinding> findings;
  Collector collect(findings);
  for (const MeasuredModel& model : report.models) model_findings(model, collect);
  for (const ModelComparison& comparison : report.comparisons) comparison_findings(comparison, collect);
  path_findings(report, collect);
  const auto rank = [](const MeasureFinding& finding) { return finding.severity == "problem" ? 0 : finding.severity == "warning" ? 1 : 2; };
  std::stable_sort(findings.begin(), findings.end(), [&](const auto& a, const auto& b) { return rank(a) < rank(b); });
  return findings;
}

}  // namespace weft::measure
