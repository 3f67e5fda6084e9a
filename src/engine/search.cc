#include "weft/search.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <numbers>
#include <numeric>
#include <optional>
#include <utility>

#include "base/checksum.h"
#include "base/file.h"
#include "base/philox.h"
#include "base/text.h"
#include "checkpoint/json.h"
#include "checkpoint/staging.h"
#include "engine/block_pass.h"
#include "engine/lazy_model.h"
#include "engine/merge_config.h"
#include "engine/merge_plan.h"
#include "engine/running_model.h"
#include "engine/stream_checkpoint.h"
#include "engine/yaml.h"
#include "math/cma_es.h"
#include "math/neural.h"
#include "weft/error.h"
#include "weft/version.h"

namespace weft {
namespace {

namespace fs = std::filesystem;
using yaml::Kind;
using yaml::Node;

constexpr std::uint64_t kMaxTextBytes = std::uint64_t{1} << 30;
constexpr std::uint64_t kMaxEvaluations = 1'000'000;
constexpr std::size_t kMaxCoefficients = 2000;

// ---- The recipe

/// A parameter of the merge that is looked for: one value each model, or one
/// for the merge, each with so many values along the depth.
struct Wanted {
  std::string name;
  bool each_model = true;
  std::size_t groups = 1;
  double low = 0, high = 1, start = 0.5;
};

struct Recipe {
  std::string rule;
  std::vector<fs::path> texts, held_out;
  std::uint64_t window = 256, windows = 8, evaluations = 300, population = 0;
  std::optional<double> sigma;
  std::vector<Wanted> wanted;
  Json config;  ///< of the merge, without the section
  std::size_t num_models = 0;
};

Json as_json(const Node& node) {
  switch (node.kind) {
    case Kind::null:
      return {};
    case Kind::boolean:
      return {node.flag};
    case Kind::integer:
      return node.integer ? Json(*node.integer) : Json(node.number);
    case Kind::number:
      return {node.number};
    case Kind::string:
      return {node.text};
    case Kind::sequence: {
      Json::Array items;
      for (const Node& item : node.items) items.push_back(as_json(item));
      return {std::move(items)};
    }
    case Kind::mapping: {
      Json::Object members;
      for (const yaml::Member& member : node.members) members.emplace_back(member.key.text, as_json(member.value));
      return {std::move(members)};
    }
  }
  return {};
}

class RecipeReader {
 public:
  explicit RecipeReader(const fs::path& file) : file_(file) {}

  Recipe read(std::string_view text) {
    const auto documents = yaml::parse(text, file_.string());
    if (documents.size() != 1 || documents.front().root.kind != Kind::mapping)
      throw Error(ErrorCode::invalid_argument, "a search recipe is one merge config with a section 'search'", {.file = file_.string()}, kForm);
    const Node& root = documents.front().root;
    const Node* section = root.find("search");
    if (section == nullptr || section->kind != Kind::mapping) refuse(root, "there is no section 'search'");
    Recipe recipe;
    recipe.config = as_json(root);
    recipe.config.erase("search");
    for (const yaml::Member& member : section->members) read_key(member.key, member.value, recipe);
    if (recipe.rule.empty()) refuse(*section, "'rule' is missing");
    if (recipe.texts.empty()) refuse(*section, "'text' is missing: what a candidate's loss is measured on");
    for (const char* key : {"tokenizer", "tokenizer_source"})
      if (recipe.config.find(key) != nullptr) refuse(root, fmt::format("'{}' has no place here: a search keeps the models' own tokenizer", key));
    const Json* models = recipe.config.find("models");
    if (models != nullptr && models->array() != nullptr) recipe.num_models = models->array()->size();
    if (recipe.rule == "lcsc") {
      const Json* method = recipe.config.find("merge_method");
      if (method == nullptr || method->string() == nullptr || *method->string() != "lcsc")
        refuse(*section, "the rule lcsc searches for a merge_method: lcsc");
      if (recipe.num_models < 2)
        refuse(*section,
               "a combination needs at least two checkpoints under "
               "'models', in the order of training");
      if (!recipe.wanted.empty()) refuse(*section, "the rule lcsc knows its own coefficients: leave 'parameters' out");
    } else if (recipe.wanted.empty()) {
      refuse(*section, "'parameters' is missing: what is to be searched for");
    }
    for (const Wanted& wanted : recipe.wanted)
      if (wanted.each_model && recipe.num_models == 0)
        refuse(*section, fmt::format("'{}' is searched for in each model, but "
                                     "there is no list 'models'",
                                     wanted.name));
    return recipe;
  }

