#include "base/text.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "support/errors.h"

namespace weft {
namespace {

// ---- parse_size ----

TEST(ParseSize, takes_decimal_and_binary_units_in_any_case) {
  EXPECT_EQ(parse_size("4096"), 4096u);
  EXPECT_EQ(parse_size("0"), 0u);
  EXPECT_EQ(parse_size("800MB"), 800'000'000u);
  EXPECT_EQ(parse_size("2GiB"), std::uint64_t{2} << 30);
  EXPECT_EQ(parse_size("3kb"), 3'000u);
  EXPECT_EQ(parse_size("3KiB"), 3u * 1024);
  EXPECT_EQ(parse_size("1 TiB"), std::uint64_t{1} << 40);
  EXPECT_EQ(parse_size(" 1t "), 1'000'000'000'000u);
  EXPECT_EQ(parse_size("7mib"), 7u << 20);
}

TEST(ParseSize, reads_the_suffixes_of_mergekit_as_powers_of_a_thousand) {
  EXPECT_EQ(parse_size("5B"), 5'000'000'000u);
  EXPECT_EQ(parse_size("5b"), 5'000'000'000u);
  EXPECT_EQ(parse_size("2m"), 2'000'000u);
  EXPECT_EQ(parse_size("9k"), 9'000u);
}

TEST(ParseSize, keeps_fractions_exactly) {
  EXPECT_EQ(parse_size("1.5G"), 1'500'000'000u);
  EXPECT_EQ(parse_size("0.1GB"), 100'000'000u);
  EXPECT_EQ(parse_size(".5k"), 500u);
  EXPECT_EQ(parse_size("1.5KiB"), 1536u);
  EXPECT_EQ(parse_size("1.0001k"), 1000u) << "a part of a byte is dropped";
  EXPECT_EQ(parse_size("18446744073709551615"), UINT64_MAX);
}

TEST(ParseSize, refuses_everything_else_and_shows_what_would_do) {
  for (const char* text :
       {"", " ", "B", "GB", ".", "-1", "+1", "1e9", "1,5G", "1..5", "1.5.2", "5X", "5GBB", "5 G B", "0x10", "1Gi", "nan", "5\xff"}) {
    SCOPED_TRACE(text);
    EXPECT_WEFT_ERROR(parse_size(text), invalid_argument, "is not a size");
    EXPECT_WEFT_ERROR(parse_size(text), invalid_argument, "2GiB");
  }
  EXPECT_WEFT_ERROR(parse_size("5GX"), invalid_argument, "the unit 'GX' is unknown");
  EXPECT_WEFT_ERROR(parse_size("18446744073709551616"), invalid_argument, "exceeds 2^64");
  EXPECT_WEFT_ERROR(parse_size("99999999T"), invalid_argument, "exceeds 2^64");
  EXPECT_WEFT_ERROR(parse_size(std::string(1000, '9')), invalid_argument, "too many digits");
}

// ---- format ----

TEST(FormatSize, shows_three_digits_in_the_unit_below_a_thousand) {
  EXPECT_EQ(format_size(0), "0 B");
  EXPECT_EQ(format_size(999), "999 B");
  EXPECT_EQ(format_size(1000), "1.00 kB");
  EXPECT_EQ(format_size(1'234'567), "1.23 MB");
  EXPECT_EQ(format_size(12'345'678), "12.3 MB");
  EXPECT_EQ(format_size(123'456'789), "123 MB");
  EXPECT_EQ(format_size(999'499), "999 kB");
  EXPECT_EQ(format_size(999'500), "1.00 MB") << "rounding may change the unit";
  EXPECT_EQ(format_size(9'999), "10.0 kB");
  EXPECT_EQ(format_size(UINT64_MAX), "18.4 EB");
}

TEST(FormatCount, shows_three_digits_and_a_letter) {
  EXPECT_EQ(format_count(12), "12");
  EXPECT_EQ(format_count(6'823'936), "6.82 M");
  EXPECT_EQ(format_count(1'500'000'000), "1.50 B");
}

TEST(FormatSeconds, shows_two_units_at_most) {
  EXPECT_EQ(format_seconds(75.2), "1 min 15 s");
  EXPECT_EQ(format_seconds(0.0123), "12 ms");
  EXPECT_EQ(format_seconds(0.0001), "<1 ms");
  EXPECT_EQ(format_seconds(3.24), "3.2 s");
  EXPECT_EQ(format_seconds(59.96), "1 min 0 s");
  EXPECT_EQ(format_seconds(3600), "1 h 0 min");
  EXPECT_EQ(format_seconds(90'000), "1 d 1 h");
  EXPECT_EQ(format_seconds(0), "0 ms");
  EXPECT_EQ(format_seconds(-1), "0 ms");
  EXPECT_EQ(format_seconds(std::nan("")), "0 ms");
  EXPECT_EQ(format_seconds(std::numeric_limits<double>::infinity()), "forever");
}

// ---- nearest_name ----

const std::vector<std::string> kNames = {"linear", "slerp", "task_arithmetic", "ties", "dare_ties", "dare_linear", "model_stock"};

TEST(NearestName, forgives_a_slip_a_swap_and_the_choice_of_dash_or_case) {
  EXPECT_EQ(nearest_name("liner", kNames), "linear");
  EXPECT_EQ(nearest_name("selrp", kNames), "slerp");
  EXPECT_EQ(nearest_name("Task-Arithmetic", kNames), "task_arithmetic");
  EXPECT_EQ(nearest_name("dareties", kNames), "dare_ties");
  EXPECT_EQ(nearest_name("tise", kNames), "ties");
}

TEST(NearestName, completes_an_abbreviation) {
  EXPECT_EQ(nearest_name("task", kNames), "task_arithmetic");
  EXPECT_EQ(nearest_name("dare", kNames), "dare_ties") << "the shortest of those that begin so";
}

TEST(NearestName, is_nothing_for_a_word_that_looks_like_none) {
  EXPECT_EQ(nearest_name("banana", kNames), std::nullopt);
  EXPECT_EQ(nearest_name("", kNames), std::nullopt);
  EXPECT_EQ(nearest_name("linear", {}), std::nullopt);
}

TEST(NearestName, finds_a_tensor_of_another_layer) {
  const std::vector<std::string> tensors = {"model.layers.0.mlp.up_proj.weight", "model.layers.10.mlp.up_proj.weight", "lm_head.weight"};
  EXPECT_EQ(nearest_name("model.layers.1.mlp.up_proj.weight", tensors), tensors[0]);
}

TEST(NearestName, of_very_long_words_ends) {
  const std::vector<std::string> names(100, std::string(100'000, 'a'));
  EXPECT_EQ(nearest_name(std::string(100'000, 'b'), names), std::nullopt);
}

// ---- UTF-8 ----

/// By the table of the Unicode standard (3-7), written out.
bool well_formed(const std::vector<unsigned>& b) {
  const auto in = [](unsigned x, unsigned low, unsigned high) { return x >= low && x <= high; };
  const auto tail = [&](std::size_t i) { return in(b[i], 0x80, 0xBF); };
  switch (b.size()) {
    case 1:
      return b[0] <= 0x7F;
    case 2:
      return in(b[0], 0xC2, 0xDF) && tail(1);
    case 3:
      if (!tail(2)) return false;
      if (b[0] == 0xE0) return in(b[1], 0xA0, 0xBF);
      if (b[0] == 0xED) return in(b[1], 0x80, 0x9F);
      return in(b[0], 0xE1, 0xEF) && tail(1);
    case 4:
      if (!tail(2) || !tail(3)) return false;
      if (b[0] == 0xF0) return in(b[1], 0x90, 0xBF);
      if (b[0] == 0xF4) return in(b[1], 0x80, 0x8F);
      return in(b[0], 0xF1, 0xF3) && tail(1);
    default:
      return false;
  }
}

std::string as_text(const std::vector<unsigned>& bytes) {
  std::string text;
  for (const unsigned byte : bytes) text += static_cast<char>(byte);
  return text;
}

TEST(IsValidUtf8, agrees_with_the_standard_on_every_pair_of_bytes_and_the_borders_of_longer_ones) {
  for (unsigned a = 0; a < 256; ++a) {
    ASSERT_EQ(is_valid_utf8(as_text({a})), well_formed({a})) << a;
    for (unsigned b = 0; b < 256; ++b) {
      ASSERT_EQ(is_valid_utf8(as_text({a, b})), well_formed({a, b}) || (well_formed({a}) && well_formed({b}))) << a << ' ' << b;
      if (a < 0xC0) continue;  // the rest are sequences that begin with a lead byte
      for (const unsigned c : {0x00u, 0x7Fu, 0x80u, 0xBFu, 0xC0u, 0xFFu}) {
        ASSERT_EQ(is_valid_utf8(as_text({a, b, c})), well_formed({a, b, c}) || (well_formed({a, b}) && well_formed({c})))
            << a << ' ' << b << ' ' << c;
        for (const unsigned d : {0x7Fu, 0x80u, 0xBFu, 0xC0u})
          ASSERT_EQ(is_valid_utf8(as_text({a, b, c, d})), well_formed({a, b, c, d}) || (well_formed({a, b, c}) && well_formed({d})) ||
                                                              (well_formed({a, b}) && well_formed({c}) && well_formed({d})))
              << a << ' ' << b << ' ' << c << ' ' << d;
      }
    }
  }
  EXPECT_TRUE(is_valid_utf8(""));
}

TEST(Printable, keeps_text_of_every_script) {
  EXPECT_EQ(printable("layers.0 \xc3\xa4 \xe4\xb8\xad \xf0\x9f\x98\x80 \\ '"), "layers.0 \xc3\xa4 \xe4\xb8\xad \xf0\x9f\x98\x80 \\ '");
}

TEST(Printable, escapes_what_could_move_the_cursor_or_reorder_the_line) {
  EXPECT_EQ(printable("a\x1b[2Jb"), "a\\x1b[2Jb");
  EXPECT_EQ(printable("a\nb\tc\rd"), "a\\nb\\tc\\x0dd");
  EXPECT_EQ(printable(std::string("\0", 1)), "\\x00");
  EXPECT_EQ(printable("\x7f"), "\\x7f");
  EXPECT_EQ(printable("\xc2\x9b"), "\\u009b");      // the one-byte escape sequence introducer
  EXPECT_EQ(printable("\xe2\x80\xae"), "\\u202e");  // right-to-left override
  EXPECT_EQ(printable("\xe2\x80\x8b"), "\\u200b");  // invisible
  EXPECT_EQ(printable("\xff\xc3(\xed\xa0\x80"), "\\xff\\xc3(\\xed\\xa0\\x80");
}

TEST(Printable, shortens_between_characters) {
  EXPECT_EQ(printable("abcdefgh", 8), "abcdefgh");
  EXPECT_EQ(printable("abcdefghi", 8), "abcde...");
  EXPECT_EQ(printable("abcd\xe4\xb8\xad\xe4\xb8\xad", 8), "abcd...");
  EXPECT_EQ(printable("abcdefghi", 2), "..");
  EXPECT_EQ(printable(std::string(1'000'000, 'x')).size(), 200u);
  EXPECT_LE(printable(std::string(1'000, '\x1b')).size(), 200u);
}

}  // namespace
}  // namespace weft
