// Replays what the fuzzers start from and what they have found, through the fuzzers' own targets; those abort on a wrong result.
#include <gtest/gtest.h>

#include <filesystem>
#include <map>
#include <string>

#include "support/temporary_folder.h"

#define LLVMFuzzerTestOneInput fuzz_json
#include "../../fuzz/json.cc"
#undef LLVMFuzzerTestOneInput
#define LLVMFuzzerTestOneInput fuzz_gguf_header
#include "../../fuzz/gguf_header.cc"
#undef LLVMFuzzerTestOneInput
#define LLVMFuzzerTestOneInput fuzz_safetensors_header
#include "../../fuzz/safetensors_header.cc"
#undef LLVMFuzzerTestOneInput
#define LLVMFuzzerTestOneInput fuzz_shard_index
#include "../../fuzz/shard_index.cc"
#undef LLVMFuzzerTestOneInput
#define LLVMFuzzerTestOneInput fuzz_npz
#include "../../fuzz/npz.cc"
#undef LLVMFuzzerTestOneInput
#define LLVMFuzzerTestOneInput fuzz_torch_file
#include "../../fuzz/torch_file.cc"
#undef LLVMFuzzerTestOneInput

namespace weft {
namespace {

namespace fs = std::filesystem;

using Target = int (*)(const std::uint8_t*, std::size_t);

void replay(const std::string& name, Target target) {
  int num_inputs = 0;
  for (const auto& entry : fs::directory_iterator(fs::path(WEFT_SOURCE_DIR) / "fuzz" / "corpus" / name)) {
    SCOPED_TRACE(entry.path());
    const std::string bytes = testing::read_file(entry.path());
    target(reinterpret_cast<const std::uint8_t*>(bytes.data()), bytes.size());
    ++num_inputs;
  }
  EXPECT_GT(num_inputs, 0) << name;
}

TEST(Corpus, safetensors_headers_are_refused_or_stay_inside_the_file) { replay("safetensors_header", fuzz_safetensors_header); }
TEST(Corpus, gguf_headers_are_refused_or_stay_inside_the_file) { replay("gguf_header", fuzz_gguf_header); }
TEST(Corpus, shard_indices_are_refused_or_name_plain_files) { replay("shard_index", fuzz_shard_index); }
TEST(Corpus, json_is_refused_or_reads_back_the_same) { replay("json", fuzz_json); }

TEST(Corpus, npz_archives_are_refused_or_their_arrays_lie_inside) { replay("npz", fuzz_npz); }
TEST(Corpus, torch_files_are_refused_or_their_tensors_lie_in_their_storages) { replay("torch_file", fuzz_torch_file); }

TEST(Corpus, it_is_small) {
  std::uintmax_t sum = 0;
  for (const auto& entry : fs::recursive_directory_iterator(fs::path(WEFT_SOURCE_DIR) / "fuzz" / "corpus"))
    if (entry.is_regular_file()) sum += entry.file_size();
  EXPECT_LT(sum, 1'000'000u) << "inputs that show nothing new belong elsewhere: run the target with -merge=1";
}

}  // namespace
}  // namespace weft
