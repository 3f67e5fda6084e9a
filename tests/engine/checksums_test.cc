#include "checkpoint/checksums.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <xxhash.h>

#include <algorithm>
#include <filesystem>
#include <random>

#include "checkpoint/block_sums.h"
#include "support/errors.h"
#include "support/fault_calls.h"
#include "support/memory_checkpoint.h"
#include "support/safetensors_bytes.h"
#include "support/temporary_folder.h"
#include "weft/inspect.h"
#include "weft/weft.h"

namespace weft {
namespace {

namespace fs = std::filesystem;
using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::read_file;
using testing::write_file;

std::string hex_of(std::string_view bytes) {
  const XXH128_hash_t hash = XXH3_128bits(bytes.data(), bytes.size());
  char text[33];
  std::snprintf(text, sizeof text, "%016lx%016lx", static_cast<unsigned long>(hash.high64), static_cast<unsigned long>(hash.low64));
  return text;
}

// ---- the checksums themselves ----

TEST(Checksum, is_that_of_xxh128sum) {
  // printf abc | xxh128sum
  EXPECT_EQ(to_string(checksum_of(std::string_view("abc"))), "06b05ab6733a618578af5f94892f3950");
  EXPECT_EQ(to_string(checksum_of(std::string_view())), "99aa06d3014798d86001c324468d497f");
  EXPECT_EQ(parse_checksum("06b05ab6733a618578af5f94892f3950"), checksum_of(std::string_view("abc")));
  EXPECT_FALSE(parse_checksum("06b05ab6733a618578af5f94892f395"));
  EXPECT_FALSE(parse_checksum("06b05ab6733a618578af5f94892f395G"));
}

TEST(Checksum, crc32c_is_that_of_its_check_value) {
  const std::string_view digits = "123456789";
  EXPECT_EQ(crc32c(std::as_bytes(std::span(digits))), 0xE3069283u);
  EXPECT_EQ(crc32c(std::as_bytes(std::span(digits.substr(4))), crc32c(std::as_bytes(std::span(digits.substr(0, 4))))), 0xE3069283u);
}

TEST(BlockSums, are_the_same_whatever_the_order_of_the_pieces) {
  std::mt19937_64 random(5);
  for (const std::uint64_t size : {std::uint64_t{0}, std::uint64_t{1}, kSumBlockBytes, kSumBlockBytes + 1, 2 * kSumBlockBytes + 12345}) {
    std::string bytes(size, '\0');
    for (char& c : bytes) c = static_cast<char>(random());
    std::vector<Checksum> expected;
    for (std::uint64_t at = 0; at < std::max<std::uint64_t>(size, 1); at += kSumBlockBytes)
      expected.push_back(checksum_of(std::string_view(bytes).substr(at, kSumBlockBytes)));
    for (int round = 0; round < 5; ++round) {
      std::vector<std::pair<std::uint64_t, std::uint64_t>> pieces;
      for (std::uint64_t at = 0; at < size;) {
        const std::uint64_t piece = std::min<std::uint64_t>(size - at, 1 + random() % (round == 0 ? 3 * kSumBlockBytes : 700'000));
        pieces.emplace_back(at, piece);
        at += piece;
      }
      std::shuffle(pieces.begin(), pieces.end(), random);
      BlockSums sums(size);
      for (const auto& [at, piece] : pieces) {
        EXPECT_FALSE(sums.is_complete());
        sums.add(at, std::as_bytes(std::span(bytes).subspan(at, piece)), [&](std::uint64_t offset, std::span<std::byte> out) {
          std::copy_n(std::as_bytes(std::span(bytes)).begin() + static_cast<std::ptrdiff_t>(offset), out.size(), out.begin());
        });
      }
      ASSERT_TRUE(sums.is_complete());
      EXPECT_EQ(sums.take(), expected);
    }
  }
}

TEST(Checksums, of_a_list_that_is_damaged_anywhere_are_refused) {
  FileSums file{"model.safetensors", 100, checksum_of(std::string_view("header")), {}};
  file.tensors.push_back({"a \"quoted\" name", 20, 80, {checksum_of(std::string_view("data"))}});
  const std::string text = write_checksums(std::span(&file, 1));
  const std::vector<FileSums> read = parse_checksums(text, "list");
  ASSERT_EQ(read.size(), 1u);
  EXPECT_EQ(read[0].tensors[0].name, "a \"quoted\" name");
  EXPECT_EQ(write_checksums(read), text);
  for (std::size_t i = 0; i < text.size(); ++i) {
    std::string damaged = text;
    damaged[i] = static_cast<char>(damaged[i] ^ 4);
    EXPECT_TRUE(testing::error_of([&] { (void)parse_checksums(damaged, "list"); })) << i;
    EXPECT_TRUE(testing::error_of([&] { (void)parse_checksums(std::string_view(text).substr(0, i), "list"); })) << i;
  }
}

// ---- in models ----

class ModelChecksums : public ::testing::Test {
 protected:
  ModelChecksums() {
    fs::create_directory(work_ / "in");
    const std::vector<float> small = testing::random_values(64, 1), big = testing::random_values(3'000'000, 2);
    write_file(work_ / "in/model.safetensors", testing::safetensors_of_types({{"big", "F32", {3000, 1000}, testing::bytes_of(big)},
                                                                              {"small", "F32", {8, 8}, testing::bytes_of(small)}}));
    write_file(work_ / "in/config.json", "{\"architectures\": [\"Unknown\"]}");
    write_file(work_ / "in/tokenizer_config.json", "{\"a\": 1}");
    (void)convert((work_ / "in").string(), out_, {});
  }
  /// The problems when byte `at` of this file has another value.
  std::vector<VerifyProblem> with_changed_byte(const std::string& name, std::size_t at) {
    const std::string good = read_file(out_ / name);
    std::string bad = good;
    bad[at] = static_cast<char>(bad[at] ^ 1);
    write_file(out_ / name, bad);
    std::vector<VerifyProblem> problems = verify(out_.string()).problems;
    JobOptions options;
    options.chunk_bytes = 70'000;
    EXPECT_EQ(verify(out_.string(), options).problems.size(), problems.size()) << at;
    write_file(out_ / name, good);
    return problems;
  }
  testing::TemporaryFolder work_{testing::memory_folder()};
  const fs::path out_ = work_ / "out";
};

TEST_F(ModelChecksums, are_those_of_the_bytes_that_were_written) {
  const std::string model = read_file(out_ / "model.safetensors");
  const std::size_t header = model.size() - 12'000'000 - 256;
  const std::vector<FileSums> sums = parse_checksums(read_file(out_ / "weft.checksums"), "list");
  ASSERT_EQ(sums.size(), 3u);
  ASSERT_EQ(sums[0].tensors.size(), 2u);
  EXPECT_EQ(sums[0].tensors[0].name, "big");
  ASSERT_EQ(sums[0].tensors[0].blocks.size(), 3u);
  for (std::size_t b = 0; b < 3; ++b)
    EXPECT_EQ(
        to_string(sums[0].tensors[0].blocks[b]),
        hex_of(std::string_view(model).substr(header + b * kSumBlockBytes, std::min<std::size_t>(kSumBlockBytes, 12'000'000 - b * kSumBlockBytes))));
  EXPECT_EQ(to_string(sums[0].tensors[1].blocks[0]), hex_of(std::string_view(model).substr(header + 12'000'000)));
  EXPECT_EQ(to_string(sums[0].rest), hex_of(std::string_view(model).substr(0, header)));
  EXPECT_EQ(sums[1].name, "config.json");
  EXPECT_EQ(to_string(sums[1].rest), hex_of(read_file(out_ / "config.json")));
}

TEST_F(ModelChecksums, let_verify_find_any_changed_byte) {
  EXPECT_TRUE(verify(out_.string()).ok);
  const std::string model = read_file(out_ / "model.safetensors");
  for (const std::size_t at :
       {std::size_t{0}, std::size_t{7}, std::size_t{20}, std::size_t{120}, model.size() - 12'000'256, model.size() - 256, model.size() - 1})
    EXPECT_THAT(with_changed_byte("model.safetensors", at), Contains(::testing::Field(&VerifyProblem::file, "model.safetensors"))) << at;
  EXPECT_THAT(with_changed_byte("model.safetensors", model.size() - 12'000'256 + 5'000'000)[0].message, HasSubstr("tensor 'big' is damaged: bytes"));
  EXPECT_EQ(with_changed_byte("config.json", 5).empty(), false);
  EXPECT_EQ(with_changed_byte("tokenizer_config.json", 6).at(0).code, "checksum");
  EXPECT_EQ(with_changed_byte("weft.checksums", 50).at(0).file, "weft.checksums");
}

TEST_F(ModelChecksums, cost_verify_no_second_reading) {
  class ReadCalls : public SystemCalls {
   public:
    ssize_t pread(int fd, void* data, std::size_t size, off_t offset) override {
      const ssize_t done = SystemCalls::pread(fd, data, size, offset);
      if (done > 0) bytes += static_cast<std::uint64_t>(done);
      return done;
    }
    std::atomic<std::uint64_t> bytes{0};
  } calls;
  std::uint64_t all = 0;
  for (const auto& entry : fs::directory_iterator(out_)) all += entry.file_size();
  {
    const ScopedSystemCalls scoped(calls);
    EXPECT_TRUE(verify(out_.string()).ok);
  }
  EXPECT_GE(calls.bytes, all);
  EXPECT_LT(calls.bytes, all + 100'000) << "headers and small files are looked at twice";
  // Pieces smaller than a block, whose order is that of the threads.
  JobOptions options;
  options.chunk_bytes = 100'000;
  options.threads = 3;
  EXPECT_TRUE(verify(out_.string(), options).ok);
}

TEST_F(ModelChecksums, let_verify_find_what_is_missing_shorter_or_longer) {
  const std::string model = read_file(out_ / "model.safetensors");
  for (const std::string& other : {model.substr(0, model.size() - 1), model + "x", std::string(), std::string("\x80\x02}q")}) {
    write_file(out_ / "model.safetensors", other);
    EXPECT_FALSE(verify(out_.string()).ok) << other.size();
  }
  write_file(out_ / "model.safetensors", model);
  fs::remove(out_ / "tokenizer_config.json");
  EXPECT_THAT(verify(out_.string()).problems.at(0).message, HasSubstr("tokenizer_config.json"));
}

TEST_F(ModelChecksums, of_a_single_file_lie_beside_it_and_go_with_it) {
  (void)convert((work_ / "in").string(), work_ / "one.safetensors", {});
  EXPECT_TRUE(verify((work_ / "one.safetensors").string()).ok);
  fs::rename(work_ / "one.safetensors", work_ / "two.safetensors");
  fs::rename(work_ / "one.safetensors.checksums", work_ / "two.safetensors.checksums");
  EXPECT_TRUE(verify((work_ / "two.safetensors").string()).ok);
  std::string bytes = read_file(work_ / "two.safetensors");
  bytes[bytes.size() - 300] ^= 1;
  write_file(work_ / "two.safetensors", bytes);
  EXPECT_FALSE(verify((work_ / "two.safetensors").string()).ok);
}

TEST_F(ModelChecksums, damaged_input_is_refused_before_any_work_when_asked_for) {
  std::string bytes = read_file(out_ / "model.safetensors");
  bytes[bytes.size() - 300] ^= 1;
  write_file(out_ / "model.safetensors", bytes);
  ConvertOptions options;
  options.verify_input = true;
  EXPECT_WEFT_ERROR(convert(out_.string(), work_ / "again", options), corrupt, "tensor 'big' is damaged");
  EXPECT_FALSE(fs::exists(work_ / "again"));
  EXPECT_THAT(convert((work_ / "in").string(), work_ / "again", options).warnings, Contains(HasSubstr("no list of checksums")));
}

TEST_F(ModelChecksums, a_device_that_gives_back_something_else_is_found_when_asked_for) {
  /// Loses a bit of what is written.
  class LossyCalls : public SystemCalls {
   public:
    ssize_t pwrite(int fd, const void* data, std::size_t size, off_t offset) override {
      if (size < 100'000 || done) return SystemCalls::pwrite(fd, data, size, offset);
      done = true;
      std::string copy(static_cast<const char*>(data), size);
      copy[size / 2] = static_cast<char>(copy[size / 2] ^ 1);
      return SystemCalls::pwrite(fd, copy.data(), size, offset);
    }
    bool done = false;
  } calls;
  ConvertOptions options;
  options.threads = 1;
  options.read_back = true;
  const ScopedSystemCalls scoped(calls);
  EXPECT_WEFT_ERROR(convert((work_ / "in").string(), work_ / "again", options), io, "something else is read back");
  EXPECT_FALSE(fs::exists(work_ / "again"));
  EXPECT_THAT(unfinished_jobs(work_.path()), IsEmpty()) << "nothing of it can be trusted";
  (void)convert((work_ / "in").string(), work_ / "again", options);
}

}  // namespace
}  // namespace weft
