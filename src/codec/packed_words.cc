#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include "codec/packed_linear.h"

namespace weft::codec {
namespace {

struct Plane {
  int width, first_bit;
};
/// Of the planar form; none for widths that have no such form.
std::span<const Plane> planes(int bits) {
  static constexpr std::array<Plane, 2> kThree = {{{2, 0}, {1, 2}}}, kFive = {{{4, 0}, {1, 4}}}, kSix = {{{4, 0}, {2, 4}}};
  static constexpr std::array<Plane, 3> kSeven = {{{4, 0}, {2, 4}, {1, 6}}};
  switch (bits) {
    case 3:
      return kThree;
    case 5:
      return kFive;
    case 6:
      return kSix;
    case 7:
      return kSeven;
    default:
      return {};
  }
}

/// As many codes of 2, 4 or 8 bits as a word holds: neighbours are brought together, then pairs of them, and so on.
std::uint32_t packed_word(const std::uint8_t* values, unsigned width) {
  static_assert(std::endian::native == std::endian::little);
  if (width == 8) {
    std::uint32_t word = 0;
    std::memcpy(&word, values, 4);
    return word;
  }
  const auto eight = [width](const std::uint8_t* from) {
    std::uint64_t codes = 0;
    std::memcpy(&codes, from, 8);
    codes = (codes | codes >> (8 - width)) & 0x00FF00FF00FF00FFULL;
    codes = (codes | codes >> (16 - 2 * width)) & 0x0000FFFF0000FFFFULL;
    return static_cast<std::uint32_t>(codes | codes >> (32 - 4 * width));
  };
  return width == 4 ? eight(values) : (eight(values) & 0xFFFF) | eight(values + 8) << 16;
}

}  // namespace

std::uint64_t words_for(std::uint64_t num_values, int bits, WordForm form) {
  const auto width = static_cast<std::uint64_t>(bits);
  if (form == WordForm::legacy) return (num_values + 32 / width - 1) / (32 / width);
  return (num_values / 32) * width + (num_values % 32 * width + 31) / 32;
}

void pack_words(const std::uint8_t* values, std::size_t value_stride, std::size_t num_values, int bits, WordForm form, std::uint32_t* words,
                std::size_t word_stride) {
  const auto width = static_cast<unsigned>(bits);
  if (form == WordForm::planar) {
    for (std::size_t first = 0; first < num_values; first += 32) {
      for (const Plane& plane : planes(bits)) {
        const auto plane_width = static_cast<unsigned>(plane.width), a_word = 32 / plane_width;
        for (unsigned w = 0; w < plane_width; ++w, words += word_stride) {
          std::uint32_t word = 0;
          for (unsigned j = 0; j < a_word; ++j) {
            const std::uint32_t value = values[(first + w * a_word + j) * value_stride];
            word |= (value >> plane.first_bit & ((1U << plane_width) - 1)) << (plane_width * j);
          }
          *words = word;
        }
      }
    }
    return;
  }
  if (value_stride == 1 && (bits == 2 || bits == 4 || bits == 8)) {
    const std::size_t a_word = 32 / width;
    for (; num_values >= a_word; num_values -= a_word, values += a_word, words += word_stride) *words = packed_word(values, width);
    if (num_values == 0) return;
  }
  const unsigned limit = form == WordForm::legacy ? 32 / width * width : 32;
  std::uint64_t held = 0;
  unsigned used = 0;
  for (std::size_t i = 0; i < num_values; ++i) {
    held |= std::uint64_t{values[i * value_stride]} << used;
    used += width;
    if (used >= limit) {
      *words = static_cast<std::uint32_t>(held);
      words += word_stride;
      held = form == WordForm::legacy ? 0 : held >> 32;
      used -= limit;
    }
  }
  if (used > 0) *words = static_cast<std::uint32_t>(held);
}

void unpack_words(const std::uint32_t* words, std::size_t word_stride, std::size_t num_values, int bits, WordForm form, std::uint8_t* values,
                  std::size_t value_stride) {
  const auto width = static_cast<unsigned>(bits);
  const std::uint32_t mask = (1U << width) - 1;
  if (form == WordForm::planar) {
    for (std::size_t first = 0; first < num_values; first += 32) {
      for (unsigned j = 0; j < 32; ++j) values[(first + j) * value_stride] = 0;
      for (const Plane& plane : planes(bits)) {
        const auto plane_width = static_cast<unsigned>(plane.width), a_word = 32 / plane_width;
        for (unsigned w = 0; w < plane_width; ++w, words += word_stride)
          for (unsigned j = 0; j < a_word; ++j) {
            std::uint8_t& value = values[(first + w * a_word + j) * value_stride];
            value = static_cast<std::uint8_t>(value | (*words >> (plane_width * j) & ((1U << plane_width) - 1)) << plane.first_bit);
          }
      }
    }
    return;
  }
  const unsigned limit = form == WordForm::legacy ? 32 / width * width : 32;
  std::uint64_t held = 0;
  unsigned left = 0;
  for (std::size_t i = 0; i < num_values; ++i) {
    if (left < width) {
      if (form == WordForm::legacy) held = 0, left = 0;
      held |= std::uint64_t{*words} << left;
      words += word_stride;
      left += limit;
    }
    values[i * value_stride] = static_cast<std::uint8_t>(held & mask);
    held >>= width;
    left -= width;
  }
}

}  // namespace weft::codec
