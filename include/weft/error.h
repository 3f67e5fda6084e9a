#pragma once
#include <cstdint>
#include <exception>
#include <optional>
#include <string>
#include <string_view>

#include "weft/export.h"

namespace weft {

/// What kind of thing went wrong. The code decides the exit status of the command: bad requests and bad data are 2, failures are 1.
enum class ErrorCode {
  invalid_argument,  ///< the request is wrong: change it
  not_found,         ///< a file, tensor or method is absent: name another
  corrupt,           ///< the data contradicts itself or its checksum: fetch it again
  unsupported,       ///< valid, but weft cannot do it: convert first
  io,                ///< the system refused: look at the device
  no_space,          ///< disk or quota full: free space, resume
  out_of_memory,     ///< over the given budget: raise the budget
  interrupted,       ///< a signal, or a peer was lost: resume
  internal,          ///< our bug: report it
};

/// The stable name of a code, as it appears in JSON ("invalid_argument").
[[nodiscard]] WEFT_API std::string_view to_string(ErrorCode code) noexcept;

/// Where something went wrong; every part is optional.
struct ErrorPlace {
  std::string file = {};                   ///< a path
  std::string tensor = {};                 ///< a tensor's name
  std::string key = {};                    ///< a key of a config, header or command line
  std::optional<std::uint64_t> byte = {};  ///< an offset in the file
};

/// The one exception of the library: a code for programs, a text for people, a place for both.
/// `what()` is the whole text: the message, then the place and the advice on indented lines.
class WEFT_API Error : public std::exception {
 public:
  Error(ErrorCode code, std::string message, ErrorPlace place = {}, std::string advice = {}, int system_error = 0);

  [[nodiscard]] ErrorCode code() const noexcept { return code_; }
  /// One line, lower-case start, no trailing dot, actual and expected values both shown.
  [[nodiscard]] const std::string& message() const noexcept { return message_; }
  [[nodiscard]] const ErrorPlace& place() const noexcept { return place_; }
  /// What the caller can do about it; may be empty.
  [[nodiscard]] const std::string& advice() const noexcept { return advice_; }
  /// The errno of the failed system call, or 0.
  [[nodiscard]] int system_error() const noexcept { return system_error_; }
  /// 2 for bad requests and bad data, 1 for failures.
  [[nodiscard]] int exit_status() const noexcept;
  [[nodiscard]] const char* what() const noexcept override { return text_.c_str(); }

 private:
  ErrorCode code_;
  std::string message_;
  ErrorPlace place_;
  std::string advice_;
  int system_error_;
  std::string text_;
};

}  // namespace weft
