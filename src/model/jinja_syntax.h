#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "model/jinja_value.h"

// The tree of a chat template: the part of Jinja that published templates use.
namespace weft::model::jinja {

struct Expression {
  enum class Kind {
    constant,   ///< value
    name,       ///< text
    list,       ///< children
    tuple,      ///< children
    dict,       ///< children: key, value, key, value, ...
    attribute,  ///< children[0].text
    item,       ///< children[0][children[1]]
    slice,      ///< children[0][1:2:3]; absent ones are constants None
    call,       ///< children[0](...)
    filter,     ///< children[0] | text(...)
    test,       ///< children[0] is text(...)
    invert,     ///< not
    negative,
    positive,
    arithmetic,   ///< text: the operator
    concatenate,  ///< ~
    compare,      ///< children[0] ops[0] children[1] ops[1] ...
    both,         ///< and
    either,       ///< or
    choose,       ///< children: condition, then, else (perhaps absent)
  };
  Kind kind = Kind::constant;
  int line = 0;
  int height = 1;
  std::string text;
  Value value;
  std::vector<std::unique_ptr<Expression>> children;
  std::vector<std::string> ops;
  std::vector<std::unique_ptr<Expression>> arguments;                      ///< of call, filter, test
  std::vector<std::pair<std::string, std::unique_ptr<Expression>>> named;  ///< name=...
};
using ExpressionPtr = std::unique_ptr<Expression>;

struct Statement;
using Block = std::vector<std::unique_ptr<Statement>>;

struct Statement {
  enum class Kind {
    text,          ///< text
    print,         ///< value
    conditional,   ///< branches; else_body
    loop,          ///< targets in value if condition: body; else_body
    set,           ///< targets = value, or attribute of a namespace
    set_block,     ///< targets = body | filters
    macro,         ///< text(parameters): body
    call_block,    ///< value is the call; parameters; body
    filter_block,  ///< value is a filter with an empty first child; body
    with,          ///< assignments; body
    stop,          ///< break
    skip,          ///< continue
    group,         ///< body (generation)
  };
  Kind kind = Kind::text;
  int line = 0;
  std::string text;
  std::vector<std::string> targets;  ///< one name, or several that are unpacked; "ns.x" for a namespace's attribute
  bool unpack = false;
  bool recursive = false;
  ExpressionPtr value;
  ExpressionPtr condition;
  Block body;
  Block else_body;
  std::vector<std::pair<ExpressionPtr, Block>> branches;
  std::vector<std::pair<std::string, ExpressionPtr>> parameters;  ///< with defaults, or of `with`
};

/// Errors: corrupt with the line for what is no Jinja; unsupported, naming it, for what is Jinja but not here.
[[nodiscard]] Block parse_template(std::string_view source);

}  // namespace weft::model::jinja
