#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <functional>
#include <map>
#include <mutex>
#include <numbers>
#include <numeric>
#include <set>
#include <utility>

#include "base/budget.h"
#include "base/check.h"
#include "base/checksum.h"
#include "base/file.h"
#include "base/philox.h"
#include "base/text.h"
#include "base/threads.h"
#include "checkpoint/model_folder.h"
#include "edit/token_rows.h"
#include "edit/token_spaces.h"
#include "edit/trim_tokenizer.h"
#include "engine/lazy_model.h"
#include "math/convert.h"
#include "math/elementary.h"
#include "model/architecture.h"
#include "model/config_json.h"
#include "model/tokenizer.h"
#include "model/vocabulary.h"
#include "weft/error.h"
#include "weft/tokens.h"

namespace weft {
namespace {

namespace fs = std::filesystem;
using engine::LazyModel;
using model::Role;

/// Targets of one unit of work; fixed, so that threads change nothing.
constexpr std::size_t kBatch = 32;
/// Of what --trim reads.
constexpr std::uint64_t kLargestText = std::uint64_t{1} << 30;

[[noreturn]] void refuse(const char* key, std::string what, std::string advice) {
  throw Error(ErrorCode::invalid_argument, std::move(what), {.key = key}, std::move(advice));
}

// ---- Vocabularies that can be compared ----

/// A token without what is only its tokenizer's way of writing: the mark of a word's beginning, and the name of a special token.
struct Token {
  enum class Kind : std::uint8_t { plain, word_start, special } kind = Kind::plain;
  std::string text;  ///< without the mark; for special ones their part, "eos_token"
  auto operator<=>(const Token&) const = default;
};

struct ComparableVocabulary {
  std::map<Token, std::uint32_t> ids;
  std::uint64_t num_ids = 0;
};

ComparableVocabulary comparable(const model::Tokenizer& tokenizer) {
  ComparableVocabulary vocabulary;
  vocabulary.num_ids = tokenizer.num_ids();
  constexpr std::string_view kGpt = "\xC4\xA0", kSentencePiece = "\xE2\x96\x81";  // the marks of byte-level BPE and of SentencePiece
  std::uint64_t gpt = 0, sentencepiece = 0;
  for (std::uint32_t id = 0; id < vocabulary.num_ids; ++id) {
    const std::string* token = tokenizer.token(id);
    if (token == nullptr) continue;
    gpt += token->starts_with(kGpt);
    sentencepiece += token->starts_with(kSentencePiece);
  }
  const std::string_view mark = sentencepiece > gpt ? kSentencePiece : kGpt;
  std::map<std::string, std::string> parts;
  for (const char* name : {"bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"})
    for (const model::NamedToken& named : tokenizer.named_tokens())
      if (named.name == name) parts.emplace(named.token, name);
  for (std::uint32_t id = 0; id < vocabulary.num_ids; ++id) {
    const std::string* text = tokenizer.token(id);
    if (text == nullptr) continue;
    Token token{Token::Kind::plain, *text};
    if (text->starts_with(mark))
      token = {Token::Kind::word_start, text->substr(mark.size())};
    else if (const auto part = parts.find(*text); part != parts.end())
      token = {Token::Kind::special, part->second};
    vocabulary.ids.insert_or_assign(std::move(token), id);
  }
  return vocabulary;
}

// ---- Rows ----

/// A matrix of the model whose rows are tokens.
struct Matrix {
  std::size_t index = 0;  ///< among the tensors
  bool is_head = false;
};

std::vector<Matrix> vocabulary_matrices(const LazyModel& model, std::vector<std::string>& warnings) {
  const model::Architecture* architecture = model.parts.config ? model::find_architecture(*model.parts.config) : nullptr;
  std::vector<Matrix> matrices;
  for (std::size_t i = 0; i < model.parts.tensors.size(); ++i) {
    const edit::Tensor& tensor = model.parts.tensors[i];
    const Role role = model::role_of(architecture, tensor.name);
    if (role != Role::embed && role != Role::head) continue;
    const TensorInfo& info = *tensor.values.tensor;
    if (info.shape.size() != 2) {
      warnings.push_back(fmt::format("'{}' {} is no matrix of tokens and was left as it is", tensor.name, to_string(info.shape)));
      continue;
    }
    if (!is_decodable_float(info.dtype))
      throw Error(ErrorCode::unsupported, fmt::format("'{}' is stored as {}", tensor.name, to_string(info.dtype)), {.tensor = tensor.name},
                  "convert the model first");
    matrices.push_back({i, role == Role::head});
  }
  if (std::none_of(matrices.begin(), matrices.end(), [](const Matrix& m) { return !m.is_head; }))
    throw Error(ErrorCode::not_found, "the model has no embedding of tokens", {.file = model.name}, "'weft info' shows the roles of its tensors");
  return matrices;
}

const edit::Tensor& matrix_of(const LazyModel& model, bool head, const char* what) {
  std::vector<std::string> ignored;
  const std::vector<Matrix> matrices = vocabulary_matrices(model, ignored);
  for (const Matrix& m : matrices)
    if (m.is_head == head) return model.parts.tensors[m.index];
  // A tied model's head is its embedding.
  for (const Matrix& m : matrices)
    if (!m.is_head) return model.parts.tensors[m.index];
  throw Error(ErrorCode::not_found, std::string("the ") + what + " has no embedding", {.file = model.name});
}

/// Some rows of a matrix as float32.
std::vector<float> read_rows(const TensorRef& matrix, const std::vector<std::uint32_t>& rows) {
  const auto width = static_cast<std::size_t>(matrix.tensor->shape[1]);
  const DType dtype = matrix.tensor->dtype;
  const std::size_t row_bytes = width * static_cast<std::size_t>(info(dtype).bits) / 8;
  std::vector<float> out(rows.size() * width);
  std::vector<std::byte> bytes(row_bytes);
  for (std::size_t i = 0; i < rows.size(); ++i) {
    matrix.checkpoint->read_bytes(*matrix.tensor, std::uint64_t{rows[i]} * row_bytes, bytes);
    math::decode(dtype, bytes, std::span(out).subspan(i * width, width));
  }
  return out;
}

/// Rows that are worked out when they are first asked for.
class MadeRows final : public Checkpoint {
 public:
  MadeRows(std::string name, DType dtype, std::uint64_t rows, std::uint64_t width, std::function<std::vector<std::byte>()> make)
      : make_(std::move(make)) {
    container_ = "view";
    path_ = name;
    TensorInfo tensor;
    tensor.name = std::move(name);
    tensor.dtype = dtype;
    tensor.shape = {checked_dim(rows, "rows"), checked_dim(width, "columns")};
    tensor.num_elements = checked_mul(rows, width, "rows");
    tensor.size_bytes = tensor.num_elements * static_cast<std::uint64_t>(info(dtype).bits) / 8;
    tensors_.push_back(std::move(tensor));
    index_tensors();
  }
  void read_bytes(const TensorInfo&, std::uint64_t offset, std::span<std::byte> out) const override {
    std::call_once(once_, [this] { bytes_ = make_(); });
    std::copy_n(bytes_.begin() + static_cast<std::ptrdiff_t>(offset), out.size(), out.begin());
  }

