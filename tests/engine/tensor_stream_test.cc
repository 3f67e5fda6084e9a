#include "engine/tensor_stream.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <mutex>

#include "math/reduce.h"
#include "support/errors.h"
#include "support/memory_checkpoint.h"
#include "weft/error.h"

namespace weft::engine {
namespace {

using testing::MemoryCheckpoint;
using testing::random_values;
using testing::stored_as;

/// out = (a + b) / (sum of a): needs a pass, and shows in every element whether the sum was the same.
class Scaled final : public merge::TensorMerge {
 public:
  explicit Scaled(merge::Tiling tiling = {}) : tiling_(tiling) {}
  [[nodiscard]] merge::Tiling tiling() const override { return tiling_; }
  [[nodiscard]] merge::Pass next_pass() const override { return done_ ? merge::Pass::none : merge::Pass::whole; }
  [[nodiscard]] std::size_t num_sums() const override { return 1; }
  void reduce(const merge::Tile& tile, std::span<double> sums, merge::Tally*) const override { sums[0] = math::sum(tile.input(0)); }
  void solve(std::span<const double> totals, std::span<const std::unique_ptr<merge::Tally>>) override {
    sum_ = totals[0];
    done_ = true;
  }
  void map(const merge::Tile& tile, std::span<float> out) const override {
    for (std::size_t i = 0; i < tile.count; ++i) out[i] = static_cast<float>((double(tile.input(0)[i]) + double(tile.input(1)[i])) / sum_);
  }

 private:
  merge::Tiling tiling_;
  double sum_ = 0;
  bool done_ = false;
};

/// Collects what a stream writes.
struct Sink {
  explicit Sink(const std::vector<StreamTensor>& tensors) {
    for (const StreamTensor& t : tensors) {
      bytes.emplace_back(t.inputs.front().tensor->num_elements * static_cast<std::size_t>(info(t.dtype).bits) / 8);
      written.push_back(0);
    }
  }
  TensorWriter writer() {
    return [this](std::size_t tensor, std::uint64_t offset, std::span<const std::byte> data) {
      const std::lock_guard lock(mutex);
      ASSERT_LE(offset + data.size(), bytes[tensor].size());
      if (!data.empty()) std::memcpy(bytes[tensor].data() + offset, data.data(), data.size());
      written[tensor] += data.size();
    };
  }
  std::mutex mutex;
  std::vector<std::vector<std::byte>> bytes;
  std::vector<std::uint64_t> written;
};

struct Fixture {
  std::shared_ptr<MemoryCheckpoint> a;
  std::shared_ptr<MemoryCheckpoint> b;
  std::vector<Shape> shapes = {{3, 5}, {0}, {}, {1}, {8192}, {8193}, {257, 129}, {0, 7}, {100000}, {3, 40000}};

  Fixture() {
    std::vector<MemoryCheckpoint::Tensor> ta;
    std::vector<MemoryCheckpoint::Tensor> tb;
    for (std::size_t i = 0; i < shapes.size(); ++i) {
      std::size_t count = 1;
      for (const auto d : shapes[i]) count *= static_cast<std::size_t>(d);
      const std::string name = "t" + std::to_string(i);
      ta.push_back({name, DType::bf16, shapes[i], stored_as(DType::bf16, random_values(count, 2 * i + 1))});
      tb.push_back({name, DType::f32, shapes[i], stored_as(DType::f32, random_values(count, 2 * i + 2))});
    }
    a = std::make_shared<MemoryCheckpoint>(ta, "a");
    b = std::make_shared<MemoryCheckpoint>(tb, "b");
  }

