#include "weft/generate.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <set>
#include <utility>

#include "base/file.h"
#include "engine/running_model.h"
#include "model/chat_template.h"
#include "model/sampler.h"
#include "model/vocabulary.h"
#include "weft/error.h"

namespace weft {
namespace {

using engine::RunningModel;

double seconds_since(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

/// Text as it comes, with the end held back where it may be the beginning of a stop text.
class StoppingText {
 public:
  StoppingText(const std::vector<std::string>& stops, const std::function<void(std::string_view)>& on_text) : stops_(stops), on_text_(on_text) {}

  /// Whether a stop text has come; what stands before it is then the whole text.
  bool push(std::string_view more) {
    text_ += more;
    std::size_t found = std::string::npos;
    for (const std::string& stop : stops_) {
      const std::size_t from = shown_ < stop.size() ? 0 : shown_ - stop.size();
      found = std::min(found, text_.find(stop, from));
    }
    if (found != std::string::npos) {
      text_.resize(std::max(found, shown_));
      show(text_.size());
      return true;
    }
    std::size_t held = 0;
    for (const std::string& stop : stops_)
      for (std::size_t n = std::min(stop.size() - 1, text_.size() - shown_); n > held; --n)
        if (text_.compare(text_.size() - n, n, stop, 0, n) == 0) held = n;
    show(text_.size() - held);
    return false;
  }
  void finish() { show(text_.size()); }
  [[nodiscard]] const std::string& text() const { return text_; }

 private:
  void show(std::size_t end) {
    if (end > shown_ && on_text_) on_text_(std::string_view(text_).substr(shown_, end - shown_));
    shown_ = std::max(shown_, end);
  }
  const std::vector<std::string>& stops_;
  const std::function<void(std::string_view)>& on_text_;
  std::string text_;
  std::size_t shown_ = 0;
};

/// Tokens that end a text: one id or a list of them, in either file.
void add_end_tokens(const Json& config, std::set<std::uint32_t>& ends) {
  const Json* value = config.find("eos_token_id");
  if (value == nullptr) return;
  const auto add = [&](const Json& id) {
    if (const auto number = id.integer(); number && *number >= 0 && *number < (std::int64_t{1} << 32))
      ends.insert(static_cast<std::uint32_t>(*number));
  };
  if (value->array() == nullptr)
    add(*value);
  else
    for (const Json& id : *value->array()) add(id);
}

/// Greedy unless the file wants draws, as its readers elsewhere take it.
Sampling sampling_of(const Json& config) {
  Sampling sampling;
  if (const Json* draws = config.find("do_sample"); draws == nullptr || !draws->boolean().value_or(false)) {
    sampling.temperature = 0;
    return sampling;
  }
  const auto number = [&config](const char* key, double& out) {
    if (const Json* value = config.find(key); value != nullptr && value->number()) out = *value->number();
  };
  number("temperature", sampling.temperature);
  number("top_p", sampling.top_p);
  number("min_p", sampling.min_p);
  number("repetition_penalty", sampling.repetition_penalty);
  if (const Json* k = config.find("top_k"); k != nullptr && k->unsigned_integer()) sampling.top_k = *k->unsigned_integer();
  return sampling;
}

}  // namespace

struct Generator::State {
  GenerateOptions options;
  RunningModel running;
  std::set<std::uint32_t> ends;
  Sampling sampling;
  std::uint32_t num_texts = 0;

  State(std::string_view model_name, const GenerateOptions& given) : options(given), running(model_name, given) {
    if (!running.network().has_head() || running.config().kind != model::NetworkKind::decoder)
      throw Error(ErrorCode::unsupported, "text can be generated only by a model that predicts the next token",
                  {.file = running.files().folder.string()}, "an encoder gives embeddings: 'weft forward --what embedding'");
    for (const std::string& stop : options.stops)
      if (stop.empty()) throw Error(ErrorCode::invalid_argument, "a stop text is empty", {.key = "--stop"}, "leave it out");
    add_end_tokens(running.json(), ends);
    sampling.temperature = 0;
    if (const std::optional<Json> config = running.files().json_file("generation_config.json")) {
      add_end_tokens(*config, ends);
      sampling = sampling_of(*config);
    }
    if (options.sampling) sampling = *options.sampling;
    if (options.greedy) sampling.temperature = 0;
    (void)model::Sampler(sampling, options.seed);  // refuses nonsense before anything runs
  }