 private:
  static constexpr const char* kForm =
      "search: {rule: lcsc or cma_es, text: FILE, held_out: FILE, window: 256, "
      "windows: 8, evaluations: 300, parameters: [{name, scope, groups, range, "
      "start}]}";

  [[noreturn]] void refuse(const Node& node, const std::string& what) const {
    throw Error(ErrorCode::invalid_argument, fmt::format("{}: {}", to_string(node.place), what), {.file = file_.string(), .key = "search"}, kForm);
  }

  void read_files(const Node& node, std::vector<fs::path>& out) const {
    if (node.kind == Kind::string) {
      out.emplace_back(node.text);
      return;
    }
    if (node.kind != Kind::sequence) refuse(node, "this is no file and no list of files");
    for (const Node& item : node.items) out.emplace_back(item.text);
  }

  [[nodiscard]] double number(const Node& node) const {
    if ((node.kind != Kind::integer && node.kind != Kind::number) || !std::isfinite(node.number)) refuse(node, "this is no number");
    return node.number;
  }
  [[nodiscard]] std::uint64_t whole(const Node& node, std::uint64_t least, std::uint64_t most) const {
    if (!node.integer || *node.integer < static_cast<std::int64_t>(least) || *node.integer > static_cast<std::int64_t>(most))
      refuse(node, fmt::format("this is no whole number from {} to {}", least, most));
    return static_cast<std::uint64_t>(*node.integer);
  }

  void read_key(const Node& key, const Node& value, Recipe& recipe) const {
    if (key.text == "rule") {
      if (value.text != "lcsc" && value.text != "cma_es") refuse(value, fmt::format("there is no rule '{}'", printable(value.text)));
      recipe.rule = value.text;
    } else if (key.text == "text") {
      read_files(value, recipe.texts);
    } else if (key.text == "held_out") {
      read_files(value, recipe.held_out);
    } else if (key.text == "window") {
      recipe.window = whole(value, 2, 1 << 20);
    } else if (key.text == "windows") {
      recipe.windows = whole(value, 0, kMaxEvaluations);
    } else if (key.text == "evaluations") {
      recipe.evaluations = whole(value, 1, kMaxEvaluations);
    } else if (key.text == "population") {
      recipe.population = whole(value, 4, 10000);
    } else if (key.text == "sigma") {
      recipe.sigma = number(value);
      if (!(*recipe.sigma > 0)) refuse(value, "sigma must be above 0");
    } else if (key.text == "parameters") {
      if (value.kind != Kind::sequence) refuse(value, "parameters is no list");
      for (const Node& item : value.items) recipe.wanted.push_back(read_wanted(item));
    } else {
      refuse(key, fmt::format("'{}' has no meaning in a search", printable(key.text)));
    }
  }