  std::vector<StreamTensor> tensors(merge::Tiling tiling = {}) const {
    std::vector<StreamTensor> out;
    for (const TensorInfo& t : a->tensors()) {
      StreamTensor s;
      s.name = t.name;
      s.shape = t.shape;
      s.dtype = DType::bf16;
      s.inputs = {{a, &t}, {b, &b->tensor(t.name)}};
      s.input_names = {"model-a", "model-b"};
      s.merge = std::make_unique<Scaled>(tiling);
      out.push_back(std::move(s));
    }
    return out;
  }
};

std::vector<std::vector<std::byte>> run(std::vector<StreamTensor> tensors, const JobOptions& options) {
  Sink sink(tensors);
  (void)run_tensor_stream(tensors, sink.writer(), options, "testing");
  for (std::size_t i = 0; i < tensors.size(); ++i) EXPECT_EQ(sink.written[i], sink.bytes[i].size()) << "every byte of " << tensors[i].name << " once";
  return sink.bytes;
}

TEST(TensorStream, any_number_of_threads_and_any_chunk_size_gives_the_same_bytes) {
  const Fixture fixture;
  for (const auto unit : {merge::Tiling::Unit::elements, merge::Tiling::Unit::rows}) {
    const merge::Tiling tiling{unit, 8192};
    JobOptions options;
    options.threads = 1;
    const auto expected = run(fixture.tensors(tiling), options);
    for (const int threads : {1, 2, 3, 8}) {
      for (const std::uint64_t chunk : {std::uint64_t{1}, std::uint64_t{64} << 10, std::uint64_t{1} << 20, std::uint64_t{37} << 20}) {
        options.threads = threads;
        options.chunk_bytes = chunk;
        EXPECT_EQ(run(fixture.tensors(tiling), options), expected) << threads << " threads, chunks of " << chunk;
      }
    }
  }
}

TEST(TensorStream, the_result_is_the_one_that_a_plain_loop_computes) {
  const Fixture fixture;
  JobOptions options;
  options.threads = 2;
  const auto got = run(fixture.tensors(), options);
  for (std::size_t i = 0; i < fixture.shapes.size(); ++i) {
    std::vector<std::byte> raw(fixture.a->tensors()[i].size_bytes);
    fixture.a->read_bytes(fixture.a->tensors()[i], 0, raw);
    const std::vector<float> a = testing::values_of(DType::bf16, raw);
    raw.resize(fixture.b->tensors()[i].size_bytes);
    fixture.b->read_bytes(fixture.b->tensors()[i], 0, raw);
    const std::vector<float> b = testing::values_of(DType::f32, raw);
    double sum = 0;
    double magnitude = 0;
    for (const float x : a) {
      sum += x;
      magnitude += std::abs(x);
    }
    const std::vector<float> out = testing::values_of(DType::bf16, got[i]);
    ASSERT_EQ(out.size(), a.size());
    for (std::size_t k = 0; k < out.size(); ++k) {
      const double want = (double(a[k]) + double(b[k])) / sum;
      // Half a unit of bfloat16, and what another order of the sum may change.
      const double bound = std::abs(want) * (0x1p-8 + magnitude / std::abs(sum) * static_cast<double>(a.size()) * 0x1p-53);
      ASSERT_NEAR(out[k], want, bound) << "tensor " << i << " element " << k;
    }
  }
}

TEST(TensorStream, inputs_are_rounded_through_the_load_type_and_results_through_the_compute_type) {
  const std::vector<float> values = {1.0F + 0x1p-9F, 1.0F + 0x1p-12F, 65519.0F};
  const auto a = std::make_shared<MemoryCheckpoint>(std::vector<MemoryCheckpoint::Tensor>{{"t", DType::f32, {3}, stored_as(DType::f32, values)}});
  std::vector<StreamTensor> tensors(1);
  tensors[0].name = "t";
  tensors[0].shape = {3};
  tensors[0].inputs = {{a, &a->tensors()[0]}};
  tensors[0].load_dtype = DType::bf16;
  const auto bytes = run(std::move(tensors), {});
  EXPECT_THAT(testing::values_of(DType::f32, bytes[0]), ::testing::ElementsAre(1.0F, 1.0F, 65536.0F));
}

TEST(TensorStream, a_value_that_is_not_finite_is_refused_with_tensor_model_and_count) {
  std::vector<float> values = random_values(20000, 5);
  values[3] = std::numeric_limits<float>::quiet_NaN();
  values[19999] = std::numeric_limits<float>::infinity();
  const auto a = std::make_shared<MemoryCheckpoint>(std::vector<MemoryCheckpoint::Tensor>{{"t", DType::f32, {20000}, stored_as(DType::f32, values)}}, "bad");
  for (const bool with_merge : {false, true}) {
    std::vector<StreamTensor> tensors(1);
    tensors[0].name = "t";
    tensors[0].shape = {20000};
    tensors[0].inputs = {{a, &a->tensors()[0]}, {a, &a->tensors()[0]}};
    tensors[0].input_names = {"model-a", "model-b"};
    if (with_merge) tensors[0].merge = std::make_unique<Scaled>();
    Sink sink(tensors);
    try {
      (void)run_tensor_stream(tensors, sink.writer(), {}, "testing");
      FAIL() << "accepted";
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), ErrorCode::corrupt);
      EXPECT_EQ(e.place().tensor, "t");
      EXPECT_THAT(e.message(), ::testing::HasSubstr("model-a holds 2 values that are NaN or infinite"));
    }
  }
}

