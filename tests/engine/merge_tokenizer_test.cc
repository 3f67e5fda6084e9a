#include "engine/merge_tokenizer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <map>

#include "checkpoint/json.h"
#include "model/vocabulary.h"
#include "support/errors.h"
#include "support/memory_checkpoint.h"
#include "support/temporary_folder.h"

namespace weft::engine {
namespace {

namespace fs = std::filesystem;
using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using weft::testing::MemoryCheckpoint;
using weft::testing::read_file;
using weft::testing::stored_as;
using weft::testing::TemporaryFolder;
using weft::testing::values_of;
using weft::testing::write_file;

// --- Small models
// --------------------------------------------------------------------------------------------------------------------------------------

/// A folder with a BPE tokenizer of single letters: ordinary tokens first, then added ones.
struct SmallModel {
  TemporaryFolder folder;
  TokenizerModel model;

  SmallModel(const std::string& name, const std::string& ordinary, const std::vector<std::string>& special = {}) {
    Json vocab{Json::Object{}};
    Json::Array added;
    std::uint64_t id = 0;
    for (const char letter : ordinary) vocab.set(std::string(1, letter), Json(id++));
    for (const std::string& token : special) {
      Json one{Json::Object{}};
      one.set("id", Json(id++));
      one.set("content", Json(token));
      for (const char* flag : {"single_word", "lstrip", "rstrip", "normalized"}) one.set(flag, Json(false));
      one.set("special", Json(true));
      added.push_back(std::move(one));
    }
    Json bpe{Json::Object{}};
    bpe.set("type", Json("BPE"));
    bpe.set("vocab", std::move(vocab));
    bpe.set("merges", Json(Json::Array{}));
    Json root{Json::Object{}};
    root.set("version", Json("1.0"));
    root.set("added_tokens", Json(std::move(added)));
    root.set("model", std::move(bpe));
    write_file(folder / "tokenizer.json", write_json(root, 2));
    write_file(folder / "tokenizer_config.json", "{\n  \"tokenizer_class\": \"X\"\n}\n");
    model = {name, folder.path(), id};
  }
};

std::string tokens_of(const TokenizerPlan& plan) {
  std::string text;
  for (std::uint64_t id = 0; id < plan.num_rows(); ++id)
    text += (id == 0 ? "" : " ") + (plan.token(id) == nullptr ? std::string("-") : *plan.token(id));
  return text;
}

TokenizerSpec from(TokenizerSpec::Source source, std::vector<TokenRule> rules = {}) {
  TokenizerSpec spec;
  spec.source = source;
  spec.rules = std::move(rules);
  return spec;
}
using Source = TokenizerSpec::Source;

TokenRule zero_rule(std::string token, bool force = false) {
  TokenRule rule;
  rule.token = std::move(token);
  rule.source = TokenRule::Source::zero;
  rule.force = force;
  return rule;
}
TokenRule model_rule(std::string token, std::size_t model, bool force = false) {
  TokenRule rule;
  rule.token = std::move(token);
  rule.source = TokenRule::Source::same_token;
  rule.model = model;
  rule.force = force;
  return rule;
}
TokenRule id_rule(std::string token, std::size_t model, std::uint64_t id) {
  TokenRule rule;
  rule.token = std::move(token);
  rule.source = TokenRule::Source::other_token;
  rule.model = model;
  rule.other_id = id;
  return rule;
}

const CompanionFile& file_named(const std::vector<CompanionFile>& files, const std::string& name) {
  const auto at = std::find_if(files.begin(), files.end(), [&](const CompanionFile& file) { return file.name == name; });
  if (at == files.end()) throw std::runtime_error("no file " + name);
  return *at;
}
std::string content_of(const CompanionFile& file) { return file.copy_of ? read_file(*file.copy_of) : file.content; }

/// A matrix whose row r is (tag + r, tag + r): integers, so means of few are exact.
TensorRef matrix(std::size_t rows, float tag, DType dtype = DType::f32, const std::string& name = "embed", std::size_t columns = 2) {
  std::vector<float> values;
  for (std::size_t r = 0; r < rows; ++r) values.insert(values.end(), columns, tag + static_cast<float>(r));
  std::vector<MemoryCheckpoint::Tensor> tensors;
  tensors.push_back({name, dtype, {static_cast<std::int64_t>(rows), static_cast<std::int64_t>(columns)}, stored_as(dtype, values)});
  const auto checkpoint = std::make_shared<MemoryCheckpoint>(std::move(tensors));
  return {checkpoint, &checkpoint->tensors().front()};
}

/// First column of a view.
std::vector<float> column(const TensorRef& ref) {
  std::vector<std::byte> bytes(ref.tensor->size_bytes);
  ref.checkpoint->read_bytes(*ref.tensor, 0, bytes);
  const std::vector<float> values = values_of(ref.tensor->dtype, bytes);
  std::vector<float> out;
  const auto columns = static_cast<std::size_t>(ref.tensor->shape[1]);
  for (std::size_t i = 0; i < values.size(); i += columns) out.push_back(values[i]);
  return out;
}

// --- Vocabularies
// ----------------------------------------------------------------------------------------------------------------------------------------

TEST(MergeTokenizer, a_union_is_the_base_then_ordinary_tokens_by_file_and_id_then_added_ones) {
  const SmallModel a("a", "xyb", {"<1>", "<2>"});
  const SmallModel base("base", "abc", {"<1>"});
  const SmallModel c("c", "dza", {"<3>", "<2>"});
  const TokenizerPlan plan = plan_tokenizer({a.model, base.model, c.model}, 1, from(Source::union_of_all), std::nullopt);
  EXPECT_EQ(tokens_of(plan), "a b c <1> x y d z <2> <3>");
  EXPECT_EQ(plan.num_tokens(), 10U);
  EXPECT_EQ(plan.own_id(0, 1), 2U);
  EXPECT_EQ(plan.own_id(2, 0), 2U);
  EXPECT_EQ(plan.own_id(2, 1), std::nullopt);
  EXPECT_EQ(plan.own_id(0, 99), std::nullopt);
  EXPECT_THAT(plan.warnings(), IsEmpty());

  // Without a base the first model stands in.
  EXPECT_EQ(tokens_of(plan_tokenizer({a.model, base.model}, std::nullopt, from(Source::union_of_all), std::nullopt)), "x y b <1> <2> a c");
}

TEST(MergeTokenizer, appended_tokens_are_added_tokens_and_a_token_that_is_special_anywhere_is_special) {
  const SmallModel base("base", "abS");
  const SmallModel other("other", "acP", {"S", "Q"});
  const SmallModel third("third", "Q", {"P"});
  const TokenizerPlan plan = plan_tokenizer({base.model, other.model, third.model}, 0, from(Source::union_of_all), std::nullopt);
  EXPECT_EQ(tokens_of(plan), "a b S c Q P");
  const Json json = parse_json(content_of(file_named(plan.files(), "tokenizer.json")), "tokenizer.json");
  std::map<std::string, std::pair<std::uint64_t, bool>> added;
  std::uint64_t last = 0;
  for (const Json& token : *json.find("added_tokens")->array()) {
    const std::uint64_t id = *token.find("id")->unsigned_integer();
    EXPECT_TRUE(added.empty() || id > last) << "sorted by id";
    last = id;
    added[*token.find("content")->string()] = {id, *token.find("special")->boolean()};
  }
  const std::map<std::string, std::pair<std::uint64_t, bool>> want = {{"S", {2, true}}, {"c", {3, false}}, {"Q", {4, true}}, {"P", {5, true}}};
  EXPECT_EQ(added, want);
}

TEST(MergeTokenizer, a_disputed_definition_keeps_the_first_and_warns) {
  const SmallModel base("base", "a", {"<x>"});
  const SmallModel other("other", "b", {"<x>"});
  std::string text = read_file(other.folder / "tokenizer.json");
  const std::size_t at = text.find("\"lstrip\": false");
  write_file(other.folder / "tokenizer.json", text.replace(at, 15, "\"lstrip\": true"));
  const TokenizerPlan plan = plan_tokenizer({base.model, other.model}, 0, from(Source::union_of_all), std::nullopt);
  EXPECT_THAT(plan.warnings(), Contains(HasSubstr("define 1 token differently; the first definition was kept: '<x>'")));
  const Json json = parse_json(content_of(file_named(plan.files(), "tokenizer.json")), "tokenizer.json");
  EXPECT_EQ(json.find("added_tokens")->array()->front().find("lstrip")->boolean(), false);
}

TEST(MergeTokenizer, a_union_leaves_tokens_beyond_a_models_vocab_size_alone) {
  const SmallModel base("base", "ab");
  SmallModel other("other", "cd", {"<x>"});
  other.model.vocab_size = 1;
  const TokenizerPlan plan = plan_tokenizer({base.model, other.model}, 0, from(Source::union_of_all), std::nullopt);
  EXPECT_EQ(tokens_of(plan), "a b c");
  EXPECT_THAT(plan.warnings(), Contains(HasSubstr("2 tokens with ids beyond")));
}

TEST(MergeTokenizer, source_base_drops_tokens_without_rows_and_the_merges_that_need_them) {
  TemporaryFolder folder;
  write_file(folder / "tokenizer.json",
             R"({"version":"1.0","added_tokens":[{"id":6,"content":"<x>","special":true}],"normalizer":null,"model":{"type":"BPE",)"
             R"("vocab":{"a":0,"b":1,"c":2,"ab":3,"bc":4,"abc":5},"merges":["a b",["b","c"],"ab c",["a","bc"]]}})");
  write_file(folder / "vocab.json", R"({"a":0,"b":1,"c":2,"ab":3,"bc":4,"abc":5})");
  write_file(folder / "merges.txt", "#version: 0.2\na b\nb c\nab c\na bc\n");
  write_file(folder / "tokenizer_config.json", R"({"eos_token": "<x>", "added_tokens_decoder": {"6": {"content": "<x>", "special": true}}})");
  const TokenizerPlan plan = plan_tokenizer({{"m", folder.path(), 4}}, 0, from(Source::base), std::nullopt);
  EXPECT_EQ(tokens_of(plan), "a b c ab");
  EXPECT_EQ(content_of(file_named(plan.files(), "tokenizer.json")),
            R"({"version":"1.0","added_tokens":[],"normalizer":null,"model":{"type":"BPE","vocab":{"a":0,"b":1,"c":2,"ab":3},"merges":["a b"]}})");
  EXPECT_EQ(content_of(file_named(plan.files(), "vocab.json")), R"({"a":0,"b":1,"c":2,"ab":3})");
  EXPECT_EQ(content_of(file_named(plan.files(), "merges.txt")), "#version: 0.2\na b\n");
  EXPECT_EQ(parse_json(content_of(file_named(plan.files(), "tokenizer_config.json")), "c").find("added_tokens_decoder")->object()->size(), 0U);
  EXPECT_THAT(plan.warnings(), Contains(HasSubstr("3 tokens of m lie beyond its vocab_size 4")));
  EXPECT_THAT(plan.warnings(), Contains(HasSubstr("eos_token")));

  // The same model named as the source is taken as it is.
  EXPECT_EQ(tokens_of(plan_tokenizer({{"m", folder.path(), 4}}, 0, from(Source::model), std::nullopt)), "a b c ab bc abc <x>");
}

TEST(MergeTokenizer, only_bpe_vocabularies_can_lose_tokens) {
  TemporaryFolder folder;
  write_file(folder / "tokenizer.json", R"({"added_tokens":[{"id":2,"content":"<x>"}],"model":{"type":"WordPiece","vocab":{"a":0,"b":1}}})");
  EXPECT_EQ(tokens_of(plan_tokenizer({{"m", folder.path(), 2}}, 0, from(Source::base), std::nullopt)), "a b");
  EXPECT_WEFT_ERROR(plan_tokenizer({{"m", folder.path(), 1}}, 0, from(Source::base), std::nullopt), unsupported,
                    "cannot be removed from a WordPiece");
}

TEST(MergeTokenizer, a_model_without_tokenizer_shares_the_bases) {
  const SmallModel base("base", "abc");
  TemporaryFolder bare;
  const TokenizerPlan plan = plan_tokenizer({{"bare", bare.path(), 2}, base.model}, 1, from(Source::union_of_all), std::nullopt);
  EXPECT_EQ(tokens_of(plan), "a b c");
  EXPECT_EQ(plan.own_id(0, 1), 1U);
  EXPECT_EQ(plan.own_id(0, 2), std::nullopt);  // beyond its vocab_size
  EXPECT_WEFT_ERROR(plan_tokenizer({{"bare", bare.path(), 2}, base.model}, 0, from(Source::union_of_all), std::nullopt), not_found,
                    "has no tokenizer");
  write_file(bare / "sentencepiece.bpe.model", "x");
  EXPECT_WEFT_ERROR(plan_tokenizer({{"bare", bare.path(), 2}, base.model}, 1, from(Source::union_of_all), std::nullopt), unsupported,
                    "not yet readable here");
}

TEST(MergeTokenizer, rules_add_missing_tokens_and_rows_are_padded_to_a_multiple) {
  const SmallModel base("base", "abc");
  TokenizerSpec spec = from(Source::base, {zero_rule("<z>"), zero_rule("b", true), model_rule("a", 0)});
  TokenRule plain;
  plain.token = "<plain>";
  spec.rules.push_back(plain);
  EXPECT_EQ(tokens_of(plan_tokenizer({base.model}, 0, spec, std::nullopt)), "a b c <z> <plain>");
  spec.pad_to_multiple_of = 4;
  EXPECT_EQ(tokens_of(plan_tokenizer({base.model}, 0, spec, std::nullopt)), "a b c <z> <plain> - - -");
  spec.pad_to_multiple_of = 5;
  EXPECT_EQ(plan_tokenizer({base.model}, 0, spec, std::nullopt).num_rows(), 5U);
  spec.pad_to_multiple_of = std::uint64_t{1} << 40;
  EXPECT_WEFT_ERROR(plan_tokenizer({base.model}, 0, spec, std::nullopt), invalid_argument, "pad_to_multiple_of");
}

TEST(MergeTokenizer, rules_that_cannot_be_followed_are_refused_before_anything_is_written) {
  const SmallModel base("./base", "abc");
  const SmallModel other("./other", "abd", {"<|new|>"});
  const std::vector<TokenizerModel> models = {base.model, other.model};
  const auto plan = [&](TokenRule rule) { return plan_tokenizer(models, 0, from(Source::union_of_all, {std::move(rule)}), std::nullopt); };
  TokenRule rule;
  rule.token = "e";
  rule.force = true;
  EXPECT_WEFT_ERROR(plan(rule), invalid_argument, "force: true for token 'e' needs a source");
  EXPECT_WEFT_ERROR(plan(model_rule("<|new|>", 0)), invalid_argument, "token '<|new|>' is not in the vocabulary of ./base");
  rule = id_rule("e", 0, 1);
  rule.other_token = "a";
  EXPECT_WEFT_ERROR(plan(rule), invalid_argument, "exactly one of token and token_id");
  rule.other_token.reset();
  rule.other_id.reset();
  EXPECT_WEFT_ERROR(plan(rule), invalid_argument, "exactly one of token and token_id");
  EXPECT_WEFT_ERROR(plan(id_rule("e", 1, 4)), invalid_argument, "token_id 4 is beyond the vocab_size 4 of ./other");
  EXPECT_WEFT_ERROR(plan(zero_rule("")), invalid_argument, "empty");
  EXPECT_NO_THROW(plan(id_rule("e", 1, 3)));
  // Every model has "a", so that its source is not looked at unless it is forced.
  EXPECT_NO_THROW(plan(id_rule("a", 1, 4)));
  rule = id_rule("a", 1, 4);
  rule.force = true;
  EXPECT_WEFT_ERROR(plan(rule), invalid_argument, "token_id 4 is beyond");
  EXPECT_WEFT_ERROR(plan(id_rule("d", 1, 4)), invalid_argument, "token_id 4 is beyond");
}

// --- Rows
// ------------------------------------------------------------------------------------------------------------------------------------------------

TEST(MergeTokenizer, a_row_is_the_models_own_or_the_default_that_the_rules_and_the_holders_give) {
  const SmallModel base("base", "ab");          // a b
  const SmallModel one("one", "acd");           // a c d
  const SmallModel two("two", "dba", {"<2>"});  // d b a <2>
  TokenizerSpec spec = from(Source::union_of_all, {zero_rule("b", true), id_rule("<id>", 2, 1), zero_rule("<z>"), model_rule("c", 1, true)});
  TokenRule unknown;
  unknown.token = "<u>";
  spec.rules.push_back(unknown);
  spec.pad_to_multiple_of = 5;
  const TokenizerPlan plan = plan_tokenizer({base.model, one.model, two.model}, 0, spec, std::nullopt);
  ASSERT_EQ(tokens_of(plan), "a b c d <2> <id> <z> <u> - -");
  const std::vector<EmbeddingInput> inputs = {{0, matrix(2, 100), true}, {1, matrix(3, 200), true}, {2, matrix(4, 300), true}};
  std::vector<std::string> warnings;
  const std::vector<TensorRef> views = rebuild_embeddings(plan, inputs, "embed", std::nullopt, warnings);
  ASSERT_EQ(views.size(), 3U);
  // a: own; b: forced to zero; c: from `one` everywhere; d: mean of 202 and 300 for the base; <2>: only `two` has it; <id>: row 1 of `two`.
  const auto padded = [](std::vector<float> rows) {
    double sum = 0;
    for (const float r : rows) sum += static_cast<double>(r);
    rows.insert(rows.end(), 2, static_cast<float>(sum / static_cast<double>(rows.size())));
    return rows;
  };
  EXPECT_EQ(column(views[0]), padded({100, 0, 201, 251, 303, 301, 0, 0}));
  EXPECT_EQ(column(views[1]), padded({200, 0, 201, 202, 303, 301, 0, 0}));
  EXPECT_EQ(column(views[2]), padded({302, 0, 201, 300, 303, 301, 0, 0}));
  EXPECT_THAT(warnings, ElementsAre(HasSubstr("1 token of the output have a row in none of the models and become zero: '<u>'")));
  // The head gives the same warning, once.
  (void)rebuild_embeddings(plan, inputs, "head", std::nullopt, warnings);
  EXPECT_EQ(warnings.size(), 1U);
}

TEST(MergeTokenizer, the_bases_row_is_the_default_where_several_models_have_a_token) {
  const SmallModel base("base", "ab");
  const SmallModel one("one", "a");
  const SmallModel two("two", "ab");
  const TokenizerPlan plan = plan_tokenizer({two.model, one.model, base.model}, 2, from(Source::base), std::nullopt);
  std::vector<std::string> warnings;
  const std::vector<EmbeddingInput> all = {{0, matrix(2, 100), true}, {1, matrix(1, 200), true}, {2, matrix(2, 300), true}};
  EXPECT_EQ(column(rebuild_embeddings(plan, all, "embed", std::nullopt, warnings)[1]), (std::vector<float>{200, 301}));
  // Where the base is no input its row is not used; one model has the token then.
  const std::vector<EmbeddingInput> some = {{0, matrix(2, 100), true}, {1, matrix(1, 200), true}, {2, matrix(2, 300), false}};
  EXPECT_EQ(column(rebuild_embeddings(plan, some, "embed", std::nullopt, warnings)[1]), (std::vector<float>{200, 101}));
}

TEST(MergeTokenizer, ids_beyond_the_rows_of_a_matrix_count_as_missing) {
  const SmallModel base("base", "abc");
  const SmallModel other("other", "abc");
  const TokenizerPlan plan = plan_tokenizer({base.model, other.model}, 0, from(Source::base), std::nullopt);
  std::vector<std::string> warnings;
  const std::vector<EmbeddingInput> inputs = {{0, matrix(2, 100), true}, {1, matrix(3, 200), true}};
  const auto views = rebuild_embeddings(plan, inputs, "embed", std::nullopt, warnings);
  EXPECT_EQ(column(views[0]), (std::vector<float>{100, 101, 202}));
  const TokenizerPlan ruled = plan_tokenizer({base.model, other.model}, 0, from(Source::base, {id_rule("<x>", 0, 2)}), std::nullopt);
  EXPECT_WEFT_ERROR(rebuild_embeddings(ruled, inputs, "embed", std::nullopt, warnings), invalid_argument, "the matrix of base has 2");
}

TEST(MergeTokenizer, a_rule_may_take_a_row_from_a_model_that_is_not_merged) {
  const SmallModel base("base", "ab");
  const SmallModel lender("lender", "bz");
  const TokenizerPlan plan =
      plan_tokenizer({base.model, lender.model}, 0, from(Source::base, {model_rule("z", 1), model_rule("b", 1, true)}), std::nullopt);
  std::vector<std::string> warnings;
  const std::vector<EmbeddingInput> inputs = {{0, matrix(2, 100), true}, {1, matrix(2, 200), false}};
  const auto views = rebuild_embeddings(plan, inputs, "embed", std::nullopt, warnings);
  ASSERT_EQ(views.size(), 1U);
  EXPECT_EQ(column(views[0]), (std::vector<float>{100, 200, 201}));
  EXPECT_WEFT_ERROR(rebuild_embeddings(plan, std::span(inputs).first(1), "embed", std::nullopt, warnings), invalid_argument,
                    "lender has no such tensor");
  // What is only lent does not decide the type.
  const std::vector<EmbeddingInput> mixed = {{0, matrix(2, 100, DType::bf16), true}, {1, matrix(2, 200), false}};
  EXPECT_EQ(rebuild_embeddings(plan, mixed, "embed", std::nullopt, warnings)[0].tensor->dtype, DType::bf16);
}

TEST(MergeTokenizer, a_matrix_that_needs_no_change_is_passed_on_as_stored) {
  const SmallModel base("base", "abc");
  const TokenizerPlan plan = plan_tokenizer({base.model}, 0, from(Source::base), std::nullopt);
  std::vector<std::string> warnings;
  const TensorRef same = matrix(3, 100, DType::bf16);
  EXPECT_EQ(rebuild_embeddings(plan, std::vector<EmbeddingInput>{{0, same, true}}, "embed", DType::f32, warnings)[0].tensor, same.tensor);
  // Padded storage shrinks to the tokens; another name is an alias.
  const auto cut = rebuild_embeddings(plan, std::vector<EmbeddingInput>{{0, matrix(8, 100), true}}, "lm_head.weight", std::nullopt, warnings)[0];
  EXPECT_EQ(cut.tensor->name, "lm_head.weight");
  EXPECT_EQ(column(cut), (std::vector<float>{100, 101, 102}));
}

TEST(MergeTokenizer, views_have_the_load_type_or_the_promoted_one) {
  const SmallModel base("base", "ab");
  const SmallModel other("other", "bc");
  const TokenizerPlan plan = plan_tokenizer({base.model, other.model}, 0, from(Source::union_of_all), std::nullopt);
  std::vector<std::string> warnings;
  const std::vector<EmbeddingInput> inputs = {{0, matrix(2, 100, DType::bf16), true}, {1, matrix(2, 200, DType::f16), true}};
  for (const TensorRef& view : rebuild_embeddings(plan, inputs, "embed", std::nullopt, warnings)) EXPECT_EQ(view.tensor->dtype, DType::f32);
  for (const TensorRef& view : rebuild_embeddings(plan, inputs, "embed", DType::bf16, warnings)) EXPECT_EQ(view.tensor->dtype, DType::bf16);
  const std::vector<EmbeddingInput> widths = {{0, matrix(2, 100), true}, {1, matrix(2, 200, DType::f32, "embed", 3), true}};
  EXPECT_WEFT_ERROR(rebuild_embeddings(plan, widths, "embed", std::nullopt, warnings), invalid_argument, "different widths");
}

// --- Files
// -----------------------------------------------------------------------------------------------------------------------------------------------

TEST(MergeTokenizer, an_unchanged_tokenizer_is_copied_byte_for_byte) {
  const SmallModel base("base", "abc", {"<s>"});
  const TokenizerPlan plan = plan_tokenizer({base.model}, 0, from(Source::base), std::nullopt);
  ASSERT_EQ(plan.files().size(), 2U);
  for (const CompanionFile& file : plan.files()) EXPECT_EQ(file.copy_of, base.folder / file.name);
}

TEST(MergeTokenizer, ids_in_copied_configs_that_change_their_meaning_are_told) {
  const SmallModel base("base", "ab", {"<s>", "<t>", "<u>"});
  const SmallModel other("other", "abc", {"<t>", "<s>"});
  write_file(base.folder / "config.json", R"({"bos_token_id": 2, "pad_token_id": null, "eos_token_id": [3, 4, 99]})");
  TokenizerSpec spec = from(Source::model);
  spec.model = 1;
  EXPECT_THAT(plan_tokenizer({base.model, other.model}, 0, spec, std::nullopt).warnings(),
              ElementsAre(HasSubstr("bos_token_id in config.json is 2, which means '<s>'; in the output that is 4"),
                          HasSubstr("eos_token_id in config.json is 4, which means '<u>'; in the output there is no such token")));
  EXPECT_THAT(plan_tokenizer({base.model, other.model}, 0, from(Source::union_of_all), std::nullopt).warnings(), IsEmpty());
}

TEST(MergeTokenizer, editing_changes_only_what_it_must) {
  const SmallModel base("base", "ab", {"<s>"});
  const std::string original = read_file(base.folder / "tokenizer.json");
  const TokenizerPlan plan = plan_tokenizer({base.model}, 0, from(Source::base, {zero_rule("<z>")}), std::string("{{ 'twenty characters' }}"));
  const std::string edited = content_of(file_named(plan.files(), "tokenizer.json"));
  // The text up to the end of the old added token, and from the end of the list, is as it was.
  const std::size_t brace = original.find("\n    }\n  ],\n  \"model\"");
  ASSERT_NE(brace, std::string::npos) << original;
  EXPECT_EQ(edited.substr(0, brace), original.substr(0, brace));
  EXPECT_TRUE(edited.ends_with(original.substr(brace)));
  EXPECT_THAT(edited.substr(brace), HasSubstr("\"content\": \"<z>\""));
  EXPECT_EQ(content_of(file_named(plan.files(), "tokenizer_config.json")),
            "{\n  \"tokenizer_class\": \"X\",\n  \"chat_template\": \"{{ 'twenty characters' }}\"\n}\n");
}

TEST(MergeTokenizer, the_files_that_repeat_the_added_tokens_follow) {
  const SmallModel base("base", "ab", {"<s>"});
  write_file(base.folder / "added_tokens.json", R"({"<s>": 2})");
  write_file(base.folder / "tokenizer_config.json", R"({"added_tokens_decoder": {"2": {"content": "<s>", "special": true}}})");
  write_file(base.folder / "tokenizer.model", "x");
  const TokenizerPlan plan = plan_tokenizer({base.model}, 0, from(Source::base, {zero_rule("<z>")}), std::nullopt);
  EXPECT_EQ(content_of(file_named(plan.files(), "added_tokens.json")), R"({"<s>":2,"<z>":3})");
  const Json config = parse_json(content_of(file_named(plan.files(), "tokenizer_config.json")), "c");
  EXPECT_EQ(*config.find("added_tokens_decoder")->find("3")->find("content")->string(), "<z>");
  EXPECT_THAT(plan.warnings(), Contains(HasSubstr("tokenizer.model is copied as it is")));
}

TEST(MergeTokenizer, a_folder_of_old_files_keeps_its_form) {
  TemporaryFolder folder;
  write_file(folder / "vocab.json", R"({"a": 0, "b": 1})");
  write_file(folder / "merges.txt", "#version: 0.2\n");
  const TokenizerPlan plan = plan_tokenizer({{"m", folder.path(), std::nullopt}}, 0, from(Source::base, {zero_rule("<z>")}), std::nullopt);
  EXPECT_EQ(content_of(file_named(plan.files(), "added_tokens.json")), "{\n  \"<z>\": 2\n}\n");
  EXPECT_EQ(file_named(plan.files(), "vocab.json").copy_of, folder / "vocab.json");
  EXPECT_EQ(file_named(plan.files(), "merges.txt").copy_of, folder / "merges.txt");
}

TEST(MergeTokenizer, a_hundred_thousand_new_tokens_take_no_quadratic_time) {
  std::string vocab;
  for (int i = 0; i < 100'000; ++i) vocab += (i == 0 ? "\"t" : ",\"t") + std::to_string(i) + "\":" + std::to_string(i);
  const SmallModel base("base", "ab");
  write_file(base.folder / "tokenizer_config.json", R"({"added_tokens_decoder": {}})");
  TemporaryFolder folder;
  write_file(folder / "tokenizer.json", "{\"model\":{\"type\":\"BPE\",\"vocab\":{" + vocab + "},\"merges\":[]}}");
  const TokenizerPlan plan = plan_tokenizer({base.model, {"big", folder.path(), std::nullopt}}, 0, from(Source::union_of_all), std::nullopt);
  EXPECT_EQ(plan.num_rows(), 100'002U);
}

// --- Chat templates
// --------------------------------------------------------------------------------------------------------------------------------------

TEST(ChatTemplateChoice, auto_is_the_most_frequent_and_the_first_of_equals) {
  TemporaryFolder a, b, c, d, none;
  write_file(a / "chat_template.jinja", "one");
  write_file(b / "tokenizer_config.json", R"({"chat_template": "two"})");
  write_file(c / "tokenizer_config.json", R"({"chat_template": "two"})");
  write_file(d / "chat_template.jinja", "one");
  const auto choose = [](std::vector<fs::path> folders) { return choose_chat_template("auto", folders); };
  EXPECT_EQ(choose({none.path(), a.path(), b.path(), c.path()}), "two");
  EXPECT_EQ(choose({b.path(), a.path(), c.path(), d.path()}), "two");
  EXPECT_EQ(choose({a.path(), b.path(), c.path(), d.path()}), "one");
  EXPECT_EQ(choose({none.path()}), std::nullopt);
  EXPECT_EQ(choose({}), std::nullopt);
}

TEST(ChatTemplateChoice, takes_names_and_jinja_texts_of_twenty_characters) {
  for (const std::string_view name : builtin_chat_templates()) {
    const auto text = choose_chat_template(name, {});
    ASSERT_TRUE(text.has_value());
    EXPECT_THAT(*text, HasSubstr("messages"));
  }
  EXPECT_EQ(builtin_chat_templates().size(), 5U);
  EXPECT_EQ(choose_chat_template("{{ 20 characters!! }", {}), "{{ 20 characters!! }");
  EXPECT_WEFT_ERROR(choose_chat_template("short", {}), invalid_argument, "invalid chat template 'short'");
  EXPECT_WEFT_ERROR(choose_chat_template("no brace, but more than twenty characters", {}), invalid_argument, "invalid chat template");
  EXPECT_WEFT_ERROR(choose_chat_template("{{ 19 characters! }", {}), invalid_argument, "invalid chat template");
  // Twenty-one bytes, but nineteen characters.
  EXPECT_WEFT_ERROR(choose_chat_template("{{ 19 charäcterß! }", {}), invalid_argument, "invalid chat template");
  EXPECT_WEFT_ERROR(choose_chat_template("vicuna", {}), invalid_argument, "alpaca, chatml, exaone, llama3, mistral");
}

TEST(ChatTemplateChoice, is_written_where_the_donor_has_its_own) {
  const std::string text = "{{ another template }}";
  TemporaryFolder donor;
  write_file(donor / "tokenizer.json", "{}");
  write_file(donor / "tokenizer_config.json", "{\n    \"a\": \"\\u00e9\",\n    \"chat_template\": \"old\",\n    \"b\": 1.50\n}");
  std::vector<std::string> warnings;
  {
    const auto files = donor_tokenizer_files(donor.path(), text, warnings);
    EXPECT_EQ(content_of(file_named(files, "tokenizer_config.json")),
              "{\n    \"a\": \"\\u00e9\",\n    \"chat_template\": \"{{ another template }}\",\n    \"b\": 1.50\n}");
    EXPECT_EQ(file_named(files, "tokenizer.json").copy_of, donor / "tokenizer.json");
  }
  write_file(donor / "chat_template.jinja", "old");
  {
    const auto files = donor_tokenizer_files(donor.path(), text, warnings);
    EXPECT_EQ(content_of(file_named(files, "chat_template.jinja")), text);
    EXPECT_THAT(content_of(file_named(files, "tokenizer_config.json")), HasSubstr(text));  // no second truth
  }
  fs::remove(donor / "tokenizer_config.json");
  {
    const auto files = donor_tokenizer_files(donor.path(), text, warnings);
    EXPECT_EQ(files.size(), 2U);
    EXPECT_EQ(content_of(file_named(files, "chat_template.jinja")), text);
  }
  fs::remove(donor / "chat_template.jinja");
  EXPECT_EQ(content_of(file_named(donor_tokenizer_files(donor.path(), text, warnings), "tokenizer_config.json")),
            "{\n  \"chat_template\": \"{{ another template }}\"\n}\n");
  EXPECT_THAT(warnings, IsEmpty());
}

TEST(ChatTemplateChoice, without_a_tokenizer_is_ignored_with_a_warning) {
  TemporaryFolder donor;
  write_file(donor / "config.json", "{}");
  std::vector<std::string> warnings;
  EXPECT_THAT(donor_tokenizer_files(donor.path(), "{{ another template }}", warnings), IsEmpty());
  EXPECT_THAT(warnings, ElementsAre(HasSubstr("chat_template has no effect")));
  EXPECT_THAT(donor_tokenizer_files(donor / "model.safetensors", std::nullopt, warnings), IsEmpty());
}

TEST(ChatTemplateChoice, sentencepiece_tokenizers_are_copied_too) {
  TemporaryFolder donor;
  write_file(donor / "tokenizer.model", "x");
  write_file(donor / "tokenizer_config.json", "not json, and nobody looks");
  std::vector<std::string> warnings;
  const auto files = donor_tokenizer_files(donor.path(), std::nullopt, warnings);
  ASSERT_EQ(files.size(), 2U);
  EXPECT_TRUE(files[0].copy_of && files[1].copy_of);
}

// --- Configs
// ---------------------------------------------------------------------------------------------------------------------------------------------

TEST(MergeTokenizer, a_config_refers_to_models_of_the_merge_only) {
  ModelRef a, b, c;
  a.model.path = "./a";
  b.model.path = "./b";
  c.model.path = c.written = "./c";
  ConfigTokenizer config;
  config.source = ConfigVocabulary::model;
  config.model = b;
  config.pad_to_multiple_of = 8;
  ConfigTokenRule rule;
  rule.token = "<x>";
  rule.source = ConfigTokenSource::model_token;
  rule.model = a;
  rule.source_id = 3;
  rule.force = true;
  config.tokens.push_back(rule);
  const std::vector<ModelRef> models = {a, b};
  const TokenizerSpec spec = resolve_tokenizer(config, models);
  EXPECT_EQ(spec.source, TokenizerSpec::Source::model);
  EXPECT_EQ(spec.model, 1U);
  EXPECT_EQ(spec.pad_to_multiple_of, 8U);
  ASSERT_EQ(spec.rules.size(), 1U);
  EXPECT_EQ(spec.rules[0].source, TokenRule::Source::other_token);
  EXPECT_EQ(spec.rules[0].model, 0U);
  EXPECT_EQ(spec.rules[0].other_id, 3U);
  EXPECT_TRUE(spec.rules[0].force);
  config.model = c;
  EXPECT_WEFT_ERROR(resolve_tokenizer(config, models), invalid_argument, "model ./c is not part of the merge");
}

// --- Reference merges
// ------------------------------------------------------------------------------------------------------------------------------------

struct Golden {
  const char* name;
  std::vector<std::string> models;
  std::size_t base;
  TokenizerSpec spec;
  std::vector<double> weights;  ///< of a linear merge; empty: vocabulary only
};
std::vector<Golden> goldens() {
  TokenizerSpec rules = from(
      Source::union_of_all,
      {model_rule("<|im_start|>", 1, true), {}, zero_rule("<|pad|>"), id_rule("<|extra|>", 1, 7), model_rule("e", 1, true), zero_rule("t", true)});
  rules.rules[1].token = "<|im_end|>";
  rules.rules[1].source = TokenRule::Source::other_token;
  rules.rules[1].other_token = "</s>";
  rules.pad_to_multiple_of = 10;
  TokenizerSpec padded = from(Source::union_of_all);
  padded.pad_to_multiple_of = 16;
  TokenizerSpec wide = from(Source::model);
  wide.model = 1;
  return {
      {"tokenizer-base", {"base", "wide"}, 0, from(Source::base), {0.5, 0.5}},
      {"tokenizer-model", {"a", "wide", "base"}, 2, wide, {}},
      {"tokenizer-union", {"base", "wide"}, 0, padded, {0.4, 0.6}},
      {"tokenizer-union-task", {"wide", "chat", "base"}, 2, from(Source::union_of_all), {}},
      {"tokenizer-rules", {"base", "chat"}, 0, rules, {0.5, 0.5}},
      {"tokenizer-base-and-more", {"base", "chat"}, 0, from(Source::base, {model_rule("<|im_start|>", 1, true), zero_rule("<|blank|>")}), {0.5, 0.5}},
  };
}

class ReferenceMerge : public ::testing::TestWithParam<Golden> {};
INSTANTIATE_TEST_SUITE_P(Mergekit, ReferenceMerge, ::testing::ValuesIn(goldens()), [](const auto& param_info) {
  std::string name = param_info.param.name;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
});

TEST_P(ReferenceMerge, has_the_same_tokens_special_tokens_and_rows) {
  const fs::path golden = fs::path(WEFT_SOURCE_DIR) / "../shared/golden/merge";
  if (!fs::exists(golden)) GTEST_SKIP() << "reference merges not found in " << golden;
  const Golden& c = GetParam();
  std::vector<TokenizerModel> models;
  std::vector<std::shared_ptr<const Checkpoint>> checkpoints;
  for (const std::string& name : c.models) {
    const fs::path folder = golden / "models" / name;
    models.push_back({"./models/" + name, folder, read_json_file(folder / "config.json").find("vocab_size")->unsigned_integer()});
    checkpoints.push_back(open_checkpoint(folder.string()));
  }
  const TokenizerPlan plan = plan_tokenizer(models, c.base, c.spec, std::nullopt);

  // Tokens as the comparison script reads them: the vocabulary and the added tokens of tokenizer.json.
  const Json want = read_json_file(golden / "expected" / (std::string(c.name) + ".tokens.json"));
  const Json got = parse_json(content_of(file_named(plan.files(), "tokenizer.json")), "tokenizer.json");
  std::map<std::string, std::uint64_t> tokens, expected;
  for (const auto& [token, id] : *got.find("model")->find("vocab")->object()) tokens[token] = *id.unsigned_integer();
  std::vector<std::string> special, expected_special;
  for (const Json& token : *got.find("added_tokens")->array()) {
    tokens[*token.find("content")->string()] = *token.find("id")->unsigned_integer();
    if (*token.find("special")->boolean()) special.push_back(*token.find("content")->string());
  }
  for (const auto& [token, id] : *want.find("tokens")->object()) expected[token] = *id.unsigned_integer();
  for (const Json& token : *want.find("special")->array()) expected_special.push_back(*token.string());
  std::sort(special.begin(), special.end());
  EXPECT_EQ(special, expected_special);
  const bool free_ids = c.spec.source == Source::union_of_all && std::string(c.name).find("union") != std::string::npos;
  if (free_ids) {
    ASSERT_EQ(tokens.size(), expected.size());
    for (const auto& [token, id] : expected) ASSERT_TRUE(tokens.contains(token)) << token;
  } else {
    ASSERT_EQ(tokens, expected);
  }

  if (c.weights.empty()) return;
  const auto reference = open_checkpoint((golden / "expected" / (std::string(c.name) + ".safetensors")).string());
  for (const std::string name : {"model.embed_tokens.weight", "lm_head.weight"}) {
    std::vector<EmbeddingInput> inputs;
    for (std::size_t m = 0; m < models.size(); ++m) inputs.push_back({m, {checkpoints[m], &checkpoints[m]->tensor(name)}, true});
    std::vector<std::string> warnings;
    const auto views = rebuild_embeddings(plan, inputs, name, DType::f32, warnings);
    const TensorInfo& stored = reference->tensor(name);
    ASSERT_EQ(views[0].tensor->shape, (Shape{static_cast<std::int64_t>(plan.num_rows()), 32}));
    ASSERT_EQ(views[0].tensor->shape, stored.shape);
    std::vector<std::vector<float>> values;
    for (const TensorRef& view : views) {
      std::vector<std::byte> bytes(view.tensor->size_bytes);
      view.checkpoint->read_bytes(*view.tensor, 0, bytes);
      values.push_back(values_of(DType::f32, bytes));
    }
    std::vector<std::byte> bytes(stored.size_bytes);
    reference->read_bytes(stored, 0, bytes);
    const std::vector<float> want_values = values_of(DType::f32, bytes);
    double largest = 0;
    for (const float v : want_values) largest = std::max(largest, std::abs(static_cast<double>(v)));
    double total = 0;
    for (const double w : c.weights) total += w;
    std::vector<std::uint64_t> row_of(plan.num_rows());  // in the reference
    for (std::uint64_t id = 0; id < plan.num_rows(); ++id) row_of[id] = plan.token(id) == nullptr ? id : expected.at(*plan.token(id));
    for (std::size_t i = 0; i < want_values.size(); ++i) {
      double sum = 0;
      for (std::size_t m = 0; m < values.size(); ++m) sum += c.weights[m] / total * static_cast<double>(values[m][i]);
      const double wanted = static_cast<double>(want_values[row_of[i / 32] * 32 + i % 32]);
      ASSERT_LE(std::abs(sum - wanted), 1e-6 * std::abs(wanted) + 3e-7 * largest) << name << " row " << i / 32 << " column " << i % 32;
    }
  }
}

TEST(ReferenceTemplate, the_chatml_template_is_the_one_that_mergekit_writes) {
  const fs::path file = fs::path(WEFT_SOURCE_DIR) / "../shared/golden/merge/expected/tokenizer-rules.tokens.json";
  if (!fs::exists(file)) GTEST_SKIP() << "reference merges not found: " << file;
  EXPECT_EQ(choose_chat_template("chatml", {}), *read_json_file(file).find("chat_template")->string());
}

}  // namespace
}  // namespace weft::engine
