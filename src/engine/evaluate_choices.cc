#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <utility>

#include "base/file.h"
#include "engine/running_model.h"
#include "math/neural.h"
#include "weft/error.h"
#include "weft/evaluate.h"

namespace weft {
namespace {

using engine::RunningModel;

constexpr std::size_t kLogitRows = 64;

struct Question {
  std::string prompt;
  std::vector<std::string> choices;
  std::uint64_t answer = 0;
};

std::vector<Question> read_questions(const std::filesystem::path& file) {
  const std::string text = read_text_file(file, std::uint64_t{1} << 30);
  std::vector<Question> questions;
  std::size_t line_number = 0;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = std::min(text.find('\n', at), text.size());
    const std::string_view line(text.data() + at, end - at);
    at = end + 1;
    ++line_number;
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    const auto refuse = [&](const char* what) {
      throw Error(ErrorCode::invalid_argument, fmt::format("line {}: {}", line_number, what), {.file = file.string()},
                  R"(each line is {"prompt": "...", "choices": ["...", "..."], "answer": 0})");
    };
    const Json json = parse_json(line, file);
    Question& question = questions.emplace_back();
    const Json* prompt = json.find("prompt");
    const Json* choices = json.find("choices");
    const Json* answer = json.find("answer");
    if (prompt == nullptr || prompt->string() == nullptr) refuse("there is no text 'prompt'");
    if (choices == nullptr || choices->array() == nullptr || choices->array()->size() < 2) refuse("'choices' is no list of two texts or more");
    if (answer == nullptr || !answer->unsigned_integer() || *answer->unsigned_integer() >= choices->array()->size())
      refuse("'answer' is no number of a choice, counted from 0");
    question.prompt = *prompt->string();
    question.answer = *answer->unsigned_integer();
    for (const Json& choice : *choices->array()) {
      if (choice.string() == nullptr || choice.string()->empty()) refuse("a choice is no text, or empty");
      question.choices.push_back(*choice.string());
    }
  }
  if (questions.empty()) throw Error(ErrorCode::invalid_argument, "the file holds no question", {.file = file.string()}, "give one a line");
  return questions;
}

}  // namespace

ChoiceReport evaluate_choices(std::string_view model_name, const std::filesystem::path& file, const RunOptions& options) {
  const std::vector<Question> questions = read_questions(file);
  RunningModel running(model_name, options);
  if (!running.network().has_head() || running.config().kind != model::NetworkKind::decoder)
    throw Error(ErrorCode::unsupported, "choices are scored by a model that predicts the next token", {.file = running.files().folder.string()}, "");
  const model::Tokenizer& tokenizer = running.tokenizer("a question");
  const auto hidden = static_cast<std::size_t>(running.config().hidden), vocab = static_cast<std::size_t>(running.config().vocab);

  ChoiceReport report;
  std::uint64_t right = 0, right_normalised = 0, tokens_run = 0;
  const auto started = std::chrono::steady_clock::now();
  std::vector<float> logits;
  for (const Question& question : questions) {
    running.check_cancelled();
    const std::vector<std::uint32_t> prompt = tokenizer.ids(question.prompt, true);
    std::vector<std::vector<std::uint32_t>> texts;
    std::vector<std::size_t> firsts;  // where the choice begins
    for (const std::string& choice : question.choices) {
      std::vector<std::uint32_t> ids = tokenizer.ids(question.prompt + choice, true);
      // A tokenizer that ends texts with a token has one here that the model shall not predict beyond the choice; it is the same for all.
      std::size_t shared = 0;
      while (shared < prompt.size() && shared < ids.size() && prompt[shared] == ids[shared]) ++shared;
      // A choice that melts into the prompt's last token begins there; the first token of all has nothing before it.
      firsts.push_back(std::max<std::size_t>(1, std::min(shared, ids.size() - 1)));
      texts.push_back(std::move(ids));
    }
    std::vector<model::TokenChunk> chunks;
    for (const auto& ids : texts) chunks.push_back({nullptr, ids, {}});
    const std::vector<float> x = running.network().run(chunks);

    ChoiceScore score;
    score.answer = question.answer;
    std::size_t row = 0;
    for (std::size_t c = 0; c < texts.size(); ++c) {
      double sum = 0;
      for (std::size_t t = firsts[c]; t < texts[c].size(); t += kLogitRows) {
        const std::size_t count = std::min(kLogitRows, texts[c].size() - t);
        logits.resize(count * vocab);
        running.network().logits({x.data() + (row + t - 1) * hidden, count, hidden, hidden}, logits);
        for (std::size_t i = 0; i < count; ++i)
          sum += static_cast<double>(logits[i * vocab + texts[c][t + i]]) - math::log_sum_exp(logits.data() + i * vocab, vocab);
      }
      score.log_likelihoods.push_back(sum);
      row += texts[c].size();
    }
    tokens_run += row;
    const auto better = [&](std::size_t a, std::size_t b, bool normalised) {
      const auto value = [&](std::size_t c) {
        return normalised ? score.log_likelihoods[c] / static_cast<double>(question.choices[c].size()) : score.log_likelihoods[c];
      };
      return value(a) > value(b);
    };
    for (std::size_t c = 1; c < texts.size(); ++c) {
      if (better(c, static_cast<std::size_t>(score.chosen), false)) score.chosen = c;
      if (better(c, static_cast<std::size_t>(score.chosen_normalised), true)) score.chosen_normalised = c;
    }
    right += score.chosen == score.answer ? 1 : 0;
    right_normalised += score.chosen_normalised == score.answer ? 1 : 0;
    report.questions.push_back(std::move(score));
  }
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count();
  report.accuracy = static_cast<double>(right) / static_cast<double>(questions.size());
  report.accuracy_normalised = static_cast<double>(right_normalised) / static_cast<double>(questions.size());
  report.tokens_per_second = seconds > 0 ? static_cast<double>(tokens_run) / seconds : 0;
  report.warnings = running.warnings();
  return report;
}

}  // namespace weft