  Generated generate(std::span<const std::uint32_t> prompt) {
    if (prompt.empty()) throw Error(ErrorCode::invalid_argument, "the prompt has no tokens", {}, "give it some text");
    model::Network& network = running.network();
    const auto hidden = static_cast<std::size_t>(network.config().hidden);
    const bool has_text = running.has_tokenizer();
    if (!has_text && !options.stops.empty()) (void)running.tokenizer("a stop text");
    std::optional<model::TokenStream> stream;
    if (has_text) stream.emplace(running.tokenizer("text"));
    StoppingText text(options.stops, options.on_text);

    Generated out;
    out.prompt_tokens = prompt.size();
    out.finish_reason = "length";
    model::Sampler sampler(sampling, options.seed, num_texts++);
    // The last token is not run. A text may end before that, but a refusal after minutes helps nobody.
    std::uint64_t most = prompt.size() + std::max<std::uint64_t>(options.max_tokens, 1) - 1;
    if (network.config().positions == model::PositionKind::learned) most = std::min(most, static_cast<std::uint64_t>(network.config().context));
    const auto all_tokens = static_cast<std::int64_t>(most);
    running.make_room(network.sequence_bytes(all_tokens, static_cast<std::int64_t>(prompt.size())));
    const auto state = network.new_state(all_tokens);
    std::vector<std::uint32_t> seen(prompt.begin(), prompt.end());
    std::vector<std::uint32_t> next = seen;
    std::vector<float> logits(static_cast<std::size_t>(network.config().vocab));
    auto started = std::chrono::steady_clock::now();
    std::uint64_t steps = 0;
    if (network.config().positions == model::PositionKind::rotary &&
        static_cast<std::int64_t>(prompt.size() + options.max_tokens) > network.config().context)
      running.warn(fmt::format("prompt and new tokens may reach {} positions, beyond the model's context of {}", prompt.size() + options.max_tokens,
                               network.config().context));
    while (out.ids.size() < options.max_tokens) {
      running.check_cancelled();
      if (network.config().positions == model::PositionKind::learned &&
          state->num_tokens() + static_cast<std::int64_t>(next.size()) > network.config().context && !out.ids.empty())
        break;  // no further position was learned
      const model::TokenChunk chunk{state.get(), next, {}};
      const std::vector<float> x = network.run({&chunk, 1});
      network.logits({x.data() + x.size() - hidden, 1, hidden, hidden}, logits);
      if (steps++ == 0) {
        const double seconds = seconds_since(started);
        out.prefill_tokens_per_second = seconds > 0 ? static_cast<double>(prompt.size()) / seconds : 0;
        started = std::chrono::steady_clock::now();
      }
      const std::uint32_t id = sampler.choose(logits, seen);
      out.ids.push_back(id);
      seen.push_back(id);
      next = {id};
      if (!options.ignore_end && ends.contains(id)) {
        out.finish_reason = "end";
        break;
      }
      if (stream && text.push(stream->push(id))) {
        out.finish_reason = "stop";
        break;
      }
    }
    if (steps > 1) {
      const double seconds = seconds_since(started);
      out.decode_tokens_per_second = seconds > 0 ? static_cast<double>(steps - 1) / seconds : 0;
    }
    if (stream && out.finish_reason != "stop") {
      if (text.push(stream->finish())) out.finish_reason = "stop";
      text.finish();
    }
    out.text = text.text();
    return out;
  }
};

Generator::Generator(std::string_view model, const GenerateOptions& options) : state_(std::make_unique<State>(model, options)) {}
Generator::~Generator() = default;

Generated Generator::generate(std::string_view prompt, bool special_tokens) {
  const std::vector<std::uint32_t> ids = state_->running.tokenizer("a prompt").ids(prompt, special_tokens);
  if (ids.empty()) throw Error(ErrorCode::invalid_argument, "the prompt is empty", {.key = "--prompt"}, "give it some text");
  return state_->generate(ids);
}
Generated Generator::answer(std::string_view message, std::string_view system) {
  const std::filesystem::path& folder = state_->running.files().folder;
  const model::Tokenizer& tokenizer = state_->running.tokenizer("a chat");
  const bool is_folder = path_kind(folder) == PathKind::folder;
  const std::optional<model::ChatTemplate> own = is_folder ? model::read_chat_template(folder) : std::nullopt;
  if (!own && tokenizer.chat_template() == nullptr)
    throw Error(ErrorCode::not_found, "the model has no chat template", {.file = folder.string()}, "give a plain prompt, without --chat");
  Json::Array messages;
  const auto say = [&messages](const char* role, std::string_view text) {
    messages.emplace_back(Json::Object{{"role", Json(role)}, {"content", Json(text)}});
  };
  if (!system.empty()) say("system", system);
  say("user", message);
  Json variables(
      Json::Object{{"messages", Json(std::move(messages))}, {"add_generation_prompt", Json(true)}, {"tools", Json()}, {"documents", Json()}});
  for (const model::NamedToken& token : tokenizer.named_tokens())
    if (variables.find(token.name) == nullptr) variables.set(token.name, Json(token.token));
  // The template has written the special tokens itself.
  return generate(model::ChatRenderer(own ? own->text : *tokenizer.chat_template(), folder).render(variables), false);
}

Generated Generator::generate(std::span<const std::uint32_t> ids) { return state_->generate(ids); }
std::span<const std::string> Generator::warnings() const noexcept { return state_->running.warnings(); }

}  // namespace weft
