#include "model/vocabulary.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <string>

#include "checkpoint/json.h"
#include "support/errors.h"
#include "support/temporary_folder.h"

namespace weft::model {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using weft::testing::TemporaryFolder;
using weft::testing::write_file;

std::string tokenizer_json(const std::string& model, const std::string& added = "[]") {
  return R"({"version": "1.0", "added_tokens": )" + added + R"(, "model": )" + model + "}";
}
constexpr const char* kBpe = R"({"type": "BPE", "vocab": {"<s>": 0, "a": 1, "b": 2, "ab": 3}, "merges": [["a", "b"]]})";

std::vector<std::string> tokens_of(const Vocabulary& vocabulary) {
  std::vector<std::string> tokens;
  for (const auto& entry : vocabulary.entries()) tokens.push_back(entry.token + "=" + std::to_string(entry.id));
  return tokens;
}

TEST(Vocabulary, reads_every_kind_of_tokenizer_json) {
  struct Case {
    const char* model;
    TokenizerKind kind;
  };
  for (const Case& c : {
           Case{R"({"type": "BPE", "vocab": {"b": 1, "a": 0}, "merges": []})", TokenizerKind::bpe},
           Case{R"({"type": "WordPiece", "vocab": {"b": 1, "a": 0}, "unk_token": "a"})", TokenizerKind::wordpiece},
           Case{R"({"type": "WordLevel", "vocab": {"b": 1, "a": 0}})", TokenizerKind::wordlevel},
           Case{R"({"type": "Unigram", "vocab": [["a", -1.5], ["b", -2]], "unk_id": 0})", TokenizerKind::unigram},
           // Old files name no type.
           Case{R"({"vocab": {"b": 1, "a": 0}, "merges": []})", TokenizerKind::bpe},
           Case{R"({"vocab": {"b": 1, "a": 0}, "max_input_chars_per_word": 100})", TokenizerKind::wordpiece},
           Case{R"({"vocab": {"b": 1, "a": 0}})", TokenizerKind::wordlevel},
           Case{R"({"vocab": [["a", 0], ["b", 0]]})", TokenizerKind::unigram},
       }) {
    TemporaryFolder folder;
    write_file(folder / "tokenizer.json", tokenizer_json(c.model));
    const TokenizerFolder read = read_tokenizer(folder.path());
    EXPECT_EQ(read.kind(), c.kind) << c.model;
    EXPECT_THAT(tokens_of(read.vocabulary), ElementsAre("a=0", "b=1")) << c.model;
    EXPECT_NO_THROW(read.require_readable("this test"));
  }
}

TEST(Vocabulary, joins_added_tokens_with_their_flags_and_those_only_the_config_knows) {
  TemporaryFolder folder;
  write_file(folder / "tokenizer.json", tokenizer_json(kBpe, R"([
    {"id": 5, "content": "<|im|>", "single_word": true, "lstrip": true, "rstrip": false, "normalized": true, "special": false},
    {"id": 0, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": true, "normalized": false, "special": true},
    {"id": 9, "content": "", "special": true}])"));
  write_file(folder / "tokenizer_config.json", R"({"added_tokens_decoder": {
    "0": {"content": "<s>", "special": false},
    "5": {"content": "<|other|>", "special": true},
    "7": {"content": "<|more|>", "special": true}}})");
  const Vocabulary vocabulary = read_tokenizer(folder.path()).vocabulary;
  // 4 and 6 are gaps; <|other|> would take the id of <|im|>, and tokenizer.json counts.
  EXPECT_THAT(tokens_of(vocabulary), ElementsAre("<s>=0", "a=1", "b=2", "ab=3", "<|im|>=5", "<|more|>=7"));
  EXPECT_EQ(vocabulary.size(), 6U);
  EXPECT_EQ(vocabulary.num_ids(), 8U);
  ASSERT_EQ(vocabulary.added().size(), 3U);
  EXPECT_EQ(vocabulary.find("<|im|>"), 5U);
  EXPECT_EQ(vocabulary.find("c"), std::nullopt);
  EXPECT_EQ(*vocabulary.token(3), "ab");
  EXPECT_EQ(vocabulary.token(4), nullptr);
  EXPECT_EQ(vocabulary.token(8), nullptr);
  const AddedToken* start = vocabulary.find_added("<s>");
  ASSERT_NE(start, nullptr);
  EXPECT_TRUE(start->special && start->rstrip && !start->normalized && !start->lstrip && !start->single_word);
  const AddedToken* im = vocabulary.find_added("<|im|>");
  ASSERT_NE(im, nullptr);
  EXPECT_TRUE(!im->special && !im->rstrip && im->normalized && im->lstrip && im->single_word);
  EXPECT_EQ(vocabulary.find_added("a"), nullptr);
}

