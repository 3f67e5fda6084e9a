#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>

#include "checkpoint/json.h"
#include "support/command.h"
#include "support/golden.h"
#include "support/temporary_folder.h"

// The commands that run a model: forward, eval, generate.
namespace weft::testing {
namespace {

namespace fs = std::filesystem;
const fs::path kShared = fs::path(WEFT_SOURCE_DIR) / "../shared";
const std::string kModel = (fs::path(WEFT_SOURCE_DIR) / "models/tiny-base").string();

std::string write_file(const fs::path& path, const std::string& text) {
  std::ofstream(path, std::ios::binary) << text;
  return path.string();
}

Json json_of(const CommandResult& result) {
  EXPECT_EQ(result.status, 0) << result.err;
  return parse_json(result.out, "stdout");
}

double number(const Json& json, const char* key) {
  const Json* value = json.find(key);
  EXPECT_NE(value, nullptr) << key;
  return value == nullptr || !value->number() ? NAN : *value->number();
}

std::string some_text(int words) {
  std::string text;
  for (int i = 0; i < words; ++i) text += i % 7 == 0 ? "the beginning. " : "and god said let there be light ";
  return text;
}

/// MODEL or MODEL+ADAPTER of a run in the golden index.
std::string zoo_model(const Json& run) {
  std::string name = (kShared / "zoo" / golden_text(run, "model")).string();
  if (const Json* adapter = run.find("adapter"); adapter != nullptr && adapter->string() != nullptr)
    name += "+" + (kShared / "zoo" / *adapter->string()).string();
  return name;
}

TEST(ForwardCommand, logits_have_a_row_for_each_token_of_each_line) {
  const TemporaryFolder folder;
  const std::string ids = write_file(folder / "ids.jsonl", "[5, 6, 7]\n{\"ids\": [8]}\n");
  const std::string out = (folder / "out.safetensors").string();
  const Json report = json_of(run_weft({"forward", kModel, "--ids", ids, "-o", out, "--json"}));
  EXPECT_EQ(number(report, "num_tensors"), 2);
  const GoldenModel tensors = read_safetensors(out);
  EXPECT_EQ(tensors.at("0.logits").shape, (std::vector<std::int64_t>{3, 1024}));
  EXPECT_EQ(tensors.at("1.logits").shape, (std::vector<std::int64_t>{1, 1024}));
  EXPECT_EQ(tensors.at("0.logits").dtype, "F32");
}

TEST(ForwardCommand, an_embedding_has_length_one_unless_raw) {
  const TemporaryFolder folder;
  const std::string text = write_file(folder / "text", "In the beginning\nwas the word\n");
  for (const bool raw : {false, true}) {
    const std::string out = (folder / (raw ? "raw" : "unit")).string() + ".safetensors";
    std::vector<std::string> arguments = {"forward", kModel, "--text", text, "--what", "embedding", "-o", out};
    if (raw) arguments.emplace_back("--raw");
    ASSERT_EQ(run_weft(arguments).status, 0);
    double squares = 0;
    for (const double value : read_safetensors(out).at("1.embedding").values()) squares += value * value;
    EXPECT_EQ(std::abs(squares - 1) < 1e-5, !raw) << squares;
  }
}

TEST(ForwardCommand, blocks_are_those_of_the_reference_and_the_last_comes_before_the_final_norm) {
  const fs::path golden = kShared / "golden/logits";
  if (!fs::exists(golden / "index.json")) GTEST_SKIP() << "no golden data";
  const TemporaryFolder folder;
  const Json index = read_json_file(golden / "index.json");
  for (const Json& model : *index.find("nano")->array()) {
    if (golden_text(model, "name") != "llama") continue;
    std::string lines;
    for (const Json& prompt : *model.find("prompts")->array()) lines += write_json(*prompt.find("ids")) + "\n";
    const std::string ids = write_file(folder / "ids", lines);
    const std::string out = (folder / "out.safetensors").string();
    ASSERT_EQ(run_weft({"forward", (golden / golden_text(model, "folder")).string(), "--ids", ids, "--what", "blocks", "-o", out}).status, 0);
    const GoldenModel got = read_safetensors(out), expected = read_safetensors(golden / golden_text(model, "expected"));
    EXPECT_EQ(got.size(), 9U);
    const std::vector<double> a = got.at("0.block2").values(), b = expected.at("p0.block2").values();
    double largest = 0, worst = 0;
    for (std::size_t i = 0; i < b.size(); ++i) {
      largest = std::max(largest, std::abs(b[i]));
      worst = std::max(worst, std::abs(a[i] - b[i]));
    }
    EXPECT_LE(worst, 2e-4 * largest);
  }
}

TEST(ForwardCommand, a_model_that_does_not_fit_runs_block_by_block_with_the_same_result) {
  const TemporaryFolder folder;
  const std::string ids = write_file(folder / "ids", "[5, 6, 7, 8, 9, 10, 11, 12]\n");
  const std::string a = (folder / "a.safetensors").string(), b = (folder / "b.safetensors").string();
  ASSERT_EQ(run_weft({"forward", kModel, "--ids", ids, "-o", a}).status, 0);
  const CommandResult small = run_weft({"forward", kModel, "--ids", ids, "-o", b, "--memory", "2500KB"});
  ASSERT_EQ(small.status, 0) << small.err;
  EXPECT_NE(small.err.find("blocks are read anew"), std::string::npos) << small.err;
  EXPECT_EQ(read_safetensors(a).at("0.logits").bytes, read_safetensors(b).at("0.logits").bytes);
  const CommandResult tiny = run_weft({"forward", kModel, "--ids", ids, "-o", b, "--memory", "100KB", "--force"});
  EXPECT_EQ(tiny.status, 1);
  EXPECT_NE(tiny.err.find("100 kB"), std::string::npos) << tiny.err;
}

TEST(ForwardCommand, smaller_precisions_stay_near_float32) {
  const TemporaryFolder folder;
  const std::string text = write_file(folder / "text", some_text(120));
  const auto logits = [&](const std::string& name, const std::string& precision, const CommandOptions& options) {
    const std::string out = (folder / name).string() + ".safetensors";
    EXPECT_EQ(run_weft({"forward", kModel, "--text", text, "-o", out, "--precision", precision}, options).status, 0);
    return read_safetensors(out).at("0.logits").values();
  };
  const std::vector<double> exact = logits("exact", "float32", {});
  const auto relative_error = [&](const std::vector<double>& got) {
    double squares = 0, errors = 0;
    for (std::size_t i = 0; i < exact.size(); ++i) {
      squares += exact[i] * exact[i];
      errors += (exact[i] - got[i]) * (exact[i] - got[i]);
    }
    return std::sqrt(errors / squares);
  };
  // Two blocks of four roundings each in a row, and the head's: each changes a number by 2^-9 of it at most.
  EXPECT_LT(relative_error(logits("fast", "fast", {})), 9 * 0x1p-9);
  for (const char* products : {"bf16", "float32"})
    EXPECT_LT(relative_error(logits(products, "fast", {.environment = {{"WEFT_GEMM", products}}})), 9 * 0x1p-9) << products;
  // Half a step is 1/254 of the largest number of a row or a token.
  EXPECT_LT(relative_error(logits("int8", "int8", {})), 9.0 / 127);
}

TEST(ForwardCommand, threads_do_not_change_a_bit) {
  const TemporaryFolder folder;
  const std::string text = write_file(folder / "text", some_text(60));
  std::string first;
  for (const char* threads : {"1", "2", "5"}) {
    const std::string out = (folder / threads).string() + ".safetensors";
    ASSERT_EQ(run_weft({"forward", kModel, "--text", text, "-o", out, "-j", threads}).status, 0);
    const std::string bytes = read_safetensors(out).at("0.logits").bytes;
    if (first.empty()) first = bytes;
    EXPECT_EQ(bytes, first) << threads;
  }
}

TEST(GenerateCommand, a_text_whose_keys_and_values_cannot_fit_is_refused_before_it_is_begun) {
  const CommandResult refused = run_weft({"generate", kModel, "--prompt", "In the beginning", "-n", "1000000", "--ignore-end", "--memory", "16MiB"});
  EXPECT_EQ(refused.status, 1);
  EXPECT_TRUE(refused.out.empty()) << refused.out;
  EXPECT_NE(refused.err.find("16.8 MB"), std::string::npos) << refused.err;
  EXPECT_NE(refused.err.find("--memory"), std::string::npos) << refused.err;
}

TEST(ForwardCommand, bad_input_is_one_clear_error_and_leaves_nothing) {
  const TemporaryFolder folder;
  const std::string out = (folder / "out.safetensors").string();
  struct Case {
    const char* lines;
    const char* phrase;
  };
  for (const Case& bad : {Case{"[1, 1024]\n", "token id 1024 is not below 1024"}, Case{"[]\n", "no tokens"}, Case{"[1, -2]\n", "line 1"},
                          Case{"\n\n", "no line of ids"}, Case{"[1]\n{\"id\": [2]}\n", "line 2"}, Case{"[1, 2\n", "line 1"}}) {
    const CommandResult result = run_weft({"forward", kModel, "--ids", write_file(folder / "ids", bad.lines), "-o", out});
    EXPECT_EQ(result.status, 2) << bad.lines;
    EXPECT_NE(result.err.find(bad.phrase), std::string::npos) << result.err;
    EXPECT_FALSE(fs::exists(out)) << bad.lines;
  }
  EXPECT_EQ(run_weft({"forward", kModel, "-o", out}).status, 2);
}

TEST(EvalCommand, perplexity_follows_the_protocol_of_the_reference) {
  const fs::path golden = kShared / "golden/logits/index.json";
  if (!fs::exists(golden)) GTEST_SKIP() << "no golden data";
  const Json index = read_json_file(golden);
  for (const Json& run : *index.find("perplexity")->array()) {
    const std::string name = golden_text(run, "name");
    SCOPED_TRACE(name + " " + golden_text(run, "text") + " " + std::to_string(golden_number(run, "stride", 0)));
    // All windows of the smallest model, the first few of the others, which take longer.
    const bool whole = name == "tiny-base";
    const auto windows = static_cast<std::size_t>(whole ? golden_number(run, "windows", 0) : 2);
    const Json got =
        json_of(run_weft({"eval", zoo_model(run), "--text", (kShared / "zoo/text/held" / golden_text(run, "text")).string(), "--window",
                          std::to_string(static_cast<int>(golden_number(run, "window", 0))), "--stride",
                          std::to_string(static_cast<int>(golden_number(run, "stride", 0))), "--windows", std::to_string(windows), "--json"}));
    const Json& text = got.find("texts")->array()->front();
    const Json::Array& got_windows = *text.find("window_nll")->array();
    const Json::Array& want_windows = *run.find("window_nll")->array();
    ASSERT_EQ(got_windows.size(), windows);
    for (std::size_t i = 0; i < windows; ++i) EXPECT_NEAR(*got_windows[i].number() / *want_windows[i].number(), 1, 1e-4) << i;
    EXPECT_EQ(number(text, "stream_tokens"), golden_number(run, "stream_tokens", 0));
    if (!whole) continue;
    EXPECT_NEAR(number(text, "perplexity") / golden_number(run, "perplexity", 0), 1, 1e-4);
    EXPECT_EQ(number(text, "num_tokens"), golden_number(run, "tokens_scored", 0));
  }
}

TEST(EvalCommand, one_window_has_no_interval) {
  const ExampleFolder folder;
  const CommandResult result =
      folder.weft({"eval", "models/tiny-base", "--text", "models/tiny-base/config.json", "--window", "64", "--windows", "1"});
  EXPECT_EQ(result.status, 0) << result.err;
  EXPECT_NE(result.out.find("one window"), std::string::npos) << result.out;
  EXPECT_EQ(result.out.find("inf"), std::string::npos) << result.out;
}

TEST(EvalCommand, a_model_against_itself_differs_in_nothing) {
  const TemporaryFolder folder;
  const std::string text = write_file(folder / "text", some_text(100));
  const Json got = json_of(run_weft({"eval", kModel, "--text", text, "--window", "64", "--windows", "3", "--against", kModel, "--json"}));
  const Json& score = got.find("texts")->array()->front();
  EXPECT_EQ(number(score, "kl_mean"), 0);
  EXPECT_EQ(number(score, "top1_agreement"), 1);
  EXPECT_EQ(number(score, "delta_nll"), 0);
}

TEST(EvalCommand, against_another_model_the_difference_is_that_of_the_two_losses) {
  const TemporaryFolder folder;
  const std::string text = write_file(folder / "text", some_text(100));
  const std::string german = (fs::path(WEFT_SOURCE_DIR) / "models/tiny-german").string();
  const auto score = [&](std::vector<std::string> arguments) {
    arguments.insert(arguments.end(), {"--text", text, "--window", "64", "--windows", "4", "--json"});
    return json_of(run_weft(arguments)).find("texts")->array()->front();
  };
  const Json a = score({"eval", kModel}), b = score({"eval", german}), both = score({"eval", german, "--against", kModel});
  EXPECT_NEAR(number(both, "delta_nll"), number(b, "nll_per_token") - number(a, "nll_per_token"), 1e-9);
  EXPECT_GT(number(both, "delta_nll"), 0) << "the German model is worse on English";
  EXPECT_GT(number(both, "kl_mean"), 0);
  EXPECT_GE(number(both, "kl_p99"), number(both, "kl_mean"));
  const Json::Array& interval = *both.find("delta_ci95")->array();
  EXPECT_LT(*interval[0].number(), number(both, "delta_nll"));
  EXPECT_GT(*interval[1].number(), number(both, "delta_nll"));
}

TEST(EvalCommand, several_texts_are_scored_in_one_load) {
  const TemporaryFolder folder;
  const std::string a = write_file(folder / "a", some_text(50)), b = write_file(folder / "b", some_text(90));
  const Json got = json_of(run_weft({"eval", kModel, "--text", a, b, "--window", "32", "--windows", "2", "--json"}));
  EXPECT_EQ(got.find("texts")->array()->size(), 2U);
  EXPECT_EQ(number(*got.find("protocol"), "num_windows"), 2);
}

TEST(EvalCommand, a_gguf_file_reads_and_scores_as_the_folder_that_it_was_made_from) {
  const TemporaryFolder folder;
  const std::string gguf = (folder / "model.gguf").string(), text = write_file(folder / "text", some_text(60));
  const CommandResult converted = run_weft({"convert", kModel, gguf});
  ASSERT_EQ(converted.status, 0) << converted.err;
  const auto score = [&](const std::string& model) {
    return json_of(run_weft({"eval", model, "--text", text, "--window", "64", "--windows", "3", "--json"})).find("texts")->array()->front();
  };
  const Json a = score(kModel), b = score(gguf);
  EXPECT_NEAR(number(a, "nll_per_token"), number(b, "nll_per_token"), 1e-5);
  EXPECT_EQ(number(a, "num_bytes"), number(b, "num_bytes"));
}

TEST(EvalCommand, rounded_activations_cost_something_and_are_named_in_the_protocol) {
  const TemporaryFolder folder;
  const std::string text = write_file(folder / "text", some_text(100));
  const auto run = [&](std::vector<std::string> more) {
    more.insert(more.begin(), {"eval", kModel, "--text", text, "--window", "64", "--windows", "3", "--against", kModel, "--json"});
    return json_of(run_weft(more));
  };
  const Json plain = run({}), rounded = run({"--activations", "int4", "--activation-clip", "0.9"});
  EXPECT_EQ(plain.find("protocol")->find("activations"), nullptr);
  EXPECT_EQ(*rounded.find("protocol")->find("activations")->find("numbers")->string(), "int4");
  EXPECT_GT(number(rounded.find("texts")->array()->front(), "kl_mean"), 1e-3) << "the other model is not rounded";
  const Json ranges = run({"--activations", "int8", "--activation-ranges", "8", "--calibration",
                           (fs::path(WEFT_SOURCE_DIR) / "claims/text/english.txt").string(), "--sequences", "4", "--length", "64"});
  EXPECT_EQ(number(*ranges.find("protocol")->find("activations"), "ranges"), 8);
  EXPECT_LT(number(ranges.find("texts")->array()->front(), "kl_mean"), number(rounded.find("texts")->array()->front(), "kl_mean"));
  EXPECT_NE(run_weft({"eval", kModel, "--text", text, "--activations", "int4x"}).err.find("int2 to int16"), std::string::npos);
  EXPECT_NE(run_weft({"eval", kModel, "--choices", text, "--activations", "int4"}).err.find("measured on texts"), std::string::npos);
}

TEST(EvalCommand, texts_that_cannot_be_scored_are_refused) {
  const TemporaryFolder folder;
  const CommandResult empty = run_weft({"eval", kModel, "--text", write_file(folder / "empty", "")});
  EXPECT_EQ(empty.status, 2);
  EXPECT_NE(empty.err.find("the text is empty"), std::string::npos) << empty.err;
  const CommandResult shorter = run_weft({"eval", kModel, "--text", write_file(folder / "short", "In the beginning"), "--window", "64"});
  EXPECT_EQ(shorter.status, 2);
  EXPECT_NE(shorter.err.find("less than one window of 64"), std::string::npos) << shorter.err;
  EXPECT_EQ(run_weft({"eval", kModel}).status, 2);
}

TEST(EvalCommand, images_give_the_accuracies_of_the_zoo) {
  const fs::path vision = kShared / "zoo/vision";
  if (!fs::exists(vision)) GTEST_SKIP() << "no zoo";
  struct Case {
    const char* model;
    const char* transform;
    double accuracy;
    double bound;
  };
  // Noise is drawn from another generator: 2000 images scatter by about 0.011.
  for (const Case& run : {Case{"rebasin/mlp-0", "same", 0.9485, 0}, Case{"tasks/base", "rot90", 0.1220, 0}, Case{"tasks/base", "invert", 0.0635, 0},
                          Case{"tasks/base", "mirror", 0.2800, 0}, Case{"tasks/base", "noise", 0.5405, 0.04}, Case{"robust/clean", "blur", 0.9420, 0},
                          Case{"robust/clean", "contrast", 0.9730, 0}, Case{"robust/clean", "pixelate", 0.8570, 0}}) {
    const Json got =
        json_of(run_weft({"eval", (vision / run.model).string(), "--images", (vision / "data/mnist/t10k-images-idx3-ubyte.gz").string(), "--labels",
                          (vision / "data/mnist/t10k-labels-idx1-ubyte.gz").string(), "--transform", run.transform, "--json"}));
    EXPECT_NEAR(number(got, "accuracy"), run.accuracy, run.bound + 1e-9) << run.model << " " << run.transform;
    EXPECT_EQ(number(got, "num_images"), 2000);
  }
}

TEST(EvalCommand, images_that_are_none_are_refused) {
  const fs::path vision = kShared / "zoo/vision";
  if (!fs::exists(vision)) GTEST_SKIP() << "no zoo";
  const TemporaryFolder folder;
  const std::string model = (vision / "rebasin/mlp-0").string();
  const std::string labels = write_file(folder / "labels", std::string("\0\0\x08\x01\0\0\0\x01\x05", 9));
  struct Case {
    std::string bytes;
    const char* phrase;
  };
  for (const Case& bad : {Case{"PNG", "not an idx file"}, Case{std::string("\0\0\x08\x03\0\0\0\x01\0\0\0\x1c\0\0\0\x1cxx", 18), "shorter than"},
                          Case{std::string("\0\0\x0d\x03\0\0\0\x01", 8), "type 0x0d"},
                          Case{std::string("\0\0\x08\x03\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", 16), "overflow"},
                          Case{std::string("\0\0\x08\x03\0\0\0\x01\0\0\0\x02\0\0\0\x02wxyz", 20), "the network takes 784"}}) {
    const CommandResult result = run_weft({"eval", model, "--images", write_file(folder / "images", bad.bytes), "--labels", labels});
    EXPECT_EQ(result.status, 2) << bad.phrase;
    EXPECT_NE(result.err.find(bad.phrase), std::string::npos) << result.err;
  }
}

TEST(EvalCommand, a_choice_that_continues_the_text_beats_noise) {
  const TemporaryFolder folder;
  const std::string file = write_file(folder / "choices.jsonl",
                                      "{\"prompt\": \"And the Lord spake unto\", \"choices\": [\" Moses\", \" zxqv\"], \"answer\": 0}\n"
                                      "{\"prompt\": \"In the\", \"choices\": [\" qqqq jjjj\", \" house of\"], \"answer\": 1}\n");
  const Json got = json_of(run_weft({"eval", kModel, "--choices", file, "--json"}));
  EXPECT_EQ(number(got, "accuracy"), 1);
  EXPECT_EQ(got.find("questions")->array()->size(), 2U);
  const CommandResult bad =
      run_weft({"eval", kModel, "--choices", write_file(folder / "bad", "{\"prompt\": \"a\", \"choices\": [\"b\", \"c\"], \"answer\": 2}\n")});
  EXPECT_EQ(bad.status, 2);
  EXPECT_NE(bad.err.find("line 1"), std::string::npos) << bad.err;
}

TEST(GenerateCommand, greedy_tokens_are_those_of_the_reference) {
  const fs::path golden = kShared / "golden/logits";
  if (!fs::exists(golden / "index.json")) GTEST_SKIP() << "no golden data";
  const TemporaryFolder folder;
  const Json index = read_json_file(golden / "index.json");
  for (const Json& run : *index.find("zoo")->array()) {
    std::string lines;
    for (const Json& prompt : *run.find("prompts")->array()) lines += "{\"ids\": " + write_json(*prompt.find("ids")) + "}\n";
    const CommandResult result =
        run_weft({"generate", zoo_model(run), "--ids", write_file(folder / "ids", lines), "--greedy", "--max-tokens", "16", "--ignore-end"});
    ASSERT_EQ(result.status, 0) << result.err;
    std::istringstream out(result.out);
    std::string line;
    for (const Json& prompt : *run.find("prompts")->array()) {
      ASSERT_TRUE(std::getline(out, line));
      const Json got = parse_json(line, "stdout");
      EXPECT_EQ(write_json(*got.find("ids")), write_json(*prompt.find("greedy"))) << golden_text(run, "name");
      EXPECT_EQ(golden_text(got, "finish_reason"), "length");
    }
  }
}

TEST(GenerateCommand, the_streamed_text_is_that_of_the_document) {
  const std::vector<std::string> arguments = {"generate", kModel,          "--prompt", "In the beginning", "--max-tokens",
                                              "24",       "--temperature", "0.8",      "--seed",           "3"};
  const CommandResult streamed = run_weft(arguments);
  std::vector<std::string> with_json = arguments;
  with_json.emplace_back("--json");
  const Json document = json_of(run_weft(with_json));
  EXPECT_EQ(streamed.out, golden_text(document, "text") + "\n");
  EXPECT_EQ(document.find("ids")->array()->size(), 24U);
  std::vector<std::string> other_seed = with_json;
  other_seed[9] = "4";
  EXPECT_NE(golden_text(json_of(run_weft(other_seed)), "text"), golden_text(document, "text"));
}

TEST(GenerateCommand, a_stop_text_ends_the_text_before_it) {
  const Json whole = json_of(run_weft({"generate", kModel, "--prompt", "In the beginning", "--max-tokens", "24", "--greedy", "--json"}));
  const std::string text = golden_text(whole, "text");
  ASSERT_GT(text.size(), 8U);
  const std::string stop = text.substr(5, 3);
  const std::size_t at = text.find(stop);
  const Json cut =
      json_of(run_weft({"generate", kModel, "--prompt", "In the beginning", "--max-tokens", "24", "--greedy", "--json", "--stop", stop}));
  EXPECT_EQ(golden_text(cut, "text"), text.substr(0, at));
  EXPECT_EQ(golden_text(cut, "finish_reason"), "stop");
}

TEST(GenerateCommand, a_chat_is_what_the_template_writes_before_the_answer) {
  const TemporaryFolder folder;
  const fs::path model = folder / "model";
  fs::create_directory(model);
  for (const char* name : {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"})
    fs::copy_file(fs::path(kModel) / name, model / name);
  const CommandResult without = run_weft({"generate", model.string(), "--prompt", "hello", "--chat"});
  EXPECT_EQ(without.status, 2);
  EXPECT_NE(without.err.find("no chat template"), std::string::npos) << without.err;
  write_file(model / "chat_template.jinja",
             "{% for m in messages %}{{ m.role }}: {{ m.content }} {% endfor %}{% if add_generation_prompt %}answer:{% endif %}");
  const std::vector<std::string> rest = {"--max-tokens", "6", "--greedy", "--json"};
  const auto ids = [&](std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), {"generate", model.string()});
    arguments.insert(arguments.end(), rest.begin(), rest.end());
    return write_json(*json_of(run_weft(arguments)).find("ids"));
  };
  EXPECT_EQ(ids({"--prompt", "hello", "--chat", "--system", "be brief"}), ids({"--prompt", "system: be brief user: hello answer:", "--no-special"}));
}

TEST(GenerateCommand, nonsense_is_refused_before_anything_runs) {
  EXPECT_EQ(run_weft({"generate", kModel}).status, 2);
  for (const auto& [option, value] : {std::pair("--temperature", "-1"), std::pair("--top-p", "0"), std::pair("--min-p", "2"),
                                      std::pair("--repetition-penalty", "0"), std::pair("--temperature", "hot")}) {
    const CommandResult result = run_weft({"generate", kModel, "--prompt", "a", option, value});
    EXPECT_EQ(result.status, 2) << option;
    EXPECT_EQ(result.out, "");
  }
}

}  // namespace
}  // namespace weft::testing
