#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <string>

#include "base/file.h"
#include "checkpoint/json.h"
#include "model/chat_template.h"
#include "model/tokenizer.h"
#include "weft/error.h"

// Conversations as transformers renders them. The file is described in its README.
namespace weft::model {
namespace {

namespace fs = std::filesystem;

const fs::path kGolden = fs::path(WEFT_SOURCE_DIR) / "../shared/golden/tokenizer";

TEST(ChatGolden, every_conversation_reads_as_transformers_renders_it) {
  if (!fs::exists(kGolden / "chat/cases.jsonl")) GTEST_SKIP() << "needs the shared tokenizer goldens";
  std::map<std::string, Tokenizer> tokenizers;
  std::ifstream in(kGolden / "chat/cases.jsonl");
  int count = 0;
  for (std::string line; std::getline(in, line); ++count) {
    Json json = parse_json(line, "cases.jsonl");
    const std::string name = *json.find("template")->string();
    const std::string tokenizer_name = *json.find("tokenizer")->string();
    const ChatRenderer renderer(read_text_file(kGolden / "chat" / (name + ".jinja"), 1 << 20));
    if (const Json* more = json.find("variables"))
      for (const auto& [key, value] : Json::Object(*more->object())) json.set(key, value);
    if (json.find("error") != nullptr) {
      EXPECT_THROW(static_cast<void>(renderer.render(json)), Error) << line;
      continue;
    }
    const std::string text = renderer.render(json);
    EXPECT_EQ(text, *json.find("rendered")->string());
    auto at = tokenizers.find(tokenizer_name);
    if (at == tokenizers.end()) at = tokenizers.emplace(tokenizer_name, Tokenizer::open(kGolden / "models" / tokenizer_name)).first;
    std::vector<std::uint32_t> ids;
    for (const Json& id : *json.find("ids")->array()) ids.push_back(static_cast<std::uint32_t>(*id.unsigned_integer()));
    EXPECT_EQ(at->second.ids(text, false), ids) << line;
  }
  EXPECT_GE(count, 70);
}

}  // namespace
}  // namespace weft::model