  [[nodiscard]] Wanted read_wanted(const Node& node) const {
    Wanted wanted;
    bool has_start = false;
    for (const yaml::Member& member : node.members) {
      const std::string& key = member.key.text;
      const Node& value = member.value;
      if (key == "name") {
        wanted.name = value.text;
      } else if (key == "scope") {
        if (value.text != "model" && value.text != "merge") refuse(value, "scope is 'model' (one value each) or 'merge'");
        wanted.each_model = value.text == "model";
      } else if (key == "groups") {
        wanted.groups = whole(value, 1, 1000);
      } else if (key == "range") {
        if (value.items.size() != 2) refuse(value, "range is [LOWEST, HIGHEST]");
        wanted.low = number(value.items[0]);
        wanted.high = number(value.items[1]);
        if (!(wanted.low < wanted.high)) refuse(value, "range is [LOWEST, HIGHEST]");
      } else if (key == "start") {
        wanted.start = number(value);
        has_start = true;
      } else {
        refuse(member.key, fmt::format("'{}' has no meaning for a parameter", printable(key)));
      }
    }
    if (wanted.name.empty()) refuse(node, "the parameter's name is missing");
    if (!has_start) wanted.start = (wanted.low + wanted.high) / 2;
    if (wanted.start < wanted.low || wanted.start > wanted.high) refuse(node, "start lies outside the range");
    return wanted;
  }

  const fs::path& file_;
};

void make_parents(const fs::path& file) {
  std::error_code failed;
  fs::create_directories(file.parent_path(), failed);
  if (failed) throw path_error(failed.value(), "create", file.parent_path());
}

// ---- What has been evaluated, kept so that the same search goes on

class Log {
  /// Two searches that write here would spoil each other's lines.
  class Lock {
   public:
    explicit Lock(const fs::path& file) : fd_(SystemCalls::current().open(file.c_str(), O_RDWR | O_CLOEXEC, 0)) {
      if (fd_ < 0) throw path_error(errno, "open", file);
      if (SystemCalls::current().flock(fd_, LOCK_EX | LOCK_NB) == 0) return;
      SystemCalls::current().close(fd_);
      throw Error(ErrorCode::io, "another search is at work here", {.file = file.string()}, "wait for it, or choose another output");
    }
    ~Lock() { SystemCalls::current().close(fd_); }
    Lock(const Lock&) = delete;
    Lock& operator=(const Lock&) = delete;

   private:
    int fd_;
  };

 public:
  Log(fs::path file, const std::string& digest) : path_(std::move(file)) {
    const std::string head = fmt::format("weft-search 1 {}\n", digest);
    const bool exists = path_kind(path_) == PathKind::file;
    if (exists) lock_ = std::make_unique<Lock>(path_);
    if (exists) {
      const std::string text = read_text_file(path_, std::uint64_t{1} << 30);
      if (!text.starts_with(head))
        throw Error(ErrorCode::invalid_argument, "an unfinished search lies here that is not the same", {.file = path_.string()},
                    "give the same recipe, models, texts and seed again, or "
                    "remove the file");
      for (std::size_t at = head.size(); at < text.size();) {
        const std::size_t end = text.find('\n', at);
        if (end == std::string::npos) break;  // torn by a crash
        const std::string line = text.substr(at, end - at);
        const std::size_t space = line.find(' ');
        if (space != std::string::npos) known_.insert_or_assign(line.substr(0, space), Known{std::strtod(line.c_str() + space, nullptr), true});
        at = end + 1;
        end_ = at;
      }
      if (known_.empty()) end_ = head.size();
      file_ = File(path_, FileMode::update);
    } else {
      file_ = File(path_, FileMode::create_new);
      lock_ = std::make_unique<Lock>(path_);
      file_.write(0, std::as_bytes(std::span(head)));
      end_ = head.size();
    }
  }
  struct Known {
    double score = 0;
    bool earlier = false;  ///< a run that was stopped found it
  };
  [[nodiscard]] Known* find(const std::string& key) {
    const auto found = known_.find(key);
    return found == known_.end() ? nullptr : &found->second;
  }
  void add(const std::string& key, double score) {
    const std::string line = fmt::format("{} {:.17g}\n", key, score);
    file_.write(end_, std::as_bytes(std::span(line)));
    end_ += line.size();
    known_.insert_or_assign(key, Known{score, false});
  }
  void remove() {
    file_.close();
    remove_file(path_);
    lock_.reset();
  }

