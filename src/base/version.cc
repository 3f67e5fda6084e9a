#include "weft/version.h"

namespace weft {

std::string_view version() noexcept { return WEFT_VERSION; }
std::string_view commit() noexcept { return WEFT_COMMIT; }
std::string_view compiler() noexcept { return WEFT_COMPILER; }

}  // namespace weft
