#include "support/golden.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <numeric>
#include <set>
#include <stdexcept>

#include "support/command.h"

namespace weft::testing {
namespace {

std::uint64_t little_endian(const std::string& bytes, std::size_t offset, std::size_t width) {
  std::uint64_t value = 0;
  for (std::size_t i = 0; i < width; ++i) value |= std::uint64_t{static_cast<unsigned char>(bytes.at(offset + i))} << (8 * i);
  return value;
}

double half_value(std::uint64_t bits) {
  const double sign = (bits & 0x8000) != 0 ? -1 : 1;
  const auto exponent = static_cast<int>((bits >> 10) & 0x1F);
  const auto mantissa = static_cast<double>(bits & 0x3FF);
  if (exponent == 0x1F) return mantissa == 0 ? sign * HUGE_VAL : std::nan("");
  if (exponent == 0) return sign * std::ldexp(mantissa, -24);
  return sign * std::ldexp(1024 + mantissa, exponent - 25);
}

std::size_t width_of(const std::string& dtype) {
  static const std::map<std::string, std::size_t> widths = {{"F64", 8}, {"F32", 4}, {"F16", 2}, {"BF16", 2}, {"I64", 8}, {"I32", 4}, {"U8", 1}};
  return widths.at(dtype);
}

double element(const GoldenTensor& tensor, std::size_t i, std::size_t width) {
  const std::uint64_t bits = little_endian(tensor.bytes, i * width, width);
  if (tensor.dtype == "F64") return std::bit_cast<double>(bits);
  if (tensor.dtype == "F32") return std::bit_cast<float>(static_cast<std::uint32_t>(bits));
  if (tensor.dtype == "BF16") return std::bit_cast<float>(static_cast<std::uint32_t>(bits << 16));
  if (tensor.dtype == "F16") return half_value(bits);
  return static_cast<double>(static_cast<std::int64_t>(bits));
}

// 16-bit floats as integers in which neighbours differ by one.
std::int64_t ordered(const GoldenTensor& tensor, std::size_t i) {
  const auto bits = static_cast<std::int64_t>(little_endian(tensor.bytes, 2 * i, 2));
  return (bits & 0x8000) != 0 ? -(bits & 0x7FFF) : bits;
}

double largest_of(const std::vector<double>& values) {
  double largest = 0;
  for (const double value : values) largest = std::max(largest, std::abs(value));
  return largest;
}

std::string shape_text(const GoldenTensor& tensor) {
  std::string text = tensor.dtype + "[";
  for (const std::int64_t dimension : tensor.shape) text += std::to_string(dimension) + " ";
  return text + "]";
}

struct Deviation {
  std::size_t outside = 0;
  double worst = 0;  ///< |got - want| as a share of the tensor's largest value
  std::string where;
};

// Elements outside the rule. Throws for non-finite values.
Deviation compare_values(const GoldenTensor& got, const GoldenTensor& want, const Json& rule) {
  Deviation deviation;
  const std::vector<double> g = got.values();
  const std::vector<double> w = want.values();
  const double largest = largest_of(w);
  const std::string kind = golden_text(rule, "rule");
  const double atol = golden_number(rule, "atol", 0);
  const double rtol = golden_number(rule, "rtol", 0);
  const bool units = kind == "ulps" && want.bytes.size() == 2 * w.size();
  const std::size_t width = w.empty() ? 0 : want.bytes.size() / w.size();
  for (std::size_t i = 0; i < w.size(); ++i) {
    if (!std::isfinite(g[i])) throw std::runtime_error("element " + std::to_string(i) + " is not finite");
    const double error = std::abs(g[i] - w[i]);
    bool inside = false;
    if (kind == "bytes") {
      inside = got.bytes.compare(i * width, width, want.bytes, i * width, width) == 0;
    } else if (units) {
      const auto distance = std::abs(ordered(got, i) - ordered(want, i));
      inside = static_cast<double>(distance) <= golden_number(rule, "ulps", 0) || error <= atol * largest;
    } else {
      inside = error <= rtol * std::abs(w[i]) + atol * largest;
    }
    if (inside) continue;
    if (deviation.outside++ == 0 || error > deviation.worst * largest)
      deviation.where = "element " + std::to_string(i) + ": got " + std::to_string(g[i]) + ", want " + std::to_string(w[i]);
    deviation.worst = std::max(deviation.worst, largest > 0 ? error / largest : error);
  }
  return deviation;
}

std::size_t num_different(const std::vector<double>& a, const std::vector<double>& b) {
  std::size_t count = 0;
  for (std::size_t i = 0; i < a.size(); ++i) count += a[i] != b[i] ? 1 : 0;
  return count;
}

std::string check_tensors(const GoldenIndex& index, const Json& golden, const GoldenModel& got, const GoldenModel& want,
                          const std::vector<std::size_t>& row_order) {
  const Json& rule = *golden.find("compare");
  const std::vector<std::string> skipped = golden_texts(*golden.find("expect"), "skip");
  const std::string kept_like = golden_text(rule, "kept_like");
  const GoldenModel reference = kept_like.empty() ? GoldenModel{} : read_model_folder(index.root / kept_like);
  std::size_t outside = 0;
  std::string first;
  for (const auto& [name, tensor] : got)
    if (!want.contains(name)) return "unexpected tensor " + name;
  for (const auto& [name, w] : want) {
    if (!got.contains(name)) return "missing tensor " + name;
    if (std::find(skipped.begin(), skipped.end(), name) != skipped.end()) continue;
    GoldenTensor g = got.at(name);
    if (g.dtype != w.dtype || g.shape != w.shape) return name + " is " + shape_text(g) + " instead of " + shape_text(w);
    if (!row_order.empty() && (name == "model.embed_tokens.weight" || name == "lm_head.weight")) {
      const std::size_t width = g.bytes.size() / static_cast<std::size_t>(g.shape.at(0));
      std::string rows;
      for (std::size_t i = 0; i < static_cast<std::size_t>(g.shape[0]); ++i)
        rows += g.bytes.substr((i < row_order.size() ? row_order[i] : i) * width, width);
      g.bytes = rows;
    }
    const Deviation deviation = compare_values(g, w, rule);
    if (deviation.outside > 0 && first.empty()) first = name + ", " + deviation.where;
    outside += deviation.outside;
    if (reference.contains(name)) {
      const std::vector<double> base = reference.at(name).values();
      if (num_different(g.values(), base) != num_different(w.values(), base)) return name + ": another number of elements differs from " + kept_like;
    }
  }
  if (static_cast<double>(outside) > golden_number(rule, "flips", 0))
    return std::to_string(outside) + " elements are outside the rule '" + golden_text(rule, "rule") + "'; " + first;
  return "";
}

std::uint32_t crc32(const std::string& bytes) {
  std::uint32_t crc = ~0U;
  for (const char c : bytes) {
    crc ^= static_cast<unsigned char>(c);
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) != 0 ? 0xEDB88320U : 0U);
  }
  return ~crc;
}