 private:
  fs::path path_;
  std::unique_ptr<Lock> lock_;
  File file_;
  std::uint64_t end_ = 0;
  std::map<std::string, Known> known_;
};

// ---- Evaluating a candidate

class Evaluator {
 public:
  Evaluator(const Recipe& recipe, fs::path recipe_name, fs::path output, const SearchOptions& options)
      : recipe_(recipe),
        recipe_name_(std::move(recipe_name)),
        output_(std::move(output)),
        options_(options),
        models_(options.transformers_cache, options.lora_merge_dtype) {
    options_.write_model_card = false;
    options_.copy_tokenizer = false;
    options_.on_warning = nullptr;
    options_.on_progress = nullptr;
    run_options_.threads = options.threads;
    run_options_.memory_bytes = options.memory_bytes;
    run_options_.cancel = options.cancel;
  }

  std::uint64_t num_evaluations = 0, num_resumed = 0;
  std::vector<std::string> warnings;

  /// Encodes the texts with the tokenizer of the merge's donor, and opens the
  /// log.
  void begin(const Json& config, std::string_view recipe_text) {
    const std::unique_ptr<engine::RunningModel> model = build(config);
    read(*model, recipe_.texts, windows_);
    read(*model, recipe_.held_out, held_out_);
    std::string all = fmt::format("{}|{}|{}|{}", std::string(version()), std::string(recipe_text), options_.seed, model_digest_);
    Hasher hasher;
    for (const auto* windows : {&windows_, &held_out_})
      for (const auto& window : *windows) hasher.add(std::as_bytes(std::span(window)));
    all += to_string(hasher.checksum());
    const fs::path name = fs::absolute(output_).lexically_normal();
    make_parents(name);
    log_ = std::make_unique<Log>(name.parent_path() / fmt::format(".{}.weft-search", name.filename().string()), to_string(checksum_of(all)));
  }

  [[nodiscard]] bool has_held_out() const { return !held_out_.empty(); }
  void finish() { log_->remove(); }

  /// Mean loss of the model that a config makes; infinite where its activations
  /// overflow.
  double score(const Json& config, bool held_out = false) {
    if (options_.cancel != nullptr && options_.cancel->load())
      throw Error(ErrorCode::interrupted, "interrupted", {}, "the same command goes on with what has been evaluated");
    const std::string key = to_string(checksum_of(fmt::format("{}{}", held_out ? "held out " : "", write_json(config))));
    if (Log::Known* known = log_->find(key)) {
      if (known->earlier) {
        ++num_evaluations, ++num_resumed;
        known->earlier = false;  // counted once, however often it is asked for
      }
      return known->score;
    }
    ++num_evaluations;
    double value = std::numeric_limits<double>::infinity();
    try {
      const std::unique_ptr<engine::RunningModel> model = build(config);
      value = loss(*model, held_out ? held_out_ : windows_);
    } catch (const Error& error) {
      if (error.code() != ErrorCode::corrupt) throw;
      if (num_broken_++ == 0) warnings.push_back(fmt::format("a candidate does not run and counts as worst: {}", error.message()));
    }
    log_->add(key, value);
    return value;
  }

