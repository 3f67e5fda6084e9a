#pragma once
#include <algorithm>
#include <array>
#include <cstdint>
#include <string_view>
#include <utility>
#include <vector>

namespace weft::model {

/// A trie over bytes for finding every entry that a text begins with.
class ByteTrie {
 public:
  ByteTrie() = default;
  /// Texts with their values; of equal texts the last one counts; empty ones are left out.
  explicit ByteTrie(std::vector<std::pair<std::string_view, std::uint32_t>> entries) {
    std::stable_sort(entries.begin(), entries.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
    std::erase_if(entries, [](const auto& entry) { return entry.first.empty(); });
    nodes_.push_back({});
    build(0, entries, 0);
    for (auto& child : root_) child = kNone;
    for (std::uint32_t e = 0; e < nodes_[0].num_edges; ++e) root_[edges_[nodes_[0].first_edge + e].byte] = edges_[nodes_[0].first_edge + e].node;
  }

  /// Calls found(size_bytes, value) for each entry that the text begins with, shortest first; stops when it returns false.
  template <typename Found>
  void prefixes(std::string_view text, Found&& found) const {
    if (text.empty() || nodes_.empty()) return;
    std::uint32_t at = root_[static_cast<unsigned char>(text[0])];
    for (std::size_t i = 1; at != kNone; ++i) {
      if (nodes_[at].value != kNone && !found(i, nodes_[at].value)) return;
      if (i == text.size()) return;
      at = child(at, static_cast<unsigned char>(text[i]));
    }
  }
  [[nodiscard]] bool may_begin(unsigned char byte) const noexcept { return !nodes_.empty() && root_[byte] != kNone; }
  [[nodiscard]] bool empty() const noexcept { return nodes_.size() <= 1; }

 private:
  static constexpr std::uint32_t kNone = UINT32_MAX;
  struct Node {
    std::uint32_t first_edge = 0;
    std::uint32_t num_edges = 0;
    std::uint32_t value = kNone;
  };
  struct Edge {
    unsigned char byte;
    std::uint32_t node;
  };
  using Entries = std::vector<std::pair<std::string_view, std::uint32_t>>;

  [[nodiscard]] std::uint32_t child(std::uint32_t node, unsigned char byte) const noexcept {
    const Edge* const first = edges_.data() + nodes_[node].first_edge;
    const Edge* const last = first + nodes_[node].num_edges;
    const Edge* const at = std::lower_bound(first, last, byte, [](const Edge& edge, unsigned char b) { return edge.byte < b; });
    return at == last || at->byte != byte ? kNone : at->node;
  }

  /// Level by level, since a hostile entry of a megabyte would exhaust the stack of a recursion.
  void build(std::uint32_t root, const Entries& entries, std::size_t depth) {
    struct Work {
      std::uint32_t node;
      std::size_t begin;
      std::size_t end;
      std::size_t depth;
    };
    std::vector<Work> queue = {{root, 0, entries.size(), depth}};
    for (std::size_t q = 0; q < queue.size(); ++q) {
      Work work = queue[q];
      while (work.begin < work.end && entries[work.begin].first.size() == work.depth) nodes_[work.node].value = entries[work.begin++].second;
      nodes_[work.node].first_edge = static_cast<std::uint32_t>(edges_.size());
      for (std::size_t i = work.begin; i < work.end;) {
        const char byte = entries[i].first[work.depth];
        std::size_t j = i;
        while (j < work.end && entries[j].first[work.depth] == byte) ++j;
        const auto made = static_cast<std::uint32_t>(nodes_.size());
        nodes_.push_back({});
        edges_.push_back({static_cast<unsigned char>(byte), made});
        queue.push_back({made, i, j, work.depth + 1});
        i = j;
      }
      nodes_[work.node].num_edges = static_cast<std::uint32_t>(edges_.size()) - nodes_[work.node].first_edge;
    }
  }

  std::vector<Node> nodes_;
  std::vector<Edge> edges_;
  std::array<std::uint32_t, 256> root_{};
};

}  // namespace weft::model
