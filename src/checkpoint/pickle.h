#pragma once
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "checkpoint/byte_source.h"

// Python pickles, walked and never executed: what they would build is described as plain values, and as calls of names that nobody makes.
namespace weft {

/// A value of a pickle, by number.
using PickleRef = std::uint32_t;

enum class PickleKind : std::uint8_t {
  none,
  boolean,
  integer,
  large_integer,  ///< beyond 64 bits
  real,
  text,
  bytes,  ///< passed over; only the length is kept
  tuple,
  list,
  set,
  dict,        ///< also collections.OrderedDict
  global,      ///< "module.name", never imported
  call,        ///< the result of calling one, or an instance of one: opaque, but its arguments and state can be looked at
  persistent,  ///< something outside of the pickle, named by a value (torch: a storage)
};

struct PickleLimits {
  std::uint64_t max_opcodes = std::uint64_t{64} << 20;
  std::uint64_t max_values = std::uint64_t{16} << 20;
  std::uint64_t max_memo = std::uint64_t{4} << 20;
  std::uint64_t max_text_bytes = 1 << 20;  ///< a longer text is kept as bytes
};

/// One pickle, read up to its STOP. Values may contain themselves.
class Pickle {
 public:
  /// Reads from `begin`. Errors: corrupt (the stream ends, an empty stack, an unknown memo), unsupported (an opcode that PyTorch does not write, over
  /// the limits), with the byte. Memory: in proportion to the number of opcodes and the length of texts.
  Pickle(const ByteSource& source, std::uint64_t begin, std::uint64_t end, const PickleLimits& limits = {});

  [[nodiscard]] PickleRef root() const noexcept { return root_; }
  /// Behind the STOP.
  [[nodiscard]] std::uint64_t end() const noexcept { return end_; }

  [[nodiscard]] PickleKind kind(PickleRef value) const { return nodes_[value].kind; }
  /// Of a text; "module.name" of a global; empty for all else.
  [[nodiscard]] std::string_view text(PickleRef value) const;
  [[nodiscard]] std::optional<std::int64_t> integer(PickleRef value) const;
  [[nodiscard]] std::optional<bool> boolean(PickleRef value) const;
  /// The little-endian bytes of a large integer.
  [[nodiscard]] std::string_view large_integer(PickleRef value) const;
  /// Elements of a tuple, list or set; keys and values in turn of a dict; what was appended or set on a call's result. Empty for all else.
  [[nodiscard]] std::span<const PickleRef> items(PickleRef value) const;
  /// What is called, with what (a tuple, or anything), and the state that BUILD gave. Only for PickleKind::call.
  [[nodiscard]] PickleRef callee(PickleRef value) const;
  [[nodiscard]] PickleRef arguments(PickleRef value) const;
  [[nodiscard]] std::optional<PickleRef> state(PickleRef value) const;
  /// The value that names a persistent object.
  [[nodiscard]] PickleRef persistent_id(PickleRef value) const;
  /// The value under a text key of a dict; nothing when it is not there or this is no dict.
  [[nodiscard]] std::optional<PickleRef> find(PickleRef dict, std::string_view key) const;
  /// "integer", "text", "list", "object of pkg.Class": for people.
  [[nodiscard]] std::string describe(PickleRef value) const;

 private:
  class Machine;
  struct Node {
    PickleKind kind = PickleKind::none;
    std::uint32_t count = 0;  ///< of characters or tuple elements
    std::int64_t value = 0;   ///< the number itself, or where the content is
  };
  struct Call {
    PickleRef callee = 0;
    PickleRef arguments = 0;
    std::optional<PickleRef> state;
    std::vector<PickleRef> items;
  };

  std::vector<Node> nodes_;
  std::string texts_;
  std::vector<PickleRef> tuples_;
  std::vector<std::vector<PickleRef>> containers_;
  std::vector<Call> calls_;
  PickleRef root_ = 0;
  std::uint64_t end_ = 0;
};

}  // namespace weft
