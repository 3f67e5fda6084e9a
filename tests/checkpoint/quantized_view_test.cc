#include "checkpoint/quantized_view.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <functional>

#include "checkpoint/packed_rows.h"
#include "codec/packed_linear.h"
#include "math/convert.h"
#include "support/errors.h"
#include "support/golden.h"
#include "support/memory_checkpoint.h"

namespace weft {
namespace {

namespace fs = std::filesystem;
using testing::GoldenModel;
using testing::GoldenTensor;
using testing::MemoryCheckpoint;

const fs::path kGoldens = fs::path(WEFT_SOURCE_DIR) / "../shared/golden/quantize";

MemoryCheckpoint::Tensor tensor_of(std::string name, const GoldenTensor& golden) {
  MemoryCheckpoint::Tensor out{std::move(name), *dtype_from_name(golden.dtype), golden.shape, {}};
  const auto bytes = std::as_bytes(std::span(golden.bytes));
  out.bytes.assign(bytes.begin(), bytes.end());
  return out;
}

/// The tensors "CASE.*" of a golden as those of module "model.layers.0.mlp.up_proj".
std::vector<MemoryCheckpoint::Tensor> module_of(const GoldenModel& golden, const std::string& name, std::initializer_list<std::string_view> without) {
  std::vector<MemoryCheckpoint::Tensor> tensors;
  for (const auto& [key, value] : golden) {
    if (!key.starts_with(name + ".")) continue;
    const std::string part = key.substr(name.size() + 1);
    if (std::find(without.begin(), without.end(), part) != without.end() || part.starts_with("nested")) continue;
    tensors.push_back(tensor_of("model.layers.0.mlp.up_proj." + part, value));
  }
  return tensors;
}

std::vector<std::byte> read_in_pieces(const Checkpoint& checkpoint, const TensorInfo& tensor, std::size_t piece) {
  std::vector<std::byte> bytes(tensor.size_bytes);
  for (std::size_t at = 0; at < bytes.size(); at += piece)
    checkpoint.read_bytes(tensor, at, std::span(bytes).subspan(at, std::min(piece, bytes.size() - at)));
  return bytes;
}

Json config_of(const std::string& quantization) {
  return parse_json("{\"torch_dtype\": \"bfloat16\", \"quantization_config\": " + quantization + "}", "config.json");
}

/// Counts, so that a test can tell that something was compared.
int num_packed = 0;

/// What stays packed stands for the values that are read, but for their rounding to the tensor's type.
void expect_packed_alike(const Checkpoint& view, const TensorInfo& tensor) {
  PackedRows rows;
  if (!read_packed_rows(view, tensor, 0, 0, rows)) return;
  ++num_packed;
  const auto num_rows = static_cast<std::size_t>(tensor.shape[0]), columns = static_cast<std::size_t>(tensor.shape[1]);
  math::PackedMatrix matrix(rows.format, num_rows, columns);
  // Bands as threads read them, which begin in the middle of words.
  for (std::size_t first = 0; first < num_rows; first += 13) {
    const std::size_t count = std::min<std::size_t>(13, num_rows - first);
    ASSERT_TRUE(read_packed_rows(view, tensor, first, count, rows));
    for (std::size_t i = 0; i < count; ++i) rows.put(i, matrix, first + i);
  }
  const std::vector<std::byte> bytes = read_in_pieces(view, tensor, tensor.size_bytes);
  std::vector<float> expected(num_rows * columns), row(columns);
  math::decode(tensor.dtype, bytes, expected);
  const double step = tensor.dtype == DType::bf16 ? 1.0 / 256 : tensor.dtype == DType::f16 ? 1.0 / 2048 : 1e-6;
  for (std::size_t r = 0; r < num_rows; ++r) {
    matrix.read_row(r, row.data());
    for (std::size_t c = 0; c < columns; ++c) {
      const double value = static_cast<double>(expected[r * columns + c]);
      ASSERT_NEAR(static_cast<double>(row[c]), value, 1.01 * step * std::abs(value) + 1e-6) << "row " << r << " column " << c;
    }
  }
}

void expect_decoded(const std::vector<MemoryCheckpoint::Tensor>& tensors, const Json& config, const GoldenTensor& expected) {
  std::string not_read;
  const auto view = decode_quantized(std::make_shared<MemoryCheckpoint>(tensors), config, not_read);
  EXPECT_EQ(not_read, "");
  ASSERT_EQ(view->tensors().size(), 1u);
  const TensorInfo& tensor = view->tensors().front();
  EXPECT_EQ(tensor.name, "model.layers.0.mlp.up_proj.weight");
  EXPECT_EQ(to_string(tensor.dtype), expected.dtype);
  EXPECT_EQ(tensor.shape, expected.shape);
  EXPECT_FALSE(tensor.stored_as.empty());
  EXPECT_LT(0u, tensor.stored_bytes);
  for (const std::size_t piece : {std::size_t{1} << 20, std::size_t{1000}, std::size_t{7777}}) {
    const std::vector<std::byte> bytes = read_in_pieces(*view, tensor, piece);
    ASSERT_EQ(bytes.size(), expected.bytes.size());
    EXPECT_EQ(std::memcmp(bytes.data(), expected.bytes.data(), bytes.size()), 0);
  }
  expect_packed_alike(*view, tensor);
}

TEST(QuantizedView, gptq_weights_are_what_gptqmodel_makes_of_them) {
  if (!fs::exists(kGoldens)) GTEST_SKIP() << "no reference data beside the repository";
  num_packed = 0;
  const GoldenModel golden = testing::read_safetensors(kGoldens / "gptq_awq.safetensors");
  const Json index = read_json_file(kGoldens / "gptq_awq.json");
  for (const auto& [name, what] : *index.find("packed")->object()) {
    SCOPED_TRACE(name);
    expect_decoded(module_of(golden, name, {"codes", "zeros", "decoded"}),
                   config_of(fmt::format(R"({{"quant_method": "gptq", "bits": {}, "group_size": {}, "checkpoint_format": "{}", "sym": {}}})",
                                         *what.find("bits")->integer(), *what.find("group_size")->integer(), *what.find("format")->string(),
                                         name.ends_with("sym"))),
                   golden.at(name + ".decoded"));
  }
  for (const auto& [name, what] : *index.find("from_models")->object()) {
    SCOPED_TRACE(name);
    if (*what.find("quantization_config")->find("quant_method")->string() != "gptq") continue;  // has a test of its own
    for (const Json& layer : *what.find("layers")->array()) {
      const std::string prefix = name + "." + *layer.string();
      expect_decoded(module_of(golden, prefix, {"decoded"}), config_of(write_json(*what.find("quantization_config"))),
                     golden.at(prefix + ".decoded"));
      // The file beside the weights says the same.
      if (const Json* beside = what.find("quantize_config.json"); beside->is_object())
        expect_decoded(module_of(golden, prefix, {"decoded"}), config_of(write_json(*beside)), golden.at(prefix + ".decoded"));
    }
  }
  EXPECT_GT(num_packed, 0);
}

TEST(QuantizedView, awq_weights_are_what_autoawq_makes_of_them) {
  if (!fs::exists(kGoldens)) GTEST_SKIP() << "no reference data beside the repository";
  num_packed = 0;
  const GoldenModel golden = testing::read_safetensors(kGoldens / "awq.safetensors");
  const Json index = read_json_file(kGoldens / "awq.json");
  for (const int group : {32, 64, 128}) {
    // The tool decodes only its gemm form; both were packed from the same codes.
    const GoldenTensor& decoded = golden.at(fmt::format("awq.gemm.g{}.decoded", group));
    for (const char* version : {"gemm", "gemv"})
      expect_decoded(
          module_of(golden, fmt::format("awq.{}.g{}", version, group), {"codes", "zeros", "decoded"}),
          config_of(fmt::format(R"({{"quant_method": "awq", "bits": 4, "group_size": {}, "zero_point": true, "version": "{}"}})", group, version)),
          decoded);
  }
  const Json& model = *index.find("from_model");
  const std::string prefix = *model.find("name")->string() + "." + *model.find("layer")->string();
  expect_decoded(module_of(golden, prefix, {"decoded"}), config_of(write_json(*model.find("quantization_config"))), golden.at(prefix + ".decoded"));
  EXPECT_GT(num_packed, 0);
}

TEST(QuantizedView, compressed_tensors_are_what_the_tool_makes_of_them) {
  if (!fs::exists(kGoldens)) GTEST_SKIP() << "no reference data beside the repository";
  num_packed = 0;
  const GoldenModel golden = testing::read_safetensors(kGoldens / "compressed_tensors.safetensors");
  const Json index = read_json_file(kGoldens / "compressed_tensors.json");
  for (const auto& [name, what] : *index.find("items")->object()) {
    if (what.find("error") != nullptr) continue;
    SCOPED_TRACE(name);
    Json group = *what.find("scheme");
    expect_decoded(
        module_of(golden, name, {"decompressed"}),
        config_of(fmt::format(R"({{"quant_method": "compressed-tensors", "format": "{}", "version": "0.20.0", "quantization_status": "compressed",
                                             "ignore": ["lm_head"], "config_groups": {{"group_0": {}}}}})",
                              *what.find("format")->string(), write_json(group))),
        golden.at(name + ".decompressed"));
  }
  EXPECT_GT(num_packed, 0);
}

