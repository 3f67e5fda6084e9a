#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <set>
#include <string_view>
#include <unordered_map>

#include "base/text.h"
#include "report/page.h"
#include "weft/report.h"

namespace weft {
namespace {

using report::NameParts;
using report::Page;
using report::Table;

constexpr double kUnknown = std::numeric_limits<double>::quiet_NaN();

struct Column {
  const char* measure;
  const char* title;
  bool shown;
  const char* hint;
};
// What a person looks at; --json and --csv have all.
constexpr Column kTensorColumns[] = {
    {"moments.n", "elements", false, ""},
    {"moments.variance", "variance", true, "of the elements"},
    {"moments.mean", "mean", false, ""},
    {"moments.max_abs", "largest", true, "largest magnitude"},
    {"moments.excess_kurtosis", "kurtosis", false, "0 is a normal distribution"},
    {"moments.zero", "zeros", false, "elements that are zero"},
    {"moments.gini", "Gini", false, "of the magnitudes: 0.414 is a normal distribution"},
    {"moments.above_one_std", "above one sd", false, "share of elements: 0.1587 is a normal distribution"},
    {"weibull.k", "Weibull k", true, "shape of the magnitudes: 1.205 is a normal distribution"},
    {"weibull.lambda", "Weibull scale", false, ""},
    {"weibull.r2", "Weibull R2", false, "below 0.95 the shape says little"},
    {"ranks.spectral", "s_1", true, "largest singular value"},
    {"ranks.frobenius", "norm", false, "of Frobenius"},
    {"ranks.stable_rank", "stable rank", true, "squared norm over squared largest singular value"},
    {"ranks.entropy_rank_s", "entropy rank", false, "exp of the entropy of the singular values"},
    {"ranks.participation", "participation", false, "participation ratio of the eigenvalues"},
    {"ranks.energy_rank.0.9", "rank of 90 %", true, "directions that hold 90 % of the energy"},
    {"ranks.energy_rank.0.99", "rank of 99 %", false, "directions that hold 99 % of the energy"},
    {"ranks.numerical_rank", "rank", false, "numerical"},
    {"ranks.condition", "condition", false, "largest over smallest singular value"},
    {"powerlaw.alpha", "alpha", true, "exponent of the spectrum's tail"},
    {"powerlaw.D", "D", true, "misfit of the power law: above 0.1 it is none"},
    {"random.D_permuted", "D, permuted", false, "the same for the permuted matrix"},
    {"random.p_value", "p of the power law", false, ""},
    {"mp.spikes", "spikes", true, "singular values beyond what chance gives"},
    {"mp.softrank", "MP soft rank", false, "edge of the noise over the largest eigenvalue"},
    {"storage.noise_relative", "storage noise", false, "of rounding to the stored type, relative"},
    {"storage.below_noise", "below noise", false, "singular values that drown in it"},
    {"orthogonality.error", "non-orthogonality", false, ""},
    {"orthogonality.mean_abs_cos_rows", "row cosine", false, "mean |cosine| of rows"},
    {"conditioning.before", "condition, rows", false, "before rows are scaled"},
    {"conditioning.after", "condition, scaled", false, "after rows are scaled"},
    {"utilized_rank.0.99.utilisation", "utilized", true, "share of dimensions that text and weights use together"},
    {"spectral_alignment.diversity", "alignment diversity", true, "0: all inputs lie on one side of the top singular direction"},
    {"spectral_alignment.mean_abs", "alignment", false, "mean |cosine| of inputs with the top singular direction"},
};
constexpr Column kPairColumns[] = {
    {"changed.share", "changed", true, "share of elements whose bytes differ"},
    {"difference.norm", "norm", false, "of the change"},
    {"difference.relative", "relative", true, "norm of the change over that of the base"},
    {"difference.max_abs", "largest", true, ""},
    {"difference.cos", "cosine", true, "between base and model"},
    {"difference.stable_rank", "stable rank", true, "of the change"},
    {"difference.energy_rank.0.9", "rank of 90 %", true, "directions that hold 90 % of the change"},
    {"difference.energy_rank.0.99", "rank of 99 %", true, "directions that hold 99 % of the change"},
    {"intruders.count_left.0.5", "intruders", true, "of the 10 strongest directions those that the base does not have"},
    {"intruders.outside_subspace", "outside the base", true, "intruders outside of the base's strongest 30 directions"},
};
constexpr Column kTrajectories[] = {
    {"moments.variance", "variance", true, ""},     {"weibull.k", "Weibull k", true, ""}, {"weibull.lambda", "Weibull scale", true, ""},
    {"ranks.stable_rank", "stable rank", true, ""}, {"ranks.spectral", "s_1", true, ""},  {"powerlaw.alpha", "alpha", true, ""},
    {"powerlaw.D", "D of the power law", true, ""}, {"mp.spikes", "spikes", true, ""},    {"ranks.energy_rank.0.9", "rank of 90 %", true, ""},
};

// Of a model, or the median of its layers.
constexpr Column kModelTrajectories[] = {
    {"text.loss", "loss on the text", true, ""},
    {"heads.without_first_two.head_cosine", "heads alike", true, ""},
    {"heads.without_first_two.entropy_std", "spread of the heads' entropies", true, ""},
    {"utilized_rank.mean_utilisation.0.99", "utilized dimensions", true, ""},
    {"importance.lim", "LIM", true, ""},
    {"hessian.largest", "largest Hessian eigenvalue", true, ""},
    {"hessian.trace", "trace of the Hessian", true, ""},
    {"hessian.re", "negative curvature", true, ""},
};

std::string kind_of(const MeasuredTensor& tensor) { return tensor.role.empty() ? report::parts_of(tensor.name).kind : tensor.role; }

/// Lookup by name is linear in Measures; here every tensor is asked for dozens.
using Values = std::unordered_map<std::string_view, double>;
Values values_of(const Measures& measures) {
  Values values;
  for (const auto& [name, value] : measures.values) values.emplace(name, value);
  return values;
}

double or_unknown(const Values& values, std::string_view name) {
  const auto found = values.find(name);
  return found == values.end() ? kUnknown : found->second;
}

/// Adds the columns that have any number. Returns their keys.
Json::Array add_columns(Table& table, std::span<const Column> columns, const std::vector<Values>& rows) {
  Json::Array keys;
  for (const Column& column : columns) {
    std::vector<double> numbers;
    for (const Values& row : rows) numbers.push_back(or_unknown(row, column.measure));
    if (std::all_of(numbers.begin(), numbers.end(), [](double value) { return std::isnan(value); })) continue;
    table.numbers(column.measure, column.title, numbers, column.shown, column.hint);
    keys.emplace_back(column.measure);
  }
  return keys;
}

const MeasuredCurve* curve_of(const Measures& measures, std::string_view name) {
  for (const MeasuredCurve& curve : measures.curves)
    if (curve.name == name) return &curve;
  return nullptr;
}

/// [n, log10 of the values at the positions for n].
Json spectrum_json(const MeasuredTensor& tensor, Page& page) {
  const MeasuredCurve* curve = curve_of(tensor.measures, "spectrum");
  if (curve == nullptr || curve->x.empty()) return {};
  const auto n = static_cast<std::int64_t>(curve->x.back()) + 1;
  const std::string key = std::to_string(n);
  if (std::none_of(page.positions.begin(), page.positions.end(), [&key](const Json::Member& member) { return member.first == key; })) {
    Json::Array positions;
    for (const float x : curve->x) positions.emplace_back(static_cast<std::int64_t>(x));
    page.positions.emplace_back(key, Json(std::move(positions)));
  }
  Json::Array values;
  for (const float y : curve->y) {
    if (!(y > 0)) break;
    values.push_back(report::rounded(std::log10(static_cast<double>(y)), 4));
  }
  return Json(Json::Array{Json(n), Json(std::move(values))});
}

/// [first edge, step, counts].
Json histogram_json(const MeasuredTensor& tensor) {
  const MeasuredCurve* curve = curve_of(tensor.measures, "histogram");
  if (curve == nullptr || curve->x.size() < 2) return {};
  double total = 0;
  for (const float y : curve->y) total += static_cast<double>(y);
  Json::Array counts;
  for (const float y : curve->y) counts.emplace_back(static_cast<std::int64_t>(std::llround(1e5 * static_cast<double>(y) / total)));
  return Json(Json::Array{report::rounded(static_cast<double>(curve->x[0])), report::rounded(static_cast<double>(curve->x[1] - curve->x[0])),
                          Json(std::move(counts))});
}

void add_tensors(const MeasureReport& measured, Page& page) {
  std::vector<std::string> names, kinds, models, shapes, types;
  std::vector<double> blocks;
  std::vector<std::uint64_t> sizes;
  std::vector<Values> rows;
  Json::Array spectra, histograms;
  for (const MeasuredModel& model : measured.models) {
    for (const MeasuredTensor& tensor : model.tensors) {
      models.push_back(model.path);
      names.push_back(tensor.name);
      kinds.push_back(kind_of(tensor));
      blocks.push_back(tensor.block >= 0 ? tensor.block : kUnknown);
      shapes.push_back(to_string(tensor.shape));
      types.emplace_back(to_string(tensor.dtype));
      sizes.push_back(tensor.size_bytes);
      rows.push_back(values_of(tensor.measures));
      spectra.push_back(spectrum_json(tensor, page));
      histograms.push_back(histogram_json(tensor));
    }
  }
  Table table(names.size());
  if (measured.models.size() > 1) table.words("model", "model", models);
  table.words("name", "tensor", names);
  table.words("kind", "kind", kinds);
  table.numbers("block", "layer", blocks);
  table.words("shape", "shape", shapes);
  table.words("dtype", "type", types, false);
  table.bytes("bytes", "size", sizes);
  Json::Array metrics = add_columns(table, kTensorColumns, rows);
  table.curve("spectrum", std::move(spectra));
  table.curve("histogram", std::move(histograms));
  page.add_table("tensors", std::move(table));

  // First what most say of a model.
  constexpr std::string_view kFirst[] = {"ranks.stable_rank", "weibull.k", "powerlaw.alpha", "mp.spikes", "ranks.spectral", "moments.variance"};
  const auto place = [&](const Json& key) {
    return std::find(std::begin(kFirst), std::end(kFirst), std::string_view(*key.string())) - std::begin(kFirst);
  };
  std::stable_sort(metrics.begin(), metrics.end(), [&](const Json& a, const Json& b) { return place(a) < place(b); });
  page.add_section("bytes", "Bytes by layer", "", {{"table", Json("tensors")}});
  page.add_section("heat", "Layers and kinds", "", {{"table", Json("tensors")}, {"metrics", Json(metrics)}});
  page.add_section("spectra", "Singular values", "", {{"table", Json("tensors")}});
  page.add_section("distribution", "Distribution of the elements", "", {{"table", Json("tensors")}});
}

void add_trajectories(const MeasureReport& measured, Page& page) {
  if (measured.models.size() < 2) return;
  Json::Array labels, metrics;
  for (const MeasuredModel& model : measured.models) labels.emplace_back(printable(model.path));
  for (const Column& column : kTrajectories) {
    std::map<std::string, std::vector<std::vector<double>>> kinds;
    for (std::size_t m = 0; m < measured.models.size(); ++m) {
      for (const MeasuredTensor& tensor : measured.models[m].tensors) {
        const double* value = tensor.measures.find(column.measure);
        if (value == nullptr || tensor.shape.size() < 2) continue;
        auto& values = kinds[kind_of(tensor)];
        values.resize(measured.models.size());
        values[m].push_back(*value);
      }
    }
    Json::Array lines;
    for (auto& [kind, models] : kinds) {
      Json::Array medians;
      for (std::vector<double>& values : models) {
        std::sort(values.begin(), values.end());
        const std::size_t half = values.size() / 2;
        medians.push_back(values.empty() ? Json() : report::rounded(values.size() % 2 == 1 ? values[half] : (values[half - 1] + values[half]) / 2));
      }
      lines.emplace_back(Json::Object{{"name", Json(printable(kind, 60))}, {"values", Json(std::move(medians))}});
    }
    if (lines.empty() || lines.size() > 40) continue;
    metrics.emplace_back(Json::Object{{"title", Json(column.title)}, {"lines", Json(std::move(lines))}});
  }
  for (const Column& column : kModelTrajectories) {
    Json::Array values;
    bool any = false;
    for (const MeasuredModel& model : measured.models) {
      std::vector<double> found;
      if (const double* value = model.model.find(column.measure)) found.push_back(*value);
      for (const MeasuredBlock& block : model.blocks)
        if (const double* value = block.measures.find(column.measure)) found.push_back(*value);
      std::sort(found.begin(), found.end());
      any = any || !found.empty();
      values.push_back(found.empty() ? Json() : report::rounded(found[found.size() / 2]));
    }
    if (!any) continue;
    Json::Array lines;
    lines.emplace_back(Json::Object{{"name", Json(column.title)}, {"values", Json(std::move(values))}});
    metrics.emplace_back(Json::Object{{"title", Json(column.title)}, {"lines", Json(std::move(lines))}});
  }
  page.add_section("lines", "From model to model",
                   "Medians over the layers, a line for each kind of matrix, models in the order in which they were given.",
                   {{"x", Json("model")}, {"xs", Json(std::move(labels))}, {"metrics", Json(std::move(metrics))}});
}

void add_pair(const ModelComparison& pair, std::size_t number, Page& page) {
  std::vector<std::string> names, kinds;
  std::vector<double> blocks;
  std::vector<Values> rows;
  for (const MeasuredTensor& tensor : pair.tensors) {
    names.push_back(tensor.name);
    kinds.push_back(kind_of(tensor));
    blocks.push_back(tensor.block >= 0 ? tensor.block : kUnknown);
    rows.push_back(values_of(tensor.measures));
  }
  Table table(names.size());
  table.words("name", "tensor", names);
  table.words("kind", "kind", kinds);
  table.numbers("block", "layer", blocks);
  Json::Array metrics = add_columns(table, kPairColumns, rows);
  if (metrics.empty()) return;
  const std::string name = fmt::format("pair{}", number);
  page.add_table(name, std::move(table));
  const std::string title = printable(pair.models.front()) + " against " + printable(pair.base);
  std::stable_partition(metrics.begin(), metrics.end(), [](const Json& key) { return *key.string() == "difference.relative"; });
  page.add_section("heat", title, "", {{"table", Json(name)}, {"metrics", Json(std::move(metrics))}});
  page.add_section("table", title + ", tensor by tensor", "", {{"table", Json(name)}, {"sort", Json("difference.relative")}});
}

void add_set(const ModelComparison& set, Page& page) {
  Json::Array labels, lines;
  for (std::size_t i = 0; i < set.models.size(); ++i) {
    labels.emplace_back(printable(set.models[i]));
    Json::Array line;
    for (std::size_t j = 0; j < set.models.size(); ++j) {
      const double* cosine = set.total.find(fmt::format("task_vectors.cosine.all tensors.{}.{}", i, j));
      line.push_back(cosine == nullptr ? Json() : report::rounded(*cosine));
    }
    lines.emplace_back(std::move(line));
  }
  page.add_section("matrix", "Cosines of task vectors",
                   "Between what each model changed in " + printable(set.base) + ": changes at right angles add up without disturbing each other.",
                   {{"labels", Json(std::move(labels))}, {"values", Json(std::move(lines))}, {"symmetric", Json(true)}, {"measure", Json("cosine")}});
}

/// A symmetric matrix of measures NAME.i.j, i < j.
void add_symmetric(const Measures& measures, const std::string& name, const std::vector<std::string>& names, double diagonal, const char* title,
                   std::string text, Page& page) {
  Json::Array labels, lines;
  bool any = false;
  for (std::size_t i = 0; i < names.size(); ++i) {
    labels.emplace_back(printable(names[i], 60));
    Json::Array line;
    for (std::size_t j = 0; j < names.size(); ++j) {
      const double* value = i == j ? &diagonal : measures.find(fmt::format("{}.{}.{}", name, std::min(i, j), std::max(i, j)));
      any = any || (i != j && value != nullptr);
      line.push_back(value == nullptr ? Json() : report::rounded(*value));
    }
    lines.emplace_back(std::move(line));
  }
  if (any)
    page.add_section("matrix", title, std::move(text),
                     {{"labels", Json(std::move(labels))}, {"values", Json(std::move(lines))}, {"symmetric", Json(true)}});
}

/// A map of texts, and the tree of the nearest.
void add_text_pictures(const Measures& measures, const std::vector<std::string>& texts, const std::string& of, Page& page) {
  const Values values = values_of(measures);
  const auto number = [&values](const std::string& name) { return or_unknown(values, "language_geometry.0.5." + name); };
  const std::size_t n = texts.size();
  if (n < 3 || std::isnan(number("map.0.0"))) return;
  Json::Array series, labels;
  for (std::size_t t = 0; t < n; ++t) {
    Json::Array x, y;
    x.push_back(report::rounded(number(fmt::format("map.{}.0", t))));
    y.push_back(report::rounded(number(fmt::format("map.{}.1", t))));
    labels.emplace_back(Json::Object{{"x", x.front()}, {"y", y.front()}, {"text", Json(printable(texts[t], 60))}});
    series.emplace_back(Json::Object{{"name", Json(printable(texts[t], 60))}, {"x", Json(std::move(x))}, {"y", Json(std::move(y))}});
  }
  page.add_section("xy", "Map of texts" + of,
                   fmt::format("Placed so that distances on the page come nearest to those of the texts; the two axes hold {:.0f} % of them.",
                               100 * (number("map_spread.0") + number("map_spread.1"))),
                   {{"x", Json("first axis")},
                    {"y", Json("second axis")},
                    {"points", Json(true)},
                    {"one_color", Json(true)},
                    {"width", Json(560)},
                    {"height", Json(380)},
                    {"series", Json(std::move(series))},
                    {"labels", Json(std::move(labels))}});
  // Leaves in an order in which no branches cross: those of the last merge's first group come first.
  std::vector<std::vector<std::size_t>> members(n);
  for (std::size_t t = 0; t < n; ++t) members[t] = {t};
  for (std::size_t k = 0; k + 1 < n; ++k) {
    const double a = number(fmt::format("tree.{}.a", k)), b = number(fmt::format("tree.{}.b", k));
    if (std::isnan(a) || std::isnan(b)) return;
    std::vector<std::size_t> both = members[static_cast<std::size_t>(a)];
    const std::vector<std::size_t>& second = members[static_cast<std::size_t>(b)];
    both.insert(both.end(), second.begin(), second.end());
    members.push_back(std::move(both));
  }
  std::vector<double> place(2 * n - 1), height(2 * n - 1);
  Json::Array branches, leaves;
  for (std::size_t i = 0; i < n; ++i) {
    const std::size_t text = members.back()[i];
    place[text] = static_cast<double>(n - i);
    leaves.emplace_back(Json::Object{{"x", Json(0)}, {"y", report::rounded(place[text])}, {"text", Json(printable(texts[text], 60))}});
  }
  for (std::size_t k = 0; k + 1 < n; ++k) {
    const auto a = static_cast<std::size_t>(number(fmt::format("tree.{}.a", k))), b = static_cast<std::size_t>(number(fmt::format("tree.{}.b", k)));
    const double at = number(fmt::format("tree.{}.height", k));
    place[n + k] = (place[a] + place[b]) / 2;
    height[n + k] = at;
    Json::Array x, y;
    for (const double value : {height[a], at, at, height[b]}) x.push_back(report::rounded(value));
    for (const double value : {place[a], place[a], place[b], place[b]}) y.push_back(report::rounded(value));
    branches.emplace_back(Json::Object{{"name", Json(fmt::format("merge {}", k + 1))}, {"x", Json(std::move(x))}, {"y", Json(std::move(y))}});
  }
  page.add_section("xy", "Tree of texts" + of, "The nearest texts are joined first, at their mean distance.",
                   {{"x", Json("distance")},
                    {"y", Json("")},
                    {"plain_y", Json(true)},
                    {"one_color", Json(true)},
                    {"width", Json(560)},
                    {"height", Json(static_cast<std::int64_t>(24 * n))},
                    {"series", Json(std::move(branches))},
                    {"labels", Json(std::move(leaves))}});
}

/// What texts showed of one model.
void add_text(const MeasuredModel& model, bool alone, Page& page) {
  const std::string of = alone ? std::string() : ", " + printable(model.path);
  std::vector<std::string> points;
  for (std::size_t p = 0; model.model.find(fmt::format("cka.layers.0.{}", p + 1)) != nullptr; ++p) {
    if (p == 0) points.emplace_back("embedding");
    points.push_back(fmt::format("layer {}", p));
  }
  if (points.size() > 2) points.back() = "final norm";
  add_symmetric(model.model, "cka.layers", points, 1, ("Similarity of hidden states" + of).c_str(),
                "Linear CKA between the places of the model, over some windows of the text.", page);
  std::vector<std::string> texts;
  for (const auto& [name, text] : model.model.labels)
    if (name.starts_with("language_geometry.texts.")) texts.push_back(text.substr(text.rfind('/') + 1));
  add_symmetric(model.model, "language_geometry.0.5.hamming", texts, 0, ("Distances between texts" + of).c_str(),
                "Share of the weights that matter for one text and not for the other. What follows the first text in the same file is the floor.",
                page);
  add_text_pictures(model.model, texts, of, page);
}

Json numbers_json(const std::vector<double>& values) {
  Json::Array array;
  for (const double value : values) array.push_back(report::rounded(value));
  return Json(std::move(array));
}

Json series_json(const std::string& name, const std::vector<double>& x, const std::vector<double>& y) {
  return Json(Json::Object{{"name", Json(name)}, {"x", numbers_json(x)}, {"y", numbers_json(y)}});
}

/// The loss around a model: the Hessian's spectrum, lines, and a square.
void add_surroundings(const MeasuredModel& model, bool alone, Page& page) {
  const std::string of = alone ? std::string() : ", " + printable(model.path);
  const Values values = values_of(model.model);
  if (const MeasuredCurve* curve = curve_of(model.model, "hessian density"); curve != nullptr && !curve->x.empty()) {
    Json::Array series;
    series.push_back(series_json("density", {curve->x.begin(), curve->x.end()}, {curve->y.begin(), curve->y.end()}));
    page.add_section(
        "xy", "Eigenvalues of the loss's Hessian" + of,
        fmt::format(
            "Spectral density over {:.0f} tokens, by Lanczos from random signs: each bump is an eigenvalue or stands for several. Largest {:.4g}, "
            "smallest {:.4g}. What lies left of zero curves down.",
            or_unknown(values, "hessian.tokens"), or_unknown(values, "hessian.largest"), or_unknown(values, "hessian.smallest")),
        {{"x", Json("eigenvalue")},
         {"y", Json("density")},
         {"log", Json(true)},
         {"floor", Json(Json::Number{"1e-8"})},
         {"one_color", Json(true)},
         {"series", Json(std::move(series))}});
  }
  std::vector<double> positions;
  for (double at = or_unknown(values, "landscape.positions.0"); !std::isnan(at);
       at = or_unknown(values, fmt::format("landscape.positions.{}", positions.size())))
    positions.push_back(at);
  if (positions.empty()) return;
  constexpr std::pair<const char*, const char*> kLines[] = {{"random_0", "first random direction"},
                                                            {"random_1", "second random direction"},
                                                            {"hessian_0", "Hessian's first"},
                                                            {"hessian_1", "Hessian's second"}};
  Json::Array series;
  for (const auto& [axis, title] : kLines) {
    std::vector<double> losses;
    for (std::size_t i = 0; i < positions.size(); ++i) losses.push_back(or_unknown(values, fmt::format("landscape.line.{}.loss.{}", axis, i)));
    if (std::any_of(losses.begin(), losses.end(), [](double loss) { return !std::isnan(loss); }))
      series.push_back(series_json(title, positions, losses));
  }
  std::string normalise = "filter";
  for (const auto& [name, label] : model.model.labels)
    if (name == "landscape.normalise") normalise = label;
  const std::string scaled = normalise == "none" ? std::string("not scaled") : "scaled to the weights (" + printable(normalise) + ")";
  page.add_section("xy", "Loss along lines" + of,
                   "The model is in the middle. Random directions are " + scaled +
                       "; those of the Hessian are as long as would raise the loss by one nat, were it a parabola.",
                   {{"x", Json("position")}, {"y", Json("loss")}, {"series", Json(std::move(series))}});
  Json::Array lines;
  bool any = false;
  for (std::size_t i = 0; i < positions.size(); ++i) {
    Json::Array line;
    for (std::size_t j = 0; j < positions.size(); ++j) {
      const double loss = or_unknown(values, fmt::format("landscape.plane.{}.{}", i, j));
      any = any || !std::isnan(loss);
      line.push_back(report::rounded(loss));
    }
    lines.emplace_back(std::move(line));
  }
  if (any)
    page.add_section("plane", "Loss around the model" + of, "Over the square between two random directions, " + scaled + "; the cross is the model.",
                     {{"positions", numbers_json(positions)}, {"values", Json(std::move(lines))}, {"measure", Json("loss")}});
}

/// Neurons that were held, and phases of the landscape.
void add_clamps_and_phases(const MeasureReport& measured, Page& page) {
  std::vector<std::string> models, tokens;
  std::vector<double> blocks, neurons, held_at, scores, before, after, raised;
  for (const MeasuredModel& model : measured.models) {
    const Values values = values_of(model.model);
    for (int c = 0; values.contains(fmt::format("clamp.{}.layer", c)); ++c) {
      const auto number = [&](const char* field) { return or_unknown(values, fmt::format("clamp.{}.{}", c, field)); };
      models.push_back(model.path);
      blocks.push_back(number("layer"));
      neurons.push_back(number("neuron"));
      held_at.push_back(number("value"));
      std::string token = fmt::format("{:.0f}", number("token"));
      for (const auto& [name, text] : model.model.labels)
        if (name == fmt::format("clamp.{}.token", c)) token = "“" + text + "”";
      tokens.push_back(token);
      scores.push_back(number("score"));
      before.push_back(number("plain"));
      after.push_back(number("held"));
      raised.push_back(number("raised"));
    }
  }
  if (!tokens.empty()) {
    Table table(tokens.size());
    if (measured.models.size() > 1) table.words("model", "model", models);
    table.numbers("block", "layer", blocks);
    table.numbers("neuron", "neuron", neurons);
    table.numbers("value", "held at", held_at);
    table.words("token", "token", tokens);
    table.numbers("score", "score", scores, true, "of the token through the head, in standard deviations over the vocabulary");
    table.numbers("plain", "log p", before, true, "of the token, mean over all positions");
    table.numbers("held", "log p, held", after);
    table.numbers("raised", "difference", raised, true, "in nats");
    page.add_table("clamps", std::move(table));
    page.add_section("table", "Neurons held at a value", "What it does to the token that the neuron writes.",
                     {{"table", Json("clamps")}, {"sort", Json("raised")}});
  }
  std::vector<std::string> names, bases, phases;
  std::vector<double> losses, connectivity, similarity;
  for (const ModelComparison& comparison : measured.comparisons) {
    for (const auto& [name, phase] : comparison.total.labels) {
      if (name != "phases.phase") continue;
      const Values values = values_of(comparison.total);
      names.push_back(comparison.models.front());
      bases.push_back(comparison.base);
      phases.push_back(phase);
      losses.push_back(or_unknown(values, "phases.loss"));
      connectivity.push_back(or_unknown(values, "phases.connectivity"));
      similarity.push_back(or_unknown(values, "phases.similarity"));
    }
  }
  if (names.empty()) return;
  Table table(names.size());
  table.words("name", "model", names);
  table.words("base", "against", bases);
  table.words("phase", "phase", phases);
  table.numbers("loss", "loss", losses);
  table.numbers("connectivity", "connectivity", connectivity, true,
                "the straight line between both losses less the loss furthest from it: below zero lies a barrier");
  table.numbers("similarity", "similarity", similarity, true, "CKA of the last hidden states");
  page.add_table("phases", std::move(table));
  page.add_section("table", "Phases of the loss landscape",
                   "I and II: loss above the median of the models; III and IV: below. I and III lie behind a barrier. IV-A: unlike, IV-B: alike.",
                   {{"table", Json("phases")}});
}

/// What layers as a whole show: a row for each, a column for each measure. Lists of neurons have a table of their own.
void add_blocks(const MeasureReport& measured, Page& page) {
  std::vector<std::string> models;
  std::vector<double> blocks;
  std::vector<Values> rows;
  std::vector<std::string> keys;
  std::set<std::string> known;
  for (const MeasuredModel& model : measured.models) {
    for (const MeasuredBlock& block : model.blocks) {
      if (block.measures.values.empty()) continue;
      models.push_back(model.path);
      blocks.push_back(block.block);
      rows.push_back(values_of(block.measures));
      for (const auto& [name, value] : block.measures.values)
        if (name.find(".first.") == std::string::npos && name.find(".experts.") == std::string::npos && known.insert(name).second)
          keys.push_back(name);
    }
  }
  if (rows.empty() || keys.empty()) return;
  Table table(rows.size());
  if (measured.models.size() > 1) table.words("model", "model", models);
  table.numbers("block", "layer", blocks);
  Json::Array metrics;
  std::size_t shown = 0;
  for (const std::string& key : keys) {
    std::vector<double> numbers;
    for (const Values& row : rows) numbers.push_back(or_unknown(row, key));
    table.numbers(key, key, numbers, shown++ < 14);
  }
  page.add_table("blocks", std::move(table));
  page.add_section("table", "Layers", "What layers as a whole show, by the names of the measures.",
                   {{"table", Json("blocks")}, {"sort", Json("block")}, {"down", Json(false)}});
}

/// Routed experts: a row for each.
void add_experts(const MeasureReport& measured, Page& page) {
  constexpr Column kColumns[] = {{"tokens", "tokens", true, "that reached it"},
                                 {"mlp.sum_squares", "energy in", true, "sum of squares of what it reads"},
                                 {"mlp.max_abs", "largest in", true, ""},
                                 {"down.sum_squares", "energy of its neurons", true, ""},
                                 {"down.max_abs", "largest neuron", true, ""}};
  std::vector<std::string> models;
  std::vector<double> blocks, experts;
  std::vector<std::vector<double>> columns(std::size(kColumns));
  for (const MeasuredModel& model : measured.models) {
    for (const MeasuredBlock& block : model.blocks) {
      const Values values = values_of(block.measures);
      for (int e = 0; values.contains(fmt::format("channels.experts.{}.tokens", e)); ++e) {
        models.push_back(model.path);
        blocks.push_back(block.block);
        experts.push_back(e);
        for (std::size_t c = 0; c < columns.size(); ++c)
          columns[c].push_back(or_unknown(values, fmt::format("channels.experts.{}.{}", e, kColumns[c].measure)));
      }
    }
  }
  if (experts.empty()) return;
  Table table(experts.size());
  if (measured.models.size() > 1) table.words("model", "model", models);
  table.numbers("block", "layer", blocks);
  table.numbers("expert", "expert", experts);
  for (std::size_t c = 0; c < columns.size(); ++c) table.numbers(kColumns[c].measure, kColumns[c].title, columns[c], true, kColumns[c].hint);
  page.add_table("experts", std::move(table));
  page.add_section("table", "Experts", "What the text showed of each routed expert.",
                   {{"table", Json("experts")}, {"sort", Json("tokens")}, {"down", Json(false)}});
}

/// The neurons that were decoded, with their tokens where a tokenizer named them.
void add_neurons(const MeasureReport& measured, Page& page) {
  std::vector<std::string> models, vectors, tops, bottoms;
  std::vector<double> blocks, neurons, scores;
  for (const MeasuredModel& model : measured.models) {
    for (const MeasuredBlock& block : model.blocks) {
      const Values values = values_of(block.measures);
      for (const auto& [name, value] : block.measures.values) {
        constexpr std::string_view kPrefix = "decoding.", kFirst = ".first.", kScore = ".score";
        const std::size_t first = name.find(kFirst);
        if (!name.starts_with(kPrefix) || first == std::string::npos || !name.ends_with(kScore)) continue;
        const std::string at = name.substr(0, name.size() - kScore.size());
        const auto tokens = [&](const char* end) {
          std::string text;
          for (int k = 0; k < 10; ++k) {
            const std::string key = fmt::format("{}.{}.{}", at, end, k);
            std::string token;
            for (const auto& [label, word] : block.measures.labels)
              if (label == key) token = "“" + word + "”";
            if (const double id = or_unknown(values, key); token.empty() && !std::isnan(id)) token = fmt::format("{:.0f}", id);
            if (!token.empty()) text += (text.empty() ? "" : " ") + token;
          }
          return text;
        };
        models.push_back(model.path);
        blocks.push_back(block.block);
        vectors.push_back(name.substr(kPrefix.size(), first - kPrefix.size()));
        neurons.push_back(std::atof(at.c_str() + first + kFirst.size()));
        scores.push_back(value);
        tops.push_back(tokens("top"));
        bottoms.push_back(tokens("bottom"));
      }
    }
  }
  if (scores.empty()) return;
  Table table(scores.size());
  if (measured.models.size() > 1) table.words("model", "model", models);
  table.numbers("block", "layer", blocks);
  table.words("kind", "vector", vectors);
  table.numbers("neuron", "neuron", neurons);
  table.numbers("score", "score", scores, true, "of its first token, in standard deviations over the vocabulary; above 6 it means that token");
  table.words("top", "tokens that it favours", tops);
  table.words("bottom", "tokens that it suppresses", bottoms, false);
  page.add_table("neurons", std::move(table));
  page.add_section("table", "Neurons", "What single neurons of the feed-forward layers read (up) and write (down), decoded through the model's head.",
                   {{"table", Json("neurons")}, {"sort", Json("score")}});
}

}  // namespace

void write_report(const MeasureReport& measured, const std::filesystem::path& output) {
  Page page;
  page.command = "measure";
  page.title = measured.models.size() == 1 ? printable(measured.models.front().path) : fmt::format("{} models", measured.models.size());
  double parameters = 0, tensors = 0, matrices = 0;
  std::uint64_t size_bytes = 0;
  for (const MeasuredModel& model : measured.models) {
    const auto number = [&model](const char* name) {
      const double* value = model.model.find(name);
      return value == nullptr ? 0.0 : *value;
    };
    parameters += number("model.num_parameters");
    tensors += number("model.num_tensors");
    matrices += number("model.num_matrices");
    for (const MeasuredTensor& tensor : model.tensors) size_bytes += tensor.size_bytes;
  }
  page.facts = {{"parameters", format_count(static_cast<std::uint64_t>(parameters))},
                {"tensors", fmt::format("{:.0f}", tensors)},
                {"stored", format_size(size_bytes)}};
  // Where no spectrum was asked for, none is known to be a matrix.
  if (matrices > 0) page.facts.emplace_back("matrices", fmt::format("{:.0f}", matrices));
  if (measured.models.size() == 1)
    if (const double* loss = measured.models.front().model.find("text.loss"))
      page.facts.emplace_back("loss on the text", fmt::format("{:.4f}", *loss));
  for (const ModelComparison& comparison : measured.comparisons)
    if (comparison.kind == "pair")
      if (const double* share = comparison.total.find("changed.share"))
        page.facts.emplace_back("changed in " + comparison.models.front(), fmt::format("{:.1f} %", 100 * *share));
  for (const MeasureFinding& finding : measured.findings)
    page.findings.push_back({finding.severity, finding.what, finding.where,
                             finding.evidence + (finding.null_rate < 1 ? fmt::format(" (by chance at most {:g} %)", 100 * finding.null_rate) : "")});
  page.warnings = measured.warnings;

  add_tensors(measured, page);
  add_trajectories(measured, page);
  std::size_t pairs = 0;
  for (const ModelComparison& comparison : measured.comparisons) {
    if (comparison.kind == "pair") add_pair(comparison, pairs++, page);
    if (comparison.kind == "set") add_set(comparison, page);
  }
  for (const MeasuredModel& model : measured.models) add_text(model, measured.models.size() == 1, page);
  for (const MeasuredModel& model : measured.models) add_surroundings(model, measured.models.size() == 1, page);
  add_clamps_and_phases(measured, page);
  page.add_section("table", "Tensors", "", {{"table", Json("tensors")}});
  add_blocks(measured, page);
  add_experts(measured, page);
  add_neurons(measured, page);
  report::write_page(std::move(page), output);
}

}  // namespace weft
