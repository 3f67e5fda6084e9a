#pragma once
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/merge_tokenizer.h"

// The small files that make a merged folder complete: model card, config text, what travels with the donor.
namespace weft::engine {

/// What a model card tells.
struct ModelCard {
  std::string title;                      ///< usually the output folder's name
  std::string method;                     ///< name in the config
  std::string method_summary;             ///< one line; may be empty
  std::string method_paper;               ///< title, arXiv number or URL; may be empty
  std::optional<std::string> base_model;  ///< as written
  std::vector<std::string> models;        ///< as written, in file order, base included if it is one of them
  std::string config_text;                ///< the config as given
};

/// README.md: front matter (base_model, library_name, tags), title, method, models, the config, version of weft.
[[nodiscard]] std::string write_model_card(const ModelCard& card);

/// README.md and mergekit_config.yml.
[[nodiscard]] std::vector<CompanionFile> model_card_files(const ModelCard& card);

/// What travels with the donor beside config.json and the tokenizer: generation_config.json, processor configs, licence files.
[[nodiscard]] std::vector<CompanionFile> donor_companion_files(const std::filesystem::path& donor);

}  // namespace weft::engine