TEST(QuantizedView, bitsandbytes_weights_are_what_their_layout_says) {
  if (!fs::exists(kGoldens)) GTEST_SKIP() << "no reference data beside the repository";
  num_packed = 0;
  const GoldenModel golden = testing::read_safetensors(kGoldens / "bitsandbytes.safetensors");
  const Json index = read_json_file(kGoldens / "bitsandbytes.json");
  for (const auto& [name, what] : *index.find("items")->object()) {
    if (name.ends_with(".int8")) continue;
    SCOPED_TRACE(name);
    std::vector<MemoryCheckpoint::Tensor> tensors;
    for (const auto& [key, value] : golden)
      if (key == name + ".weight" || key.starts_with(name + ".weight."))
        tensors.push_back(tensor_of("model.layers.0.mlp.up_proj" + key.substr(name.size()), value));
    expect_decoded(tensors, config_of(R"({"quant_method": "bitsandbytes", "load_in_4bit": true})"), golden.at(name + ".dequantized"));
  }
  for (const char* name : {"real", "odd"}) {
    const GoldenTensor& codes = golden.at(fmt::format("{}.int8.weight", name));
    const std::vector<double> scales = golden.at(fmt::format("{}.int8.SCB", name)).values();
    const std::vector<float> values = testing::values_of(DType::i8, std::as_bytes(std::span(codes.bytes)));
    std::string not_read;
    const auto view = decode_quantized(
        std::make_shared<MemoryCheckpoint>(module_of(golden, fmt::format("{}.int8", name), {})),
        parse_json(R"({"torch_dtype": "float32", "quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": true}})", "config"),
        not_read);
    const std::vector<std::byte> bytes = read_in_pieces(*view, view->tensors().front(), 4096);
    const std::vector<float> got = testing::values_of(DType::f32, bytes);
    for (std::size_t i = 0; i < got.size(); ++i) {
      const double expected = values[i] * scales[i / static_cast<std::size_t>(codes.shape[1])] / 127;
      ASSERT_NEAR(got[i], expected, 1.5e-7 * std::abs(expected));
    }
  }
  EXPECT_GT(num_packed, 0);
}