TEST(Vocabulary, reads_the_files_that_older_folders_have_instead) {
  {
    TemporaryFolder folder;
    write_file(folder / "vocab.json", R"({"a": 0, "b": 1})");
    write_file(folder / "merges.txt", "#version: 0.2\n");
    write_file(folder / "added_tokens.json", R"({"<|x|>": 2})");
    write_file(folder / "tokenizer_config.json",
               R"({"added_tokens_decoder": {"2": {"content": "<|x|>", "special": true}, "3": {"content": "<|y|>"}}})");
    const TokenizerFolder read = read_tokenizer(folder.path());
    EXPECT_EQ(read.kind(), TokenizerKind::bpe);
    EXPECT_THAT(tokens_of(read.vocabulary), ElementsAre("a=0", "b=1", "<|x|>=2", "<|y|>=3"));
    EXPECT_TRUE(read.vocabulary.find_added("<|x|>")->special);
    EXPECT_THAT(read.files, ElementsAre("added_tokens.json", "merges.txt", "tokenizer_config.json", "vocab.json"));
  }
  {
    TemporaryFolder folder;
    write_file(folder / "vocab.txt", "[PAD]\r\n[UNK]\n##a\nb");
    const TokenizerFolder read = read_tokenizer(folder.path());
    EXPECT_EQ(read.kind(), TokenizerKind::wordpiece);
    EXPECT_THAT(tokens_of(read.vocabulary), ElementsAre("[PAD]=0", "[UNK]=1", "##a=2", "b=3"));
  }
}

/// Piece {1: text, 3: type} of a SentencePiece model.
std::string piece_bytes(const std::string& text, char type) {
  const std::string inner = std::string("\x0a") + static_cast<char>(text.size()) + text + "\x18" + type;
  return std::string("\x0a") + static_cast<char>(inner.size()) + inner;
}

TEST(Vocabulary, sentencepiece_alone_has_its_pieces_and_the_tokens_added_to_them) {
  TemporaryFolder folder;
  write_file(folder / "tokenizer.model", piece_bytes("<unk>", 2) + piece_bytes("<s>", 3) + piece_bytes("\u2581a", 1));
  write_file(folder / "added_tokens.json", R"({"<extra>": 3})");
  const TokenizerFolder read = read_tokenizer(folder.path());
  EXPECT_EQ(to_string(read.kind()), "sentencepiece");
  EXPECT_THAT(tokens_of(read.vocabulary), ElementsAre("<unk>=0", "<s>=1", "\u2581a=2", "<extra>=3"));
  read.require_readable("a union of vocabularies");
  write_file(folder / "tokenizer.model", "\x0a\x0b");
  EXPECT_WEFT_ERROR((void)read_tokenizer(folder.path()), corrupt, "tokenizer.model");
}

TEST(Vocabulary, says_what_cannot_be_read_and_that_no_tokenizer_is_none) {
  TemporaryFolder folder;
  EXPECT_EQ(read_tokenizer(folder.path()).kind(), TokenizerKind::none);
  EXPECT_WEFT_ERROR(read_tokenizer(folder.path()).require_readable("a union of vocabularies"), not_found, "a union of vocabularies needs it");
  write_file(folder / "qwen.tiktoken", "IQ== 0\n");
  EXPECT_WEFT_ERROR(read_tokenizer(folder.path()).require_readable("this"), unsupported, "tiktoken");
  write_file(folder / "sentencepiece.bpe.model", "x");
  const TokenizerFolder read = read_tokenizer(folder.path());
  EXPECT_EQ(read.kind(), TokenizerKind::sentencepiece);
  EXPECT_EQ(to_string(read.kind()), "sentencepiece");
  EXPECT_WEFT_ERROR(read.require_readable("a union of vocabularies"), unsupported, "not yet readable here");
  write_file(folder / "tokenizer.json", tokenizer_json(kBpe));
  EXPECT_EQ(read_tokenizer(folder.path()).kind(), TokenizerKind::bpe);
}

