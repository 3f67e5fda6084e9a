#pragma once
#include <filesystem>
#include <optional>
#include <vector>

#include "weft/inspect.h"
#include "weft/job.h"

namespace weft::engine {

/// Compares a model (a folder or a file) with the list of checksums that lies in or beside it: every byte of every file that the list names, whatever the
/// files hold by now. Empty optional when there is no list. A list that is itself damaged is a problem too.
/// Errors: interrupted, out_of_memory; damage is a result.
struct ChecksumCheck {
  std::vector<VerifyProblem> problems;
  std::vector<std::string> notes;
};
[[nodiscard]] std::optional<ChecksumCheck> check_checksums(const std::filesystem::path& model, const JobOptions& options);

}  // namespace weft::engine
