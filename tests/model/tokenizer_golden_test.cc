#include <gtest/gtest.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <functional>
#include <string>
#include <vector>

#include "checkpoint/json.h"
#include "model/tokenizer.h"

// What the reference libraries make of awkward and ordinary text, compared exactly. The files are described in their README.
namespace weft::model {
namespace {

namespace fs = std::filesystem;

const fs::path kGolden = fs::path(WEFT_SOURCE_DIR) / "../shared/golden/tokenizer";

std::vector<std::uint32_t> ids_of(const Json& list) {
  std::vector<std::uint32_t> ids;
  for (const Json& id : *list.array()) ids.push_back(static_cast<std::uint32_t>(*id.unsigned_integer()));
  return ids;
}

std::string shown(const std::vector<std::uint32_t>& ids) {
  std::string text;
  for (const std::uint32_t id : ids) text += std::to_string(id) + " ";
  return text;
}

void for_each_line(const fs::path& file, const std::function<void(const Json&)>& work) {
  std::ifstream in(file);
  ASSERT_TRUE(in) << file;
  for (std::string line; std::getline(in, line);) work(parse_json(line, file));
}

std::string from_hex(const std::string& hex) {
  std::string bytes;
  for (std::size_t i = 0; i + 1 < hex.size(); i += 2) bytes.push_back(static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16)));
  return bytes;
}

/// Runs the work for each tokenizer of the index.
void for_each_tokenizer(const std::function<void(const Json&, const Tokenizer&)>& work) {
  const Json index = read_json_file(kGolden / "index.json");
  for (const Json& entry : *index.find("tokenizers")->array()) {
    SCOPED_TRACE(*entry.find("name")->string());
    const Tokenizer tokenizer = Tokenizer::open(kGolden / *entry.find("model")->string() / *entry.find("file")->string());
    work(entry, tokenizer);
  }
}

class TokenizerGolden : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!fs::exists(kGolden / "index.json")) GTEST_SKIP() << "needs the shared tokenizer goldens";
  }
};

TEST_F(TokenizerGolden, every_line_has_the_ids_texts_and_offsets_of_the_reference) {
  for_each_tokenizer([](const Json& entry, const Tokenizer& tokenizer) {
    EXPECT_EQ(tokenizer.vocab_size(), *entry.find("vocab_size")->unsigned_integer());
    for_each_line(kGolden / *entry.find("lines")->string(), [&](const Json& line) {
      const std::string& text = *line.find("text")->string();
      const std::vector<std::uint32_t> want = ids_of(*line.find("ids"));
      const Encoding encoding = tokenizer.encode(text, {.tokens = true, .offsets = true});
      EXPECT_EQ(encoding.ids, want) << testing::PrintToString(text) << "\n got " << shown(encoding.ids) << "\nwant " << shown(want);
      EXPECT_EQ(encoding.tokens.size(), encoding.ids.size());
      const std::vector<std::uint32_t> plain = tokenizer.ids(text, false);
      EXPECT_EQ(plain, ids_of(*line.find("plain"))) << testing::PrintToString(text) << "\n got " << shown(plain);
      EXPECT_EQ(tokenizer.decode(want), *line.find("decoded")->string()) << shown(want);
      EXPECT_EQ(tokenizer.decode(want, true), *line.find("decoded_skip")->string()) << shown(want);
      if (const Json* offsets = line.find("offsets"); offsets != nullptr && encoding.ids == want) {
        std::vector<std::pair<std::uint32_t, std::uint32_t>> ranges;
        for (const Json& range : *offsets->array()) {
          const auto pair = ids_of(range);
          ranges.emplace_back(pair[0], pair[1]);
        }
        EXPECT_EQ(encoding.offsets, ranges) << testing::PrintToString(text);
      }
    });
  });
}

TEST_F(TokenizerGolden, any_ids_decode_as_the_reference_does) {
  for_each_tokenizer([](const Json& entry, const Tokenizer& tokenizer) {
    for_each_line(kGolden / *entry.find("decode")->string(), [&](const Json& line) {
      const auto ids = ids_of(*line.find("ids"));
      EXPECT_EQ(tokenizer.decode(ids), *line.find("decoded")->string()) << shown(ids);
      EXPECT_EQ(tokenizer.decode(ids, true), *line.find("decoded_skip")->string()) << shown(ids);
    });
  });
}

