#include <gtest/gtest.h>

#include <sstream>

#include "checkpoint/json.h"
#include "support/command.h"

// The commands tokenize and chat: lines in, lines out.
namespace weft::testing {
namespace {

namespace fs = std::filesystem;

const fs::path kModel = fs::path(WEFT_SOURCE_DIR) / "models/tiny-base";

std::vector<Json> lines_of(const CommandResult& result) {
  EXPECT_EQ(result.status, 0) << result.err;
  std::vector<Json> lines;
  std::istringstream in(result.out);
  for (std::string line; std::getline(in, line);) lines.push_back(parse_json(line, "stdout"));
  return lines;
}
std::string json_of(const Json& line, const char* key) { return line.find(key) == nullptr ? "absent" : write_json(*line.find(key)); }

TEST(TokenizeCommand, a_line_is_a_text_an_object_or_bytes_that_are_no_text) {
  const TemporaryFolder folder;
  write_file(folder / "in.jsonl", "\"Hello\"\n{\"text\": \"Hello\", \"pair\": \"You\"}\n\n{\"hex\": \"48ff\"}\n");
  const auto lines = lines_of(run_weft({"tokenize", kModel, "--file", folder / "in.jsonl"}));
  ASSERT_EQ(lines.size(), 3U);
  EXPECT_EQ(write_json(lines[0]), R"({"ids":[73,298,346],"tokens":["H","el","lo"],"offsets":[[0,1],[1,3],[3,5]],"type_ids":[0,0,0]})");
  EXPECT_EQ(json_of(lines[1], "type_ids").substr(0, 9), "[0,0,0,1,");
  EXPECT_EQ(json_of(lines[2], "offsets"), "[[0,1],[1,2],[1,2],[1,2]]");  // U+FFFD has three bytes
}

TEST(TokenizeCommand, ids_become_the_text_they_came_from) {
  const TemporaryFolder folder;
  write_file(folder / "in.jsonl", "[73,298,346]\n{\"ids\": [0, 73]}\n{\"ids\": []}\n");
  const auto lines = lines_of(run_weft({"tokenize", kModel, "--file", folder / "in.jsonl", "--decode"}));
  ASSERT_EQ(lines.size(), 3U);
  EXPECT_EQ(json_of(lines[0], "text"), "\"Hello\"");
  EXPECT_EQ(json_of(lines[1], "text"), "\"<|endoftext|>H\"");
  EXPECT_EQ(json_of(lines[2], "text"), "\"\"");
  EXPECT_EQ(json_of(lines_of(run_weft({"tokenize", kModel, "--file", folder / "in.jsonl", "--decode", "--skip-special"}))[1], "text"), "\"H\"");
}

TEST(TokenizeCommand, special_tokens_are_recognised_unless_they_are_to_be_text) {
  EXPECT_EQ(json_of(lines_of(run_weft({"tokenize", kModel, "--text", "<|endoftext|>"}))[0], "ids"), "[0]");
  EXPECT_NE(json_of(lines_of(run_weft({"tokenize", kModel, "--text", "<|endoftext|>", "--specials-as-text"}))[0], "ids"), "[0]");
}

TEST(TokenizeCommand, texts_are_cut_and_filled_only_when_asked) {
  const auto lines = lines_of(run_weft({"tokenize", kModel, "--text", "Hello Hello", "--text", "H", "--max-length", "3", "--padding"}));
  ASSERT_EQ(lines.size(), 2U);
  EXPECT_EQ(json_of(lines[0], "ids").substr(0, 11), "[73,298,346");
  EXPECT_NE(json_of(lines[0], "overflowing"), "[]");
  EXPECT_EQ(json_of(lines[1], "ids"), "[73,0,0]");
  EXPECT_EQ(json_of(lines[1], "attention_mask"), "[1,0,0]");
  EXPECT_EQ(run_weft({"tokenize", kModel, "--text", "a", "--truncation"}).status, 2);
}

TEST(TokenizeCommand, what_is_wrong_with_a_line_is_said_with_its_number) {
  const TemporaryFolder folder;
  write_file(folder / "in.jsonl", "\"a\"\n{\"nothing\": 1}\n");
  const CommandResult no_text = run_weft({"tokenize", kModel, "--file", folder / "in.jsonl"});
  EXPECT_EQ(no_text.status, 2);
  EXPECT_NE(no_text.err.find("line 2 has no text"), std::string::npos) << no_text.err;
  write_file(folder / "in.jsonl", "\"a\"\n\nnot json\n");
  const CommandResult no_json = run_weft({"tokenize", kModel, "--file", folder / "in.jsonl"});
  EXPECT_EQ(no_json.status, 2);
  EXPECT_NE(no_json.err.find("line 3: "), std::string::npos) << no_json.err;
  EXPECT_EQ(run_weft({"tokenize", kModel, "--file", folder / "absent"}).status, 2);
  EXPECT_EQ(run_weft({"tokenize", kModel}).status, 2);
  EXPECT_EQ(run_weft({"tokenize", folder.path(), "--text", "a"}).status, 2);
}

TEST(ChatCommand, conversations_become_text_and_ids_and_refusals_become_errors) {
  const TemporaryFolder folder;
  write_file(folder / "t.jinja",
             "{% if messages[0].role != 'user' %}{{ raise_exception('user first') }}{% endif %}{{ bos_token }}{{ messages[0].content }}{{ x }}");
  write_file(
      folder / "in.jsonl",
      "{\"messages\": [{\"role\": \"user\", \"content\": \"Hello\"}], \"x\": \"H\"}\n{\"messages\": [{\"role\": \"system\", \"content\": \"a\"}]}\n");
  const auto lines = lines_of(run_weft({"chat", kModel, "--template", folder / "t.jinja", "--file", folder / "in.jsonl"}));
  ASSERT_EQ(lines.size(), 2U);
  EXPECT_EQ(json_of(lines[0], "text"), "\"<|endoftext|>HelloH\"");
  EXPECT_EQ(json_of(lines[0], "ids"), "[0,73,298,346,73]");
  EXPECT_NE(json_of(lines[1], "error").find("user first"), std::string::npos);
  EXPECT_EQ(run_weft({"chat", kModel, "--file", folder / "in.jsonl"}).status, 2) << "the model has no template";
  const CommandResult broken = run_weft({"chat", kModel, "--template", "{% include 'x' %}", "--file", folder / "in.jsonl"});
  EXPECT_EQ(broken.status, 2);
  EXPECT_NE(broken.err.find("the block 'include'"), std::string::npos) << broken.err;
}

}  // namespace
}  // namespace weft::testing