// ---- What is not right ---------------------------------------------------------------------------------------------------------------------

/// A small GPTQ matrix, packed by ourselves.
std::vector<MemoryCheckpoint::Tensor> small_gptq() {
  codec::QuantizedLinear linear;
  linear.rows = 32;
  linear.columns = 64;
  linear.group = 32;
  linear.codes.resize(32 * 64);
  for (std::size_t i = 0; i < linear.codes.size(); ++i) linear.codes[i] = static_cast<std::uint8_t>(i * 7 % 16);
  linear.scales.assign(64, 0.5F);
  linear.zeros.assign(64, 8);
  std::vector<MemoryCheckpoint::Tensor> tensors;
  for (codec::StoredTensor& part : codec::write_gptq(linear, codec::GptqFormat::v1))
    tensors.push_back({"m." + part.name, part.dtype, part.shape, std::move(part.bytes)});
  tensors.push_back({"norm.weight", DType::f32, {2}, std::vector<std::byte>(8)});
  return tensors;
}
const char* kSmall = R"({"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": true, "desc_act": false})";

std::shared_ptr<const Checkpoint> open(std::vector<MemoryCheckpoint::Tensor> tensors, const std::string& config = kSmall) {
  std::string not_read;
  auto view = decode_quantized(std::make_shared<MemoryCheckpoint>(std::move(tensors)), config_of(config), not_read);
  if (!not_read.empty()) throw Error(ErrorCode::unsupported, not_read);
  return view;
}
void read(const std::shared_ptr<const Checkpoint>& view) { static_cast<void>(read_in_pieces(*view, view->tensor("m.weight"), 1 << 20)); }

