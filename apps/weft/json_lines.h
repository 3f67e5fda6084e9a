#pragma once
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <string>

#include "checkpoint/json.h"

namespace weft::app {

/// Calls work(line, number) for each line of a file that is not empty, numbers from 1; "-" is standard input. Lines are JSON documents.
/// Errors: those of the file, corrupt with the line's number for what is no JSON.
void for_each_json_line(const std::string& path, const std::function<void(const Json&, std::uint64_t)>& work);

/// Prints a document on one line.
void print_json_line(const Json& document);

/// An Error about a line of such a file: invalid_argument.
[[noreturn]] void refuse_line(const std::string& path, std::uint64_t number, const std::string& what, const std::string& advice);

}  // namespace weft::app
