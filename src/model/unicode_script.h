#pragma once

namespace weft::model {

inline constexpr int kAnyScript = -1;
/// A number for the script of a character as the UnicodeScripts pre-tokenizer sees it: kana count as Han, a space as any script.
[[nodiscard]] int script_of(char32_t c);

}  // namespace weft::model
