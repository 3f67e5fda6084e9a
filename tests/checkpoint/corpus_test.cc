// Replays what the fuzzers start from and what they have found, through the fuzzers' own targets; those abort on a wrong result.
#include <gtest/gtest.h>

#include <cstdint>
#include <filesystem>

#include "support/corpus.h"

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
#define LLVMFuzzerTestOneInput fuzz_npy
#include "../../fuzz/npy.cc"
#undef LLVMFuzzerTestOneInput
#define LLVMFuzzerTestOneInput fuzz_npz
#include "../../fuzz/npz.cc"
#undef LLVMFuzzerTestOneInput
#define LLVMFuzzerTestOneInput fuzz_torch_file
#include "../../fuzz/torch_file.cc"
#undef LLVMFuzzerTestOneInput
#define LLVMFuzzerTestOneInput fuzz_packed_folder
#include "../../fuzz/packed_folder.cc"
#undef LLVMFuzzerTestOneInput
#define LLVMFuzzerTestOneInput fuzz_imatrix
#include "../../fuzz/imatrix.cc"
#undef LLVMFuzzerTestOneInput

namespace weft {
namespace {

namespace fs = std::filesystem;

TEST(Corpus, safetensors_headers_are_refused_or_stay_inside_the_file_and_read_back_the_same) {
  testing::replay_corpus("safetensors_header", fuzz_safetensors_header);
}
TEST(Corpus, gguf_headers_are_refused_or_stay_inside_the_file_and_read_back_the_same) { testing::replay_corpus("gguf_header", fuzz_gguf_header); }
TEST(Corpus, shard_indices_are_refused_or_name_plain_files_and_read_back_the_same) { testing::replay_corpus("shard_index", fuzz_shard_index); }
TEST(Corpus, json_is_refused_or_reads_back_the_same) { testing::replay_corpus("json", fuzz_json); }

TEST(Corpus, npy_headers_are_refused_or_read_back_the_same) { testing::replay_corpus("npy", fuzz_npy, 1); }
TEST(Corpus, npz_archives_are_refused_or_their_arrays_lie_inside) { testing::replay_corpus("npz", fuzz_npz); }
TEST(Corpus, torch_files_are_refused_or_their_tensors_lie_in_their_storages) { testing::replay_corpus("torch_file", fuzz_torch_file); }
TEST(Corpus, packed_folders_are_refused_or_read_alike_whole_and_in_pieces) { testing::replay_corpus("packed_folder", fuzz_packed_folder); }
TEST(Corpus, importance_matrices_are_refused_or_have_a_number_for_every_column) { testing::replay_corpus("imatrix", fuzz_imatrix, 1); }

TEST(Corpus, it_is_small) {
  std::uintmax_t sum = 0;
  for (const auto& entry : fs::recursive_directory_iterator(fs::path(WEFT_SOURCE_DIR) / "fuzz" / "corpus"))
    if (entry.is_regular_file()) sum += entry.file_size();
  EXPECT_LT(sum, 1'000'000u) << "inputs that show nothing new belong elsewhere: run the target with -merge=1";
}

}  // namespace
}  // namespace weft
