#pragma once
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "adapt/adapter.h"
#include "checkpoint/gguf_header.h"
#include "checkpoint/json.h"

// LoRA adapters in memory: taken apart, made, written.
namespace weft::adapt {

/// Values of one tensor of an adapter.
struct Values {
  DType dtype = DType::f32;  ///< to store them in
  Shape shape;
  std::vector<float> values;
};

/// delta = scale * B A, with A [r, in...] and B [out, r...]; of an embedding its transpose.
struct LoraModule {
  std::string name;
  bool embedding = false;
  double scale = 1;
  Values a, b;
  [[nodiscard]] std::uint64_t rank() const { return static_cast<std::uint64_t>(a.shape.front()); }
};

/// A tensor that an adapter saves whole, under the name that it has in PEFT's file.
struct SavedTensor {
  std::string name;
  Values values;
};

/// A LoRA adapter as PEFT has it.
struct Lora {
  Json config;  ///< an object; ranks, alphas and patterns are written from the modules
  std::vector<LoraModule> modules;
  std::vector<SavedTensor> saved;
};

/// Reads an adapter whole. Errors: unsupported for other kinds, DoRA and parameters that are no modules; those of values_of.
[[nodiscard]] Lora read_lora(const Adapter& adapter);

/// What is written of it: tensors with their bytes, in the order of their names.
struct StoredTensor {
  std::string name;
  DType dtype = DType::f32;
  Shape shape;
  std::vector<std::byte> bytes;
};
struct StoredAdapter {
  std::vector<StoredTensor> tensors;
  Json config;                       ///< sorted keys; null where the form has none
  std::optional<GgufMetadata> gguf;  ///< of a GGUF file
};
/// In PEFT's form: rank, alpha and their patterns are set so that every module has its scale.
[[nodiscard]] StoredAdapter store_lora(const Lora& lora);

/// How many singular values to keep.
struct RankLimit {
  std::optional<std::uint64_t> rank = {};  ///< at most
  std::optional<double> energy = {};       ///< so many that their squares make this share of all
  double smallest = 0;                ///< none up to this
};
/// delta [rows, columns] as left [rows, rank] times right [rank, columns], the square root of each singular value on either side.
struct Factors {
  std::uint64_t rank = 0;
  std::vector<float> left, right;
  double norm = 0;   ///< of delta
  double error = 0;  ///< of what was dropped
  bool randomized = false;
};
/// Where the singular values go.
enum class Side { both, left };
/// By LAPACK's SVD where the matrix is small or much of it is wanted, else by a randomized one (Halko et al. 2011, arXiv:0909.4061: a Gaussian sketch
/// from seed and name, two power iterations) whose error is measured exactly. delta is overwritten. Class C.
[[nodiscard]] Factors factorise(std::span<double> delta, std::uint64_t rows, std::uint64_t columns, const RankLimit& limit, Side side,
                                std::uint64_t seed, std::string_view name);

enum class Combination { linear, cat, svd };
/// Errors: invalid_argument when the adapters do not fit each other, unsupported when several save one module whole.
[[nodiscard]] Lora combine(const std::vector<Lora>& adapters, std::span<const double> weights, Combination how, std::optional<std::uint64_t> rank,
                           std::uint64_t seed);

}  // namespace weft::adapt