 private:
  std::function<std::vector<std::byte>()> make_;
  mutable std::once_flag once_;
  mutable std::vector<std::byte> bytes_;
};

enum class Match { no, yes, embed, lm_head };
Match match_option(const std::string& text, const char* key) {
  constexpr std::pair<std::string_view, Match> kAll[] = {
      {"no", Match::no}, {"yes", Match::yes}, {"embed", Match::embed}, {"lm_head", Match::lm_head}};
  for (const auto& [name, match] : kAll)
    if (text == name) return match;
  refuse(key, "'" + printable(text) + "' is none of no, yes, embed, lm_head", "");
}
bool applies(Match match, bool head) { return match == Match::yes || match == (head ? Match::lm_head : Match::embed); }

enum class Method { omp, common_interpolation, landmark_pca, stb, subword, mean, john_hewitt, zero, randn };

class Transplant {
 public:
  Transplant(LazyModel& lazy, const TokensOptions& options)
      : lazy_(lazy),
        options_(options),
        donor_(engine::open_lazy_model(*options.tokenizer)),
        tokenizer_(model::Tokenizer::open(lazy.input_paths.front())),
        donor_tokenizer_(model::Tokenizer::open(donor_.input_paths.front())) {
    constexpr std::pair<std::string_view, Method> kMethods[] = {
        {"omp", Method::omp},         {"common_interpolation", Method::common_interpolation},
        {"stb", Method::stb},         {"landmark_pca", Method::landmark_pca},
        {"subword", Method::subword}, {"john_hewitt", Method::john_hewitt},
        {"mean", Method::mean},       {"zero", Method::zero},
        {"randn", Method::randn}};
    bool known = false;
    for (const auto& [name, method] : kMethods) {
      if (options.method != name) continue;
      method_ = method;
      known = true;
    }
    const std::string all = "omp, common_interpolation, landmark_pca, stb, subword, mean, john_hewitt, zero or randn";
    if (options.method == "mp_rope")
      throw Error(ErrorCode::unsupported, "the method mp_rope of mergekit-tokensurgeon is not built", {.key = "--method"}, "choose " + all);
    if (!known) refuse("--method", "unknown method '" + printable(options.method) + "'", all);
    if (options.weights == "distance_proportional")
      weighting_ = edit::Weighting::distance_proportional;
    else if (options.weights == "barycentric")
      weighting_ = edit::Weighting::barycentric;
    else if (options.weights == "least_squares")
      weighting_ = edit::Weighting::least_squares;
    else
      refuse("--weights", "unknown weights '" + printable(options.weights) + "'", "distance_proportional, barycentric or least_squares");
    if (options.subwords != "mean" && options.subwords != "sum" && options.subwords != "weighted_mean" && options.subwords != "first_last")
      refuse("--subwords", "unknown way '" + printable(options.subwords) + "'", "mean, sum, weighted_mean or first_last");
    if (options.k == 0) refuse("--k", "k must be at least 1", "64 is usual");
    prefix_ = match_option(options.prefix_match, "--prefix-match");
    byte_ = match_option(options.byte_match, "--byte-match");
    vocabulary_ = comparable(tokenizer_);
    donor_vocabulary_ = comparable(donor_tokenizer_);
    if (donor_vocabulary_.num_ids == 0) refuse("--tokenizer", "the other tokenizer has no tokens", "name a model with a tokenizer");
  }