TEST(Vocabulary, refuses_tokenizers_that_contradict_themselves) {
  struct Case {
    const char* model;
    const char* added;
    const char* phrase;
  };
  for (const Case& c : {
           Case{R"({"type": "BPE", "vocab": {"a": 0, "b": 0}, "merges": []})", "[]", "same id 0"},
           Case{R"({"type": "BPE", "vocab": {"a": 16777216}, "merges": []})", "[]", "from 0 to 16777215"},
           Case{R"({"type": "BPE", "vocab": {"a": -1}, "merges": []})", "[]", "token 'a' has no usable id"},
           Case{R"({"type": "BPE", "vocab": {"a": 1.5}, "merges": []})", "[]", "no usable id"},
           Case{R"({"type": "BPE", "vocab": ["a"], "merges": []})", "[]", "no object"},
           Case{R"({"type": "BPE", "merges": []})", "[]", "no vocabulary"},
           Case{R"({"type": "Unigram", "vocab": {"a": 0}})", "[]", "no list"},
           Case{R"({"type": "Unigram", "vocab": [["a", 0], "b"]})", "[]", "piece 1"},
           Case{kBpe, R"([{"id": 7, "content": "a"}])", "added token 'a' has id 7, but 1 elsewhere"},
           Case{kBpe, R"([{"id": 1, "content": "x"}])", "same id 1"},
           Case{kBpe, R"([{"id": 5}])", "no content"},
           Case{kBpe, R"({"a": 1})", "no list"},
           Case{"3", "[]", "no 'model'"},
       }) {
    TemporaryFolder folder;
    write_file(folder / "tokenizer.json", tokenizer_json(c.model, c.added));
    EXPECT_WEFT_ERROR(read_tokenizer(folder.path()), corrupt, c.phrase);
  }
  TemporaryFolder folder;
  write_file(folder / "tokenizer.json", tokenizer_json(R"({"type": "Magic", "vocab": {}})"));
  EXPECT_WEFT_ERROR(read_tokenizer(folder.path()), unsupported, "unknown kind of tokenizer 'Magic'");
  TemporaryFolder lines;
  write_file(lines / "vocab.txt", "a\n\xff\n");
  EXPECT_WEFT_ERROR(read_tokenizer(lines.path()), corrupt, "line 2 is not UTF-8");
}

TEST(Vocabulary, does_not_follow_links_out_of_the_folder) {
  TemporaryFolder outside;
  write_file(outside / "secret.json", tokenizer_json(kBpe));
  TemporaryFolder folder;
  fs::create_symlink(outside / "secret.json", folder / "tokenizer.json");
  EXPECT_EQ(read_tokenizer(folder.path()).kind(), TokenizerKind::none);
}

TEST(Vocabulary, is_the_same_after_a_copy) {
  Vocabulary copy;
  {
    TemporaryFolder folder;
    write_file(folder / "tokenizer.json", tokenizer_json(kBpe, R"([{"id": 4, "content": "<|im|>", "special": true}])"));
    const Vocabulary original = read_tokenizer(folder.path()).vocabulary;
    copy = original;
  }
  EXPECT_EQ(copy.find("ab"), 3U);
  ASSERT_NE(copy.find_added("<|im|>"), nullptr);
  EXPECT_EQ(copy.find_added("<|im|>")->id, 4U);
}

TEST(ChatTemplate, is_the_file_of_its_own_then_the_config_then_absent) {
  TemporaryFolder folder;
  EXPECT_FALSE(read_chat_template(folder.path()).has_value());
  write_file(folder / "tokenizer_config.json", R"({"chat_template": null})");
  EXPECT_FALSE(read_chat_template(folder.path()).has_value());
  write_file(folder / "tokenizer_config.json", R"({"chat_template": [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]})");
  EXPECT_EQ(read_chat_template(folder.path())->text, "D");
  write_file(folder / "tokenizer_config.json", R"({"chat_template": "C\n"})");
  EXPECT_EQ(read_chat_template(folder.path())->text, "C\n");
  EXPECT_FALSE(read_chat_template(folder.path())->own_file);
  write_file(folder / "chat_template.jinja", "J");
  EXPECT_EQ(read_chat_template(folder.path())->text, "J");
  EXPECT_TRUE(read_chat_template(folder.path())->own_file);
  EXPECT_EQ(read_tokenizer(folder.path()).chat_template->text, "J");
}

TEST(Vocabulary, of_the_reference_models_is_what_the_tokenizers_library_says) {
  const fs::path golden = fs::path(WEFT_SOURCE_DIR) / "../shared/golden/merge";
  if (!fs::exists(golden)) GTEST_SKIP() << "reference merges not found in " << golden;
  for (const auto& [folder, expected] :
       {std::pair{"chat", "tokenizer-chat-auto"}, std::pair{"wide", "tokenizer-model"}, std::pair{"base", "tokenizer-base"}}) {
    const TokenizerFolder read = read_tokenizer(golden / "models" / folder);
    const Json want = read_json_file(golden / "expected" / (std::string(expected) + ".tokens.json"));
    const Json::Object& tokens = *want.find("tokens")->object();
    ASSERT_EQ(read.vocabulary.size(), tokens.size()) << folder;
    for (const auto& [token, id] : tokens) EXPECT_EQ(read.vocabulary.find(token), id.unsigned_integer()) << token;
    for (const Json& token : *want.find("special")->array()) {
      const AddedToken* added = read.vocabulary.find_added(*token.string());
      EXPECT_TRUE(added != nullptr && added->special) << *token.string();
    }
  }
}

}  // namespace
}  // namespace weft::model
