// Times `weft merge` beside a plain read/write loop over the same bytes, method by method, in one run.
//
//   merge_bench [--dir DIR] [--layers N] [--rounds N] [--methods a,b] [--threads N] [--keep] [--sync]
//
// Generates three bfloat16 checkpoints of Qwen2-1.5B's shapes (vocabulary 151,936 x 1,536) in DIR (default: /dev/shm), then for each method runs the
// loop and the command alternately and prints the medians, their ratio and the command's peak memory. The loop reads every input once and writes the
// output once, 1 MiB at a time, on one thread (and once more with as many threads as weft uses, for the share of the machine's limit).
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "checkpoint/output.h"
#include "support/method_config.h"
#include "weft/methods.h"
#include "weft/version.h"

namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

struct Options {
  fs::path dir = "/dev/shm/weft-bench";
  int layers = 8;
  int rounds = 5;
  int threads = static_cast<int>(std::thread::hardware_concurrency());
  std::string methods;
  bool keep = false;
  bool sync = false;
  std::string command = WEFT_COMMAND;
};

std::vector<weft::TensorSpec> qwen2_1_5b(int layers) {
  using weft::DType;
  std::vector<weft::TensorSpec> t = {{"model.embed_tokens.weight", DType::bf16, {151936, 1536}}, {"model.norm.weight", DType::bf16, {1536}}};
  for (int i = 0; i < layers; ++i) {
    const std::string p = fmt::format("model.layers.{}.", i);
    for (const auto& [name, shape] : std::vector<std::pair<std::string, weft::Shape>>{{"input_layernorm.weight", {1536}},
                                                                                      {"post_attention_layernorm.weight", {1536}},
                                                                                      {"self_attn.q_proj.weight", {1536, 1536}},
                                                                                      {"self_attn.q_proj.bias", {1536}},
                                                                                      {"self_attn.k_proj.weight", {256, 1536}},
                                                                                      {"self_attn.k_proj.bias", {256}},
                                                                                      {"self_attn.v_proj.weight", {256, 1536}},
                                                                                      {"self_attn.v_proj.bias", {256}},
                                                                                      {"self_attn.o_proj.weight", {1536, 1536}},
                                                                                      {"mlp.gate_proj.weight", {8960, 1536}},
                                                                                      {"mlp.up_proj.weight", {8960, 1536}},
                                                                                      {"mlp.down_proj.weight", {1536, 8960}}})
      t.push_back({p + name, DType::bf16, shape});
  }
  return t;
}

struct Random {
  std::uint64_t state;
  std::uint64_t next() {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
  }
};

std::uint16_t to_bf16(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return static_cast<std::uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

/// Bell-shaped weights of deviation 0.02; a fine-tune moves each by a tenth of that.
void generate(const fs::path& folder, int layers, std::uint64_t tune) {
  fs::create_directories(folder);
  std::ofstream(folder / "config.json") << fmt::format(
      R"({{"architectures":["Qwen2ForCausalLM"],"model_type":"qwen2","hidden_size":1536,"intermediate_size":8960,"num_hidden_layers":{},)"
      R"("num_attention_heads":12,"num_key_value_heads":2,"vocab_size":151936,"tie_word_embeddings":true,"torch_dtype":"bfloat16"}})",
      layers);
  const weft::OutputLayout layout = weft::plan_safetensors(qwen2_1_5b(layers), 0, {});
  std::ofstream out(folder / "model.safetensors", std::ios::binary);
  out.write(layout.files[0].header.data(), static_cast<std::streamsize>(layout.files[0].header.size()));
  Random base{88172645463325252ULL};
  Random noise{0x9E3779B97F4A7C15ULL * (tune + 1)};
  std::vector<std::uint16_t> block(1 << 19);
  for (std::uint64_t left = layout.tensor_bytes / 2; left > 0;) {
    const std::size_t count = std::min<std::uint64_t>(left, block.size());
    for (std::size_t i = 0; i < count; ++i) {
      const auto bell = [](std::uint64_t r) {
        return (static_cast<float>(r & 0xFFFF) + static_cast<float>(r >> 16 & 0xFFFF) + static_cast<float>(r >> 32 & 0xFFFF) + static_cast<float>(r >> 48)) / 65536.0F - 2.0F;
      };
      float x = bell(base.next()) * 0.035F;
      if (tune != 0) x += bell(noise.next()) * 0.0035F;
      block[i] = to_bf16(x);
    }
    out.write(reinterpret_cast<const char*>(block.data()), static_cast<std::streamsize>(count * 2));
    left -= count;
  }
}

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

/// Reads the inputs and writes as many bytes as one of them holds; `threads` share the file by ranges.
double plain_loop(const std::vector<fs::path>& inputs, const fs::path& output, int threads, bool sync) {
  const auto start = Clock::now();
  std::vector<int> in;
  for (const fs::path& path : inputs) in.push_back(::open((path / "model.safetensors").c_str(), O_RDONLY | O_CLOEXEC));
  const int out = ::open(output.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  const std::uint64_t size = fs::file_size(inputs[0] / "model.safetensors");
  constexpr std::uint64_t kBlock = 1 << 20;
  const auto body = [&](std::uint64_t begin, std::uint64_t end) {
    std::vector<char> buffer(kBlock);
    for (std::uint64_t at = begin; at < end; at += kBlock) {
      const std::size_t n = std::min(kBlock, end - at);
      for (const int fd : in)
        if (::pread(fd, buffer.data(), n, static_cast<off_t>(at)) != static_cast<ssize_t>(n)) std::abort();
      if (::pwrite(out, buffer.data(), n, static_cast<off_t>(at)) != static_cast<ssize_t>(n)) std::abort();
    }
  };
  const std::uint64_t share = (size / static_cast<std::uint64_t>(threads) / kBlock + 1) * kBlock;
  std::vector<std::thread> pool;
  for (int t = 0; t < threads; ++t)
    pool.emplace_back(body, std::min(size, share * static_cast<std::uint64_t>(t)), std::min(size, share * static_cast<std::uint64_t>(t + 1)));
  for (std::thread& t : pool) t.join();
  if (sync) ::fsync(out);
  for (const int fd : in) ::close(fd);
  ::close(out);
  const double seconds = seconds_since(start);
  fs::remove(output);
  return seconds;
}

struct Run {
  double wall = 0, user = 0, system = 0;
  double peak_mib = 0;
};

Run run_command(const std::vector<std::string>& words) {
  std::vector<char*> argv;
  for (const std::string& w : words) argv.push_back(const_cast<char*>(w.c_str()));
  argv.push_back(nullptr);
  const auto start = Clock::now();
  const pid_t pid = ::fork();
  if (pid == 0) {
    ::execv(argv[0], argv.data());
    ::_exit(127);
  }
  int status = 0;
  struct rusage usage {};
  ::wait4(pid, &status, 0, &usage);
  Run run;
  run.wall = seconds_since(start);
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
    std::fprintf(stderr, "the command failed\n");
    std::exit(1);
  }
  const auto seconds = [](const timeval& t) { return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_usec) * 1e-6; };
  run.user = seconds(usage.ru_utime);
  run.system = seconds(usage.ru_stime);
  run.peak_mib = static_cast<double>(usage.ru_maxrss) / 1024;
  return run;
}