TEST(QuantizedView, plain_tensors_stay_as_they_are_and_the_config_forgets_the_packing) {
  const auto view = open(small_gptq());
  ASSERT_EQ(view->tensors().size(), 2u);
  EXPECT_EQ(view->tensor("norm.weight").dtype, DType::f32);
  EXPECT_EQ(view->tensor("m.weight").stored_as, "GPTQ4");
  EXPECT_EQ(view->tensor("m.weight").stored_bytes, 32u * 64 / 2 + 2 * 32 / 2 + 2 * 32 * 2 + 64 * 4);
  Json config = config_of(kSmall);
  drop_quantization(*view, config);
  EXPECT_EQ(config.find("quantization_config"), nullptr);
  config = config_of(kSmall);
  drop_quantization(MemoryCheckpoint(small_gptq()), config);
  EXPECT_NE(config.find("quantization_config"), nullptr) << "packed tensors need it";
  config = config_of(R"({"quant_method": "mxfp4"})");
  drop_quantization(*view, config);
  EXPECT_NE(config.find("quantization_config"), nullptr) << "what is not known is left alone";
}

TEST(QuantizedView, zero_points_of_version_2_under_the_label_of_version_1_are_recognised) {
  std::vector<MemoryCheckpoint::Tensor> tensors = small_gptq();
  const std::vector<std::byte> right = read_in_pieces(*open(tensors), open(tensors)->tensor("m.weight"), 4096);
  for (MemoryCheckpoint::Tensor& tensor : tensors)
    if (tensor.name == "m.qzeros") std::fill(tensor.bytes.begin(), tensor.bytes.end(), std::byte{0x88});
  const auto view = open(tensors);
  EXPECT_EQ(read_in_pieces(*view, view->tensor("m.weight"), 4096), right);
  ASSERT_EQ(view->warnings().size(), 1u);
  EXPECT_THAT(view->warnings().front(), ::testing::HasSubstr("version 2"));
}

TEST(QuantizedView, layers_that_the_config_treats_apart_are_read_by_their_own_rule) {
  const std::string config =
      R"({"quant_method": "gptq", "bits": 2, "group_size": 128, "dynamic": {"-:other": {}, "+:^m$": {"bits": 4, "group_size": 32}}})";
  EXPECT_EQ(open(small_gptq(), config)->tensor("m.weight").shape, (Shape{32, 64}));
}

TEST(QuantizedView, damaged_parts_are_refused_by_name) {
  const auto changed = [](const std::string& name, const std::function<void(MemoryCheckpoint::Tensor&)>& change) {
    std::vector<MemoryCheckpoint::Tensor> tensors = small_gptq();
    for (MemoryCheckpoint::Tensor& tensor : tensors)
      if (tensor.name == name) change(tensor);
    return tensors;
  };
  const auto without = [](const std::string& name) {
    std::vector<MemoryCheckpoint::Tensor> tensors = small_gptq();
    std::erase_if(tensors, [&](const MemoryCheckpoint::Tensor& tensor) { return tensor.name == name; });
    return tensors;
  };
  EXPECT_WEFT_ERROR(open(without("m.scales")), corrupt, "lacks its part 'scales'");
  EXPECT_WEFT_ERROR(open(without("m.qzeros")), corrupt, "lacks its part 'qzeros'");
  EXPECT_NO_THROW(read(open(without("m.g_idx"))));
  EXPECT_WEFT_ERROR(read(open(changed("m.g_idx", [](auto& t) { t.bytes[40] = std::byte{9}; }))), corrupt, "group 9");
  EXPECT_WEFT_ERROR(read(open(changed("m.g_idx", [](auto& t) { t.bytes[43] = std::byte{0x80}; }))), corrupt, "group -");
  EXPECT_WEFT_ERROR(read(open(changed("m.scales", [](auto& t) { t.bytes[1] = std::byte{0x7C}, t.bytes[0] = std::byte{0}; }))), corrupt,
                    "NaN or infinite");
  EXPECT_WEFT_ERROR(open(changed("m.scales", [](auto& t) { t.shape = {4, 16}; })), corrupt, "m.scales");
  EXPECT_WEFT_ERROR(open(changed("m.qzeros", [](auto& t) { t.dtype = DType::f32; })), corrupt, "m.qzeros");
  EXPECT_WEFT_ERROR(open(changed("m.qweight", [](auto& t) { t.shape = {4, 64}; })), corrupt, "m.");
  std::vector<MemoryCheckpoint::Tensor> both = small_gptq();
  both.push_back({"m.weight", DType::f32, {1}, std::vector<std::byte>(4)});
  EXPECT_WEFT_ERROR(open(both), corrupt, "both packed and plain");
}

