// What it takes to open models of many parts: counts of system calls, not seconds.
#include <gtest/gtest.h>

#include <filesystem>
#include <string>

#include "support/fault_calls.h"
#include "support/safetensors_bytes.h"
#include "support/temporary_folder.h"
#include "weft/checkpoint.h"

namespace weft {
namespace {

namespace fs = std::filesystem;

/// System calls of opening a model, and of asking whether it has changed.
std::uint64_t calls_of_opening(const fs::path& model, std::size_t num_tensors) {
  testing::FaultCalls calls({.call = ~std::uint64_t{0}});
  const ScopedSystemCalls scoped(calls);
  const auto checkpoint = open_checkpoint(model.string());
  checkpoint->check_unchanged();
  EXPECT_EQ(checkpoint->tensors().size(), num_tensors);
  return calls.num_calls();
}

void write_shards(const fs::path& folder, int count) {
  fs::create_directories(folder);
  std::string map;
  for (int i = 1; i <= count; ++i) {
    char name[64];
    std::snprintf(name, sizeof name, "model-%05d-of-%05d.safetensors", i, count);
    const std::string tensor = "t" + std::to_string(i);
    testing::write_file(folder / name, testing::safetensors_of({{tensor, {1.0F, 2.0F}}}));
    map += (i == 1 ? "\"" : ",\"") + tensor + "\":\"" + name + "\"";
  }
  testing::write_file(folder / "model.safetensors.index.json", "{\"metadata\":{\"total_size\":1},\"weight_map\":{" + map + "}}");
}

TEST(Load, opening_shards_takes_the_same_number_of_calls_for_each) {
  const testing::TemporaryFolder temp(testing::memory_folder());
  write_shards(temp / "ten", 10);
  write_shards(temp / "thousand", 1000);
  const std::uint64_t ten = calls_of_opening(temp / "ten", 10), thousand = calls_of_opening(temp / "thousand", 1000);
  EXPECT_LE(thousand, ten * 100) << "no more than in proportion";
  EXPECT_LE(thousand, 12'000u);
}

TEST(Load, opening_a_file_of_many_tensors_takes_calls_for_its_header_alone) {
  const testing::TemporaryFolder temp(testing::memory_folder());
  constexpr std::size_t kMany = 1'000'000;
  std::string header = "{";
  header.reserve(kMany * 80);
  for (std::size_t i = 0; i < kMany; ++i) {
    header += (i == 0 ? "\"t" : ",\"t") + std::to_string(i) + "\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}";
  }
  header += "}";
  ASSERT_LT(header.size(), 100'000'000u);
  testing::write_file(temp / "many.safetensors", testing::safetensors_bytes(header));
  // The header is read in pieces of 64 KiB.
  EXPECT_LE(calls_of_opening(temp / "many.safetensors", kMany), header.size() / 32'768 + 50);
}

}  // namespace
}  // namespace weft
