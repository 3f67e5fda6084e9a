#pragma once
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace weft::model {

/// Texts and ids in both directions: open addressing over one block of bytes, since look-ups are the inner loop of every tokenizer.
class TokenTable {
 public:
  TokenTable() = default;
  explicit TokenTable(std::size_t expected) { reserve(expected); }
  void reserve(std::size_t expected);
  /// A text that is there already gets the new id.
  void insert(std::string_view text, std::uint32_t id);
  [[nodiscard]] std::optional<std::uint32_t> find(std::string_view text) const noexcept;
  [[nodiscard]] std::size_t size() const noexcept { return count_; }
  /// Of the longest text in it.
  [[nodiscard]] std::size_t max_bytes() const noexcept { return max_bytes_; }

  [[nodiscard]] static std::uint64_t hash(std::string_view text) noexcept;

 private:
  struct Slot {
    std::uint32_t tag = 0;  ///< upper half of the hash, never 0 when used
    std::uint32_t id = 0;
    std::uint64_t offset = 0;
    std::uint32_t size = 0;
  };
  [[nodiscard]] std::size_t slot_of(std::string_view text, std::uint64_t hash) const noexcept;
  void grow(std::size_t slots);
  std::vector<Slot> slots_;
  std::string bytes_;
  std::size_t count_ = 0;
  std::size_t max_bytes_ = 0;
};

}  // namespace weft::model
