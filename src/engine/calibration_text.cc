#include "engine/calibration_text.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "base/check.h"
#include "base/file.h"
#include "base/philox.h"
#include "base/text.h"
#include "model/chat_template.h"
#include "model/tokenizer.h"
#include "model/vocabulary.h"
#include "weft/error.h"

namespace weft::engine {
namespace {

namespace fs = std::filesystem;

constexpr std::uint64_t kMaxTextBytes = std::uint64_t{1} << 30;
constexpr std::uint64_t kMaxSequenceTokens = std::uint64_t{1} << 20;

/// Turns documents into tokens.
class Reader {
 public:
  explicit Reader(RunningModel& model) : model_(model), tokenizer_(model.tokenizer("a calibration text")) {}

  /// Of each document.
  std::vector<std::vector<std::uint32_t>> documents;
  Hasher corpus;

  void read(const fs::path& file) {
    const std::string content = read_text_file(file, kMaxTextBytes);
    corpus.add(std::as_bytes(std::span(content)));
    if (!file.string().ends_with(".jsonl")) {
      add(content, true);
      return;
    }
    std::size_t number = 0;
    for (std::size_t at = 0; at < content.size();) {
      const std::size_t end = std::min(content.find('\n', at), content.size());
      const std::string_view line(content.data() + at, end - at);
      at = end + 1;
      ++number;
      if (line.find_first_not_of(" \t\r") != std::string_view::npos) add_line(line, file, number);
    }
  }

 private:
  void add(std::string_view document, bool plain) {
    model::EncodeOptions options;
    options.add_special_tokens = false;
    // Text out of the wild must not turn into control tokens; what a chat template writes must.
    options.recognise_special_tokens = !plain;
    std::vector<std::uint32_t> ids = tokenizer_.encode(document, options).ids;
    if (!ids.empty()) documents.push_back(std::move(ids));
  }

  void add_line(std::string_view line, const fs::path& file, std::size_t number) {
    const auto refuse = [&](const std::string& what) {
      throw Error(ErrorCode::invalid_argument, fmt::format("line {}: {}", number, what), {.file = file.string()},
                  R"(each line is "TEXT", {"text": "..."} or {"messages": [{"role", "content"}, ...]})");
    };
    Json json;
    try {
      json = parse_json(line, file);
    } catch (const Error& error) {
      refuse(error.message());
    }
    const Json* text = json.is_object() ? json.find("text") : &json;
    if (text != nullptr && text->string() != nullptr) {
      add(*text->string(), true);
      return;
    }
    Json* messages = json.find("messages");
    if (messages == nullptr || messages->array() == nullptr) refuse("there is no text and there are no messages");
    Json variables(Json::Object{{"messages", *messages}, {"add_generation_prompt", Json(false)}, {"tools", Json()}, {"documents", Json()}});
    for (const model::NamedToken& token : tokenizer_.named_tokens())
      if (variables.find(token.name) == nullptr) variables.set(token.name, Json(token.token));
    try {
      add(renderer().render(variables), false);
    } catch (const Error& error) {
      if (error.code() == ErrorCode::invalid_argument) refuse(error.message());
      throw;
    }
  }

  const model::ChatRenderer& renderer() {
    if (renderer_) return *renderer_;
    const fs::path& folder = model_.files().folder;
    const std::optional<model::ChatTemplate> own = path_kind(folder) == PathKind::folder ? model::read_chat_template(folder) : std::nullopt;
    if (!own && tokenizer_.chat_template() == nullptr)
      throw Error(ErrorCode::not_found, "the calibration text holds chats, but the model has no chat template", {.file = folder.string()},
                  R"(write each as {"text": "..."})");
    renderer_.emplace(own ? own->text : *tokenizer_.chat_template(), folder);
    return *renderer_;
  }

  RunningModel& model_;
  const model::Tokenizer& tokenizer_;
  std::optional<model::ChatRenderer> renderer_;
};

/// `count` of [0, total), each at most once, ascending: those with the smallest random numbers.
std::vector<std::size_t> draw(std::size_t count, std::size_t total, std::uint64_t seed) {
  const RandomStream random = RandomStream::of(seed, "calibration text", 0, 0);
  std::vector<std::size_t> order(total);
  for (std::size_t i = 0; i < total; ++i) order[i] = i;
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return random.uniform(a) < random.uniform(b); });
  order.resize(count);
  std::sort(order.begin(), order.end());
  return order;
}

}  // namespace

CalibrationData read_calibration_text(RunningModel& model, const CalibrationText& text, std::uint64_t seed) {
  if (text.files.empty()) throw Error(ErrorCode::invalid_argument, "there is no calibration text", {.key = "--text"}, "give a file with --text");
  if (text.length == 0 || text.length > kMaxSequenceTokens)
    throw Error(ErrorCode::invalid_argument, fmt::format("a calibration sequence of {} tokens makes no sense", text.length), {.key = "--length"},
                fmt::format("give a number from 1 to {}", kMaxSequenceTokens));
  if (model.config().positions == model::PositionKind::learned && static_cast<std::int64_t>(text.length) > model.config().context)
    throw Error(ErrorCode::invalid_argument,
                fmt::format("sequences of {} tokens, but the model has learned {} positions", text.length, model.config().context),
                {.key = "--length"}, "choose a smaller length");
  Reader reader(model);
  for (const fs::path& file : text.files) reader.read(file);

  auto tokens = std::make_shared<CalibrationTokens>();
  const auto length = static_cast<std::size_t>(text.length);
  std::size_t num_tokens = 0;
  for (const auto& document : reader.documents) num_tokens += document.size();
  if (text.separate) {
    for (auto& document : reader.documents) {
      document.resize(std::min(document.size(), length));
      tokens->sequences.push_back(std::move(document));
    }
  } else {
    std::vector<std::uint32_t> stream;
    stream.reserve(num_tokens);
    for (const auto& document : reader.documents) stream.insert(stream.end(), document.begin(), document.end());
    for (std::size_t at = 0; at + length <= stream.size(); at += length)
      tokens->sequences.emplace_back(stream.begin() + static_cast<std::ptrdiff_t>(at), stream.begin() + static_cast<std::ptrdiff_t>(at + length));
  }
  const std::size_t found = tokens->sequences.size();
  const auto wanted = static_cast<std::size_t>(text.num_sequences);
  if (found == 0 || found < wanted)
    throw Error(ErrorCode::invalid_argument,
                fmt::format("the calibration text is too short: {} tokens give {} sequence{} of {}, and {} are wanted", num_tokens, found,
                            found == 1 ? "" : "s", text.length, std::max<std::size_t>(wanted, 1)),
                {.file = text.files.front().string()}, "give more text, or lower --samples (0: all that there are) or --length");
  if (wanted > 0 && wanted < found) {
    if (text.order == CalibrationText::Order::first) {
      tokens->sequences.resize(wanted);
    } else {
      std::vector<std::vector<std::uint32_t>> drawn;
      for (const std::size_t s : draw(wanted, found, seed)) drawn.push_back(std::move(tokens->sequences[s]));
      tokens->sequences = std::move(drawn);
    }
  }
  CalibrationData data;
  data.tokens = std::move(tokens);
  for (const fs::path& file : text.files) data.names.push_back(file.filename().string());
  data.corpus_digest = to_string(reader.corpus.checksum());
  return data;
}

}  // namespace weft::engine
