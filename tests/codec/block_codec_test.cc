#include "codec/block_codec.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <fstream>
#include <map>
#include <set>
#include <vector>

#include "checkpoint/json.h"
#include "codec/better_blocks.h"
#include "math/convert.h"
#include "math/targets.h"
#include "support/golden.h"
#include "support/sha256.h"

namespace weft::codec {
namespace {

namespace fs = std::filesystem;

std::vector<float> decoded(const BlockCodec& codec, std::span<const std::uint8_t> blocks) {
  const std::size_t num_blocks = blocks.size() / codec.block_bytes;
  std::vector<float> values(num_blocks * codec.block_elements);
  codec.decode(blocks.data(), num_blocks, values.data());
  return values;
}

std::span<const std::uint8_t> bytes_of(const std::string& text) { return {reinterpret_cast<const std::uint8_t*>(text.data()), text.size()}; }

std::string hash_of(const std::vector<float>& values) { return testing::sha256(std::as_bytes(std::span(values))); }

TEST(BlockCodecs, the_hash_of_this_test_is_sha256) {
  const std::string text = "abc";
  EXPECT_EQ(testing::sha256(std::as_bytes(std::span(text))), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

TEST(BlockCodecs, the_table_has_every_type_of_the_format_once) {
  std::set<std::uint32_t> ids;
  for (const BlockCodec& codec : block_codecs()) {
    EXPECT_TRUE(ids.insert(codec.ggml_id).second) << codec.name;
    EXPECT_EQ(find_block_codec(codec.ggml_id), &codec);
    EXPECT_EQ(find_block_codec(codec.name), &codec);
    for (const BlockField& field : codec.fields) EXPECT_LE(field.offset_bytes + field.size_bytes * field.count, static_cast<int>(codec.block_bytes));
  }
  EXPECT_EQ(ids.size(), 27u);
  for (const std::uint32_t removed : {4u, 5u, 31u, 32u, 33u, 36u, 37u, 38u, 43u, ~0u}) EXPECT_EQ(find_block_codec(removed), nullptr);
  EXPECT_EQ(find_block_codec("q4_k")->ggml_id, 12u);
  EXPECT_EQ(find_block_codec("Q4_K_M"), nullptr);
}

/// A row of each type, written by the format's reference, and the hash of its values.
TEST(BlockCodecs, a_row_of_each_type_decodes_to_the_reference_s_bits) {
  std::ifstream file(fs::path(WEFT_SOURCE_DIR) / "tests/data/ggml_blocks.txt");
  std::string name, hex, hash;
  int count = 0;
  while (file >> name >> hex >> hash) {
    const BlockCodec* codec = find_block_codec(name);
    ASSERT_NE(codec, nullptr) << name;
    std::vector<std::uint8_t> bytes;
    for (std::size_t i = 0; i < hex.size(); i += 2) bytes.push_back(static_cast<std::uint8_t>(std::stoi(hex.substr(i, 2), nullptr, 16)));
    EXPECT_EQ(hash_of(decoded(*codec, bytes)), hash) << name;
    ++count;
  }
  EXPECT_EQ(count, 25);
}

/// Every matrix of the reference data, each through every type, with and without weights.
TEST(BlockCodecs, all_golden_blocks_decode_to_the_reference_s_bits) {
  const fs::path root = fs::path(WEFT_SOURCE_DIR) / "../shared/golden/quantize";
  if (!fs::exists(root)) GTEST_SKIP() << "no reference data at " << root;
  const testing::GoldenModel blocks = testing::read_safetensors(root / "ggml_blocks.safetensors");
  const Json cases = read_json_file(root / "ggml_blocks.json");
  int count = 0;
  for (const auto& [key, tensor] : blocks) {
    if (std::count(key.begin(), key.end(), '.') != 2) continue;  // the matrices themselves
    const std::string matrix = key.substr(0, key.find('.'));
    const std::string type = key.substr(key.find('.') + 1, key.rfind('.') - key.find('.') - 1);
    const Json* golden = cases.find(matrix)->find("types")->find(type)->find(key.substr(key.rfind('.') + 1));
    ASSERT_NE(golden, nullptr) << key;
    const BlockCodec* codec = find_block_codec(type);
    if (codec == nullptr) continue;  // F16 and BF16
    EXPECT_EQ(hash_of(decoded(*codec, bytes_of(tensor.bytes))), *golden->find("sha256_f32")->string()) << key;
    ++count;
  }
  EXPECT_GT(count, 250);
}

std::vector<float> floats_of(const testing::GoldenTensor& tensor) {
  std::vector<float> values(tensor.bytes.size() / sizeof(float));
  std::memcpy(values.data(), tensor.bytes.data(), values.size() * sizeof(float));
  return values;
}

/// Rows of `columns` values, encoded one by one.
std::vector<std::uint8_t> encoded(const BlockCodec& codec, std::span<const float> values, std::size_t columns, std::span<const float> weights) {
  const std::size_t row_bytes = columns / codec.block_elements * codec.block_bytes;
  std::vector<std::uint8_t> out(values.size() / columns * row_bytes);
  for (std::size_t row = 0; row < values.size() / columns; ++row)
    codec.encode_row(values.subspan(row * columns, columns), {weights}, out.data() + row * row_bytes);
  return out;
}

/// Every matrix through every type, with and without weights, against the reference's own bytes: blocks that its compilers disagree about and those
/// that its own check refuses are left out.
TEST(BlockCodecs, all_golden_matrices_encode_to_the_reference_s_bytes) {
  const fs::path root = fs::path(WEFT_SOURCE_DIR) / "../shared/golden/quantize";
  if (!fs::exists(root)) GTEST_SKIP() << "no reference data at " << root;
  const testing::GoldenModel blocks = testing::read_safetensors(root / "ggml_blocks.safetensors");
  const Json golden = read_json_file(root / "ggml_blocks.json");
  std::map<std::string, int> cases;
  for (const auto& [matrix, entry] : *golden.object()) {
    const testing::GoldenTensor& x = blocks.at(matrix + ".x");
    const std::vector<float> values = floats_of(x);
    const std::vector<float> weights = floats_of(blocks.at(matrix + ".w"));
    const std::size_t columns = static_cast<std::size_t>(x.shape.back());
    for (const BlockCodec& codec : block_codecs()) {
      const Json* type = entry.find("types")->find(codec.name);
      if (codec.encode_row == nullptr || type == nullptr) continue;
      for (const std::string kind : {"plain", "weighted"}) {
        const Json* golden_case = type->find(kind);
        if (golden_case == nullptr || *golden_case->find("byte_stable")->string() == "no" || !*golden_case->find("valid")->boolean()) continue;
        const std::vector<std::uint8_t> out = encoded(codec, values, columns, kind == "plain" ? std::span<const float>() : weights);
        EXPECT_EQ(testing::sha256(std::as_bytes(std::span(out))), *golden_case->find("sha256")->string())
            << matrix << " as " << codec.name << ", " << kind;
        ++cases[std::string(codec.name)];
      }
    }
  }
  EXPECT_EQ(cases.size(), 25u);
  for (const auto& [name, count] : cases) EXPECT_GE(count, name == "Q8_0" || name == "MXFP4" ? 12 : 7) << name;
}

/// The generator of the format's own check values.
struct CheckValues {
  std::vector<float> x;        ///< 2 rows of 512
  std::vector<float> weights;  ///< 512
};
CheckValues check_values() {
  std::uint32_t s = 12345;
  const auto r = [&s] {
    s = s * 1664525 + 1013904223;
    return static_cast<double>(s >> 16);
  };
  CheckValues values;
  for (int k = 0; k < 1024; ++k) values.x.push_back(static_cast<float>((r() + r() + r() + r() - 131070) / 65536));
  for (int k = 0; k < 512; ++k) values.weights.push_back(static_cast<float>((r() + 4096) / 65536));
  return values;
}

/// Hashes of what llama.cpp's ggml_quantize_chunk makes of the check values (ggml 0.25.3, x86-64).
TEST(BlockCodecs, the_check_values_encode_to_the_reference_s_bytes_in_every_type) {
  const CheckValues values = check_values();
  std::ifstream file(fs::path(WEFT_SOURCE_DIR) / "tests/data/ggml_encoded.txt");
  std::string name, kind, hash;
  int count = 0;
  while (file >> name >> kind >> hash) {
    const BlockCodec* codec = find_block_codec(name);
    ASSERT_NE(codec, nullptr) << name;
    const std::vector<std::uint8_t> out = encoded(*codec, values.x, 512, kind == "plain" ? std::span<const float>() : values.weights);
    EXPECT_EQ(testing::sha256(std::as_bytes(std::span(out))), hash) << name << ", " << kind;
    ++count;
  }
  EXPECT_EQ(count, 47);
}

double weighted_error(const BlockCodec& codec, std::span<const std::uint8_t> blocks, std::span<const float> x, std::span<const float> weights) {
  const std::vector<float> y = decoded(codec, blocks);
  double error = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double difference = static_cast<double>(y[i]) - static_cast<double>(x[i]);
    error += (weights.empty() ? 1.0 : static_cast<double>(weights[i % weights.size()])) * difference * difference;
  }
  return error;
}

TEST(BetterBlocks, every_type_gets_a_smaller_weighted_error_in_the_same_bytes_and_no_block_a_larger_one) {
  const CheckValues values = check_values();
  for (const BlockCodec& codec : block_codecs()) {
    if (codec.encode_row == nullptr) continue;
    for (const bool weighted : {false, true}) {
      const std::span<const float> weights = weighted ? std::span<const float>(values.weights) : std::span<const float>();
      const std::vector<std::uint8_t> plain = encoded(codec, values.x, 512, weights);
      std::vector<std::uint8_t> better(plain.size());
      for (std::size_t row = 0; row < 2; ++row)
        encode_row_better(codec, std::span(values.x).subspan(512 * row, 512), {weights}, better.data() + row * better.size() / 2);
      const double before = weighted_error(codec, plain, values.x, weights), after = weighted_error(codec, better, values.x, weights);
      // One bit, all values alike: the mean magnitude is the best there is.
      if (codec.name == "Q1_0" && !weighted)
        EXPECT_EQ(after, before);
      else
        EXPECT_LT(after, before) << codec.name << (weighted ? ", weighted" : "");
      RecordProperty(std::string(codec.name) + (weighted ? "_weighted" : "_plain"), std::to_string(after / before));
      for (std::size_t b = 0; b < plain.size() / codec.block_bytes; ++b) {
        const std::span<const float> x = std::span(values.x).subspan(b * codec.block_elements, codec.block_elements);
        const std::span<const float> own = weighted ? weights.subspan(b * codec.block_elements % 512, codec.block_elements) : weights;
        const auto block = [&](const std::vector<std::uint8_t>& all) { return std::span(all).subspan(b * codec.block_bytes, codec.block_bytes); };
        EXPECT_LE(weighted_error(codec, block(better), x, own), weighted_error(codec, block(plain), x, own)) << codec.name << " block " << b;
      }
    }
  }
}

TEST(BetterBlocks, zeros_beside_values_stay_zero_enough_where_the_reference_misplaces_its_codes) {
  std::vector<float> x(256);
  for (std::size_t i = 64; i < 256; ++i) x[i] = check_values().x[i];
  const BlockCodec& codec = *find_block_codec("IQ3_S");
  std::vector<std::uint8_t> plain(codec.block_bytes), better(codec.block_bytes);
  codec.encode_row(x, {}, plain.data());
  encode_row_better(codec, x, {}, better.data());
  double squares = 0;
  for (const float value : x) squares += static_cast<double>(value) * static_cast<double>(value);
  EXPECT_GT(weighted_error(codec, plain, x, {}), 0.5 * squares);
  EXPECT_LT(weighted_error(codec, better, x, {}), 0.05 * squares);
}

/// Whatever values come, an encoder writes its own bytes and nothing else, and ends.
TEST(BlockCodecs, no_encoder_minds_values_and_weights_that_make_no_sense) {
  const float odd[] = {std::nanf(""), INFINITY, -INFINITY, 3e38F, -3e38F, 1e-45F, -1e-38F, 0.0F, -0.0F, 1.0F};
  for (const BlockCodec& codec : block_codecs()) {
    if (codec.encode_row == nullptr) continue;
    std::vector<float> x(512), w(512);
    for (std::size_t shift = 0; shift < 20; ++shift) {
      for (std::size_t i = 0; i < 512; ++i) {
        x[i] = shift < 10 ? odd[shift] : odd[(i * (shift - 8) + i / 7) % 10];
        w[i] = odd[(i * 3 + shift) % 10];
      }
      const std::size_t size = 512 / codec.block_elements * codec.block_bytes;
      for (const bool weighted : {false, true}) {
        std::vector<std::uint8_t> out(size + 1, 0xA5);
        codec.encode_row(x, {weighted ? std::span<const float>(w) : std::span<const float>()}, out.data());
        EXPECT_EQ(out.back(), 0xA5) << codec.name;
      }
    }
  }
}

TEST(BlockCodecs, q8_0_encodes_to_the_reference_s_bytes) {
  const std::vector<float> x = check_values().x;
  ASSERT_EQ(x[0], -0.78497314453125F);
  const BlockCodec& codec = *find_block_codec("Q8_0");
  std::vector<std::uint8_t> out(1024 / 32 * 34);
  codec.encode_row(x, {}, out.data());
  EXPECT_EQ(testing::sha256(std::as_bytes(std::span(out))).substr(0, 16), "19b69ffb976dd9f7");

  std::vector<float> ramp;
  for (int i = 0; i < 32; ++i) ramp.push_back(static_cast<float>(i - 16) / 4);
  std::vector<std::uint8_t> block(34);
  codec.encode_row(ramp, {}, block.data());
  const std::vector<std::uint8_t> want = {0x08, 0x28, 0x81, 0x89, 0x91, 0x99, 0xa1, 0xa9, 0xb1, 0xb9, 0xc0, 0xc8, 0xd0, 0xd8, 0xe0, 0xe8, 0xf0,
                                          0xf8, 0x00, 0x08, 0x10, 0x18, 0x20, 0x28, 0x30, 0x38, 0x40, 0x47, 0x4f, 0x57, 0x5f, 0x67, 0x6f, 0x77};
  EXPECT_EQ(block, want);
}

TEST(BlockCodecs, q8_0_gives_zeros_for_a_block_that_is_too_small_and_no_crash_for_one_that_is_not_finite) {
  const BlockCodec& codec = *find_block_codec("Q8_0");
  std::vector<std::uint8_t> block(34, 0xFF);
  codec.encode_row(std::vector<float>(32, 1e-38F), {}, block.data());
  EXPECT_EQ(block, std::vector<std::uint8_t>(34, 0));
  std::vector<float> values(32, 1.0F);
  values[7] = std::numeric_limits<float>::infinity();
  codec.encode_row(values, {}, block.data());
  EXPECT_GT(math::count_non_finite(decoded(codec, block)), 0u);
}

// ---- Every vector target against plain code

float half(const std::uint8_t* p) {
  std::uint16_t code = 0;
  std::memcpy(&code, p, 2);
  return math::decode_one(DType::f16, code);
}
int nibble(std::span<const std::uint8_t> qs, int i) { return i < 16 ? qs[i] & 15 : qs[i - 16] >> 4; }

/// Element i of a block, as the table of the format says it.
float reference(std::string_view type, const std::uint8_t* b, int i) {
  constexpr int kTable[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
  const auto f = [](int n) { return static_cast<float>(n); };
  const float d = half(b);
  const int h = i / 128, j = (i % 128) / 32, l = i % 32, sub16 = i / 16, sub32 = i / 32;
  if (type == "Q4_0") return f(nibble({b + 2, 16}, i) - 8) * d;
  if (type == "Q4_1") return f(nibble({b + 4, 16}, i)) * d + half(b + 2);
  if (type == "Q5_0" || type == "Q5_1") {
    const int at = type == "Q5_0" ? 2 : 4;
    std::uint32_t bits = 0;
    std::memcpy(&bits, b + at, 4);
    const int n = nibble({b + at + 4, 16}, i) + 16 * static_cast<int>(bits >> i & 1);
    return type == "Q5_0" ? f(n - 16) * d : f(n) * d + half(b + 2);
  }
  if (type == "Q8_0") return f(static_cast<std::int8_t>(b[2 + i])) * d;
  if (type == "Q2_K") {
    const int q = b[16 + 32 * h + l] >> (2 * j) & 3;
    return half(b + 80) * f(b[sub16] & 15) * f(q) - half(b + 82) * f(b[sub16] >> 4);
  }
  if (type == "Q3_K") {
    const int q = (b[32 + 32 * h + l] >> (2 * j) & 3) - (b[l] >> sub32 & 1 ? 0 : 4);
    const std::uint8_t* s = b + 96;
    const int low = sub16 < 8 ? s[sub16] & 15 : s[sub16 - 8] >> 4;
    const int high = s[8 + sub16 % 4] >> (2 * (sub16 / 4)) & 3;
    return half(b + 108) * f(low + 16 * high - 32) * f(q);
  }
  if (type == "Q4_K" || type == "Q5_K") {
    const std::uint8_t* s = b + 4;
    const int k = sub32;
    const int sc = k < 4 ? s[k] & 63 : (s[k + 4] & 15) | s[k - 4] >> 6 << 4;
    const int m = k < 4 ? s[k + 4] & 63 : s[k + 4] >> 4 | s[k] >> 6 << 4;
    const std::uint8_t byte = b[(type == "Q4_K" ? 16 : 48) + 32 * (i / 64) + l];
    int q = sub32 % 2 == 0 ? byte & 15 : byte >> 4;
    if (type == "Q5_K") q += 16 * (b[16 + l] >> sub32 & 1);
    return d * f(sc) * f(q) - half(b + 2) * f(m);
  }
  if (type == "Q6_K") {
    const std::uint8_t byte = b[64 * h + 32 * (j & 1) + l];
    const int q = (j < 2 ? byte & 15 : byte >> 4) + 16 * (b[128 + 32 * h + l] >> (2 * j) & 3);
    return half(b + 208) * f(static_cast<std::int8_t>(b[192 + sub16])) * f(q - 32);
  }
  if (type == "IQ4_NL") return d * f(kTable[nibble({b + 2, 16}, i)]);
  std::uint16_t high = 0;
  std::memcpy(&high, b + 2, 2);
  const int ls = (b[4 + sub32 / 2] >> (4 * (sub32 % 2)) & 15) + 16 * (high >> (2 * sub32) & 3);
  return d * f(ls - 32) * f(kTable[nibble({b + 8 + 16 * sub32, 16}, l)]);
}

TEST(BlockCodecs, random_blocks_decode_on_every_target_as_the_format_s_table_says) {
  constexpr int kBlocks = 7;
  std::uint32_t state = 1;
  for (const char* name : {"Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS"}) {
    const BlockCodec& codec = *find_block_codec(name);
    std::vector<std::uint8_t> bytes(kBlocks * codec.block_bytes + 1);
    for (std::uint8_t& byte : bytes) byte = static_cast<std::uint8_t>((state = state * 1664525 + 1013904223) >> 24);
    const std::span<const std::uint8_t> blocks = std::span(bytes).subspan(1);  // at an odd address
    for (const math::SimdTarget& target : math::compiled_targets()) {
      if (!target.supported) continue;
      math::use_only_target(target.bit);
      const std::vector<float> values = decoded(codec, blocks);
      for (std::size_t i = 0; i < values.size(); ++i) {
        const float want = reference(name, blocks.data() + i / codec.block_elements * codec.block_bytes, static_cast<int>(i % codec.block_elements));
        if (std::isnan(want) && std::isnan(values[i])) continue;
        ASSERT_EQ(std::bit_cast<std::uint32_t>(values[i]), std::bit_cast<std::uint32_t>(want)) << name << " on " << target.name << ", element " << i;
      }
    }
    math::use_only_target(0);
  }
}

/// Values on a coarse grid, so that magnitudes come twice with either sign, and whatever else there may be.
std::vector<float> awkward_blocks(std::size_t size) {
  std::vector<float> x(size);
  std::uint32_t state = 7;
  for (std::size_t i = 0; i < size; ++i) {
    state = state * 1664525 + 1013904223;
    x[i] = static_cast<float>(static_cast<int>(state >> 27) - 16) / 8;
    if (i / 32 % 11 == 3) x[i] = 0;
    if (i / 32 % 11 == 5) x[i] *= 1e-38F;
    if (i / 32 % 11 == 7) x[i] *= 1e30F;
  }
  x[32 * 9 + 5] = INFINITY;
  x[32 * 13 + 8] = std::nanf("");
  x[32 * 17 + 1] = -INFINITY;
  return x;
}

TEST(BlockCodecs, a_block_of_a_row_has_the_bytes_that_it_has_alone_on_every_target) {
  const std::vector<float> x = awkward_blocks(32 * 80);
  for (const char* name : {"Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"}) {
    const BlockCodec& codec = *find_block_codec(name);
    for (const math::SimdTarget& target : math::compiled_targets()) {
      if (!target.supported) continue;
      math::use_only_target(target.bit);
      // From a few blocks on they are encoded side by side.
      for (const std::size_t num_blocks : {std::size_t{10}, std::size_t{9}, std::size_t{37}, std::size_t{80}}) {
        if (num_blocks * codec.block_elements > x.size()) continue;
        std::vector<std::uint8_t> row(num_blocks * codec.block_bytes), alone(codec.block_bytes);
        codec.encode_row(std::span(x).first(num_blocks * codec.block_elements), {}, row.data());
        for (std::size_t b = 0; b < num_blocks; ++b) {
          codec.encode_row(std::span(x).subspan(b * codec.block_elements, codec.block_elements), {}, alone.data());
          EXPECT_TRUE(std::equal(alone.begin(), alone.end(), row.begin() + static_cast<std::ptrdiff_t>(b * codec.block_bytes)))
              << name << " on " << target.name << ", block " << b << " of " << num_blocks;
        }
      }
    }
    math::use_only_target(0);
  }
}

TEST(BlockCodecs, of_two_largest_magnitudes_in_q4_0_the_first_decides_the_sign) {
  const BlockCodec& codec = *find_block_codec("Q4_0");
  std::vector<float> x(32 * 32, 0.25F);
  for (std::size_t b = 0; b < 32; ++b) {
    x[32 * b + b % 16] = b % 2 == 0 ? 1.0F : -1.0F;
    x[32 * b + 16 + b % 16] = b % 2 == 0 ? -1.0F : 1.0F;
  }
  std::vector<std::uint8_t> out(32 * codec.block_bytes);
  codec.encode_row(x, {}, out.data());
  for (std::size_t b = 0; b < 32; ++b) EXPECT_EQ(half(out.data() + 18 * b), b % 2 == 0 ? -0.125F : 0.125F) << b;
}

TEST(BlockCodecs, blocks_of_the_other_byte_order_become_ours) {
  const BlockCodec& codec = *find_block_codec("Q5_0");
  std::vector<std::uint8_t> block(22);
  for (std::size_t i = 0; i < block.size(); ++i) block[i] = static_cast<std::uint8_t>(i);
  std::vector<std::uint8_t> swapped = block;
  swap_block_bytes(codec, std::as_writable_bytes(std::span(swapped)));
  const std::vector<std::uint8_t> head = {1, 0, 5, 4, 3, 2, 6};
  EXPECT_TRUE(std::equal(head.begin(), head.end(), swapped.begin()));
  swap_block_bytes(codec, std::as_writable_bytes(std::span(swapped)));
  EXPECT_EQ(swapped, block);
}

}  // namespace
}  // namespace weft::codec