TEST(TensorStream, a_failing_read_stops_every_thread_and_is_passed_on) {
  class Failing final : public Checkpoint {
   public:
    Failing() {
      path_ = "failing";
      tensors_.push_back({"t", DType::f32, {1 << 20}, 1 << 20, 4 << 20, 0, 0});
      index_tensors();
    }
    void read_bytes(const TensorInfo&, std::uint64_t offset, std::span<std::byte> out) const override {
      if (offset > 1 << 20) throw Error(ErrorCode::io, "cannot read");
      std::memset(out.data(), 0, out.size());
    }
  };
  const auto a = std::make_shared<Failing>();
  for (const int threads : {1, 2, 8}) {
    std::vector<StreamTensor> tensors(1);
    tensors[0].name = "t";
    tensors[0].shape = {1 << 20};
    tensors[0].inputs = {{a, &a->tensors()[0]}};
    Sink sink(tensors);
    JobOptions options;
    options.threads = threads;
    EXPECT_THROW((void)run_tensor_stream(tensors, sink.writer(), options, "testing"), Error);
  }
}

TEST(TensorStream, a_budget_that_cannot_hold_one_tile_is_refused_with_both_numbers) {
  const Fixture fixture;
  JobOptions options;
  options.memory_bytes = 4096;
  auto tensors = fixture.tensors();
  Sink sink(tensors);
  try {
    (void)run_tensor_stream(tensors, sink.writer(), options, "testing");
    FAIL() << "accepted";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ErrorCode::out_of_memory);
    // Of 4096 an eighth is kept for the process and a quarter for what methods gather.
    EXPECT_THAT(e.message(), ::testing::HasSubstr("2560"));
  }
}

/// The values backwards, which no part of a tensor can tell; of several inputs their sum.
class Backwards final : public merge::TensorMerge {
 public:
  explicit Backwards(std::uint64_t scratch_bytes = 0) : scratch_bytes_(scratch_bytes) {}
  [[nodiscard]] merge::Tiling tiling() const override { return {merge::Tiling::Unit::whole}; }
  [[nodiscard]] std::uint64_t scratch_bytes() const override { return scratch_bytes_; }
  void map(const merge::Tile& tile, std::span<float> out) const override {
    for (std::size_t i = 0; i < tile.count; ++i) {
      out[i] = 0;
      for (const float* input : tile.inputs) out[i] += input[tile.count - 1 - i];
    }
  }

 private:
  std::uint64_t scratch_bytes_;
};