template <class T>
T median(std::vector<T> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

}  // namespace

int main(int argc, char** argv) {
  Options o;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    const auto value = [&] { return std::string(i + 1 < argc ? argv[++i] : ""); };
    if (word == "--dir") o.dir = value();
    else if (word == "--layers") o.layers = std::stoi(value());
    else if (word == "--rounds") o.rounds = std::stoi(value());
    else if (word == "--threads") o.threads = std::stoi(value());
    else if (word == "--methods") o.methods = "," + value() + ",";
    else if (word == "--command") o.command = value();
    else if (word == "--keep") o.keep = true;
    else if (word == "--sync") o.sync = true;
    else {
      std::fprintf(stderr, "merge_bench: unknown option %s\n", word.c_str());
      return 2;
    }
  }
  std::vector<fs::path> models;
  for (int i = 0; i < 3; ++i) {
    models.push_back(o.dir / fmt::format("model-{}-{}", o.layers, i));
    if (!fs::exists(models.back() / "model.safetensors")) generate(models.back(), o.layers, static_cast<std::uint64_t>(i));
  }
  // Some methods take four models; one of the three under another name will do, and is read as often.
  models.push_back(o.dir / "model-again");
  std::error_code ignored;
  fs::remove(models.back(), ignored);
  fs::create_directory_symlink(models[1], models.back());
  const double gigabytes = static_cast<double>(fs::file_size(models[0] / "model.safetensors")) * 1e-9;
  fmt::print("weft {} ({}), {}, {} threads; three bfloat16 checkpoints of {:.2f} GB in {}; medians of {} alternating rounds{}\n", weft::version(), weft::commit(),
             weft::simd_target(), o.threads, gigabytes, o.dir.string(), o.rounds, o.sync ? ", the loop fsyncs" : "");
  fmt::print("{:22} {:>6} {:>8} {:>8} {:>8} {:>8} {:>8} {:>9} {:>9} {:>9}\n", "method", "inputs", "loop s", "weft s", "ratio", "user s", "system s", "GB/s", "of limit", "peak MiB");
  for (const weft::MethodDescription& m : weft::list_methods("merge")) {
    if (m.calibration) continue;  // it runs the models: see calibrate_bench
    if (!o.methods.empty() && o.methods.find("," + m.name + ",") == std::string::npos) continue;
    const fs::path config = o.dir / "config.yml";
    const weft::testing::MethodConfig plain = weft::testing::plain_config(m, {models[0].string(), models[1].string(), models[2].string(), models[3].string()});
    std::ofstream(config) << plain.text;
    const std::size_t num_inputs = plain.num_inputs;
    const std::vector<fs::path> inputs(models.begin(), models.begin() + static_cast<std::ptrdiff_t>(num_inputs));
    std::vector<double> loop, parallel, wall, user, system, peak, ratio;
    for (int round = 0; round <= o.rounds; ++round) {
      const double one = plain_loop(inputs, o.dir / "loop.out", 1, o.sync);
      const double many = plain_loop(inputs, o.dir / "loop.out", o.threads, o.sync);
      const fs::path out = o.dir / "out";
      fs::remove_all(out);
      const Run run = run_command({o.command, "merge", config.string(), out.string(), "--quiet", "--max-shard-size", "0", "-j", std::to_string(o.threads)});
      if (round == 0) continue;  // warm-up
      loop.push_back(one);
      parallel.push_back(many);
      wall.push_back(run.wall);
      user.push_back(run.user);
      system.push_back(run.system);
      peak.push_back(run.peak_mib);
      ratio.push_back(run.wall / one);
    }
    fmt::print("{:22} {:6} {:8.2f} {:8.2f} {:8.2f} {:8.2f} {:8.2f} {:9.2f} {:8.0f}% {:9.0f}\n", m.name, num_inputs, median(loop), median(wall), median(ratio), median(user),
               median(system), gigabytes * static_cast<double>(num_inputs + 1) / median(wall), 100 * median(parallel) / median(wall), median(peak));
    std::fflush(stdout);
    fs::remove_all(o.dir / "out");
  }
  if (!o.keep) fs::remove_all(o.dir);
  return 0;
}