TEST(QuantizedView, configs_that_make_no_sense_are_refused_before_anything_is_shifted) {
  const auto with = [](const char* more) { return open(small_gptq(), std::string(R"({"quant_method": "gptq", )") + more + "}"); };
  EXPECT_WEFT_ERROR(with(R"("bits": 0)"), unsupported, "0 bits");
  EXPECT_WEFT_ERROR(with(R"("bits": 33)"), unsupported, "33 bits");
  EXPECT_WEFT_ERROR(with(R"("bits": "4")"), unsupported, "no integer");
  EXPECT_WEFT_ERROR(with(R"("bits": 4, "group_size": 0)"), unsupported, "group size of 0");
  EXPECT_WEFT_ERROR(with(R"("bits": 4, "group_size": -7)"), unsupported, "group size of -7");
  EXPECT_WEFT_ERROR(with(R"("bits": 4, "group_size": 9223372036854775807)"), unsupported, "group size of 9223372036854775807");
  EXPECT_WEFT_ERROR(with(R"("bits": 4, "checkpoint_format": "marlin")"), unsupported, "marlin");
  EXPECT_WEFT_ERROR(with(R"("bits": 4, "is_marlin_format": true)"), unsupported, "marlin");
  EXPECT_WEFT_ERROR(with(R"("bits": 4, "pack_dtype": "int8")"), unsupported, "int8");
  EXPECT_WEFT_ERROR(with(R"("bits": 4, "dynamic": {"+:(": {}})"), unsupported, "cannot be read");
  EXPECT_WEFT_ERROR(with(R"("bits": 3, "group_size": 32)"), corrupt, "m.qweight");
  EXPECT_WEFT_ERROR(with(R"("bits": 4, "group_size": 16)"), corrupt, "4 groups");
  EXPECT_WEFT_ERROR(open(small_gptq(), R"({"quant_method": "unheard"})"), unsupported, "'unheard'");
  const std::string compressed =
      R"({"quant_method": "compressed-tensors", "config_groups": {"g": {"targets": ["re:x["], "weights": {"num_bits": 4}}}})";
  std::vector<MemoryCheckpoint::Tensor> tensors = {{"m.weight_packed", DType::i32, {2, 1}, std::vector<std::byte>(8)},
                                                   {"m.weight_scale", DType::f16, {2, 1}, std::vector<std::byte>(4)},
                                                   {"m.weight_shape", DType::i64, {2}, std::vector<std::byte>(16)}};
  EXPECT_WEFT_ERROR(open(tensors, compressed), unsupported, "cannot be read");
  const std::string right =
      R"({"quant_method": "compressed-tensors", "config_groups": {"g": {"targets": ["Linear"], "weights": {"num_bits": 4, "strategy": "channel"}}}})";
  const auto shaped = [&](std::int64_t rows, std::int64_t columns) {
    const std::int64_t shape[2] = {rows, columns};
    std::memcpy(tensors[2].bytes.data(), shape, 16);
    return open(tensors, right);
  };
  EXPECT_NO_THROW(shaped(2, 8));
  EXPECT_NO_THROW(shaped(2, 5));
  EXPECT_WEFT_ERROR(shaped(2, 9), corrupt, "cannot hold 9");
  EXPECT_WEFT_ERROR(shaped(2, std::int64_t{1} << 62), corrupt, "weight_shape");
  EXPECT_WEFT_ERROR(shaped(2, -8), corrupt, "weight_shape");
  EXPECT_WEFT_ERROR(shaped(3, 8), corrupt, "weight_shape");
}

TEST(QuantizedView, blocks_whose_count_would_overflow_are_refused_before_scales_are_looked_for) {
  const std::vector<MemoryCheckpoint::Tensor> tensors = {{"m.weight", DType::f8_e4m3, {4, 8}, std::vector<std::byte>(32)},
                                                         {"m.weight_scale_inv", DType::f32, {0, 1}, {}}};
  const auto sized = [&](const char* size) { read(open(tensors, fmt::format(R"({{"quant_method": "fp8", "weight_block_size": {}}})", size))); };
  EXPECT_WEFT_ERROR(sized("[9223372036854775807, 128]"), unsupported, "blocks makes no sense");
  EXPECT_WEFT_ERROR(sized("[128, 9223372036854775807]"), unsupported, "blocks makes no sense");
  EXPECT_WEFT_ERROR(sized("[128, 128]"), corrupt, "m.weight_scale_inv");
}

/// A compressed-tensors matrix of asymmetric integers, all codes 1.
std::vector<MemoryCheckpoint::Tensor> asymmetric(std::int64_t rows, std::int64_t columns, int bits, codec::WordForm form, codec::WordForm zero_form,
                                                 const std::vector<std::uint8_t>& zeros) {
  const auto as_bytes = [](const std::vector<std::uint32_t>& words) {
    const auto bytes = std::as_bytes(std::span(words));
    return std::vector<std::byte>(bytes.begin(), bytes.end());
  };
  const auto width = static_cast<std::size_t>(columns), num_words = static_cast<std::size_t>(codec::words_for(width, bits, form)),
             zero_words = static_cast<std::size_t>(codec::words_for(zeros.size(), bits, zero_form));
  std::vector<std::uint32_t> words(static_cast<std::size_t>(rows) * num_words), packed_zeros(zero_words);
  const std::vector<std::uint8_t> ones(width, 1);
  for (std::size_t r = 0; r < static_cast<std::size_t>(rows); ++r)
    codec::pack_words(ones.data(), 1, width, bits, form, words.data() + r * num_words, 1);
  codec::pack_words(zeros.data(), 1, zeros.size(), bits, zero_form, packed_zeros.data(), 1);
  const std::int64_t shape[2] = {rows, columns};
  std::vector<std::byte> shape_bytes(16);
  std::memcpy(shape_bytes.data(), shape, 16);
  const auto num_scales = static_cast<std::int64_t>(zeros.size());
  std::vector<std::byte> scales;
  for (std::int64_t i = 0; i < num_scales; ++i) scales.insert(scales.end(), {std::byte{0x80}, std::byte{0x3F}});
  return {{"m.weight_packed", DType::i32, {rows, static_cast<std::int64_t>(num_words)}, as_bytes(words)},
          {"m.weight_scale", DType::bf16, num_scales == 1 ? Shape{} : Shape{num_scales, 1}, std::move(scales)},
          {"m.weight_zero_point", DType::i32, {static_cast<std::int64_t>(zero_words), 1}, as_bytes(packed_zeros)},
          {"m.weight_shape", DType::i64, {2}, std::move(shape_bytes)}};
}
std::vector<float> asymmetric_values(const std::vector<MemoryCheckpoint::Tensor>& tensors, int bits) {
  const auto view = open(tensors, fmt::format(R"({{"quant_method": "compressed-tensors", "config_groups": {{"g": {{"targets": ["Linear"],
                                     "weights": {{"num_bits": {}, "symmetric": false, "strategy": "channel"}}}}}}}})",
                                              bits));
  return testing::values_of(DType::bf16, read_in_pieces(*view, view->tensor("m.weight"), 4096));
}

