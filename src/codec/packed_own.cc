#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "codec/packed_linear.h"
#include "math/convert.h"
#include "weft/error.h"

// Weft's own form: whatever a QuantizedLinear holds.
namespace weft::codec {
namespace {

constexpr std::size_t kMostAdded = (std::size_t{1} << 31) - 1;
constexpr std::int64_t kNarrowColumns = 65536;  ///< whose numbers fit 16 bits

StoredTensor floats(std::string name, DType dtype, std::vector<std::int64_t> shape, std::span<const float> values) {
  StoredTensor out{std::move(name), dtype, std::move(shape), {}};
  out.bytes.resize(values.size() * static_cast<std::size_t>(info(dtype).bits) / 8);
  math::encode(dtype, values, out.bytes);
  return out;
}

template <typename Element>
StoredTensor elements(std::string name, DType dtype, std::vector<std::int64_t> shape, std::span<const Element> values) {
  StoredTensor out{std::move(name), dtype, std::move(shape), {}};
  out.bytes.resize(values.size_bytes());
  if (!values.empty()) std::memcpy(out.bytes.data(), values.data(), values.size_bytes());
  return out;
}

}  // namespace

std::vector<StoredTensor> write_own(const QuantizedLinear& linear, DType weight_type) {
  if (!std::is_sorted(linear.added_at.begin(), linear.added_at.end()) || linear.added.size() > kMostAdded)
    throw Error(ErrorCode::unsupported, "weft's own form adds at most 2^31 - 1 values, in order", {}, "leave fewer weights out of the codes");
  if (!linear.group_of.empty() || linear.global_divisor != 0)
    throw Error(ErrorCode::unsupported, "weft's own form has groups of neighbouring inputs", {}, "use --order static, or --format gptq");
  const auto rows = static_cast<std::size_t>(linear.rows), columns = static_cast<std::size_t>(linear.columns);
  const std::size_t words = words_for(columns, linear.bits, WordForm::stream);
  std::vector<std::uint32_t> codes(rows * words);
  for (std::size_t r = 0; r < rows; ++r)
    pack_words(linear.codes.data() + r * columns, 1, columns, linear.bits, WordForm::stream, codes.data() + r * words, 1);
  std::vector<StoredTensor> out;
  out.push_back(elements<std::uint32_t>("weight_codes", DType::i32, {linear.rows, static_cast<std::int64_t>(words)}, codes));
  std::vector<float> scales = linear.scales;
  for (float& scale : scales) scale /= linear.scale_unit;
  out.push_back(floats("weight_scales", linear.scale_type, {linear.num_row_groups(), linear.num_groups()}, scales));
  // One zero point for all is told with the form; integers take the bits of a code.
  const auto middle = static_cast<float>(1 << (linear.bits - 1));
  const float zero = linear.zeros.empty() || linear.symmetric ? middle : linear.zeros.front();
  constexpr float kMostZero = 256;  // that a reader takes
  const bool one_zero =
      linear.zeros.empty() || linear.symmetric ||
      (std::fabs(zero) <= kMostZero && std::all_of(linear.zeros.begin(), linear.zeros.end(), [zero](float other) { return other == zero; }));
  const bool integers = std::all_of(linear.zeros.begin(), linear.zeros.end(),
                                    [middle](float other) { return other >= 0 && other < 2 * middle && other == std::floor(other); });
  if (!one_zero && integers) {
    // Of all rows in one stream: a word of its own for the few of each row would waste up to half of what they take.
    std::vector<std::uint8_t> values(linear.zeros.size());
    for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<std::uint8_t>(linear.zeros[i]);
    std::vector<std::uint32_t> packed(words_for(values.size(), linear.bits, WordForm::stream));
    pack_words(values.data(), 1, values.size(), linear.bits, WordForm::stream, packed.data(), 1);
    out.push_back(elements<std::uint32_t>("weight_zeros", DType::i32, {static_cast<std::int64_t>(packed.size())}, packed));
  } else if (!one_zero) {
    out.push_back(floats("weight_zeros", linear.scale_type, {linear.num_row_groups(), linear.num_groups()}, linear.zeros));
  }
  if (linear.rank > 0) {
    out.push_back(floats("weight_left", weight_type, {linear.rows, linear.rank}, linear.left));
    out.push_back(floats("weight_right", weight_type, {linear.rank, linear.columns}, linear.right));
  }
  if (!linear.added.empty()) {
    // Columns row by row, and where each row's begin: two bytes a value beside itself.
    const auto size = static_cast<std::int64_t>(linear.added.size());
    std::vector<std::int32_t> starts(rows + 1), wide;
    std::vector<std::uint16_t> narrow;
    for (const std::int64_t at : linear.added_at) {
      ++starts[static_cast<std::size_t>(at / linear.columns) + 1];
      if (linear.columns <= kNarrowColumns)
        narrow.push_back(static_cast<std::uint16_t>(at % linear.columns));
      else
        wide.push_back(static_cast<std::int32_t>(at % linear.columns));
    }
    for (std::size_t r = 0; r < rows; ++r) starts[r + 1] += starts[r];
    out.push_back(elements<std::int32_t>("weight_added_rows", DType::i32, {linear.rows + 1}, starts));
    if (linear.columns <= kNarrowColumns)
      out.push_back(elements<std::uint16_t>("weight_added_columns", DType::u16, {size}, narrow));
    else
      out.push_back(elements<std::int32_t>("weight_added_columns", DType::i32, {size}, wide));
    out.push_back(floats("weight_added", weight_type, {size}, linear.added));
  }
  const std::string row_group = linear.row_group == 1 ? std::string() : fmt::format(R"(,"row_group":{})", linear.row_group);
  std::string more = one_zero && zero != middle ? fmt::format(R"(,"zero":{})", zero) : std::string();
  if (linear.scale_unit != 1) more += fmt::format(R"(,"scale_unit":{})", linear.scale_unit);
  if (linear.rounds_products) more += R"(,"products":"E4M3")";
  const std::string form = fmt::format(R"({{"levels":"{}","bits":{},"group":{}{},"shape":[{},{}],"dtype":"{}"{}}})", info(linear.levels).name,
                                       linear.bits, linear.group, row_group, linear.rows, linear.columns, info(weight_type).torch_name, more);
  out.push_back(elements<char>("weight_form", DType::u8, {static_cast<std::int64_t>(form.size())}, form));
  return out;
}

}  // namespace weft::codec
