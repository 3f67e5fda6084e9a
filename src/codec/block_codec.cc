#include "codec/block_codec.h"

#include <algorithm>
#include <array>

#include "codec/families.h"
#include "math/blocks.h"

namespace weft::codec {
namespace {

constexpr BlockField kHalf0[] = {{0, 2, 1}};
constexpr BlockField kTwoHalves0[] = {{0, 2, 2}};
constexpr BlockField kQ5_0[] = {{0, 2, 1}, {2, 4, 1}};
constexpr BlockField kQ5_1[] = {{0, 2, 2}, {4, 4, 1}};
constexpr BlockField kQ2K[] = {{80, 2, 2}};
constexpr BlockField kQ3K[] = {{108, 2, 1}};
constexpr BlockField kQ6K[] = {{208, 2, 1}};
constexpr BlockField kQ8K[] = {{0, 4, 1}, {260, 2, 16}};
constexpr BlockField kIq2Xxs[] = {{0, 2, 1}, {6, 4, 1}, {14, 4, 1}, {22, 4, 1}, {30, 4, 1}, {38, 4, 1}, {46, 4, 1}, {54, 4, 1}, {62, 4, 1}};
constexpr BlockField kIq2Xs[] = {{0, 2, 33}};
constexpr BlockField kIq3Xxs[] = {{0, 2, 1}, {66, 4, 8}};
constexpr BlockField kIq1S[] = {{0, 2, 1}, {34, 2, 8}};
constexpr BlockField kIq1M[] = {{48, 2, 4}};
constexpr BlockField kIq4Xs[] = {{0, 2, 2}};
constexpr BlockField kTq1[] = {{52, 2, 1}};
constexpr BlockField kTq2[] = {{64, 2, 1}};

constexpr std::array kTable = {
    BlockCodec{2, "Q4_0", 32, 18, kHalf0, math::decode_q4_0, detail::encode_q4_0},
    BlockCodec{3, "Q4_1", 32, 20, kTwoHalves0, math::decode_q4_1, detail::encode_q4_1},
    BlockCodec{6, "Q5_0", 32, 22, kQ5_0, math::decode_q5_0, detail::encode_q5_0},
    BlockCodec{7, "Q5_1", 32, 24, kQ5_1, math::decode_q5_1, detail::encode_q5_1},
    BlockCodec{8, "Q8_0", 32, 34, kHalf0, math::decode_q8_0, detail::encode_q8_0},
    BlockCodec{9, "Q8_1", 32, 36, kTwoHalves0, detail::decode_q8_1, nullptr},
    BlockCodec{10, "Q2_K", 256, 84, kQ2K, math::decode_q2_k, detail::encode_q2_k},
    BlockCodec{11, "Q3_K", 256, 110, kQ3K, math::decode_q3_k, detail::encode_q3_k},
    BlockCodec{12, "Q4_K", 256, 144, kTwoHalves0, math::decode_q4_k, detail::encode_q4_k},
    BlockCodec{13, "Q5_K", 256, 176, kTwoHalves0, math::decode_q5_k, detail::encode_q5_k},
    BlockCodec{14, "Q6_K", 256, 210, kQ6K, math::decode_q6_k, detail::encode_q6_k},
    BlockCodec{15, "Q8_K", 256, 292, kQ8K, detail::decode_q8_k, nullptr},
    BlockCodec{16, "IQ2_XXS", 256, 66, kIq2Xxs, detail::decode_iq2_xxs, detail::encode_iq2_xxs},
    BlockCodec{17, "IQ2_XS", 256, 74, kIq2Xs, detail::decode_iq2_xs, detail::encode_iq2_xs},
    BlockCodec{18, "IQ3_XXS", 256, 98, kIq3Xxs, detail::decode_iq3_xxs, detail::encode_iq3_xxs},
    BlockCodec{19, "IQ1_S", 256, 50, kIq1S, detail::decode_iq1_s, detail::encode_iq1_s},
    BlockCodec{20, "IQ4_NL", 32, 18, kHalf0, math::decode_iq4_nl, detail::encode_iq4_nl},
    BlockCodec{21, "IQ3_S", 256, 110, kHalf0, detail::decode_iq3_s, detail::encode_iq3_s},
    BlockCodec{22, "IQ2_S", 256, 82, kHalf0, detail::decode_iq2_s, detail::encode_iq2_s},
    BlockCodec{23, "IQ4_XS", 256, 136, kIq4Xs, math::decode_iq4_xs, detail::encode_iq4_xs},
    BlockCodec{29, "IQ1_M", 256, 56, kIq1M, detail::decode_iq1_m, detail::encode_iq1_m},
    BlockCodec{34, "TQ1_0", 256, 54, kTq1, detail::decode_tq1_0, detail::encode_tq1_0},
    BlockCodec{35, "TQ2_0", 256, 66, kTq2, detail::decode_tq2_0, detail::encode_tq2_0},
    BlockCodec{39, "MXFP4", 32, 17, {}, detail::decode_mxfp4, detail::encode_mxfp4},
    BlockCodec{40, "NVFP4", 64, 36, {}, detail::decode_nvfp4, detail::encode_nvfp4},
    BlockCodec{41, "Q1_0", 128, 18, kHalf0, detail::decode_q1_0, detail::encode_q1_0},
    BlockCodec{42, "Q2_0", 64, 18, kHalf0, detail::decode_q2_0, detail::encode_q2_0},
};

char upper(char c) { return c >= 'a' && c <= 'z' ? static_cast<char>(c - 32) : c; }

}  // namespace

std::span<const BlockCodec> block_codecs() { return kTable; }

const BlockCodec* find_block_codec(std::uint32_t ggml_id) noexcept {
  const auto found = std::find_if(kTable.begin(), kTable.end(), [ggml_id](const BlockCodec& codec) { return codec.ggml_id == ggml_id; });
  return found == kTable.end() ? nullptr : &*found;
}

const BlockCodec* find_block_codec(std::string_view name) noexcept {
  const auto same = [name](const BlockCodec& codec) {
    return std::equal(name.begin(), name.end(), codec.name.begin(), codec.name.end(), [](char a, char b) { return upper(a) == b; });
  };
  const auto found = std::find_if(kTable.begin(), kTable.end(), same);
  return found == kTable.end() ? nullptr : &*found;
}

void swap_block_bytes(const BlockCodec& codec, std::span<std::byte> blocks) {
  for (std::size_t block = 0; block + codec.block_bytes <= blocks.size(); block += codec.block_bytes)
    for (const BlockField& field : codec.fields)
      for (std::size_t i = 0; i < field.count; ++i) {
        const std::span<std::byte> number = blocks.subspan(block + field.offset_bytes + i * field.size_bytes, field.size_bytes);
        std::reverse(number.begin(), number.end());
      }
}

}  // namespace weft::codec