TEST(QuantizedView, zero_points_are_packed_as_many_words_say_whatever_the_codes_are) {
  // Of 3 bits and 320 values 30 words in the one form, 32 in the other.
  std::vector<std::uint8_t> zeros(320);
  for (std::size_t i = 0; i < zeros.size(); ++i) zeros[i] = static_cast<std::uint8_t>(i * 5 % 8);
  for (const codec::WordForm form : {codec::WordForm::stream, codec::WordForm::legacy})
    for (const codec::WordForm zero_form : {codec::WordForm::stream, codec::WordForm::legacy}) {
      const std::vector<float> values = asymmetric_values(asymmetric(320, 320, 3, form, zero_form, zeros), 3);
      for (std::size_t i = 0; i < values.size(); ++i) ASSERT_EQ(values[i], 1.0F - static_cast<float>(zeros[i / 320])) << i;
    }
}

TEST(QuantizedView, a_scale_without_axes_may_have_a_zero_point) {
  const std::vector<float> values = asymmetric_values(asymmetric(2, 32, 4, codec::WordForm::stream, codec::WordForm::stream, {3}), 4);
  EXPECT_EQ(values, std::vector<float>(64, -2.0F));
}

// ---- Weft's own form, kept packed ----------------------------------------------------------------------------------------------------------

struct OwnCase {
  codec::Levels levels = codec::Levels::integer;
  int bits = 4;
  std::int64_t group = 32, row_group = 1;
  enum class Zeros : std::uint8_t { middle, one_integer, one_half, integers, halves } zeros = Zeros::middle;
  bool has_rank = false, has_added = false;
};