TEST(TensorStream, a_method_of_whole_tensors_sees_them_whole_beside_methods_of_tiles) {
  std::vector<testing::MemoryCheckpoint::Tensor> stored;
  const std::vector<std::int64_t> sizes = {100'000, 7, 0, 300'001, 64, 50'000};
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    const std::vector<float> values = testing::random_values(static_cast<std::size_t>(sizes[i]), i);
    stored.push_back({std::string(1, static_cast<char>('a' + i)), DType::f32, {sizes[i]}, testing::stored_as(DType::f32, values)});
  }
  const auto input = std::make_shared<testing::MemoryCheckpoint>(stored);
  for (const int threads : {1, 2, 5}) {
    // The largest takes 4 + 4 bytes an element for what is stored and as many for what is decoded; then only small ones fit beside it.
    for (const std::uint64_t memory : {std::uint64_t{10} << 20, std::uint64_t{64} << 20}) {
      std::vector<StreamTensor> tensors;
      for (const TensorInfo& info : input->tensors()) {
        StreamTensor& tensor = tensors.emplace_back();
        tensor.name = info.name;
        tensor.shape = info.shape;
        tensor.inputs = {{input, &info}, {input, &info}};
        if (info.name != "b") tensor.merge = std::make_unique<Backwards>();
      }
      Sink sink(tensors);
      JobOptions options;
      options.threads = threads;
      options.memory_bytes = memory;
      options.chunk_bytes = 20'000;
      static_cast<void>(run_tensor_stream(tensors, sink.writer(), options, "testing"));
      for (std::size_t i = 0; i < sizes.size(); ++i) {
        std::vector<float> want = testing::random_values(static_cast<std::size_t>(sizes[i]), i);
        if (stored[i].name != "b") {
          std::reverse(want.begin(), want.end());
          for (float& value : want) value *= 2;
        }
        ASSERT_EQ(sink.bytes[i], testing::stored_as(DType::f32, want)) << i << " " << threads;
      }
    }
  }
}

TEST(TensorStream, a_whole_tensor_that_cannot_fit_is_refused_before_any_work_with_both_numbers) {
  std::vector<testing::MemoryCheckpoint::Tensor> stored;
  for (const auto& [name, size] : {std::pair<const char*, std::int64_t>{"small", 64}, {"large", 1 << 20}})
    stored.push_back({name, DType::f32, {size}, testing::stored_as(DType::f32, std::vector<float>(static_cast<std::size_t>(size), 1.0F))});
  const auto input = std::make_shared<testing::MemoryCheckpoint>(stored);
  const auto plan = [&](std::uint64_t scratch_bytes) {
    std::vector<StreamTensor> tensors(2);
    for (std::size_t i = 0; i < 2; ++i) {
      tensors[i].name = stored[i].name;
      tensors[i].shape = stored[i].shape;
      tensors[i].inputs = {{input, &input->tensors()[i]}};
      tensors[i].merge = std::make_unique<Backwards>(scratch_bytes);
    }
    return tensors;
  };
  // One input and the output, stored and decoded, and a little for the rest.
  constexpr std::uint64_t kLarge = 4 * (std::uint64_t{4} << 20) + 4096;
  JobOptions options;
  options.threads = 1;
  options.memory_bytes = 12 << 20;
  const auto refusal = [&](std::vector<StreamTensor> tensors) {
    int written = 0;
    const TensorWriter count = [&](std::size_t, std::uint64_t, std::span<const std::byte>) { ++written; };
    const std::optional<Error> error = testing::error_of([&] { static_cast<void>(run_tensor_stream(tensors, count, options, "testing")); });
    const std::optional<Error> planned = testing::error_of([&] { static_cast<void>(estimate_stream_memory(tensors, options)); });
    EXPECT_EQ(error.has_value(), planned.has_value());
    EXPECT_EQ(written == 0, error.has_value());
    return error;
  };
  const std::optional<Error> error = refusal(plan(0));
  ASSERT_TRUE(error);
  EXPECT_EQ(error->code(), ErrorCode::out_of_memory);
  EXPECT_EQ(error->place().tensor, "large");
  EXPECT_THAT(error->message(), ::testing::HasSubstr("needs " + std::to_string(kLarge) + " bytes"));
  EXPECT_THAT(error->message(), ::testing::HasSubstr("of the memory budget of " + std::to_string(options.memory_bytes) + " bytes"));
  options.memory_bytes = 24 << 20;
  EXPECT_FALSE(refusal(plan(0)));
  EXPECT_TRUE(refusal(plan(8 << 20))) << "what the method works in counts";
}

TEST(TensorStream, cancelling_ends_with_interrupted) {
  const Fixture fixture;
  const std::atomic<bool> cancel{true};
  JobOptions options;
  options.cancel = &cancel;
  auto tensors = fixture.tensors();
  Sink sink(tensors);
  try {
    (void)run_tensor_stream(tensors, sink.writer(), options, "testing");
    FAIL() << "went on";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ErrorCode::interrupted);
  }
}

}  // namespace
}  // namespace weft::engine