 private:
  std::unique_ptr<engine::RunningModel> build(const Json& config) {
    std::vector<std::string> said;
    const engine::MergeConfig merge = engine::parse_merge_config(write_json(config), recipe_name_.string(), {.strict = options_.strict}, said);
    engine::MergePlan plan = engine::plan_merge(merge, models_, output_, options_);
    if (model_digest_.empty()) {
      warnings.insert(warnings.end(), said.begin(), said.end());
      for (const auto& input : plan.inputs) model_digest_ += engine::model_ingredient("", *input).value;
    }
    engine::ModelFiles files;
    files.folder = models_.load(merge.donor()).path;
    std::shared_ptr<engine::StreamCheckpoint> stream;
    engine::LazyModel lazy = engine::lazy_model_of(std::move(plan), recipe_name_.string(), options_, stream);
    if (!lazy.parts.config)
      throw Error(ErrorCode::not_found, "there is no config.json, which says how the models run", {.file = files.folder.string()},
                  "name models' folders");
    files.config = *lazy.parts.config;
    files.checkpoint = engine::checkpoint_of(lazy);
    return std::make_unique<engine::RunningModel>(std::move(files), run_options_);
  }

  void read(engine::RunningModel& model, const std::vector<fs::path>& files, std::vector<std::vector<std::uint32_t>>& out) const {
    for (const fs::path& file : files) {
      model::EncodeOptions encode;
      encode.add_special_tokens = false;
      const std::vector<std::uint32_t> ids = model.tokenizer("a text").encode(read_text_file(file, kMaxTextBytes), encode).ids;
      const auto window = static_cast<std::size_t>(recipe_.window);
      if (ids.size() < window)
        throw Error(ErrorCode::invalid_argument, fmt::format("the text has {} tokens, less than one window of {}", ids.size(), window),
                    {.file = file.string()}, "choose a smaller window");
      std::size_t taken = 0;
      for (std::size_t at = 0; at + window <= ids.size() && (recipe_.windows == 0 || taken < recipe_.windows); at += window, ++taken)
        out.emplace_back(ids.begin() + static_cast<std::ptrdiff_t>(at), ids.begin() + static_cast<std::ptrdiff_t>(at + window));
    }
  }

  double loss(engine::RunningModel& running, const std::vector<std::vector<std::uint32_t>>& windows) const {
    model::Network& network = running.network();
    const auto hidden = static_cast<std::size_t>(network.config().hidden), vocab = static_cast<std::size_t>(network.config().vocab);
    constexpr std::size_t kRows = 64;
    double sum = 0;
    std::uint64_t count = 0;
    std::vector<float> logits;
    for (std::size_t first = 0; first < windows.size();) {
      running.check_cancelled();
      std::vector<model::TokenChunk> chunks;
      std::size_t rows = 0, next = first;
      while (next < windows.size() && (chunks.empty() || rows + windows[next].size() <= running.rows_at_once())) {
        chunks.push_back({nullptr, windows[next], {}});
        rows += windows[next++].size();
      }
      const std::vector<float> x = network.run(chunks);
      std::size_t row = 0;
      for (const model::TokenChunk& chunk : chunks) {
        const std::size_t predictions = chunk.ids.size() - 1;
        for (std::size_t r = 0; r < predictions; r += kRows) {
          const std::size_t taken = std::min(kRows, predictions - r);
          logits.resize(taken * vocab);
          network.logits({x.data() + (row + r) * hidden, taken, hidden, hidden}, logits);
          std::vector<double> losses(taken);
          network.team().for_each(taken, [&](std::size_t t, int) {
            const float* own = logits.data() + t * vocab;
            losses[t] = math::log_sum_exp(own, vocab) - static_cast<double>(own[chunk.ids[r + t + 1]]);
          });
          sum = std::accumulate(losses.begin(), losses.end(), sum);
        }
        count += predictions;
        row += chunk.ids.size();
      }
      first = next;
    }
    return sum / static_cast<double>(count);
  }

  const Recipe& recipe_;
  fs::path recipe_name_, output_;
  SearchOptions options_;
  RunOptions run_options_;
  engine::ModelCache models_;
  std::string model_digest_;
  std::vector<std::vector<std::uint32_t>> windows_, held_out_;
  std::unique_ptr<Log> log_;
  std::uint64_t num_broken_ = 0;
};

// ---- Proposing

/// Random numbers one after another.
class Draws {
 public:
  explicit Draws(std::uint64_t seed) : stream_(RandomStream::of(seed, "search", 0, 0)) {}
  double uniform() { return static_cast<double>(stream_.uniform(next_++)); }
  std::size_t below(std::size_t n) { return std::min(static_cast<std::size_t>(uniform() * static_cast<double>(n)), n - 1); }
  double normal() {
    const double radius = std::sqrt(-2 * std::log(1 - uniform()));
    return radius * std::cos(2 * std::numbers::pi * uniform());
  }

