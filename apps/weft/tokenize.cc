#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "adapt/folded_model.h"
#include "base/text.h"
#include "checkpoint/model_folder.h"
#include "commands.h"
#include "common.h"
#include "json_lines.h"
#include "model/tokenizer.h"

namespace weft::app {
namespace {

using model::EncodeOptions;
using model::Encoding;
using model::Tokenizer;

struct Arguments {
  CommonOptions common;
  std::string model;
  std::string file;
  std::vector<std::string> texts;
  bool no_special = false;
  bool specials_as_text = false;
  bool truncation = false;
  bool padding = false;
  bool decode = false;
  bool skip_special = false;
  std::uint64_t max_length = 0;
  std::uint64_t stride = 0;
  std::string side = "right";
  std::string strategy = "longest_first";
};

constexpr const char* kLineAdvice = "a line is a text, or {\"text\": ...} or {\"hex\": ...}, perhaps with \"pair\"";

Json ids_json(const std::vector<std::uint32_t>& ids) {
  Json::Array list;
  list.reserve(ids.size());
  for (const std::uint32_t id : ids) list.emplace_back(std::uint64_t{id});
  return Json(std::move(list));
}

Json encoding_json(const Encoding& encoding, bool cut, bool padded) {
  Json::Array tokens;
  for (const std::string& token : encoding.tokens) tokens.emplace_back(token);
  Json::Array offsets;
  for (const auto& [begin, end] : encoding.offsets) offsets.emplace_back(Json::Array{Json(std::uint64_t{begin}), Json(std::uint64_t{end})});
  Json::Object object{{"ids", ids_json(encoding.ids)},
                      {"tokens", Json(std::move(tokens))},
                      {"offsets", Json(std::move(offsets))},
                      {"type_ids", ids_json(encoding.type_ids)}};
  if (padded) object.emplace_back("attention_mask", ids_json({encoding.attention.begin(), encoding.attention.end()}));
  if (cut) {
    Json::Array windows;
    for (const Encoding& window : encoding.overflowing) windows.push_back(encoding_json(window, false, padded));
    object.emplace_back("overflowing", Json(std::move(windows)));
  }
  return Json(std::move(object));
}

int hex_digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

std::optional<std::string> from_hex(const std::string& hex) {
  if (hex.size() % 2 != 0) return std::nullopt;
  std::string bytes;
  for (std::size_t i = 0; i < hex.size(); i += 2) {
    const int high = hex_digit(hex[i]);
    const int low = hex_digit(hex[i + 1]);
    if (high < 0 || low < 0) return std::nullopt;
    bytes.push_back(static_cast<char>(high * 16 + low));
  }
  return bytes;
}

model::Truncation::Strategy strategy_of(const std::string& name) {
  if (name == "only_first") return model::Truncation::Strategy::only_first;
  if (name == "only_second") return model::Truncation::Strategy::only_second;
  return model::Truncation::Strategy::longest_first;
}

EncodeOptions options_of(const Arguments& arguments, const Tokenizer& tokenizer) {
  EncodeOptions options;
  options.add_special_tokens = !arguments.no_special;
  options.recognise_special_tokens = !arguments.specials_as_text;
  options.tokens = true;
  options.offsets = true;
  if (arguments.max_length > 0) {
    options.truncation.emplace();
    options.truncation->max_length = arguments.max_length;
    options.truncation->stride = arguments.stride;
    options.truncation->strategy = strategy_of(arguments.strategy);
    if (arguments.side == "left") options.truncation->direction = model::Truncation::Direction::left;
  } else if (arguments.truncation) {
    options.truncation = tokenizer.file_truncation();
    if (!options.truncation)
      throw Error(ErrorCode::invalid_argument, "the tokenizer's file says nothing of truncation", {.file = arguments.model, .key = "--truncation"},
                  "say how long a text may be: --max-length N");
  }
  return options;
}

model::Padding padding_of(const Tokenizer& tokenizer) {
  if (tokenizer.file_padding()) return *tokenizer.file_padding();
  model::Padding padding;
  for (const model::NamedToken& token : tokenizer.named_tokens()) {
    if (token.name != "pad_token" || !token.id) continue;
    padding.id = *token.id;
    padding.token = token.token;
  }
  return padding;
}

void encode_lines(const Arguments& arguments, const Tokenizer& tokenizer) {
  EncodeOptions options = options_of(arguments, tokenizer);
  const bool cut = options.truncation.has_value();
  // Without a length of its own padding goes to the longest text, so all are held back.
  std::optional<model::Padding> all;
  if (arguments.padding) {
    const model::Padding padding = padding_of(tokenizer);
    if (padding.length)
      options.padding = padding;
    else
      all = padding;
  }
  std::vector<Encoding> held;
  const auto done = [&](Encoding encoding) {
    if (all)
      held.push_back(std::move(encoding));
    else
      print_json_line(encoding_json(encoding, cut, arguments.padding));
  };
  for (const std::string& text : arguments.texts) done(tokenizer.encode(text, options));
  if (!arguments.file.empty()) {
    for_each_json_line(arguments.file, [&](const Json& line, std::uint64_t number) {
      const auto text_of = [&](const Json* value, const Json* hex) -> std::optional<std::string> {
        if (value != nullptr && value->string() != nullptr) return *value->string();
        return hex == nullptr || hex->string() == nullptr ? std::nullopt : from_hex(*hex->string());
      };
      const std::optional<std::string> text = text_of(line.is_string() ? &line : line.find("text"), line.find("hex"));
      if (!text) refuse_line(arguments.file, number, "has no text", kLineAdvice);
      const Json* pair = line.find("pair");
      if (pair == nullptr || pair->is_null()) return done(tokenizer.encode(*text, options));
      if (pair->string() == nullptr) refuse_line(arguments.file, number, "has a pair that is no text", kLineAdvice);
      done(tokenizer.encode_pair(*text, *pair->string(), options));
    });
  }
  if (!all) return;
  Tokenizer::pad(held, *all);
  for (const Encoding& encoding : held) print_json_line(encoding_json(encoding, cut, true));
}

void decode_lines(const Arguments& arguments, const Tokenizer& tokenizer) {
  if (arguments.file.empty())
    throw Error(ErrorCode::invalid_argument, "--decode needs a file of ids", {.key = "--file"}, "a line is a list of ids, or {\"ids\": [...]}");
  for_each_json_line(arguments.file, [&](const Json& line, std::uint64_t number) {
    const Json* list = line.is_array() ? &line : line.find("ids");
    if (list == nullptr || !list->is_array()) refuse_line(arguments.file, number, "has no ids", "a line is a list of ids, or {\"ids\": [...]}");
    std::vector<std::uint32_t> ids;
    for (const Json& item : *list->array()) {
      const auto id = item.unsigned_integer();
      if (!id || *id > UINT32_MAX) refuse_line(arguments.file, number, "holds what is no id", "ids are whole numbers of 0 or more");
      ids.push_back(static_cast<std::uint32_t>(*id));
    }
    print_json_line(Json(Json::Object{{"text", Json(tokenizer.decode(ids, arguments.skip_special))}}));
  });
}

int run_tokenize(const Arguments& arguments) {
  if (arguments.file.empty() && arguments.texts.empty())
    throw Error(ErrorCode::invalid_argument, "nothing to tokenize", {.key = "--file"}, "give --file FILE (- for standard input) or --text TEXT");
  const Tokenizer tokenizer = Tokenizer::open(resolve_model(adapt::split_adapters(arguments.model).model).path);
  arguments.decode ? decode_lines(arguments, tokenizer) : encode_lines(arguments, tokenizer);
  return 0;
}

}  // namespace

Command tokenize_command() {
  auto arguments = std::make_shared<Arguments>();
  Command command;
  command.name = "tokenize";
  command.family = "Run";
  command.summary = "turn texts into tokens, or tokens into texts";
  command.synopsis = "MODEL --file FILE [OPTION]...";
  command.description =
      "Prints one JSON document for each line: {ids, tokens, offsets, type_ids}; offsets count code points. A line of the file is a JSON string, or "
      "an "
      "object with text (or hex: bytes that may be no UTF-8) and perhaps pair, a second text.\n\n"
      "Texts are neither cut off nor filled up unless asked, whatever the tokenizer's file says.\n\n"
      "With --decode a line is a list of ids or {ids}, and {text} is printed.";
  command.example = "weft tokenize models/tiny-base --text Hello";
  command.positional("MODEL", arguments->model, "a model, or a tokenizer.json or tokenizer.model alone");
  command.group("Input");
  command.path({"--file"}, "FILE", arguments->file, "JSON lines; - for standard input");
  Option& text = command.custom({"--text"}, "TEXT", "a text given here; may be repeated",
                                [arguments](const std::string& value) { arguments->texts.push_back(value); });
  text.repeated = true;
  command.group("Encoding");
  command.flag({"--no-special"}, arguments->no_special, "add no special tokens such as <s> or [CLS]");
  command.flag({"--specials-as-text"}, arguments->specials_as_text, "treat special tokens written in the text as ordinary text");
  command.flag({"--truncation"}, arguments->truncation, "cut texts off as the tokenizer's file says");
  command.number({"--max-length"}, arguments->max_length, "cut texts off at N tokens, special ones included").default_text = "none";
  command.number({"--stride"}, arguments->stride, "tokens that the windows of a cut text share").default_text = "0";
  Option& side = command.value({"--truncation-side"}, "SIDE", arguments->side, "where tokens are cut off");
  side.kind = ValueKind::choice;
  side.choices = {"right", "left"};
  side.default_text = "right";
  Option& strategy = command.value({"--truncation-strategy"}, "WHICH", arguments->strategy, "which text of a pair is cut");
  strategy.kind = ValueKind::choice;
  strategy.choices = {"longest_first", "only_first", "only_second"};
  strategy.default_text = "longest_first";
  command.flag({"--padding"}, arguments->padding, "fill texts up as the tokenizer's file says, else to the longest one");
  command.group("Decoding");
  command.flag({"--decode"}, arguments->decode, "read ids, print texts");
  command.flag({"--skip-special"}, arguments->skip_special, "leave special tokens out of the text");
  add_print_options(command, arguments->common);
  command.run = [arguments] { return run_tokenize(*arguments); };
  return command;
}

}  // namespace weft::app
