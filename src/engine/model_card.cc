#include "engine/model_card.h"

#include <algorithm>
#include <array>
#include <system_error>

#include "base/text.h"
#include "checkpoint/json.h"
#include "checkpoint/model_folder.h"
#include "weft/version.h"

namespace weft::engine {
namespace {

/// One line of text that Markdown shows as it is: names come from configs and paths.
std::string code(const std::string& text) {
  const std::string line = printable(text, 1000);
  std::size_t longest = 0;
  std::size_t run = 0;
  for (const char c : line) {
    run = c == '`' ? run + 1 : 0;
    longest = std::max(longest, run);
  }
  const std::string ticks(longest + 1, '`');
  const std::string space = line.starts_with('`') || line.ends_with('`') ? " " : "";
  return ticks + space + line + space + ticks;
}

/// A fence that the text cannot close.
std::string fence_for(const std::string& text) {
  std::size_t longest = 0;
  std::size_t run = 0;
  for (const char c : text) {
    run = c == '`' ? run + 1 : 0;
    longest = std::max(longest, run);
  }
  return std::string(std::max<std::size_t>(3, longest + 1), '`');
}

/// A YAML scalar. Double-quoted YAML takes JSON's escapes.
std::string scalar(const std::string& text) {
  const bool plain = !text.empty() && text.front() != '-' && std::all_of(text.begin(), text.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '/' || c == '_' || c == '-' || c == '.' || (c >= '0' && c <= '9');
  });
  // What looks like a number, a truth value or nothing would change its type.
  const bool starts_with_letter = !text.empty() && ((text.front() >= 'a' && text.front() <= 'z') || (text.front() >= 'A' && text.front() <= 'Z'));
  const bool path = text.find('/') != std::string::npos;
  constexpr std::array<std::string_view, 8> kWords = {"null", "true", "false", "yes", "no", "on", "off", "y"};
  std::string lower = text;
  for (char& c : lower) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  const bool word = lower == "n" || std::find(kWords.begin(), kWords.end(), lower) != kWords.end();
  return plain && (starts_with_letter || path) && !word ? text : json_quote(text);
}

std::string paper(const std::string& text) {
  constexpr std::string_view kArxiv = "arXiv:";
  if (text.starts_with(kArxiv)) return "[" + text + "](https://arxiv.org/abs/" + text.substr(kArxiv.size()) + ")";
  return text;
}

}  // namespace

std::string write_model_card(const ModelCard& card) {
  std::string text = "---\n";
  std::vector<std::string> models = card.models;
  if (card.base_model && std::find(models.begin(), models.end(), *card.base_model) == models.end()) models.push_back(*card.base_model);
  if (!models.empty()) {
    text += "base_model:\n";
    for (const std::string& model : models) text += "- " + scalar(model) + "\n";
  }
  text += "library_name: transformers\ntags:\n- mergekit\n- merge\n---\n\n";

  text += "# " + (card.title.empty() ? std::string("Merged model") : printable(card.title)) + "\n\n";
  text += "This model was made by merging others, with weft " + std::string(version()) + " and a mergekit configuration.\n\n";
  text += "## Method\n\n" + code(card.method);
  if (!card.method_summary.empty()) text += ": " + card.method_summary;
  if (!card.method_paper.empty()) text += " (" + paper(card.method_paper) + ")";
  text += ".\n";
  if (card.base_model) text += "\nThe base is " + code(*card.base_model) + ".\n";
  text += "\n## Models\n\n";
  for (const std::string& model : card.models)
    if (!card.base_model || model != *card.base_model || card.models.size() == 1) text += "- " + code(model) + "\n";
  const std::string fence = fence_for(card.config_text);
  text += "\n## Configuration\n\n" + fence + "yaml\n" + card.config_text;
  if (!card.config_text.ends_with('\n')) text += "\n";
  text += fence + "\n";
  return text;
}

std::vector<CompanionFile> model_card_files(const ModelCard& card) {
  return {{"README.md", write_model_card(card)}, {"mergekit_config.yml", card.config_text}};
}

std::vector<CompanionFile> donor_companion_files(const std::filesystem::path& donor) {
  constexpr std::array<std::string_view, 4> kConfigs = {"generation_config.json", "preprocessor_config.json", "processor_config.json",
                                                        "video_preprocessor_config.json"};
  constexpr std::array<std::string_view, 6> kLicences = {"LICENSE", "LICENCE", "License", "NOTICE", "Notice", "USE_POLICY"};
  std::vector<CompanionFile> files;
  std::error_code ignored;  // a donor that is one file has no companions
  if (!std::filesystem::is_directory(donor, ignored)) return files;
  for (const std::string& name : companion_files(donor)) {
    const bool licence = std::any_of(kLicences.begin(), kLicences.end(), [&](std::string_view stem) { return name.starts_with(stem); });
    if (licence || name == "COPYING" || std::find(kConfigs.begin(), kConfigs.end(), name) != kConfigs.end())
      files.push_back({name, {}, donor / name});
  }
  return files;
}

}  // namespace weft::engine