/// Whether the matrix stays packed; its values are then compared.
bool stays_packed(const OwnCase& one) {
  codec::QuantizedLinear linear;
  linear.rows = 48, linear.columns = 96;
  linear.levels = one.levels, linear.bits = one.bits;
  linear.group = one.group, linear.row_group = one.row_group;
  const auto size = static_cast<std::size_t>(linear.rows * linear.columns);
  for (std::size_t i = 0; i < size; ++i) {
    const std::size_t code = (i * 7 + i / 5) % (std::size_t{1} << one.bits);
    // A NaN is that of its whole group, which makes the same products NaN.
    linear.codes.push_back(one.levels == codec::Levels::e4m3 && code % 128 == 127 ? std::uint8_t{0} : static_cast<std::uint8_t>(code));
  }
  const auto num_scales = static_cast<std::size_t>(linear.num_row_groups() * linear.num_groups());
  const auto middle = static_cast<float>(1 << (one.bits - 1));
  for (std::size_t i = 0; i < num_scales; ++i) {
    linear.scales.push_back(static_cast<float>(i % 9 + 1) / 64);
    if (one.levels != codec::Levels::integer) continue;
    const auto step = static_cast<float>(i % 3);
    switch (one.zeros) {
      case OwnCase::Zeros::middle:
        linear.zeros.push_back(middle);
        break;
      case OwnCase::Zeros::one_integer:
        linear.zeros.push_back(middle - 1);
        break;
      case OwnCase::Zeros::one_half:
        linear.zeros.push_back(middle - 0.5F);
        break;
      case OwnCase::Zeros::integers:
        linear.zeros.push_back(middle - step);
        break;
      case OwnCase::Zeros::halves:
        linear.zeros.push_back(middle - 0.5F - step);
        break;
    }
  }
  if (one.has_rank) {
    linear.rank = 1;
    linear.left.assign(48, 0.5F);
    linear.right.assign(96, 0.25F);
  }
  if (one.has_added) linear.added_at = {5, 100}, linear.added = {1, 2};
  std::vector<MemoryCheckpoint::Tensor> tensors;
  for (codec::StoredTensor& tensor : codec::write_own(linear, DType::bf16))
    tensors.push_back({"layer." + tensor.name, tensor.dtype, tensor.shape, std::move(tensor.bytes)});
  std::string not_read;
  const auto view = decode_quantized(std::make_shared<MemoryCheckpoint>(std::move(tensors)), config_of(R"({"quant_method": "weft"})"), not_read);
  num_packed = 0;
  expect_packed_alike(*view, view->tensor("layer.weight"));
  return num_packed > 0;
}

TEST(QuantizedView, our_own_form_stays_packed_with_all_its_zero_points_unless_something_is_added) {
  using Zeros = OwnCase::Zeros;
  for (const int bits : {2, 3, 4, 5, 6, 8})
    for (const std::int64_t row_group : {1, 16, 48})
      for (const Zeros zeros : {Zeros::middle, Zeros::one_integer, Zeros::one_half, Zeros::integers, Zeros::halves}) {
        SCOPED_TRACE(fmt::format("{} bits, {} rows a scale, zero points {}", bits, row_group, static_cast<int>(zeros)));
        EXPECT_TRUE(stays_packed({.bits = bits, .row_group = row_group, .zeros = zeros}));
      }
  EXPECT_TRUE(stays_packed({.group = 96}));
  EXPECT_TRUE(stays_packed({.group = 64}));
  EXPECT_TRUE(stays_packed({.levels = codec::Levels::nf4}));
  EXPECT_TRUE(stays_packed({.levels = codec::Levels::e2m1}));
  EXPECT_TRUE(stays_packed({.levels = codec::Levels::e4m3, .bits = 8}));
  EXPECT_FALSE(stays_packed({.levels = codec::Levels::e5m2, .bits = 8}));
  EXPECT_FALSE(stays_packed({.bits = 7}));
  EXPECT_FALSE(stays_packed({.group = 16}));
  EXPECT_FALSE(stays_packed({.has_rank = true}));
  EXPECT_FALSE(stays_packed({.has_added = true}));
}