 private:
  RandomStream stream_;
  std::uint64_t next_ = 0;
};

struct Candidate {
  std::vector<double> values;
  double score = 0;
};

using Score = std::function<double(const std::vector<double>&)>;

/// The rule of LCSC: combinations whose coefficients sum to 1, bred from the
/// exponential averages that are usual.
class Combination {
 public:
  Combination(std::size_t num_models, std::uint64_t seed, Score score) : k_(num_models), draws_(seed), score_(std::move(score)) {}

  std::vector<std::pair<std::string, double>> baselines;

  std::vector<Candidate> run(std::uint64_t evaluations) {
    constexpr std::size_t kPopulation = 20, kParents = 10;
    std::vector<Candidate> population;
    const auto add = [&](std::vector<double> values) {
      const double score = score_(values);
      population.push_back({std::move(values), score});
      return score;
    };
    std::vector<double> last(k_, 0.0), single(k_, 0.0);
    last.back() = 1;
    baselines.emplace_back("last", add(last));
    double best_single = population.front().score;
    for (std::size_t i = 0; i + 1 < k_; ++i) {
      std::fill(single.begin(), single.end(), 0.0);
      single[i] = 1;
      best_single = std::min(best_single, score_(single));
    }
    baselines.emplace_back("best single", best_single);
    baselines.emplace_back("uniform", add(std::vector<double>(k_, 1.0 / static_cast<double>(k_))));
    double best_average = std::numeric_limits<double>::infinity();
    for (const double g : {0.5, 0.7, 0.8, 0.9, 0.95}) {
      std::vector<double> average(k_);
      for (std::size_t i = 0; i < k_; ++i) average[i] = (1 - g) * std::pow(g, static_cast<double>(k_ - 1 - i));
      const double sum = std::accumulate(average.begin(), average.end(), 0.0);
      for (double& value : average) value /= sum;
      best_average = std::min(best_average, add(std::move(average)));
    }
    baselines.emplace_back("best exponential average", best_average);

    double step = 0.1;
    std::uint64_t done = population.size() + k_ - 1, without_progress = 0;
    for (std::size_t i = 0; population.size() < kPopulation && done < evaluations; ++i, ++done) {
      std::vector<double> values = population[i].values;
      for (double& value : values) value += step * draws_.normal();
      add(shifted(std::move(values)));
    }
    sort(population);
    for (; done < evaluations; ++done) {
      const std::size_t parents = std::min(kParents, population.size());
      const std::vector<double>& a = population[draws_.below(parents)].values;
      const std::vector<double>& b = population[draws_.below(parents)].values;
      std::vector<double> child(k_);
      const bool mean = draws_.uniform() < 0.5;
      for (std::size_t i = 0; i < k_; ++i) child[i] = mean ? (a[i] + b[i]) / 2 : draws_.uniform() < 0.5 ? a[i] : b[i];
      for (double& value : child)
        if (draws_.uniform() < 0.3) value += step * draws_.normal();
      child = shifted(std::move(child));
      const double score = score_(child);
      const bool progress = score < population.front().score;
      if (score < population.back().score) {
        population.back() = {std::move(child), score};
        sort(population);
      }
      without_progress = progress ? 0 : without_progress + 1;
      if (without_progress == 50) {
        step /= 2;
        without_progress = 0;
      }
    }
    return population;
  }

