#include "adapt/lora.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "adapt/lora_names.h"
#include "support/errors.h"
#include "support/memory_checkpoint.h"
#include "support/safetensors_bytes.h"
#include "support/temporary_folder.h"

namespace weft::adapt {
namespace {

using testing::TemporaryFolder;
using testing::write_file;

/// left right, in double.
std::vector<double> product(const std::vector<float>& left, const std::vector<float>& right, std::size_t rows, std::size_t rank,
                            std::size_t columns) {
  std::vector<double> out(rows * columns, 0.0);
  for (std::size_t i = 0; i < rows; ++i)
    for (std::size_t k = 0; k < rank; ++k)
      for (std::size_t j = 0; j < columns; ++j)
        out[i * columns + j] += static_cast<double>(left[i * rank + k]) * static_cast<double>(right[k * columns + j]);
  return out;
}

double distance(const std::vector<double>& a, const std::vector<double>& b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += (a[i] - b[i]) * (a[i] - b[i]);
  return std::sqrt(sum);
}

/// Singular values that halve, in random directions.
std::vector<double> decaying(std::size_t rows, std::size_t columns, std::size_t rank) {
  std::vector<double> out(rows * columns, 0.0);
  double size = 8;
  for (std::size_t k = 0; k < rank; ++k, size /= 1.5) {
    const std::vector<float> u = testing::random_values(rows, 100 + k), v = testing::random_values(columns, 200 + k);
    for (std::size_t i = 0; i < rows; ++i)
      for (std::size_t j = 0; j < columns; ++j) out[i * columns + j] += size * static_cast<double>(u[i]) * static_cast<double>(v[j]);
  }
  return out;
}

TEST(Factorise, the_error_that_it_states_is_the_one_that_it_makes) {
  for (const auto& [rows, columns] : {std::pair<std::size_t, std::size_t>{30, 20}, {20, 30}, {600, 450}}) {
    const std::vector<double> delta = decaying(rows, columns, 12);
    for (const std::uint64_t rank : {1U, 4U, 12U}) {
      std::vector<double> work = delta;
      const Factors f = factorise(work, rows, columns, {.rank = rank}, Side::both, 1, "m");
      EXPECT_EQ(f.randomized, rows == 600);
      ASSERT_EQ(f.rank, rank);
      const double made = distance(product(f.left, f.right, rows, rank, columns), delta);
      EXPECT_NEAR(made, f.error, 2e-6 * f.norm) << rows << " " << rank;
      EXPECT_TRUE(rank < 12 || made < 2e-6 * f.norm);
    }
  }
}

TEST(Factorise, a_randomized_decomposition_is_nearly_as_good_as_the_whole_one) {
  const std::size_t n = 420;
  std::vector<double> delta = decaying(n, n, 30), small = delta;
  const Factors random = factorise(small, n, n, {.rank = 8}, Side::both, 1, "m");
  ASSERT_TRUE(random.randomized);
  small = delta;
  const Factors whole = factorise(small, n, n, {.rank = 300}, Side::both, 1, "m");
  ASSERT_FALSE(whole.randomized);
  // What the best product of rank 8 misses: the rest of the singular values, found as squared norms of the whole decomposition's columns.
  double rest = 0;
  for (std::uint64_t k = 8; k < whole.rank; ++k) {
    double value = 0;
    for (std::size_t i = 0; i < n; ++i) value += std::pow(static_cast<double>(whole.left[i * whole.rank + k]), 2);
    rest += value * value;
  }
  EXPECT_LE(random.error, std::sqrt(rest) * 1.0001);
}

TEST(Factorise, energy_keeps_as_few_as_reach_it) {
  // Diagonal 3, 2, 1: squares 9, 4, 1 of 14.
  const std::vector<double> diagonal = {3, 0, 0, 0, 2, 0, 0, 0, 1};
  const auto rank_for = [&](double energy) {
    std::vector<double> work = diagonal;
    RankLimit limit;
    limit.energy = energy;
    return factorise(work, 3, 3, limit, Side::both, 0, "m").rank;
  };
  EXPECT_EQ(rank_for(0.5), 1u);
  EXPECT_EQ(rank_for(9.0 / 14), 1u);
  EXPECT_EQ(rank_for(0.9), 2u);
  EXPECT_EQ(rank_for(1.0), 3u);
  std::vector<double> work = diagonal;
  EXPECT_EQ(factorise(work, 3, 3, {.rank = 3, .smallest = 1.5}, Side::both, 0, "m").rank, 2u);
  std::vector<double> nothing(6, 0.0);
  EXPECT_EQ(factorise(nothing, 2, 3, {.rank = 2}, Side::both, 0, "m").rank, 0u);
}

Lora lora_of(std::uint64_t seed, std::int64_t rank, double scale) {
  Lora lora;
  const auto n = static_cast<std::size_t>(rank);
  lora.modules.push_back({"m",
                          false,
                          scale,
                          {DType::f32, {rank, 5}, testing::random_values(n * 5, seed)},
                          {DType::f32, {4, rank}, testing::random_values(n * 4, seed + 50)}});
  return lora;
}

std::vector<double> delta_of(const LoraModule& m) {
  std::vector<double> out = product(m.b.values, m.a.values, 4, m.rank(), 5);
  for (double& v : out) v *= m.scale;
  return out;
}

TEST(Combine, cat_is_the_weighted_sum_of_the_changes) {
  const std::vector<Lora> two = {lora_of(1, 2, 0.5), lora_of(2, 3, 2)};
  const std::vector<double> weights = {0.7, -0.4}, a = delta_of(two[0].modules[0]), b = delta_of(two[1].modules[0]);
  std::vector<double> want(20);
  for (std::size_t i = 0; i < 20; ++i) want[i] = 0.7 * a[i] - 0.4 * b[i];
  const Lora cat = combine(two, weights, Combination::cat, {}, 0);
  EXPECT_EQ(cat.modules[0].rank(), 5u);
  EXPECT_LT(distance(delta_of(cat.modules[0]), want), 1e-5);
  // Rank 4 holds any 4 x 5 matrix.
  EXPECT_LT(distance(delta_of(combine(two, weights, Combination::svd, 4, 0).modules[0]), want), 1e-5);
  EXPECT_GT(distance(delta_of(combine(two, weights, Combination::svd, 1, 0).modules[0]), want), 1e-2);
}

TEST(Combine, linear_sums_the_factors_with_the_sign_on_one_side) {
  const std::vector<Lora> two = {lora_of(1, 2, 0.5), lora_of(2, 2, 2)};
  const Lora sum = combine(two, std::vector<double>{0.7, -0.4}, Combination::linear, {}, 0);
  const LoraModule &x = two[0].modules[0], &y = two[1].modules[0], &z = sum.modules[0];
  const double p = std::sqrt(0.7 * 0.5), q = std::sqrt(0.4 * 2);
  for (std::size_t i = 0; i < z.a.values.size(); ++i)
    EXPECT_NEAR(z.a.values[i], p * static_cast<double>(x.a.values[i]) - q * static_cast<double>(y.a.values[i]), 1e-6);
  for (std::size_t i = 0; i < z.b.values.size(); ++i)
    EXPECT_NEAR(z.b.values[i], p * static_cast<double>(x.b.values[i]) + q * static_cast<double>(y.b.values[i]), 1e-6);
  EXPECT_WEFT_ERROR(combine({lora_of(1, 2, 1), lora_of(2, 3, 1)}, std::vector<double>{1, 1}, Combination::linear, {}, 0), invalid_argument,
                    "--how cat");
}

TEST(StoreLora, every_module_keeps_its_scale) {
  Lora lora = lora_of(1, 4, 2);
  for (const auto& [name, rank, scale] : {std::tuple{"n", 2, 2.0}, std::tuple{"o", 4, 0.75}}) {
    Lora other = lora_of(3, rank, scale);
    other.modules[0].name = name;
    lora.modules.push_back(other.modules[0]);
  }
  const StoredAdapter stored = store_lora(lora);
  const TemporaryFolder folder;
  std::vector<testing::StoredTensor> tensors;
  for (const StoredTensor& t : stored.tensors)
    tensors.push_back({t.name, std::string(to_string(t.dtype)), t.shape, std::string(reinterpret_cast<const char*>(t.bytes.data()), t.bytes.size())});
  write_file(folder / "adapter_config.json", write_json(stored.config));
  write_file(folder / "adapter_model.safetensors", testing::safetensors_of_types(tensors));
  const Lora back = read_lora(open_adapter(folder.path()));
  ASSERT_EQ(back.modules.size(), 3u);
  for (const LoraModule& module : back.modules) {
    const auto was = std::find_if(lora.modules.begin(), lora.modules.end(), [&](const LoraModule& m) { return m.name == module.name; });
    EXPECT_DOUBLE_EQ(module.scale, was->scale) << module.name;
    EXPECT_EQ(module.a.values, was->a.values);
  }
}

TEST(NamedLora, of_a_file_for_several_models_those_parts_are_taken_that_fit_the_one_at_hand) {
  const TemporaryFolder folder;
  std::vector<testing::StoredTensor> tensors;
  const auto add = [&](const std::string& module) {
    for (const char* part : {".lora_down.weight", ".lora_up.weight"}) tensors.push_back({module + part, "F32", {1, 1}, testing::bytes_of<float>({2})});
  };
  add("lora_unet_down_blocks_0_to_q");
  add("lora_te1_text_model_q_proj");
  add("lora_te2_text_model_q_proj");
  write_file(folder / "x.safetensors", testing::safetensors_of_types(tensors));
  const auto read = [&](const std::vector<std::string>& modules, std::vector<std::string>& warnings) {
    return read_named_lora(folder / "x.safetensors", modules, "base", warnings);
  };
  std::vector<std::string> warnings;
  const Lora lora = read({"down_blocks.0.to_q"}, warnings);
  ASSERT_EQ(lora.modules.size(), 1u);
  EXPECT_EQ(lora.modules[0].name, "down_blocks.0.to_q");
  ASSERT_FALSE(warnings.empty());
  EXPECT_NE(warnings.front().find("2 modules that do not begin with 'lora_unet_' were left out"), std::string::npos);
  EXPECT_WEFT_ERROR(read({"text_model.q_proj"}, warnings), unsupported, "more than one of them fits the model");
  EXPECT_WEFT_ERROR(read({"nothing.of.it"}, warnings), unsupported, "none of them fits the model");
  EXPECT_WEFT_ERROR(read({}, warnings), unsupported, "name one of the models with --base, or take the file apart: weft edit FILE OUT.safetensors --keep '^lora_");
}

TEST(NamedLora, names_go_there_and_back) {
  Lora lora = lora_of(1, 2, 0.5);
  lora.modules[0].name = "down_blocks.0.attentions.0.to_q";
  for (const std::string to : {"kohya", "diffusers"}) {
    std::vector<std::string> warnings;
    const StoredAdapter stored = store_named_lora(lora, to, warnings);
    EXPECT_TRUE(warnings.empty());
    EXPECT_EQ(stored.tensors[1].name,
              to == "kohya" ? "lora_unet_down_blocks_0_attentions_0_to_q.lora_down.weight" : "unet.down_blocks.0.attentions.0.to_q.lora_A.weight");
    const TemporaryFolder folder;
    std::vector<testing::StoredTensor> tensors;
    for (const StoredTensor& t : stored.tensors)
      tensors.push_back(
          {t.name, std::string(to_string(t.dtype)), t.shape, std::string(reinterpret_cast<const char*>(t.bytes.data()), t.bytes.size())});
    write_file(folder / "x.safetensors", testing::safetensors_of_types(tensors));
    const std::vector<std::string> modules = {"down_blocks.0.attentions.0.to_q", "other"};
    const Lora back = read_named_lora(folder / "x.safetensors", modules, "base", warnings);
    EXPECT_EQ(back.modules[0].name, lora.modules[0].name);
    EXPECT_DOUBLE_EQ(back.modules[0].scale, 0.5);
    EXPECT_EQ(back.modules[0].b.values, lora.modules[0].b.values);
    if (to == "kohya") {
      EXPECT_WEFT_ERROR(read_named_lora(folder / "x.safetensors", {}, "", warnings), invalid_argument, "--base MODEL");
      EXPECT_WEFT_ERROR(read_named_lora(folder / "x.safetensors", std::vector<std::string>{"other"}, "", warnings), invalid_argument, "fits none");
    }
  }
}

}  // namespace
}  // namespace weft::adapt