TEST(QuantizedView, zero_points_that_begin_a_word_for_each_row_are_those_of_one_stream) {
  for (const int bits : {2, 3, 4}) {
    codec::QuantizedLinear linear;
    linear.rows = 37;
    linear.columns = 56;
    linear.bits = bits;
    linear.group = 8;
    for (std::size_t i = 0; i < 37 * 56; ++i) linear.codes.push_back(static_cast<std::uint8_t>(i * 7 % (std::size_t{1} << bits)));
    for (std::size_t i = 0; i < std::size_t{37} * 7; ++i) {
      linear.scales.push_back(1 + static_cast<float>(i % 5));
      linear.zeros.push_back(static_cast<float>(i * 5 % (std::size_t{1} << bits)));
    }
    const std::vector<float> expected = linear.decoded();
    for (const bool by_row : {false, true}) {
      std::vector<MemoryCheckpoint::Tensor> tensors;
      for (codec::StoredTensor& tensor : codec::write_own(linear, DType::f32)) {
        if (tensor.name == "weight_zeros" && by_row) {
          const std::uint64_t words = codec::words_for(7, bits, codec::WordForm::stream);
          tensor.shape = {37, static_cast<std::int64_t>(words)};
          std::vector<std::uint32_t> packed(37 * words);
          for (std::size_t r = 0; r < 37; ++r) {
            std::uint8_t row[7];
            for (std::size_t g = 0; g < 7; ++g) row[g] = static_cast<std::uint8_t>(linear.zeros[r * 7 + g]);
            codec::pack_words(row, 1, 7, bits, codec::WordForm::stream, packed.data() + r * words, 1);
          }
          tensor.bytes.resize(packed.size() * 4);
          std::memcpy(tensor.bytes.data(), packed.data(), tensor.bytes.size());
        }
        tensors.push_back({"layer." + tensor.name, tensor.dtype, tensor.shape, std::move(tensor.bytes)});
      }
      std::string not_read;
      const auto view = decode_quantized(std::make_shared<MemoryCheckpoint>(std::move(tensors)), config_of(R"({"quant_method": "weft"})"), not_read);
      const TensorInfo& tensor = view->tensor("layer.weight");
      // In pieces, none of which begins where a word does.
      std::vector<float> read(expected.size());
      for (std::size_t row = 0; row < 37; row += 5) {
        const std::size_t count = std::min<std::size_t>(5, 37 - row) * 56;
        view->read_bytes(tensor, row * 56 * sizeof(float), std::as_writable_bytes(std::span(read).subspan(row * 56, count)));
      }
      EXPECT_EQ(read, expected) << bits << (by_row ? " by row" : "");
    }
  }
}

TEST(QuantizedView, scales_with_a_unit_and_rounded_products_are_read_as_they_were_written) {
  codec::QuantizedLinear linear;
  linear.rows = 2, linear.columns = 32, linear.group = 16;
  linear.scale_type = DType::f8_e4m3;
  linear.scale_unit = 0.0123F;
  linear.rounds_products = true;
  linear.symmetric = true;
  for (std::uint8_t i = 0; i < 64; ++i) linear.codes.push_back(i * 5 % 16);
  for (const float scale : {1.0F, 0.40625F, 60.0F, 0.015625F}) linear.scales.push_back(scale * linear.scale_unit);
  linear.zeros.assign(4, 8);
  const auto view_of = [&](const std::string& from, const std::string& to) {
    std::vector<MemoryCheckpoint::Tensor> tensors;
    for (codec::StoredTensor& tensor : codec::write_own(linear, DType::f32)) {
      if (tensor.name == "weight_form" && !from.empty()) {
        std::string form(reinterpret_cast<const char*>(tensor.bytes.data()), tensor.bytes.size());
        form.replace(form.find(from), from.size(), to);
        tensor.bytes.assign(reinterpret_cast<const std::byte*>(form.data()), reinterpret_cast<const std::byte*>(form.data() + form.size()));
        tensor.shape = {static_cast<std::int64_t>(form.size())};
      }
      tensors.push_back({"layer." + tensor.name, tensor.dtype, tensor.shape, std::move(tensor.bytes)});
    }
    std::string not_read;
    return decode_quantized(std::make_shared<MemoryCheckpoint>(std::move(tensors)), config_of(R"({"quant_method": "weft"})"), not_read);
  };
  const auto view = view_of("", "");
  const TensorInfo& tensor = view->tensor("layer.weight");
  std::vector<float> values(64);
  view->read_bytes(tensor, 0, std::as_writable_bytes(std::span(values)));
  EXPECT_EQ(values, linear.decoded());
  // (15 - 8) * 0.40625 = 2.84375 lies between 2.75 and 3.
  linear.codes[16] = 15;
  EXPECT_EQ(linear.decoded()[16], 0.0123F * 2.75F);
  for (const auto& [from, to] :
       {std::pair(R"("scale_unit":0.0123)", R"("scale_unit":0)"), std::pair(R"("scale_unit":0.0123)", R"("scale_unit":1e99)"),
        std::pair(R"("E4M3"})", R"("E5M2"})"), std::pair(R"("levels":"integer")", R"("levels":"NF4")")})
    EXPECT_WEFT_ERROR(static_cast<void>(view_of(from, to)), corrupt, "layer");
}

}  // namespace
}  // namespace weft