 private:
  static void sort(std::vector<Candidate>& population) {
    std::stable_sort(population.begin(), population.end(), [](const Candidate& a, const Candidate& b) { return a.score < b.score; });
  }
  [[nodiscard]] std::vector<double> shifted(std::vector<double> values) const {
    const double missing = (1 - std::accumulate(values.begin(), values.end(), 0.0)) / static_cast<double>(k_);
    for (double& value : values) value += missing;
    return values;
  }

  std::size_t k_;
  Draws draws_;
  Score score_;
};

/// CMA-ES in a unit cube; what leaves it is evaluated at its border.
std::vector<Candidate> evolve(const std::vector<double>& start, double sigma, std::uint64_t population, std::uint64_t evaluations, std::uint64_t seed,
                              const Score& score) {
  math::CmaEs search(start, sigma, seed, static_cast<std::size_t>(population));
  std::vector<Candidate> best = {{start, score(start)}};
  for (std::uint64_t done = 1; done + search.population() <= evaluations;) {
    const std::vector<std::vector<double>> candidates = search.ask();
    std::vector<double> values;
    for (const std::vector<double>& candidate : candidates) {
      std::vector<double> inside = candidate;
      double outside = 0;
      for (double& x : inside) {
        const double kept = std::clamp(x, 0.0, 1.0);
        outside += (x - kept) * (x - kept);
        x = kept;
      }
      const double own = score(inside);
      best.push_back({std::move(inside), own});
      values.push_back(own * (1 + outside));
    }
    search.tell(candidates, values);
    done += search.population();
    std::stable_sort(best.begin(), best.end(), [](const Candidate& a, const Candidate& b) { return a.score < b.score; });
    if (best.size() > 20) best.resize(20);
    if (search.sigma() < 1e-6) break;  // nothing moves any more
  }
  return best;
}

void set_parameter(Json& place, const std::string& name, std::span<const double> values) {
  Json* parameters = place.find("parameters");
  if (parameters == nullptr || !parameters->is_object()) parameters = &place.set("parameters", Json(Json::Object{}));
  Json::Array list;
  for (const double value : values) list.emplace_back(value);
  parameters->set(name, values.size() == 1 ? list.front() : Json(std::move(list)));
}

}  // namespace

SearchReport search(std::string_view recipe_text, const fs::path& recipe_name, const fs::path& output, const SearchOptions& options) {
  const auto started = std::chrono::steady_clock::now();
  const Recipe recipe = RecipeReader(recipe_name).read(recipe_text);
  if (path_kind(output) != PathKind::nothing && !options.force)
    throw Error(ErrorCode::invalid_argument, "the output exists already", {.file = output.string()},
                "choose another name, or replace it with --force");

  SearchReport report;
  report.output = output;
  report.rule = recipe.rule;
  std::vector<Wanted> wanted = recipe.wanted;
  if (recipe.rule == "lcsc") wanted = {{.name = "weight", .each_model = true, .groups = 1, .low = 0, .high = 1, .start = 0}};
  std::vector<double> start;
  for (const Wanted& one : wanted) {
    const std::size_t places = one.each_model ? recipe.num_models : 1;
    for (std::size_t m = 0; m < places; ++m)
      for (std::size_t g = 0; g < one.groups; ++g) {
        std::string name = one.each_model ? fmt::format("models[{}].{}", m, one.name) : one.name;
        if (one.groups > 1) name += fmt::format("[{}]", g);
        report.names.push_back(std::move(name));
        start.push_back((one.start - one.low) / (one.high - one.low));
      }
  }
  if (start.size() > kMaxCoefficients)
    throw Error(ErrorCode::invalid_argument, fmt::format("{} coefficients are too many to search for", start.size()), {.file = recipe_name.string()},
                fmt::format("stay below {}: fewer groups", kMaxCoefficients));
  const auto scaled = [&](const std::vector<double>& values) {
    if (recipe.rule == "lcsc") return values;
    std::vector<double> out = values;
    std::size_t at = 0;
    for (const Wanted& one : wanted)
      for (std::size_t i = 0; i < (one.each_model ? recipe.num_models : 1) * one.groups; ++i, ++at)
        out[at] = one.low + values[at] * (one.high - one.low);
    return out;
  };
  const auto config_of = [&](const std::vector<double>& values) {
    Json config = recipe.config;
    const std::vector<double> numbers = scaled(values);
    std::size_t at = 0;
    for (const Wanted& one : wanted)
      for (std::size_t m = 0; m < (one.each_model ? recipe.num_models : 1); ++m, at += one.groups)
        set_parameter(one.each_model ? (*config.find("models")->array())[m] : config, one.name, std::span(numbers).subspan(at, one.groups));
    return config;
  };

  Evaluator evaluator(recipe, recipe_name, output, options);
  evaluator.begin(config_of(recipe.rule == "lcsc" ? std::vector<double>(start.size(), 1.0 / static_cast<double>(start.size())) : start), recipe_text);
  const auto score = [&](const std::vector<double>& values) {
    const double value = evaluator.score(config_of(values));
    if (options.on_progress)
      options.on_progress({.what = "searching",
                           .done_bytes = evaluator.num_evaluations,
                           .total_bytes = std::max(recipe.evaluations, evaluator.num_evaluations),
                           .elapsed_seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count()});
    return value;
  };
  std::vector<Candidate> best;
  if (recipe.rule == "lcsc") {
    Combination combination(recipe.num_models, options.seed, score);
    best = combination.run(recipe.evaluations);
    report.baselines = combination.baselines;
  } else {
    best = evolve(start, recipe.sigma.value_or(0.2), recipe.population, recipe.evaluations, options.seed, score);
    report.baselines.emplace_back("start", score(start));
  }
  if (!std::isfinite(best.front().score))
    throw Error(ErrorCode::invalid_argument, "no candidate gives a model that runs", {.file = recipe_name.string()},
                "look at the ranges and at where the search starts");

  // What fits the text of the search by chance does not fit another.
  const Candidate* chosen = &best.front();
  if (evaluator.has_held_out()) {
    double least = std::numeric_limits<double>::infinity();
    for (std::size_t i = 0; i < std::min<std::size_t>(5, best.size()); ++i) {
      const double held_out = evaluator.score(config_of(best[i].values), true);
      if (held_out < least || i == 0) {
        least = held_out;
        chosen = &best[i];
      }
    }
    report.held_out = least;
  } else {
    evaluator.warnings.emplace_back(
        "there is no held_out text: the score is of the text that the search "
        "saw, and flatters");
  }
  report.score = chosen->score;
  report.coefficients = scaled(chosen->values);
  double least = std::numeric_limits<double>::infinity();
  for (const auto& [name, value] : report.baselines) least = std::min(least, value);
  if (!(chosen->score < least)) evaluator.warnings.emplace_back("the search has found nothing better than what it began with");

  std::string text = fmt::format("# weft {}: search by {}, {} evaluations, seed {}; {:.6f} nats a token", std::string(version()), recipe.rule,
                                 evaluator.num_evaluations, options.seed, report.score);
  if (report.held_out) text += fmt::format(", {:.6f} on the held-out text", *report.held_out);
  text += "\n" + write_json(config_of(chosen->values), 2) + "\n";
  Staging staging(output, Staging::What::file, options.force ? Existing::replace : Existing::refuse);
  staging.create(output.filename().string()).write(0, std::as_bytes(std::span(text)));
  staging.commit();
  evaluator.finish();
  report.num_evaluations = evaluator.num_evaluations;
  report.num_resumed = evaluator.num_resumed;
  report.warnings = evaluator.warnings;
  if (options.on_warning)
    for (const std::string& warning : report.warnings) options.on_warning(warning);
  report.elapsed_seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count();
  return report;
}

}  // namespace weft
