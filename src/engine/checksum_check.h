#pragma once
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/checksum.h"
#include "weft/inspect.h"
#include "weft/job.h"

namespace weft::engine {

/// What comparing a model with its list of checksums shows.
struct ChecksumCheck {
  std::vector<VerifyProblem> problems;
  std::vector<std::string> notes;
};

/// The list of checksums that lies in or beside a model (a folder or a file), to be compared with every byte of every file that it names, whatever
/// the files hold by now. A list that is itself damaged is a problem too.
class ChecksumList {
 public:
  /// Empty when there is no list. options must outlive what is returned. Reads the list, and of the files that it names what belongs to no tensor.
  /// Errors: out_of_memory; damage is a result.
  [[nodiscard]] static std::optional<ChecksumList> of(const std::filesystem::path& model, const JobOptions& options);
  ~ChecksumList();
  ChecksumList(ChecksumList&&) noexcept;
  ChecksumList& operator=(ChecksumList&&) noexcept;

  /// A tensor of the list.
  struct Place {
    std::size_t file = 0;
    std::size_t tensor = 0;
  };
  /// That of exactly these bytes of this file.
  [[nodiscard]] std::optional<Place> find(const std::filesystem::path& file, std::uint64_t offset_bytes, std::uint64_t size_bytes) const;
  /// The sums of its blocks, as somebody else has just read it: check() does not read it again. Thread-safe.
  void tell(Place place, std::span<const Checksum> blocks);
  /// Reads what nobody has told of. Once. Errors: interrupted, out_of_memory; damage is a result.
  [[nodiscard]] ChecksumCheck check();

 private:
  class Comparison;
  explicit ChecksumList(std::unique_ptr<Comparison> comparison);
  std::unique_ptr<Comparison> comparison_;
};

/// ChecksumList::check alone.
[[nodiscard]] std::optional<ChecksumCheck> check_checksums(const std::filesystem::path& model, const JobOptions& options);

}  // namespace weft::engine
