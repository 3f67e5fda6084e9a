#include "weft/calibrate.h"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "checkpoint/gguf.h"
#include "checkpoint/json.h"
#include "support/errors.h"
#include "support/temporary_folder.h"
#include "weft/checkpoint.h"

namespace weft {
namespace {

namespace fs = std::filesystem;
using testing::TemporaryFolder;
using testing::write_file;

const std::string kModel = std::string(WEFT_SOURCE_DIR) + "/models/tiny-base";
const fs::path kShared = fs::path(WEFT_SOURCE_DIR) / "../shared";

std::vector<float> floats(const Checkpoint& checkpoint, const std::string& name) {
  const TensorInfo& tensor = checkpoint.tensor(name);
  std::vector<float> values(static_cast<std::size_t>(tensor.num_elements));
  EXPECT_EQ(tensor.dtype, DType::f32);
  checkpoint.read_bytes(tensor, 0, std::as_writable_bytes(std::span(values)));
  return values;
}

std::string words(int count) {
  std::string text;
  for (int i = 0; i < count; ++i) text += i % 7 == 0 ? "the beginning. " : "and god said let there be light ";
  return text;
}

CalibrateOptions options_for(const fs::path& text, std::uint64_t samples, std::uint64_t length) {
  CalibrateOptions options;
  options.text.files = {text};
  options.text.num_sequences = samples;
  options.text.length = length;
  return options;
}

TEST(Calibrate, an_importance_matrix_is_that_of_llama_cpp) {
  const fs::path golden = kShared / "golden/quantize/imatrix-tiny-base.gguf";
  const fs::path text = kShared / "zoo/text/calibration.txt";
  if (!fs::exists(golden) || !fs::exists(text)) GTEST_SKIP() << "the reference importance matrix is not here";
  const TemporaryFolder folder;
  const CalibrateReport report = calibrate((kShared / "zoo/lm/tiny-base").string(), folder / "own.gguf", options_for(text, 400, 256));
  EXPECT_EQ(report.num_tokens, 102400U);
  const auto own = open_checkpoint((folder / "own.gguf").string());
  const auto want = open_checkpoint(golden.string());
  ASSERT_EQ(own->tensors().size(), want->tensors().size());
  for (const TensorInfo& tensor : want->tensors()) {
    ASSERT_NE(own->find_tensor(tensor.name), nullptr) << tensor.name;
    ASSERT_EQ(own->tensor(tensor.name).shape, tensor.shape);
    const std::vector<float> got = floats(*own, tensor.name), wanted = floats(*want, tensor.name);
    const double bound = tensor.name.ends_with(".counts") ? 0 : 1e-3;
    for (std::size_t i = 0; i < got.size(); ++i) ASSERT_NEAR(got[i], wanted[i], bound * static_cast<double>(wanted[i])) << tensor.name << ' ' << i;
  }
  for (const auto& [key, value] : as_gguf(*want)->gguf_metadata().entries()) {
    const GgufValue* found = as_gguf(*own)->gguf_metadata().find(key);
    ASSERT_NE(found, nullptr) << key;
    EXPECT_EQ(describe(*found), describe(value)) << key;
  }
}

TEST(Calibrate, the_artefact_says_what_it_holds_and_what_it_was_made_from) {
  const TemporaryFolder folder;
  const fs::path text = folder / "text.txt";
  write_file(text, words(200));
  CalibrateOptions options = options_for(text, 3, 32);
  options.gram = true;
  const CalibrateReport report = calibrate(kModel, folder / "s.safetensors", options);
  EXPECT_EQ(report.layers.size(), 14U);
  EXPECT_EQ(report.layers.front().num_tokens, 96U);
  const auto file = open_checkpoint((folder / "s.safetensors").string());
  EXPECT_EQ(file->tensor("layers.1.down.gram").shape, (Shape{512, 512}));
  EXPECT_EQ(file->tensor("layers.0.q.sum_squares").shape, (Shape{256}));
  const Json manifest = parse_json(file->metadata().at("weft.manifest"), "manifest");
  EXPECT_EQ(*manifest.find("kind")->string(), "statistics");
  const Json* point = manifest.find("points")->find("layers.0.q");
  ASSERT_NE(point, nullptr);
  EXPECT_EQ(point->find("weights")->array()->size(), 3U);
  EXPECT_EQ(manifest.find("num_tokens")->unsigned_integer(), 96U);
  EXPECT_EQ(testing::tree(folder.path()), (std::vector<std::string>{"s.safetensors", "text.txt"})) << "something was left behind";
}

TEST(Calibrate, lines_of_documents_are_the_same_tokens_as_one_text_where_tokens_end_between_them) {
  const TemporaryFolder folder;
  write_file(folder / "plain.txt", "the light\nand the dark\n");
  write_file(folder / "lines.jsonl", "\"the light\\n\"\n{\"text\": \"and the dark\\n\", \"source\": 7}\n\n");
  const auto mean = [&](const char* name) {
    const CalibrateReport report = calibrate(kModel, folder / "s.safetensors", [&] {
      CalibrateOptions options = options_for(folder / name, 1, 6);
      options.force = true;
      return options;
    }());
    return report.layers.at(3).mean_square;
  };
  EXPECT_EQ(mean("plain.txt"), mean("lines.jsonl"));
}

TEST(Calibrate, chats_go_through_the_models_template) {
  const TemporaryFolder folder;
  fs::copy(kModel, folder / "model", fs::copy_options::recursive);
  write_file(folder / "chat.jsonl", R"({"messages": [{"role": "user", "content": "the light"}, {"role": "assistant", "content": "and the dark"}]})");
  EXPECT_WEFT_ERROR(calibrate((folder / "model").string(), folder / "s.safetensors", options_for(folder / "chat.jsonl", 1, 6)), not_found,
                    "chat template");
  write_file(folder / "model/chat_template.jinja", "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}");
  write_file(folder / "same.jsonl", "\"user: the light\\nassistant: and the dark\\n\"\n");
  const auto of = [&](const char* text, const char* out) {
    return calibrate((folder / "model").string(), folder / out, options_for(folder / text, 1, 6)).layers.at(3).mean_square;
  };
  EXPECT_EQ(of("chat.jsonl", "a.safetensors"), of("same.jsonl", "b.safetensors"));
}

TEST(Calibrate, drawn_sequences_depend_on_the_seed_and_nothing_else) {
  const TemporaryFolder folder;
  write_file(folder / "text.txt", words(400));
  const auto of = [&](std::uint64_t seed, int threads) {
    CalibrateOptions options = options_for(folder / "text.txt", 4, 24);
    options.text.order = CalibrationText::Order::random;
    options.seed = seed;
    options.threads = threads;
    options.force = true;
    return calibrate(kModel, folder / "s.safetensors", options).layers.back().mean_square;
  };
  EXPECT_EQ(of(1, 1), of(1, 2));
  EXPECT_NE(of(1, 1), of(2, 1));
}

TEST(Calibrate, bad_texts_are_named_with_file_and_line) {
  const TemporaryFolder folder;
  const fs::path out = folder / "s.safetensors";
  write_file(folder / "short.txt", "the light");
  EXPECT_WEFT_ERROR(calibrate(kModel, out, options_for(folder / "short.txt", 128, 256)), invalid_argument, "too short");
  write_file(folder / "empty.txt", "");
  EXPECT_WEFT_ERROR(calibrate(kModel, out, options_for(folder / "empty.txt", 0, 256)), invalid_argument, "too short");
  write_file(folder / "bad.jsonl", "\"fine\"\n{\"txt\": 1}\n");
  EXPECT_WEFT_ERROR(calibrate(kModel, out, options_for(folder / "bad.jsonl", 1, 2)), invalid_argument, "line 2");
  write_file(folder / "broken.jsonl", "{\"text\": \n");
  EXPECT_WEFT_ERROR(calibrate(kModel, out, options_for(folder / "broken.jsonl", 1, 2)), invalid_argument, "line 1");
  EXPECT_WEFT_ERROR(calibrate(kModel, out, options_for(folder / "none.txt", 1, 2)), not_found, "none.txt");
  write_file(out, "here");
  write_file(folder / "text.txt", words(50));
  EXPECT_WEFT_ERROR(calibrate(kModel, out, options_for(folder / "text.txt", 1, 8)), invalid_argument, "s.safetensors");
}

}  // namespace
}  // namespace weft
