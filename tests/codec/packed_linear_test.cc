#include "codec/packed_linear.h"

#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <random>
#include <vector>

#include "checkpoint/json.h"
#include "math/convert.h"
#include "support/errors.h"
#include "support/golden.h"

namespace weft::codec {
namespace {

namespace fs = std::filesystem;
using testing::GoldenModel;
using testing::GoldenTensor;

const fs::path kGoldens = fs::path(WEFT_SOURCE_DIR) / "../shared/golden/quantize";

/// The tensors and the index of one tool; nothing when the shared data is not there.
struct Golden {
  explicit Golden(const std::string& name) {
    if (!fs::exists(kGoldens / (name + ".json"))) return;
    index = read_json_file(kGoldens / (name + ".json"));
    tensors = testing::read_safetensors(kGoldens / (name + ".safetensors"));
  }
  [[nodiscard]] std::vector<std::uint8_t> bytes(const std::string& name) const {
    const std::string& text = tensors.at(name).bytes;
    return {text.begin(), text.end()};
  }
  [[nodiscard]] std::vector<float> floats(const std::string& name) const {
    const GoldenTensor& tensor = tensors.at(name);
    std::size_t count = 1;
    for (const std::int64_t dim : tensor.shape) count *= static_cast<std::size_t>(dim);
    std::vector<float> values(count);
    math::decode(*dtype_from_name(tensor.dtype), std::as_bytes(std::span(tensor.bytes)), values);
    return values;
  }
  Json index;
  GoldenModel tensors;
};

/// What a writer gave is what the tool wrote: names, types, shapes and bytes.
void expect_same(const Golden& golden, const std::string& prefix, const std::vector<StoredTensor>& written) {
  for (const StoredTensor& tensor : written) {
    const auto found = golden.tensors.find(prefix + "." + tensor.name);
    ASSERT_NE(found, golden.tensors.end()) << prefix << ' ' << tensor.name;
    EXPECT_EQ(found->second.dtype, to_string(tensor.dtype)) << prefix << ' ' << tensor.name;
    EXPECT_EQ(found->second.shape, tensor.shape) << prefix << ' ' << tensor.name;
    ASSERT_EQ(found->second.bytes.size(), tensor.bytes.size()) << prefix << ' ' << tensor.name;
    for (std::size_t i = 0; i < tensor.bytes.size(); ++i)
      ASSERT_EQ(static_cast<std::uint8_t>(found->second.bytes[i]), static_cast<std::uint8_t>(tensor.bytes[i]))
          << prefix << ' ' << tensor.name << " byte " << i;
  }
}

std::vector<float> as_floats(const std::vector<std::uint8_t>& values) { return {values.begin(), values.end()}; }

std::vector<float> transposed(const std::vector<float>& in, std::size_t rows, std::size_t columns) {
  std::vector<float> out(in.size());
  for (std::size_t r = 0; r < rows; ++r)
    for (std::size_t c = 0; c < columns; ++c) out[c * rows + r] = in[r * columns + c];
  return out;
}

/// The codes, zero points and scales that a golden was packed from.
QuantizedLinear linear_of(const Golden& golden, const std::string& prefix, int bits, std::int64_t group) {
  QuantizedLinear linear;
  const GoldenTensor& codes = golden.tensors.at(prefix + ".codes");
  linear.rows = codes.shape[0];
  linear.columns = codes.shape[1];
  linear.bits = bits;
  linear.group = group <= 0 ? linear.columns : group;
  linear.codes = golden.bytes(prefix + ".codes");
  linear.zeros = as_floats(golden.bytes(prefix + ".zeros"));
  linear.scales = transposed(golden.floats(prefix + ".scales"), static_cast<std::size_t>(linear.num_groups()), static_cast<std::size_t>(linear.rows));
  return linear;
}

TEST(PackedLinear, words_are_those_worked_out_by_hand) {
  const auto words = [](const std::vector<std::uint8_t>& values, int bits, WordForm form = WordForm::stream) {
    std::vector<std::uint32_t> out(words_for(values.size(), bits, form));
    pack_words(values.data(), 1, values.size(), bits, form, out.data(), 1);
    std::vector<std::uint8_t> back(values.size());
    unpack_words(out.data(), 1, values.size(), bits, form, back.data(), 1);
    EXPECT_EQ(back, values);
    return out;
  };
  using Words = std::vector<std::uint32_t>;
  EXPECT_EQ(words({0, 3, 6, 9, 12, 15, 2, 5}, 4), Words{0x52FC9630});
  EXPECT_EQ(words({5, 8, 11, 14, 1, 4, 7, 10}, 4), Words{0xA741EB85});
  EXPECT_EQ(words({8, 8, 8, 8, 7, 9, 1, 15}, 4), Words{0xF1978888});
  std::vector<std::uint8_t> three(32);
  for (std::size_t i = 0; i < 32; ++i) three[i] = static_cast<std::uint8_t>((5 * i + 3) % 8);
  EXPECT_EQ(words(three, 3), (Words{0x43C67543, 0x7543C675, 0xC67543C6}));
  EXPECT_EQ(words({0, 7, 8, 9, 15, 10, 5, 12}, 4), Words{0xC5AF9870});
  EXPECT_EQ(words({0, 127, 128, 255}, 8), Words{0xFF807F00});
  const std::vector<std::uint8_t> eleven = {0, 3, 6, 1, 4, 7, 2, 5, 0, 3, 6};
  EXPECT_EQ(words(eleven, 3), (Words{0x98ABC398, 0x00000001}));
  EXPECT_EQ(words(eleven, 3, WordForm::legacy), (Words{0x18ABC398, 0x00000006}));
}

TEST(PackedLinear, packing_and_unpacking_is_the_identity_for_every_width_form_and_length) {
  std::mt19937 generator(3);
  for (const WordForm form : {WordForm::stream, WordForm::legacy, WordForm::planar}) {
    for (int bits = 1; bits <= 8; ++bits) {
      if (form == WordForm::planar && bits != 3 && (bits < 5 || bits == 8)) continue;
      for (const std::size_t length : {1, 7, 31, 32, 33, 64, 77, 160}) {
        if (form == WordForm::planar && length % 32 != 0) continue;
        constexpr std::size_t kStride = 3;
        std::vector<std::uint8_t> values(length * kStride, 0xEE), back(length * kStride, 0xEE);
        for (std::size_t i = 0; i < length; ++i) values[i * kStride] = static_cast<std::uint8_t>(generator() & ((1U << bits) - 1));
        const std::size_t num_words = words_for(length, bits, form);
        std::vector<std::uint32_t> words(num_words * 2 + 1, 0xDEADBEEF);
        pack_words(values.data(), kStride, length, bits, form, words.data(), 2);
        for (std::size_t i = 1; i < words.size(); i += 2) EXPECT_EQ(words[i], 0xDEADBEEF);
        EXPECT_EQ(words.back(), 0xDEADBEEF);
        unpack_words(words.data(), 2, length, bits, form, back.data(), kStride);
        EXPECT_EQ(back, values) << bits << ' ' << length;
      }
    }
  }
}

TEST(PackedLinear, gptq_files_are_those_of_gptqmodel) {
  const Golden golden("gptq_awq");
  if (golden.tensors.empty()) GTEST_SKIP() << "no reference data beside the repository";
  int num_cases = 0;
  for (const auto& [name, what] : *golden.index.find("packed")->object()) {
    const int bits = static_cast<int>(*what.find("bits")->integer());
    QuantizedLinear linear = linear_of(golden, name, bits, *what.find("group_size")->integer());
    const std::string format = *what.find("format")->string();
    if (name.ends_with(".desc")) {
      linear.group_of.resize(static_cast<std::size_t>(linear.columns));
      std::memcpy(linear.group_of.data(), golden.tensors.at(name + ".g_idx").bytes.data(), linear.group_of.size() * 4);
    }
    expect_same(golden, name, write_gptq(linear, format == "gptq" ? GptqFormat::v1 : format == "gptq_v2" ? GptqFormat::v2 : GptqFormat::planar));
    std::vector<float> decoded = linear.decoded();
    math::round_through(DType::f16, decoded);
    EXPECT_EQ(decoded, golden.floats(name + ".decoded")) << name;
    ++num_cases;
  }
  EXPECT_EQ(num_cases, 15);
}

TEST(PackedLinear, awq_files_are_those_of_autoawq) {
  const Golden golden("awq");
  if (golden.tensors.empty()) GTEST_SKIP() << "no reference data beside the repository";
  for (const int group : {32, 64, 128}) {
    const std::string name = "awq.gemm.g" + std::to_string(group);
    const QuantizedLinear linear = linear_of(golden, name, 4, group);
    expect_same(golden, name, write_awq(linear));
    std::vector<float> decoded = linear.decoded();
    math::round_through(DType::f16, decoded);
    EXPECT_EQ(decoded, golden.floats(name + ".decoded"));
  }
}

TEST(PackedLinear, compressed_tensors_are_those_of_the_tool) {
  const Golden golden("compressed_tensors");
  if (golden.tensors.empty()) GTEST_SKIP() << "no reference data beside the repository";
  int num_cases = 0;
  for (const auto& [name, what] : *golden.index.find("items")->object()) {
    if (what.find("error") != nullptr) continue;
    SCOPED_TRACE(name);
    const Json& args = *what.find("scheme")->find("weights");
    const GoldenTensor& input = golden.tensors.at(name.substr(0, name.find('.')) + ".w");
    const std::vector<float> weights = golden.floats(name.substr(0, name.find('.')) + ".w");
    const std::string format = *what.find("format")->string(), strategy = *args.find("strategy")->string();
    CompressedForm form = CompressedForm::pack_quantized;
    for (const CompressedForm candidate : {CompressedForm::pack_quantized, CompressedForm::int_quantized, CompressedForm::float_quantized,
                                           CompressedForm::nvfp4, CompressedForm::mxfp4, CompressedForm::mxfp6, CompressedForm::mxfp8})
      if (to_string(candidate) == format) form = candidate;
    EXPECT_EQ(to_string(form), format);
    std::int64_t group = 0, row_group = 1;
    if (const Json* size = args.find("group_size"); size != nullptr && size->integer()) group = *size->integer();
    if (strategy == "tensor") row_group = input.shape[0];
    if (strategy == "block") group = row_group = 128;
    const QuantizedLinear linear =
        quantize_compressed(weights, input.shape[0], input.shape[1], *dtype_from_name(input.dtype), form,
                            static_cast<int>(*args.find("num_bits")->integer()), *args.find("symmetric")->boolean(), group, row_group);
    expect_same(golden, name, write_compressed(linear, form));
    std::vector<float> decoded = linear.decoded();
    math::round_through(*dtype_from_name(golden.tensors.at(name + ".decompressed").dtype), decoded);
    EXPECT_EQ(decoded, golden.floats(name + ".decompressed"));
    ++num_cases;
  }
  EXPECT_GE(num_cases, 40);
}

TEST(PackedLinear, bitsandbytes_files_are_those_of_the_tool) {
  const Golden golden("bitsandbytes");
  if (golden.tensors.empty()) GTEST_SKIP() << "no reference data beside the repository";
  for (const auto& [name, what] : *golden.index.find("items")->object()) {
    SCOPED_TRACE(name);
    const std::string source = name.substr(0, name.find('.'));
    const GoldenTensor& input = golden.tensors.at(source + ".w");
    const std::vector<float> weights = golden.floats(source + ".w");
    if (name.ends_with(".int8")) {
      std::vector<StoredTensor> written = write_bnb8(weights, input.shape[0], input.shape[1]);
      written.pop_back();  // the format's number, which the golden does not have
      expect_same(golden, name, written);
    } else {
      const Json state = parse_json(*what.find("json")->string(), "golden");
      expect_same(golden, name,
                  write_bnb4(weights, input.shape[0], input.shape[1], *dtype_from_name(input.dtype),
                             *state.find("quant_type")->string() == "nf4" ? Levels::nf4 : Levels::bnb_fp4, *state.find("blocksize")->integer(),
                             name.ends_with(".nested")));
    }
  }
}

TEST(PackedLinear, what_a_layout_cannot_hold_is_refused_with_one_that_can) {
  QuantizedLinear linear;
  linear.rows = linear.columns = linear.group = 32;
  linear.codes.assign(32 * 32, 3);
  linear.scales.assign(32, 1);
  linear.zeros.assign(32, 0);
  EXPECT_WEFT_ERROR(write_gptq(linear, GptqFormat::v1), unsupported, "gptq_v2");
  EXPECT_EQ(write_gptq(linear, GptqFormat::v2).size(), 4u);
  linear.zeros[5] = 1.5F;
  EXPECT_WEFT_ERROR(write_gptq(linear, GptqFormat::v2), unsupported, "--format weft");
  linear.zeros[5] = 1;
  linear.bits = 5;
  EXPECT_WEFT_ERROR(write_gptq(linear, GptqFormat::v2), unsupported, "2, 3, 4 and 8 bits");
  EXPECT_WEFT_ERROR(write_awq(linear), unsupported, "4 bits, not 5");
  linear.bits = 4;
  linear.levels = Levels::nf4;
  EXPECT_WEFT_ERROR(write_gptq(linear, GptqFormat::v2), unsupported, "NF4");
  EXPECT_WEFT_ERROR(write_compressed(linear, CompressedForm::pack_quantized), unsupported, "integers");
}

}  // namespace
}  // namespace weft::codec