std::string check_fingerprint(const Json& golden, const GoldenModel& got, const Json& want) {
  const Json& rule = *golden.find("compare");
  const std::string kind = golden_text(rule, "rule");
  const std::map<std::string, std::string> long_names = {{"F64", "float64"}, {"F32", "float32"}, {"F16", "float16"}, {"BF16", "bfloat16"}};
  std::size_t outside = 0;
  if (want.object()->size() != got.size()) return "another number of tensors: " + std::to_string(got.size());
  for (const auto& [name, w] : *want.object()) {
    const auto found = got.find(name);
    if (found == got.end()) return "missing tensor " + name;
    const GoldenTensor& g = found->second;
    std::vector<std::int64_t> shape;
    for (const Json& dimension : *w.find("shape")->array()) shape.push_back(*dimension.integer());
    if (long_names.at(g.dtype) != golden_text(w, "dtype") || g.shape != shape) return name + " is " + shape_text(g);
    if (kind == "bytes") {
      if (crc32(g.bytes) != w.find("crc32")->unsigned_integer()) return name + ": other bytes";
      continue;
    }
    const std::vector<double> x = g.values();
    const double largest = std::max(largest_of(x), 1e-300);
    const double relative = kind == "close" ? golden_number(rule, "rtol", 0) : golden_number(rule, "ulps", 0) * std::ldexp(1.0, -7);
    const Json::Array& samples = *w.find("samples")->array();
    for (std::size_t k = 0; k < samples.size(); ++k) {
      const std::size_t at = x.size() <= 64 ? k : (k * 2654435761U + 12345U) % x.size();
      const double error = std::abs(x[at] - samples[k].number().value());
      outside += error > relative * std::abs(x[at]) + golden_number(rule, "atol", 0) * largest ? 1 : 0;
    }
    double sum = 0;
    double squares = 0;
    for (const double value : x) {
      sum += value;
      squares += value * value;
    }
    const double l2 = golden_number(w, "l2", 0);
    const double norm = golden_number(rule, "norm", 0);
    if (std::abs(std::sqrt(squares) - l2) > norm * l2)
      return name + ": L2 norm " + std::to_string(std::sqrt(squares)) + " instead of " + std::to_string(l2);
    if (std::abs(sum - golden_number(w, "sum", 0)) > norm * l2 * std::sqrt(static_cast<double>(x.size())))
      return name + ": sum " + std::to_string(sum);
  }
  if (static_cast<double>(outside) > golden_number(rule, "flips", 0)) return std::to_string(outside) + " samples are outside the rule '" + kind + "'";
  return "";
}

