#include "model/json_fields.h"

#include "base/text.h"
#include "checkpoint/json.h"
#include "weft/error.h"

namespace weft::model {

JsonFields::JsonFields(const Json& object, const std::filesystem::path& file, std::string key) : object_(object), file_(file), key_(std::move(key)) {
  if (!object.is_object())
    throw Error(ErrorCode::corrupt, "'" + key_ + "' is no object", {.file = file.string(), .key = key_}, "fetch the tokenizer again");
}

std::string JsonFields::inside(std::string_view name) const { return key_.empty() ? std::string(name) : key_ + "." + std::string(name); }

void JsonFields::refuse(std::string_view name, const std::string& what) const {
  throw Error(ErrorCode::corrupt, "'" + inside(name) + "' " + what, {.file = file_.string(), .key = inside(name)}, "fetch the tokenizer again");
}

void JsonFields::refuse_type(const std::string& type, const std::string& kind_of_part) const {
  throw Error(ErrorCode::unsupported, "unknown " + kind_of_part + " '" + printable(type) + "'", {.file = file_.string(), .key = inside("type")});
}

const Json* JsonFields::find(std::string_view name) const {
  const Json* value = object_.find(name);
  return value == nullptr || value->is_null() ? nullptr : value;
}

std::string JsonFields::text(std::string_view name) const {
  auto value = optional_text(name);
  if (!value) refuse(name, "is missing");
  return *std::move(value);
}

std::string JsonFields::text(std::string_view name, std::string_view missing) const { return optional_text(name).value_or(std::string(missing)); }

std::optional<std::string> JsonFields::optional_text(std::string_view name) const {
  const Json* value = find(name);
  if (value == nullptr) return std::nullopt;
  if (value->string() == nullptr) refuse(name, "is no text");
  return *value->string();
}

bool JsonFields::flag(std::string_view name, bool missing) const {
  const Json* value = find(name);
  if (value == nullptr) return missing;
  if (!value->is_bool()) refuse(name, "is neither true nor false");
  return *value->boolean();
}

std::uint64_t JsonFields::count(std::string_view name, std::uint64_t missing) const {
  const Json* value = find(name);
  if (value == nullptr) return missing;
  const auto number = value->unsigned_integer();
  if (!number) refuse(name, "is no whole number of 0 or more");
  return *number;
}

const std::vector<Json>& JsonFields::list(std::string_view name) const {
  const Json* value = find(name);
  if (value == nullptr || !value->is_array()) refuse(name, "is no list");
  return *value->array();
}

TextPattern JsonFields::pattern(std::string_view name) const {
  const Json* value = find(name);
  const Json* literal = value == nullptr ? nullptr : value->find("String");
  const Json* regex = value == nullptr ? nullptr : value->find("Regex");
  if (literal != nullptr && literal->string() != nullptr) return TextPattern::literal(*literal->string());
  if (regex != nullptr && regex->string() != nullptr) return TextPattern::regex(*regex->string(), file_, inside(name));
  refuse(name, "is neither {\"String\": ...} nor {\"Regex\": ...}");
}

}  // namespace weft::model
