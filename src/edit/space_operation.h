#pragma once
#include <memory>
#include <vector>

#include "edit/operation.h"

// Operations on the spaces of a network: what permutes, scales, turns, cuts or extends a space in every tensor that touches it.
namespace weft::edit {

[[nodiscard]] const std::vector<OperationHelp>& space_operations();

/// Null for another operation. Errors: invalid_argument naming the operation.
[[nodiscard]] std::unique_ptr<Operation> parse_space_operation(const Request& request);

}  // namespace weft::edit