std::string check_config(const std::filesystem::path& output, const Json& want) {
  const Json got = read_json_file(output / "config.json");
  for (const auto& [key, value] : *want.object()) {
    const Json* found = got.find(key);
    if (found == nullptr && key == "dtype") found = got.find("torch_dtype");
    const std::string text = found == nullptr ? "absent" : write_json(*found);
    if (text != write_json(value)) return "config.json: " + key + " is " + text + " instead of " + write_json(value);
  }
  return "";
}

// Compares tokens. rows: for each stored id the output's id of the same token, empty when ids agree.
std::string check_vocabulary(const std::filesystem::path& output, const Json& want, bool exact_ids, std::vector<std::size_t>& rows) {
  const Json data = read_json_file(output / "tokenizer.json");
  std::map<std::string, std::uint64_t> tokens;
  std::set<std::string> special;
  for (const auto& [token, id] : *data.find("model")->find("vocab")->object()) tokens[token] = id.unsigned_integer().value();
  for (const Json& added : *data.find("added_tokens")->array()) {
    tokens[golden_text(added, "content")] = added.find("id")->unsigned_integer().value();
    if (added.find("special")->boolean().value()) special.insert(golden_text(added, "content"));
  }
  std::map<std::string, std::uint64_t> wanted;
  for (const auto& [token, id] : *want.find("tokens")->object()) wanted[token] = id.unsigned_integer().value();
  for (const auto& [token, id] : wanted)
    if (!tokens.contains(token)) return "tokenizer: token '" + token + "' is missing";
  if (tokens.size() != wanted.size()) return "tokenizer: " + std::to_string(tokens.size()) + " tokens instead of " + std::to_string(wanted.size());
  const std::vector<std::string> wanted_special = golden_texts(want, "special");
  if (special != std::set<std::string>(wanted_special.begin(), wanted_special.end())) return "tokenizer: other special tokens";

  const Json tokenizer_config = read_json_file(output / "tokenizer_config.json");
  std::string chat_template = golden_text(tokenizer_config, "chat_template");
  if (std::filesystem::exists(output / "chat_template.jinja")) chat_template = read_file(output / "chat_template.jinja");
  const auto stripped = [](std::string text) {
    const char* blank = " \t\r\n";
    text.erase(text.find_last_not_of(blank) + 1);
    return text.erase(0, text.find_first_not_of(blank));
  };
  if (stripped(chat_template) != stripped(golden_text(want, "chat_template"))) return "tokenizer: another chat template";
  if (tokens == wanted) return "";
  if (exact_ids) return "tokenizer: other ids";
  for (const auto& [token, id] : wanted) {
    while (rows.size() <= id) rows.push_back(rows.size());
    rows[id] = tokens.at(token);
  }
  return "";
}

// For one seed: which elements were kept, tensor by tensor in order of name; and what is wrong with the values.
std::string check_changes(const GoldenModel& got, const GoldenModel& base, const GoldenModel& model, bool rescale, std::vector<bool>& mask,
                          std::map<std::string, std::vector<double>>& kept) {
  for (const auto& [name, tensor] : base) {
    const std::vector<double> b = tensor.values();
    const std::vector<double> m = model.at(name).values();
    if (!got.contains(name)) return "missing tensor " + name;
    const std::vector<double> g = got.at(name).values();
    double sum = 0;
    double sum_kept = 0;
    double num_kept = 0;
    double num_changed = 0;
    for (std::size_t i = 0; i < b.size(); ++i) {
      const bool moved = g[i] != b[i];
      mask.push_back(moved);
      const double difference = m[i] - b[i];
      sum += std::abs(difference);
      if (moved) sum_kept += std::abs(difference);
      if (difference != 0) {
        ++num_changed;
        if (moved) ++num_kept;
      }
    }
    const double factor = rescale && sum_kept > 0 ? sum / sum_kept : 1;
    for (std::size_t i = 0; i < b.size(); ++i) {
      const double moved = g[i] - b[i];
      if (moved == 0) continue;
      const double difference = m[i] - b[i];
      const double slack = 4e-7 * (std::abs(b[i]) + std::abs(difference) + std::abs(moved)) + 2e-5 * std::abs(factor * difference);
      if (std::abs(moved - factor * difference) > slack)
        return name + ": kept element " + std::to_string(i) + " is not the factor times its difference";
    }
    if (num_changed > 0) kept[name].push_back(num_kept / num_changed);
  }
  return "";
}