  void run() {
    for (const Matrix& matrix : vocabulary_matrices(lazy_, lazy_.warnings)) rebuild(matrix);
    lazy_.inputs.insert(lazy_.inputs.end(), donor_.inputs.begin(), donor_.inputs.end());
    lazy_.input_paths.insert(lazy_.input_paths.end(), donor_.input_paths.begin(), donor_.input_paths.end());
    take_files();
    if (!lazy_.parts.config) return;
    Json& config = *lazy_.parts.config;
    model::set_vocab_size(config, donor_vocabulary_.num_ids);
    if (donor_.parts.config) take_ids(config, *donor_.parts.config);
    lazy_.config_changed = true;
  }

 private:
  /// Where the rows of a matrix come from.
  struct Assignment {
    RowMap map;
    std::vector<std::pair<Token, std::uint32_t>> unknown;  ///< tokens without a row, and their ids
  };

  std::optional<std::uint32_t> find(const Token& token, std::uint64_t rows) const {
    const auto at = vocabulary_.ids.find(token);
    return at == vocabulary_.ids.end() || at->second >= rows ? std::nullopt : std::optional(at->second);
  }

  std::optional<std::uint32_t> by_byte(const Token& token, std::uint64_t rows) const {
    if (token.kind != Token::Kind::plain) return std::nullopt;
    const std::string& text = token.text;
    constexpr std::string_view kHex = "0123456789ABCDEF";
    const bool latin = text.size() == 2 && (text[0] == '\xC2' || text[0] == '\xC3');
    if (text.size() == 1 || latin) {
      const unsigned value = latin ? (static_cast<unsigned char>(text[0]) & 0x03u) << 6 | (static_cast<unsigned char>(text[1]) & 0x3Fu)
                                   : static_cast<unsigned char>(text[0]);
      return find({Token::Kind::plain, fmt::format("<0x{:02X}>", value)}, rows);
    }
    if (text.size() != 6 || !text.starts_with("<0x") || text.back() != '>') return std::nullopt;
    const std::size_t high = kHex.find(text[3]), low = kHex.find(text[4]);
    if (high == std::string_view::npos || low == std::string_view::npos) return std::nullopt;
    const std::size_t value = high * 16 + low;
    std::string character;
    if (value < 0x80) {
      character = static_cast<char>(value);
    } else {
      character = static_cast<char>(0xC0 | value >> 6);
      character += static_cast<char>(0x80 | (value & 0x3F));
    }
    return find({Token::Kind::plain, character}, rows);
  }

  std::optional<std::uint32_t> by_prefix(const Token& token, std::uint64_t rows) const {
    if (token.kind == Token::Kind::special) return std::nullopt;
    for (std::size_t size = token.text.size(); size-- > 1;) {
      if ((static_cast<unsigned char>(token.text[size]) & 0xC0) == 0x80) continue;  // inside a character
      const std::string prefix = token.text.substr(0, size);
      if (prefix.find_first_not_of(" \t\n\r\f\v") == std::string::npos) break;
      if (const auto id = find({token.kind, prefix}, rows)) return id;
    }
    return std::nullopt;
  }

