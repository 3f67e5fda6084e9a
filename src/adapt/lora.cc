#include "adapt/lora.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <numbers>
#include <set>

#include "base/check.h"
#include "base/philox.h"
#include "base/text.h"
#include "math/convert.h"
#include "math/lapack.h"

namespace weft::adapt {
namespace {

std::uint64_t size_of(const Shape& shape, std::size_t from = 0) {
  std::uint64_t product = 1;
  for (std::size_t d = from; d < shape.size(); ++d) product *= static_cast<std::uint64_t>(shape[d]);
  return product;
}

std::string leaf_of(std::string_view name) { return std::string(name.substr(name.rfind('.') == std::string_view::npos ? 0 : name.rfind('.') + 1)); }

Json sorted(Json config) {
  if (Json::Object* object = config.object())
    std::sort(object->begin(), object->end(), [](const Json::Member& a, const Json::Member& b) { return a.first < b.first; });
  return config;
}

/// 2.0 as 2, as configs have it.
Json plain_number(double value) {
  return value == std::floor(value) && std::abs(value) < 1e15 ? Json(static_cast<std::int64_t>(value)) : Json(value);
}

StoredTensor stored(std::string name, const Values& values) {
  StoredTensor out{std::move(name), values.dtype, values.shape, {}};
  out.bytes.resize(values.values.size() * static_cast<std::size_t>(info(values.dtype).bits) / 8);
  math::encode(values.dtype, values.values, out.bytes);
  return out;
}

}  // namespace

Lora read_lora(const Adapter& adapter) {
  if (!adapter.gguf_architecture.empty())
    throw adapter.error(ErrorCode::unsupported, "the adapter is a GGUF file, with llama.cpp's names and order of rows", {},
                        "convert it first: weft adapter convert ADAPTER OUT --to peft --base MODEL");
  if (adapter.kind != "LORA")
    throw adapter.error(ErrorCode::unsupported, fmt::format("this works on LoRA adapters; the adapter is of the kind {}", adapter.kind), {},
                        "fold it into its model instead");
  if (const Json* parameters = adapter.config.find("target_parameters"); parameters && parameters->array() && !parameters->array()->empty())
    throw adapter.error(ErrorCode::unsupported, "the adapter changes parameters that are no modules (target_parameters)", {},
                        "fold it into its model instead");
  Lora lora;
  lora.config = adapter.config;
  const auto take = [&](const TensorInfo& tensor) { return Values{tensor.dtype, tensor.shape, values_of(adapter, tensor)}; };
  for (const AdapterModule& module : adapter.modules) {
    std::set<std::string> used;
    for (const bool embedding : {false, true}) {
      const auto a = module.parts.find(embedding ? "lora_embedding_A" : "lora_A"), b = module.parts.find(embedding ? "lora_embedding_B" : "lora_B");
      if (a == module.parts.end() && b == module.parts.end()) continue;
      if (a == module.parts.end() || b == module.parts.end())
        throw adapter.error(ErrorCode::corrupt, fmt::format("module '{}' has only one of its two matrices", printable(module.name)));
      if (module.nesting > 0)
        throw adapter.error(ErrorCode::unsupported,
                            fmt::format("'{}' adapts parameters that are no modules (target_parameters)", printable(module.name)), {},
                            "fold it into its model instead");
      LoraModule out{module.name, embedding, 1, take(*a->second), take(*b->second)};
      if (out.a.shape.size() < 2 || out.b.shape.size() < 2 || out.a.shape[0] != out.b.shape[1] || out.a.shape[0] <= 0)
        throw adapter.error(ErrorCode::corrupt,
                            fmt::format("the matrices of '{}' are {} and {}: their ranks differ", printable(module.name), to_string(out.a.shape),
                                        to_string(out.b.shape)),
                            a->second->name);
      const double rank = adapter.rank_of(module.name);
      if (static_cast<double>(out.rank()) != rank)
        throw adapter.error(
            ErrorCode::corrupt,
            fmt::format("module '{}' has rank {} by adapter_config.json but {} by its matrices", printable(module.name), rank, out.rank()),
            a->second->name);
      out.scale = adapter.alpha_of(module.name) / (adapter.flag("use_rslora") ? std::sqrt(rank) : rank);
      lora.modules.push_back(std::move(out));
      used.insert({a->first, b->first});
    }
    for (const auto& [part, tensor] : module.parts) {
      if (used.contains(part)) continue;
      if (part == "lora_magnitude_vector")
        throw adapter.error(ErrorCode::unsupported, "a DoRA adapter scales whole outputs of the model, so it is no product of two matrices",
                            tensor->name, "fold it into its model instead");
      if (part == "lora_B.bias")
        throw adapter.error(ErrorCode::unsupported, "the adapter has biases in lora_B (lora_bias)", tensor->name, "fold it into its model instead");
      if (part != "weight" && part != "bias" && !part.starts_with("base_layer.") && !part.empty())
        throw adapter.error(ErrorCode::unsupported, fmt::format("'{}' is no part of a plain LoRA", printable(part)), tensor->name,
                            "fold it into its model instead");
      lora.saved.push_back({tensor->name, take(*tensor)});
    }
  }
  return lora;
}

StoredAdapter store_lora(const Lora& lora) {
  StoredAdapter out;
  std::uint64_t rank = 1;
  for (const LoraModule& module : lora.modules) rank = std::max(rank, module.rank());
  // The usual module decides rank and alpha; the others are listed.
  std::map<std::pair<std::uint64_t, double>, std::size_t> counts;
  for (const LoraModule& module : lora.modules) ++counts[{module.rank(), module.scale}];
  double scale = 1;
  std::size_t most = 0;
  for (const auto& [key, count] : counts)
    if (key.first == rank && count > most) most = count, scale = key.second;
  Json::Object ranks, alphas;
  for (const LoraModule& module : lora.modules) {
    if (module.rank() != rank) ranks.emplace_back(module.name, Json(module.rank()));
    const double alpha = module.scale * static_cast<double>(module.rank());
    if (alpha != scale * static_cast<double>(rank)) alphas.emplace_back(module.name, plain_number(alpha));
    const std::string prefix = "base_model.model." + module.name;
    out.tensors.push_back(stored(prefix + (module.embedding ? ".lora_embedding_A" : ".lora_A.weight"), module.a));
    out.tensors.push_back(stored(prefix + (module.embedding ? ".lora_embedding_B" : ".lora_B.weight"), module.b));
  }
  for (const SavedTensor& tensor : lora.saved) out.tensors.push_back(stored(tensor.name, tensor.values));
  std::sort(out.tensors.begin(), out.tensors.end(), [](const StoredTensor& a, const StoredTensor& b) { return a.name < b.name; });

  Json config = lora.config;
  config.set("peft_type", "LORA");
  config.set("r", rank);
  config.set("lora_alpha", plain_number(scale * static_cast<double>(rank)));
  config.set("rank_pattern", Json(std::move(ranks)));
  config.set("alpha_pattern", Json(std::move(alphas)));
  config.set("use_rslora", false);
  config.set("inference_mode", true);
  out.config = sorted(std::move(config));
  return out;
}

// ---- Low-rank factors ---------------------------------------------------------------------------------------------------------------------

namespace {

/// Below this the whole decomposition costs little.
constexpr std::uint64_t kSmall = 384;
constexpr std::uint64_t kOversampling = 16;
constexpr int kPowerIterations = 2;

double square_sum(std::span<const double> values) {
  double sum = 0;
  for (const double v : values) sum += v * v;
  return sum;
}

/// How many of the values to keep; `found` is false when they are too few to tell.
std::uint64_t kept(std::span<const double> values, double total, const RankLimit& limit, bool& found) {
  std::uint64_t count = 0;
  double sum = 0;
  found = true;
  for (const double v : values) {
    if (limit.rank && count >= *limit.rank) return count;
    if (!(v > limit.smallest)) return count;
    // What is left after rounding is nothing.
    if (limit.energy && sum >= *limit.energy * total * (1 - 1e-12)) return count;
    sum += v * v;
    ++count;
  }
  found = (limit.rank && count >= *limit.rank) || (limit.energy && sum >= *limit.energy * total * (1 - 1e-12));
  return count;
}

Factors from_svd(const math::Svd& svd, std::uint64_t rank, std::uint64_t rows, std::uint64_t columns, double total, Side side) {
  Factors out;
  out.rank = rank;
  const std::size_t width = svd.values.size();
  double sum = 0;
  out.left.resize(static_cast<std::size_t>(rows * rank));
  out.right.resize(static_cast<std::size_t>(rank * columns));
  for (std::size_t k = 0; k < rank; ++k) {
    const double value = svd.values[k], on_left = side == Side::both ? std::sqrt(value) : value, on_right = side == Side::both ? std::sqrt(value) : 1;
    sum += value * value;
    for (std::size_t i = 0; i < rows; ++i) out.left[i * rank + k] = static_cast<float>(svd.left[i * width + k] * on_left);
    for (std::size_t j = 0; j < columns; ++j) out.right[k * columns + j] = static_cast<float>(svd.right[k * columns + j] * on_right);
  }
  out.norm = std::sqrt(total);
  out.error = std::sqrt(std::max(0.0, total - sum));
  return out;
}

/// An orthonormal basis of the columns of y [rows, width]: the left singular vectors.
std::vector<double> basis(std::vector<double> y, std::uint64_t rows, std::uint64_t width) {
  return math::svd(y, static_cast<std::int64_t>(rows), static_cast<std::int64_t>(width)).left;
}

/// The best approximation that a sketch of this width finds: delta ~ Q (Q^T delta), the second factor decomposed.
math::Svd sketched(std::span<const double> delta, std::uint64_t rows, std::uint64_t columns, std::uint64_t width, const RandomStream& random) {
  const auto m = static_cast<std::int64_t>(rows), n = static_cast<std::int64_t>(columns), w = static_cast<std::int64_t>(width);
  std::vector<double> omega(static_cast<std::size_t>(columns * width));
  for (std::size_t i = 0; i < omega.size(); ++i) {
    const double u = 1 - static_cast<double>(random.uniform(2 * i)), v = static_cast<double>(random.uniform(2 * i + 1));
    omega[i] = std::sqrt(-2 * std::log(u)) * std::cos(2 * std::numbers::pi * v);
  }
  std::vector<double> y(static_cast<std::size_t>(rows * width)), z(omega.size());
  math::gemm(math::Transpose::no, math::Transpose::no, m, w, n, 1.0, delta.data(), n, omega.data(), w, 0.0, y.data(), w);
  std::vector<double> q = basis(std::move(y), rows, width);
  for (int k = 0; k < kPowerIterations; ++k) {
    math::gemm(math::Transpose::yes, math::Transpose::no, n, w, m, 1.0, delta.data(), n, q.data(), w, 0.0, z.data(), w);
    const std::vector<double> p = basis(z, columns, width);
    y.assign(static_cast<std::size_t>(rows * width), 0.0);
    math::gemm(math::Transpose::no, math::Transpose::no, m, w, n, 1.0, delta.data(), n, p.data(), w, 0.0, y.data(), w);
    q = basis(std::move(y), rows, width);
  }
  std::vector<double> small(static_cast<std::size_t>(width * columns));
  math::gemm(math::Transpose::yes, math::Transpose::no, w, n, m, 1.0, q.data(), w, delta.data(), n, 0.0, small.data(), n);
  math::Svd inner = math::svd(small, w, n);
  const std::size_t found = inner.values.size();
  std::vector<double> left(static_cast<std::size_t>(rows) * found);
  math::gemm(math::Transpose::no, math::Transpose::no, m, static_cast<std::int64_t>(found), w, 1.0, q.data(), w, inner.left.data(),
             static_cast<std::int64_t>(found), 0.0, left.data(), static_cast<std::int64_t>(found));
  inner.left = std::move(left);
  return inner;
}

}  // namespace

Factors factorise(std::span<double> delta, std::uint64_t rows, std::uint64_t columns, const RankLimit& limit, Side side, std::uint64_t seed,
                  std::string_view name) {
  const double total = square_sum(delta);
  if (!std::isfinite(total))
    throw Error(ErrorCode::corrupt, fmt::format("the difference of '{}' holds NaN or infinite values", printable(name)), {.tensor = printable(name)});
  const std::uint64_t most = std::min(rows, columns);
  bool found = true;
  if (total == 0 || most == 0) return from_svd({}, 0, rows, columns, total, side);
  const RandomStream random = RandomStream::of(seed, name, 0, 0x4C6F);
  for (std::uint64_t width = limit.rank && !limit.energy ? *limit.rank + kOversampling : 64; most > kSmall && width <= most / 3; width *= 2) {
    const math::Svd svd = sketched(delta, rows, columns, width, random);
    const std::uint64_t usable = svd.values.size() > kOversampling ? svd.values.size() - kOversampling : 0;
    const std::uint64_t rank = kept(std::span(svd.values).first(static_cast<std::size_t>(usable)), total, limit, found);
    if (!found && rank == usable) continue;
    Factors out = from_svd(svd, rank, rows, columns, total, side);
    out.randomized = true;
    return out;
  }
  const math::Svd svd = math::svd(delta, static_cast<std::int64_t>(rows), static_cast<std::int64_t>(columns));
  return from_svd(svd, kept(svd.values, total, limit, found), rows, columns, total, side);
}

// ---- Combining ----------------------------------------------------------------------------------------------------------------------------

namespace {

Error misfit(std::string message, std::string advice = {}) { return Error(ErrorCode::invalid_argument, std::move(message), {}, std::move(advice)); }

void check_sizes(const LoraModule& first, const LoraModule& other) {
  if (size_of(first.a.shape, 1) == size_of(other.a.shape, 1) && first.b.shape[0] == other.b.shape[0] && first.embedding == other.embedding) return;
  throw misfit(fmt::format("module '{}' is [{}, {}] in one adapter and [{}, {}] in another", printable(first.name), first.b.shape[0],
                           size_of(first.a.shape, 1), other.b.shape[0], size_of(other.a.shape, 1)),
               "they were made for different models");
}

struct Weighted {
  const LoraModule* module;
  double weight;  ///< times the module's own scale
};

LoraModule joined(const std::vector<Weighted>& parts) {
  LoraModule out = *parts.front().module;
  out.scale = 1;
  std::uint64_t rank = 0;
  for (const Weighted& part : parts) rank += part.module->rank();
  const auto rows = static_cast<std::size_t>(out.b.shape[0]);
  out.a.values.clear();
  out.b.values.assign(rows * static_cast<std::size_t>(rank), 0.0F);
  std::size_t at = 0;
  for (const Weighted& part : parts) {
    for (const float v : part.module->a.values) out.a.values.push_back(static_cast<float>(static_cast<double>(v) * part.weight));
    const auto r = static_cast<std::size_t>(part.module->rank());
    for (std::size_t i = 0; i < rows; ++i)
      std::copy_n(part.module->b.values.data() + i * r, r, out.b.values.data() + i * static_cast<std::size_t>(rank) + at);
    at += r;
  }
  out.a.shape[0] = out.b.shape[1] = static_cast<std::int64_t>(rank);
  return out;
}

LoraModule summed(const std::vector<Weighted>& parts) {
  LoraModule out = *parts.front().module;
  out.scale = 1;
  std::vector<double> a(out.a.values.size(), 0.0), b(out.b.values.size(), 0.0);
  for (const Weighted& part : parts) {
    if (part.module->rank() != out.rank())
      throw misfit(fmt::format("module '{}' has rank {} in one adapter and {} in another; sums of factors need one rank", printable(out.name),
                               out.rank(), part.module->rank()),
                   "use --how cat, which is exact, or --how svd");
    // The sign on one side, or two of them would cancel.
    const double factor = std::sqrt(std::abs(part.weight)), sign = part.weight < 0 ? -1 : 1;
    for (std::size_t i = 0; i < a.size(); ++i) a[i] += factor * sign * static_cast<double>(part.module->a.values[i]);
    for (std::size_t i = 0; i < b.size(); ++i) b[i] += factor * static_cast<double>(part.module->b.values[i]);
  }
  out.a.values.assign(a.begin(), a.end());
  out.b.values.assign(b.begin(), b.end());
  return out;
}

LoraModule decomposed(const std::vector<Weighted>& parts, std::uint64_t rank, std::uint64_t seed) {
  LoraModule out = *parts.front().module;
  out.scale = 1;
  const auto rows = static_cast<std::size_t>(out.b.shape[0]), columns = static_cast<std::size_t>(size_of(out.a.shape, 1));
  std::vector<double> delta(rows * columns, 0.0);
  for (const Weighted& part : parts) {
    const std::vector<double> a(part.module->a.values.begin(), part.module->a.values.end()),
        b(part.module->b.values.begin(), part.module->b.values.end());
    const auto r = static_cast<std::int64_t>(part.module->rank());
    math::gemm(math::Transpose::no, math::Transpose::no, static_cast<std::int64_t>(rows), static_cast<std::int64_t>(columns), r, part.weight,
               b.data(), r, a.data(), static_cast<std::int64_t>(columns), 1.0, delta.data(), static_cast<std::int64_t>(columns));
  }
  RankLimit limit;
  limit.rank = std::min<std::uint64_t>(rank, std::min(rows, columns));
  limit.smallest = -1;  // one rank for all, whatever its last values
  Factors factors = factorise(delta, rows, columns, limit, Side::left, seed, out.name);
  if (factors.rank == 0) factors.rank = 1, factors.left.assign(rows, 0.0F), factors.right.assign(columns, 0.0F);
  out.a.values = std::move(factors.right);
  out.b.values = std::move(factors.left);
  out.a.shape[0] = out.b.shape[1] = static_cast<std::int64_t>(factors.rank);
  return out;
}

}  // namespace

Lora combine(const std::vector<Lora>& adapters, std::span<const double> weights, Combination how, std::optional<std::uint64_t> rank,
             std::uint64_t seed) {
  Lora out;
  out.config = adapters.front().config;
  std::map<std::string, std::vector<Weighted>> modules;
  std::uint64_t largest = 1;
  std::set<std::string> saved;
  for (std::size_t i = 0; i < adapters.size(); ++i) {
    for (const LoraModule& module : adapters[i].modules) {
      std::vector<Weighted>& parts = modules[module.name];
      if (!parts.empty()) check_sizes(*parts.front().module, module);
      parts.push_back({&module, weights[i] * module.scale});
      largest = std::max(largest, module.rank());
    }
    for (const SavedTensor& tensor : adapters[i].saved) {
      if (!saved.insert(tensor.name).second)
        throw Error(ErrorCode::unsupported, fmt::format("several of the adapters save '{}' whole", printable(tensor.name)),
                    {.tensor = printable(tensor.name)}, "it is not clear which of them counts");
      out.saved.push_back(tensor);
    }
  }
  std::set<std::string> leaves;
  for (const auto& [name, parts] : modules) {
    leaves.insert(leaf_of(name));
    switch (how) {
      case Combination::linear:
        out.modules.push_back(summed(parts));
        break;
      case Combination::cat:
        out.modules.push_back(joined(parts));
        break;
      case Combination::svd:
        out.modules.push_back(decomposed(parts, rank.value_or(largest), seed));
        break;
    }
  }
  // A list of names or a pattern of one adapter may leave out what another changes.
  Json::Array targets;
  for (const std::string& leaf : leaves) targets.emplace_back(leaf);
  out.config.set("target_modules", Json(std::move(targets)));
  std::set<std::string> whole;
  for (const Lora& adapter : adapters)
    if (const Json* names = adapter.config.find("modules_to_save"); names && names->array())
      for (const Json& name : *names->array())
        if (name.string()) whole.insert(*name.string());
  Json::Array to_save;
  for (const std::string& name : whole) to_save.emplace_back(name);
  if (!to_save.empty()) out.config.set("modules_to_save", Json(std::move(to_save)));
  return out;
}

}  // namespace weft::adapt