// The upper half of each row's ranks must be kept more often than the lower half, by epsilon on average.
std::string check_ranks(const GoldenModel& base, const GoldenModel& model, const std::vector<std::vector<bool>>& masks, double epsilon) {
  double sum_gaps = 0;
  double num_gaps = 0;
  std::size_t at = 0;
  for (const auto& [name, tensor] : base) {
    const std::vector<double> b = tensor.values();
    const std::vector<double> m = model.at(name).values();
    const auto row = static_cast<std::size_t>(tensor.shape.back());
    std::vector<bool> top(b.size());
    for (std::size_t first = 0; first < b.size(); first += row) {
      std::vector<std::size_t> order(row);
      std::iota(order.begin(), order.end(), first);
      std::sort(order.begin(), order.end(), [&](std::size_t x, std::size_t y) { return std::abs(m[x] - b[x]) < std::abs(m[y] - b[y]); });
      for (std::size_t rank = 0; rank < row; ++rank) top[order[rank]] = 2 * rank >= row;
    }
    for (const std::vector<bool>& mask : masks) {
      std::array<double, 2> kept = {0, 0};
      std::array<double, 2> count = {0, 0};
      for (std::size_t i = 0; i < b.size(); ++i) {
        count[top[i] ? 1 : 0] += 1;
        kept[top[i] ? 1 : 0] += mask[at + i] ? 1 : 0;
      }
      sum_gaps += kept[1] / count[1] - kept[0] / count[0];
      ++num_gaps;
    }
    at += b.size();
  }
  const double gap = sum_gaps / num_gaps;
  if (gap <= 0.8 * epsilon || gap >= 1.25 * epsilon)
    return "the upper half of the ranks is kept " + std::to_string(gap) + " more often than the lower, expected " + std::to_string(epsilon);
  return "";
}

}  // namespace

std::vector<double> GoldenTensor::values() const {
  const std::size_t width = width_of(dtype);
  std::vector<double> all(bytes.size() / width);
  for (std::size_t i = 0; i < all.size(); ++i) all[i] = element(*this, i, width);
  return all;
}

GoldenModel read_safetensors(const std::filesystem::path& file) {
  const std::string bytes = read_file(file);
  const auto header_size = static_cast<std::size_t>(little_endian(bytes, 0, 8));
  const Json header = parse_json(std::string_view(bytes).substr(8, header_size), file);
  GoldenModel model;
  for (const auto& [name, entry] : *header.object()) {
    if (name == "__metadata__") continue;
    GoldenTensor& tensor = model[name];
    tensor.dtype = golden_text(entry, "dtype");
    for (const Json& dimension : *entry.find("shape")->array()) tensor.shape.push_back(dimension.integer().value());
    const Json::Array& offsets = *entry.find("data_offsets")->array();
    const std::uint64_t begin = offsets.at(0).unsigned_integer().value();
    const std::uint64_t end = offsets.at(1).unsigned_integer().value();
    tensor.bytes = bytes.substr(8 + header_size + begin, end - begin);
  }
  return model;
}

GoldenModel read_model_folder(const std::filesystem::path& folder, std::size_t* num_files) {
  const std::filesystem::path index = folder / "model.safetensors.index.json";
  if (num_files != nullptr) *num_files = 1;
  if (!std::filesystem::exists(index)) return read_safetensors(folder / "model.safetensors");
  std::map<std::string, GoldenModel> shards;
  GoldenModel model;
  const Json data = read_json_file(index);
  for (const auto& [name, file] : *data.find("weight_map")->object()) {
    const std::string& shard = *file.string();
    if (!shards.contains(shard)) shards[shard] = read_safetensors(folder / shard);
    if (!shards[shard].contains(name)) throw std::runtime_error("the index says that " + name + " is in " + shard);
    model[name] = shards[shard][name];
  }
  std::size_t count = 0;
  for (const auto& [shard, tensors] : shards) count += tensors.size();
  if (count != model.size()) throw std::runtime_error("the shards hold tensors that the index does not list");
  if (num_files != nullptr) *num_files = shards.size();
  return model;
}