TEST_F(TokenizerGolden, ill_formed_text_counts_as_replacement_characters) {
  for_each_tokenizer([](const Json& entry, const Tokenizer& tokenizer) {
    for_each_line(kGolden / *entry.find("invalid")->string(), [&](const Json& line) {
      const std::string& hex = *line.find("hex")->string();
      EXPECT_EQ(tokenizer.ids(from_hex(hex), false), ids_of(*line.find("plain"))) << hex;
      EXPECT_EQ(tokenizer.ids(*line.find("text")->string(), false), ids_of(*line.find("plain"))) << hex;
    });
  });
}

TEST_F(TokenizerGolden, long_texts_of_one_kind_are_right_at_both_ends_and_quick) {
  for_each_tokenizer([](const Json& entry, const Tokenizer& tokenizer) {
    for_each_line(kGolden / *entry.find("big")->string(), [&](const Json& line) {
      std::string text;
      const std::uint64_t count = *line.find("count")->unsigned_integer();
      for (std::uint64_t i = 0; i < count; ++i) text += *line.find("unit")->string();
      const auto start = std::chrono::steady_clock::now();
      const auto ids = tokenizer.ids(text, false);
      const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
      EXPECT_EQ(ids.size(), *line.find("plain_count")->unsigned_integer()) << *line.find("unit")->string();
      EXPECT_EQ(std::vector<std::uint32_t>(ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(std::min<std::size_t>(8, ids.size()))),
                ids_of(*line.find("first")));
      EXPECT_EQ(std::vector<std::uint32_t>(ids.end() - static_cast<std::ptrdiff_t>(std::min<std::size_t>(4, ids.size())), ids.end()),
                ids_of(*line.find("last")));
      RecordProperty(*entry.find("name")->string() + *line.find("unit")->string(), std::to_string(seconds));
      if (seconds > 1)
        std::cout << *entry.find("name")->string() << " needs " << seconds << " s for " << count << " of " << *line.find("unit")->string() << "\n";
    });
  });
}

TEST_F(TokenizerGolden, pairs_are_cut_and_joined_as_the_reference_does) {
  for_each_tokenizer([](const Json& entry, const Tokenizer& tokenizer) {
    if (entry.find("pairs") == nullptr) return;
    for_each_line(kGolden / *entry.find("pairs")->string(), [&](const Json& line) {
      EncodeOptions options;
      if (const Json& cut = *line.find("truncation"); !cut.is_null()) {
        options.truncation.emplace();
        options.truncation->max_length = *cut.find("max_length")->unsigned_integer();
        if (const Json* stride = cut.find("stride")) options.truncation->stride = *stride->unsigned_integer();
        const Json* direction = cut.find("direction");
        if (direction != nullptr && *direction->string() == "left") options.truncation->direction = Truncation::Direction::left;
        const std::string& strategy = *cut.find("strategy")->string();
        if (strategy == "only_first") options.truncation->strategy = Truncation::Strategy::only_first;
        if (strategy == "only_second") options.truncation->strategy = Truncation::Strategy::only_second;
      }
      const Encoding encoding = tokenizer.encode_pair(*line.find("text")->string(), *line.find("pair")->string(), options);
      EXPECT_EQ(encoding.ids, ids_of(*line.find("ids")));
      EXPECT_EQ(encoding.type_ids, ids_of(*line.find("type_ids")));
      EXPECT_EQ(std::vector<std::uint32_t>(encoding.special.begin(), encoding.special.end()), ids_of(*line.find("special")));
      const Json::Array& windows = *line.find("overflowing")->array();
      ASSERT_EQ(encoding.overflowing.size(), windows.size());
      for (std::size_t i = 0; i < windows.size(); ++i) EXPECT_EQ(encoding.overflowing[i].ids, ids_of(windows[i]));
    });
  });
}

}  // namespace
}  // namespace weft::model
