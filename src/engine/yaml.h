#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

// YAML as PyYAML's safe loader reads it, built from parser events because the usual tree keeps the first of duplicate keys, ignores merge keys and
// shares aliased nodes without a bound.
namespace weft::yaml {

/// From 1, as editors count. 0: unknown.
struct Place {
  int line = 0;
  int column = 0;
};
/// "line 3, column 10".
[[nodiscard]] std::string to_string(Place place);

enum class Kind : std::uint8_t { null, boolean, integer, number, string, sequence, mapping };
/// "a number", "a list", ... for messages.
[[nodiscard]] std::string_view describe(Kind kind) noexcept;

struct Member;

/// A node of the tree. Scalars are typed by the rules of YAML 1.1 as PyYAML applies them: `yes` is a boolean, `1e-3` a string, "5" a string.
struct Node {
  Kind kind = Kind::null;
  Place place;
  std::string text;                     ///< of a scalar, as written (without quotes)
  bool flag = false;                    ///< of a boolean
  std::optional<std::int64_t> integer;  ///< of an integer that fits
  double number = 0;                    ///< of an integer or number
  std::vector<Node> items;              ///< of a sequence
  std::vector<Member> members;          ///< of a mapping, in file order; those that came through a merge key (<<) last
  std::uint64_t num_nodes = 1;          ///< of the subtree, this one included

  [[nodiscard]] bool is_null() const noexcept { return kind == Kind::null; }
  [[nodiscard]] bool is_scalar() const noexcept { return kind != Kind::sequence && kind != Kind::mapping; }
  /// Value of a key; null pointer when absent or not a mapping.
  [[nodiscard]] const Node* find(std::string_view key) const noexcept;
};

struct Member {
  Node key;  ///< a scalar
  Node value;
};

struct Limits {
  std::uint64_t max_bytes = 8u << 20;  ///< of the text; the longest real configs list a rule for each token of a vocabulary
  int max_depth = 64;
  std::uint64_t max_nodes = 1'000'000;  ///< of all documents, aliased nodes counted each time they are used
};

struct Document {
  Node root;         ///< null for an empty document
  std::string text;  ///< what it was parsed from, without the `---` of the next one
};

/// All documents of a text. Duplicate keys, keys that are no scalars, unknown tags, self-referring aliases and control characters are refused.
/// Errors: invalid_argument with file, line and column; unsupported over the limits. `file` is for messages.
[[nodiscard]] std::vector<Document> parse(std::string_view text, const std::string& file, const Limits& limits = {});

}  // namespace weft::yaml