  void rebuild(const Matrix& matrix) {
    edit::Tensor& tensor = lazy_.parts.tensors[matrix.index];
    const TensorRef own = tensor.values;
    const TensorRef others = matrix_of(donor_, matrix.is_head, "other model").values;
    const auto own_rows = static_cast<std::uint64_t>(own.tensor->shape[0]), donor_rows = static_cast<std::uint64_t>(others.tensor->shape[0]);
    const std::uint64_t width = static_cast<std::uint64_t>(own.tensor->shape[1]);
    Assignment assignment;
    assignment.map.rows.resize(static_cast<std::size_t>(donor_vocabulary_.num_ids));  // zero, unless told otherwise
    std::uint64_t exact = 0, bytes = 0, prefixes = 0, beyond = 0;
    for (const auto& [token, id] : donor_vocabulary_.ids) {
      RowOrigin& origin = assignment.map.rows[id];
      std::optional<std::uint32_t> found = find(token, own_rows);
      std::uint64_t* counter = &exact;
      if (id >= donor_rows) {
        ++beyond;  // the other model has no row for it either: nothing is known of such a token
        continue;
      }
      if (!found && applies(byte_, matrix.is_head)) found = by_byte(token, own_rows), counter = &bytes;
      if (!found && applies(prefix_, matrix.is_head)) found = by_prefix(token, own_rows), counter = &prefixes;
      if (found) {
        origin = {RowOrigin::Kind::row, 0, *found};
        ++*counter;
      } else {
        assignment.unknown.emplace_back(token, id);
      }
    }
    if (beyond != 0) lazy_.warnings.push_back(fmt::format("{} tokens have no row in the other model's '{}' and get zeros", beyond, tensor.name));
    std::string summary = fmt::format("'{}': {} tokens keep their row", tensor.name, exact);
    if (bytes != 0) summary += fmt::format(", {} take that of their byte", bytes);
    if (prefixes != 0) summary += fmt::format(", {} that of a prefix", prefixes);
    notes_.push_back(summary + fmt::format(", {} are made by {}", assignment.unknown.size(), options_.method));

    std::vector<TensorRef> sources = {own};
    if (!assignment.unknown.empty()) {
      std::sort(assignment.unknown.begin(), assignment.unknown.end(), [](const auto& a, const auto& b) { return a.second < b.second; });
      for (std::size_t i = 0; i < assignment.unknown.size(); ++i) assignment.map.rows[assignment.unknown[i].second] = {RowOrigin::Kind::row, 1, i};
      std::vector<std::pair<std::uint32_t, std::uint32_t>> shared;  // ids here, ids there
      for (const auto& [token, id] : donor_vocabulary_.ids)
        if (const auto here = find(token, own_rows); here && id < donor_rows) shared.emplace_back(*here, id);
      std::sort(shared.begin(), shared.end(), [](const auto& a, const auto& b) { return a.second < b.second; });
      check_fits(shared.size(), width, static_cast<std::uint64_t>(others.tensor->shape[1]), assignment.unknown.size());
      auto made = std::make_shared<MadeRows>(tensor.name, own.tensor->dtype, assignment.unknown.size(), width,
                                             [this, own, others, unknown = assignment.unknown, shared, head = matrix.is_head, name = tensor.name] {
                                               return make(own, others, unknown, shared, head, name);
                                             });
      sources.push_back({made, &made->tensors().front()});
    }
    tensor.values = make_row_view(tensor.name, own.tensor->dtype, std::move(sources), std::move(assignment.map));
    tensor.source = tensor.values;
    tensor.steps.push_back("tokens");
    tensor.inputs.push_back(fmt::format("{}:{}", donor_.name, others.tensor->name));
  }

  void check_fits(std::uint64_t shared, std::uint64_t width, std::uint64_t donor_width, std::uint64_t unknown) const {
    if (method_ != Method::omp && method_ != Method::common_interpolation && method_ != Method::landmark_pca && method_ != Method::stb) return;
    if (shared == 0) refuse("--tokenizer", "the vocabularies share no token", "choose --method subword or mean");
    if (method_ != Method::landmark_pca && options_.k > shared)
      refuse("--k", fmt::format("{} points are asked for, but the vocabularies share {} tokens", options_.k, shared),
             "give a smaller k, or another method");
    const std::uint64_t needed = shared * (width + donor_width) * 4 + unknown * (width + donor_width) * 4;
    const std::uint64_t limit = MemoryBudget(options_.memory_bytes).limit_bytes();
    if (needed > limit)
      throw Error(ErrorCode::out_of_memory,
                  fmt::format("the rows of {} shared and {} new tokens take {} bytes, but the budget is {}", shared, unknown, needed, limit), {},
                  "raise --memory, or use --method subword or mean");
  }

