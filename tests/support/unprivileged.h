#pragma once
#include <unistd.h>

namespace weft::testing {

/// While it lives, the process may do only what an ordinary user may, also where tests run as root: whom permissions do not stop.
class Unprivileged {
 public:
  Unprivileged() : user_(::geteuid()) {
    if (user_ == 0) active_ = ::seteuid(65534) == 0;
  }
  ~Unprivileged() {
    if (user_ == 0 && active_) active_ = ::seteuid(0) == 0;
  }
  Unprivileged(const Unprivileged&) = delete;
  Unprivileged& operator=(const Unprivileged&) = delete;

  /// False where the privileges could not be given up; a test must skip then.
  [[nodiscard]] bool active() const noexcept { return active_; }

 private:
  uid_t user_;
  bool active_ = true;
};

}  // namespace weft::testing