GoldenIndex read_golden_index(const std::filesystem::path& index) {
  GoldenIndex golden;
  if (!std::filesystem::exists(index)) return golden;
  golden.root = std::filesystem::canonical(index).parent_path();
  const Json data = read_json_file(index);
  golden.zoo = golden_text(data, "zoo");
  golden.cases = *data.find("cases")->array();
  return golden;
}

std::string golden_text(const Json& object, const char* key) {
  const Json* found = object.find(key);
  return found == nullptr || !found->is_string() ? "" : *found->string();
}

double golden_number(const Json& object, const char* key, double otherwise) {
  const Json* found = object.find(key);
  return found == nullptr ? otherwise : found->number().value();
}

std::vector<std::string> golden_texts(const Json& object, const char* key) {
  std::vector<std::string> texts;
  if (const Json* found = object.find(key))
    for (const Json& text : *found->array()) texts.push_back(*text.string());
  return texts;
}

std::string check_merge(const GoldenIndex& index, const Json& golden, const std::filesystem::path& output) {
  const Json& expect = *golden.find("expect");
  std::size_t num_files = 0;
  const GoldenModel got = read_model_folder(output, &num_files);
  std::string problem = check_config(output, *expect.find("config"));
  if (!problem.empty()) return problem;
  std::vector<std::size_t> rows;
  if (expect.find("vocabulary") != nullptr) {
    const Json want = read_json_file(index.root / golden_text(expect, "vocabulary"));
    problem = check_vocabulary(output, want, golden_text(expect, "ids") == "exact", rows);
    if (!problem.empty()) return problem;
  }
  for (const std::string& name : golden_texts(expect, "files"))
    if (!std::filesystem::exists(output / name)) return name + " is missing";
  if (const Json* copied = expect.find("copied"))
    for (const auto& [name, source] : *copied->object())
      if (!std::filesystem::exists(output / name) || read_file(output / name) != read_file(index.root / *source.string()))
        return name + " is no copy of " + *source.string();
  if (expect.find("shards") != nullptr && num_files < 2) return "one file, although a shard size was given";
  if (expect.find("fingerprint") != nullptr) return check_fingerprint(golden, got, read_json_file(index.root / golden_text(expect, "fingerprint")));
  return check_tensors(index, golden, got, read_safetensors(index.root / golden_text(expect, "tensors")), rows);
}

std::string check_statistics(const GoldenIndex& index, const Json& golden, const std::vector<std::filesystem::path>& outputs) {
  const Json& rule = *golden.find("compare");
  const GoldenModel base = read_model_folder(index.root / golden_text(golden, "base"));
  const GoldenModel model = read_model_folder(index.root / golden_text(golden, "model"));
  const double density = golden_number(rule, "density", 0);
  const double epsilon = golden_number(rule, "epsilon", 0);
  std::vector<std::vector<bool>> masks;
  std::map<std::string, std::vector<double>> kept;
  for (const std::filesystem::path& output : outputs) {
    masks.emplace_back();
    const std::string problem = check_changes(read_model_folder(output), base, model, rule.find("rescale")->boolean().value(), masks.back(), kept);
    if (!problem.empty()) return output.string() + ": " + problem;
  }
  // Ranks spread the probability evenly over density - epsilon .. density + epsilon.
  const double variance = density * (1 - density) - epsilon * epsilon / 3;
  for (const auto& [name, shares] : kept) {
    const double draws = static_cast<double>(base.at(name).values().size() * outputs.size());
    const double mean = std::accumulate(shares.begin(), shares.end(), 0.0) / static_cast<double>(shares.size());
    const double off = std::abs(mean - density) / std::sqrt(variance / draws);
    if (off > golden_number(rule, "sigmas", 5)) return name + ": kept " + std::to_string(mean) + " instead of " + std::to_string(density);
  }
  for (std::size_t a = 0; a < masks.size(); ++a) {
    for (std::size_t b = 0; b < a; ++b) {
      double same = 0;
      for (std::size_t i = 0; i < masks[a].size(); ++i) same += masks[a][i] == masks[b][i] ? 1 : 0;
      same /= static_cast<double>(masks[a].size());
      const double expected = 0.5 + 2 * (density - 0.5) * (density - 0.5) + epsilon * epsilon;
      if (same > expected + 0.05) return "two seeds agree on " + std::to_string(same) + " of the mask";
    }
  }
  return epsilon > 0 ? check_ranks(base, model, masks, epsilon) : "";
}

}  // namespace weft::testing