  /// The new rows, as they are stored.
  std::vector<std::byte> make(const TensorRef& own, const TensorRef& others, const std::vector<std::pair<Token, std::uint32_t>>& unknown,
                              const std::vector<std::pair<std::uint32_t, std::uint32_t>>& shared, bool head, const std::string& name) const {
    const auto width = static_cast<std::size_t>(own.tensor->shape[1]);
    std::vector<float> rows(unknown.size() * width, 0.0F);
    switch (method_) {
      case Method::zero:
        break;
      case Method::mean:
        fill_with_mean(own, rows);
        break;
      case Method::randn:
        for (std::size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<float>(normal(name, i, 0));
        break;
      case Method::subword:
        fill_from_subwords(own, unknown, head, rows);
        break;
      case Method::john_hewitt:
        fill_alike(own, name, rows);
        break;
      case Method::landmark_pca:
      case Method::stb:
        fill_through_map(own, others, unknown, shared, rows);
        break;
      case Method::omp:
      case Method::common_interpolation:
        fill_from_shared(own, others, unknown, shared, rows);
        break;
    }
    if (options_.noise || options_.scale) {
      for (std::size_t i = 0; i < rows.size(); ++i) {
        double value = static_cast<double>(rows[i]);
        if (options_.noise) value += *options_.noise * normal(name, i, 1);
        if (options_.scale) value *= *options_.scale;
        rows[i] = static_cast<float>(value);
      }
    }
    std::vector<std::byte> bytes(rows.size() * static_cast<std::size_t>(info(own.tensor->dtype).bits) / 8);
    math::encode(own.tensor->dtype, rows, bytes);
    return bytes;
  }

  double normal(const std::string& name, std::uint64_t element, std::uint32_t stream) const {
    const RandomStream radius = RandomStream::of(options_.seed, name, stream, 0), angle = RandomStream::of(options_.seed, name, stream, 1);
    return std::sqrt(-2 * math::log(1 - static_cast<double>(radius.uniform(element)))) *
           math::cos(2 * std::numbers::pi * static_cast<double>(angle.uniform(element)));
  }

  static void fill_with_mean(const TensorRef& own, std::span<float> rows) {
    const auto width = static_cast<std::size_t>(own.tensor->shape[1]);
    std::vector<double> sum(width, 0.0);
    for (std::uint32_t row = 0; row < static_cast<std::uint32_t>(own.tensor->shape[0]); ++row) {
      const std::vector<float> values = read_rows(own, {row});
      for (std::size_t i = 0; i < width; ++i) sum[i] += static_cast<double>(values[i]);
    }
    for (std::size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<float>(sum[i % width] / static_cast<double>(own.tensor->shape[0]));
  }

  /// Draws from the normal distribution that has the mean and the covariance of the rows there are (Hewitt 2021, "Initializing New Word Embeddings for
  /// Pretrained Language Models"). Where that covariance has no density, small numbers about zero, as the peer does.
  void fill_alike(const TensorRef& own, const std::string& name, std::span<float> rows) const {
    const auto width = static_cast<std::size_t>(own.tensor->shape[1]);
    const std::vector<float> values = read_rows(own, every_row(own));
    const edit::Rows known{values, width};
    const std::vector<double> mean = edit::mean_of(known), root = edit::covariance_root(known, mean);
    std::vector<double> z(width);
    for (std::size_t begin = 0; begin < rows.size(); begin += width) {
      for (std::size_t i = 0; i < width; ++i) z[i] = normal(name, begin + i, 0);
      for (std::size_t i = 0; i < width; ++i) {
        double value = root.empty() ? 0.02 * z[i] : mean[i];
        for (std::size_t j = 0; j <= i && !root.empty(); ++j) value += root[i * width + j] * z[j];
        rows[begin + i] = static_cast<float>(value);
      }
    }
  }

  static std::vector<std::uint32_t> every_row(const TensorRef& matrix) {
    std::vector<std::uint32_t> all(static_cast<std::size_t>(matrix.tensor->shape[0]));
    std::iota(all.begin(), all.end(), 0u);
    return all;
  }

  /// By a map between the two models' spaces that the shared tokens teach.
  void fill_through_map(const TensorRef& own, const TensorRef& others, const std::vector<std::pair<Token, std::uint32_t>>& unknown,
                        const std::vector<std::pair<std::uint32_t, std::uint32_t>>& shared, std::span<float> rows) const {
    std::vector<std::uint32_t> here_ids, there_ids, wanted;
    for (const auto& [a, b] : shared) {
      here_ids.push_back(a);
      there_ids.push_back(b);
    }
    for (const auto& [token, id] : unknown) wanted.push_back(id);
    const auto width = static_cast<std::size_t>(own.tensor->shape[1]), donor_width = static_cast<std::size_t>(others.tensor->shape[1]);
    const std::vector<float> here_values = read_rows(own, here_ids), there_values = read_rows(others, there_ids), targets = read_rows(others, wanted);
    const edit::Rows here{here_values, width}, there{there_values, donor_width};
    edit::AffineMap map;
    if (method_ == Method::landmark_pca) {
      map = edit::principal_turn(there, here);
    } else {
      const auto mean = [](const TensorRef& matrix) {
        const std::vector<float> values = read_rows(matrix, every_row(matrix));
        return edit::mean_of({values, static_cast<std::size_t>(matrix.tensor->shape[1])});
      };
      map = edit::token_basis(there, here, static_cast<std::size_t>(options_.k), mean(others), mean(own),
                              [this](std::size_t count, const std::function<void(std::size_t)>& one) {
                                std::atomic<std::size_t> next = 0;
                                WorkerPool pool(options_.threads);
                                pool.run([&](int) {
                                  for (std::size_t i = next++; i < count && !pool.stop_token().stop_requested(); i = next++) {
                                    if (options_.cancel != nullptr && options_.cancel->load(std::memory_order_relaxed))
                                      throw Error(ErrorCode::interrupted, "interrupted", {}, "the same command starts again");
                                    one(i);
                                  }
                                });
                              });
    }
    map.apply({targets, donor_width}, rows);
  }

  void fill_from_subwords(const TensorRef& own, const std::vector<std::pair<Token, std::uint32_t>>& unknown, bool head, std::span<float> rows) const {
    const auto width = static_cast<std::size_t>(own.tensor->shape[1]);
    for (std::size_t t = 0; t < unknown.size(); ++t) {
      const Token& token = unknown[t].first;
      std::vector<std::uint32_t> ids = tokenizer_.ids(token.kind == Token::Kind::word_start ? " " + token.text : token.text, false);
      std::erase_if(ids, [&](std::uint32_t id) { return id >= static_cast<std::uint64_t>(own.tensor->shape[0]); });
      if (ids.empty()) continue;
      if (options_.subwords == "first_last") ids = {head ? ids.front() : ids.back()};
      const std::vector<float> values = read_rows(own, ids);
      std::vector<double> sum(width, 0.0);
      double total = 0;
      for (std::size_t i = 0; i < ids.size(); ++i) {
        // The peer's order: the first piece counts most in the embedding, the last in the head.
        const double weight = options_.subwords == "weighted_mean" ? static_cast<double>(head ? i + 1 : ids.size() - i) : 1;
        total += weight;
        for (std::size_t c = 0; c < width; ++c) sum[c] += weight * static_cast<double>(values[i * width + c]);
      }
      if (options_.subwords == "sum") total = 1;
      for (std::size_t c = 0; c < width; ++c) rows[t * width + c] = static_cast<float>(sum[c] / total);
    }
  }

  void fill_from_shared(const TensorRef& own, const TensorRef& others, const std::vector<std::pair<Token, std::uint32_t>>& unknown,
                        const std::vector<std::pair<std::uint32_t, std::uint32_t>>& shared, std::span<float> rows) const {
    std::vector<std::uint32_t> here, there, wanted;
    for (const auto& [a, b] : shared) {
      here.push_back(a);
      there.push_back(b);
    }
    for (const auto& [token, id] : unknown) wanted.push_back(id);
    const auto width = static_cast<std::size_t>(own.tensor->shape[1]), donor_width = static_cast<std::size_t>(others.tensor->shape[1]);
    const std::vector<float> own_points = read_rows(own, here), donor_points = read_rows(others, there), targets = read_rows(others, wanted);
    std::atomic<std::size_t> next = 0;
    WorkerPool pool(options_.threads);
    pool.run([&](int) {
      for (std::size_t begin = next.fetch_add(kBatch); begin < unknown.size() && !pool.stop_token().stop_requested();
           begin = next.fetch_add(kBatch)) {
        if (options_.cancel != nullptr && options_.cancel->load(std::memory_order_relaxed))
          throw Error(ErrorCode::interrupted, "interrupted", {}, "the same command starts again");
        const std::size_t count = std::min(kBatch, unknown.size() - begin);
        const edit::Rows batch{std::span(targets).subspan(begin * donor_width, count * donor_width), donor_width}, points{donor_points, donor_width};
        const auto k = static_cast<std::size_t>(options_.k);
        const std::vector<edit::Combination> found =
            method_ == Method::omp
                ? edit::orthogonal_matching_pursuit(batch, points, k)
                : edit::nearest_points(batch, points, k, options_.cosine ? edit::Distance::cosine : edit::Distance::euclidean, weighting_);
        for (std::size_t b = 0; b < count; ++b) {
          std::vector<double> sum(width, 0.0);
          for (std::size_t i = 0; i < k; ++i)
            for (std::size_t c = 0; c < width; ++c) sum[c] += found[b].weights[i] * static_cast<double>(own_points[found[b].points[i] * width + c]);
          for (std::size_t c = 0; c < width; ++c) rows[(begin + b) * width + c] = static_cast<float>(sum[c]);
        }
      }
    });
  }

  /// The other model's tokenizer files in place of the model's own.
  void take_files() {
    const auto folder_of = [](const fs::path& path) { return fs::is_directory(path) ? path : path.parent_path(); };
    const std::vector<std::string> gone = model::tokenizer_files(folder_of(lazy_.input_paths.front()));
    std::erase_if(lazy_.companions, [&](const engine::CompanionFile& file) { return std::find(gone.begin(), gone.end(), file.name) != gone.end(); });
    const fs::path from = folder_of(donor_.input_paths.front());
    for (const std::string& name : model::tokenizer_files(from)) lazy_.companions.push_back({.name = name, .copy_of = from / name});
    for (engine::CompanionFile& file : lazy_.companions) {
      if (file.name != "generation_config.json" || !file.copy_of) continue;
      Json generation = read_json_file(*file.copy_of);
      const fs::path other = from / "generation_config.json";
      const Json source = path_kind(other) == PathKind::file ? read_json_file(other) : donor_.parts.config ? *donor_.parts.config : Json();
      take_ids(generation, source);
      file = {.name = file.name, .content = write_json(generation, 2) + "\n"};
    }
  }

  static void take_ids(Json& config, const Json& donor) {
    for (const char* key : {"pad_token_id", "eos_token_id", "bos_token_id", "unk_token_id", "mask_token_id"})
      if (const Json* value = donor.find(key)) config.set(key, *value);
  }

 public:
  [[nodiscard]] const std::vector<std::string>& notes() const { return notes_; }

 private:
  LazyModel& lazy_;
  const TokensOptions& options_;
  LazyModel donor_;
  model::Tokenizer tokenizer_, donor_tokenizer_;
  ComparableVocabulary vocabulary_, donor_vocabulary_;
  Method method_ = Method::omp;
  edit::Weighting weighting_ = edit::Weighting::distance_proportional;
  Match prefix_ = Match::no, byte_ = Match::no;
  std::vector<std::string> notes_;
};

// ---- Other sizes ----

/// New rows are the mean of those that were there, so that they neither attract nor repel.
void resize(LazyModel& lazy, std::uint64_t rows) {
  constexpr std::uint64_t kMostRows = std::uint64_t{1} << 24;
  if (rows == 0 || rows > kMostRows) refuse("--resize", fmt::format("{} is no number of rows for a vocabulary", rows), "such as 32064");
  const fs::path folder = fs::is_directory(lazy.input_paths.front()) ? lazy.input_paths.front() : lazy.input_paths.front().parent_path();
  if (!model::tokenizer_files(folder).empty()) {
    const std::uint64_t needed = model::Tokenizer::open(folder).num_ids();
    if (rows < needed)
      refuse("--resize", fmt::format("the tokenizer has ids up to {}, so {} rows are too few", needed - 1, rows), "--trim removes tokens from both");
  }
  for (const Matrix& matrix : vocabulary_matrices(lazy, lazy.warnings)) {
    edit::Tensor& tensor = lazy.parts.tensors[matrix.index];
    const auto old = static_cast<std::uint64_t>(tensor.values.tensor->shape[0]);
    if (old == rows) continue;
    RowMap map;
    map.rows.resize(static_cast<std::size_t>(rows));
    for (std::uint64_t row = 0; row < rows; ++row)
      map.rows[static_cast<std::size_t>(row)] = row < old ? RowOrigin{RowOrigin::Kind::row, 0, row} : RowOrigin{RowOrigin::Kind::padding, 0, 0};
    tensor.values = make_row_view(tensor.name, tensor.values.tensor->dtype, {tensor.values}, std::move(map));
    tensor.source = tensor.values;
    tensor.steps.emplace_back("resize");
  }
  if (!lazy.parts.config) return;
  model::set_vocab_size(*lazy.parts.config, rows);
  lazy.config_changed = true;
}

std::uint64_t trim(LazyModel& lazy, const fs::path& text_file) {
  const fs::path path = lazy.input_paths.front();
  const fs::path folder = fs::is_directory(path) ? path : path.parent_path();
  const fs::path file = folder / "tokenizer.json";
  if (path_kind(file) != PathKind::file)
    throw Error(ErrorCode::unsupported, "only tokenizers with a tokenizer.json can be trimmed", {.file = folder.string()},
                "save the tokenizer with transformers first, which writes one");
  const std::string text = read_text_file(text_file, kLargestText);
  const model::Tokenizer tokenizer = model::Tokenizer::open(folder);
  std::vector<std::uint32_t> used = tokenizer.ids(text, true);
  // Line by line too, since people will encode lines.
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = std::min(text.find('\n', begin), text.size());
    const std::vector<std::uint32_t> ids = tokenizer.ids(std::string_view(text).substr(begin, end - begin), true);
    used.insert(used.end(), ids.begin(), ids.end());
    begin = end + 1;
    if (used.size() > (1u << 20)) {
      std::sort(used.begin(), used.end());
      used.erase(std::unique(used.begin(), used.end()), used.end());
    }
  }
  for (const model::NamedToken& named : tokenizer.named_tokens())
    if (named.id) used.push_back(*named.id);
  const edit::TrimmedTokenizer trimmed = edit::trim_tokenizer(read_json_file(file), used, file);
  const std::uint64_t rows = trimmed.old_ids.size();
  for (const Matrix& matrix : vocabulary_matrices(lazy, lazy.warnings)) {
    edit::Tensor& tensor = lazy.parts.tensors[matrix.index];
    const auto old = static_cast<std::uint64_t>(tensor.values.tensor->shape[0]);
    RowMap map;
    for (const std::uint32_t id : trimmed.old_ids) {
      if (id >= old)
        throw Error(ErrorCode::corrupt, fmt::format("token {} has no row in '{}' {}", id, tensor.name, to_string(tensor.values.tensor->shape)),
                    {.tensor = tensor.name}, "the tokenizer is another model's");
      map.rows.push_back({RowOrigin::Kind::row, 0, id});
    }
    tensor.values = make_row_view(tensor.name, tensor.values.tensor->dtype, {tensor.values}, std::move(map));
    tensor.source = tensor.values;
    tensor.steps.emplace_back("trim");
  }
  if (lazy.parts.config) {
    model::set_vocab_size(*lazy.parts.config, rows);
    edit::renumber_token_ids(*lazy.parts.config, trimmed);
    lazy.config_changed = true;
  }
  // Other spellings of the vocabulary would now contradict tokenizer.json.
  std::erase_if(lazy.companions, [](const engine::CompanionFile& f) {
    return f.name == "vocab.json" || f.name == "merges.txt" || f.name == "vocab.txt" || f.name == "tokenizer.model" ||
           f.name == "added_tokens.json" || f.name.ends_with("spiece.model") || f.name.ends_with("sentencepiece.bpe.model");
  });
  for (engine::CompanionFile& companion : lazy.companions) {
    if (companion.name == "tokenizer.json") {
      companion = {.name = companion.name, .content = write_json(trimmed.tokenizer, 2) + "\n"};
    } else if (companion.name == "generation_config.json" && companion.copy_of) {
      Json generation = read_json_file(*companion.copy_of);
      edit::renumber_token_ids(generation, trimmed);
      companion = {.name = companion.name, .content = write_json(generation, 2) + "\n"};
    } else if (companion.name == "tokenizer_config.json" && companion.copy_of) {
      Json config = read_json_file(*companion.copy_of);
      Json* decoder = config.find("added_tokens_decoder");
      if (decoder == nullptr || decoder->object() == nullptr) continue;
      for (auto& [id, token] : *decoder->object()) {
        const bool digits = !id.empty() && id.size() < 10 && id.find_first_not_of("0123456789") == std::string::npos;
        if (const auto now = digits ? trimmed.new_id(std::stoull(id)) : std::nullopt) id = std::to_string(*now);
      }
      companion = {.name = companion.name, .content = write_json(config, 2) + "\n"};
    }
  }
  return rows;
}

/// What decides the rows beside the models (whose files every job looks at) and the seed.
std::vector<JournalHead::Ingredient> ingredients_of(const TokensOptions& options) {
  if (options.resize) return {{"--resize", std::to_string(*options.resize)}};
  if (options.trim_text) {
    const std::string text = read_text_file(*options.trim_text, kLargestText);
    return {{"--trim", to_string(checksum_of(std::string_view(text)))}};
  }
  const auto number = [](const std::optional<double>& value) { return value ? fmt::format("{}", *value) : "none"; };
  return {{"--tokenizer", *options.tokenizer},
          {"how rows are made", fmt::format("{}, k {}{}, weights {}, subwords {}, prefixes {}, bytes {}, noise {}, scale {}", options.method,
                                            options.k, options.cosine ? " by angle" : "", options.weights, options.subwords, options.prefix_match,
                                            options.byte_match, number(options.noise), number(options.scale))}};
}

}  // namespace

TokensReport edit_tokens(std::string_view model, const fs::path& output, const TokensOptions& options) {
  const int asked = options.tokenizer.has_value() + options.resize.has_value() + options.trim_text.has_value();
  if (asked != 1)
    refuse("--tokenizer", asked == 0 ? "nothing is to be done to the vocabulary" : "the vocabulary can be changed in one way at a time",
           "give one of --tokenizer, --resize and --trim");
  LazyModel lazy = engine::open_lazy_model(model);
  std::optional<Transplant> transplant;
  std::vector<std::string> notes;
  if (options.tokenizer) {
    transplant.emplace(lazy, options);
    transplant->run();
    notes = transplant->notes();
  } else if (options.resize) {
    resize(lazy, *options.resize);
  } else {
    notes.push_back(fmt::format("{} tokens are left", trim(lazy, *options.trim_text)));
  }
  engine::OutputJob job = engine::output_job_of(std::move(lazy), output);
  job.ingredients = ingredients_of(options);
  engine::JobBatch batch(options, "editing");
  batch.add(std::move(job), output);
  TokensReport report;
  static_cast<JobReport&>(report) = std::move(batch.run().front());
  report.notes = std::move(notes);
  return report;
}

}  // namespace weft
