#include "model/unicode_script.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <algorithm>
#include <array>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/check.h"
#include "model/unicode_text.h"

namespace weft::model {
namespace {

// The scripts that PCRE2 knows; Han, Hiragana and Katakana first, since they count as one.
constexpr std::string_view kScripts =
    "Han Hiragana Katakana Common Latin Greek Cyrillic Inherited Adlam Ahom Anatolian_Hieroglyphs Arabic Armenian Avestan Balinese Bamum Bassa_Vah "
    "Batak Bengali Bhaiksuki Bopomofo Brahmi Braille Buginese Buhid Canadian_Aboriginal Carian Caucasian_Albanian Chakma Cham Cherokee Chorasmian "
    "Coptic Cuneiform Cypriot Cypro_Minoan Deseret Devanagari Dives_Akuru Dogra Duployan Egyptian_Hieroglyphs Elbasan Elymaic Ethiopic Georgian "
    "Glagolitic Gothic Grantha Gujarati Gunjala_Gondi Gurmukhi Hangul Hanifi_Rohingya Hanunoo Hatran Hebrew Imperial_Aramaic Inscriptional_Pahlavi "
    "Inscriptional_Parthian Javanese Kaithi Kannada Kayah_Li Kharoshthi Khitan_Small_Script Khmer Khojki Khudawadi Lao Lepcha Limbu Linear_A "
    "Linear_B "
    "Lisu Lycian Lydian Mahajani Makasar Malayalam Mandaic Manichaean Marchen Masaram_Gondi Medefaidrin Meetei_Mayek Mende_Kikakui Meroitic_Cursive "
    "Meroitic_Hieroglyphs Miao Modi Mongolian Mro Multani Myanmar Nabataean Nandinagari New_Tai_Lue Newa Nko Nushu Nyiakeng_Puachue_Hmong Ogham "
    "Ol_Chiki Old_Hungarian Old_Italic Old_North_Arabian Old_Permic Old_Persian Old_Sogdian Old_South_Arabian Old_Turkic Old_Uyghur Oriya Osage "
    "Osmanya Pahawh_Hmong Palmyrene Pau_Cin_Hau Phags_Pa Phoenician Psalter_Pahlavi Rejang Runic Samaritan Saurashtra Sharada Shavian Siddham "
    "SignWriting Sinhala Sogdian Sora_Sompeng Soyombo Sundanese Syloti_Nagri Syriac Tagalog Tagbanwa Tai_Le Tai_Tham Tai_Viet Takri Tamil Tangsa "
    "Tangut Telugu Thaana Thai Tibetan Tifinagh Tirhuta Toto Ugaritic Vai Vithkuqi Wancho Warang_Citi Yezidi Yi Zanabazar_Square";

struct Run {
  char32_t first;
  int script;
};

/// Every run of characters of one script: one pass of one expression, with a group for each script, over a text of all characters.
std::vector<Run> make_runs() {
  std::string pattern;
  for (std::string_view rest = kScripts; !rest.empty();) {
    const std::size_t end = std::min(rest.find(' '), rest.size());
    pattern += (pattern.empty() ? "(\\p{sc:" : "|(\\p{sc:") + std::string(rest.substr(0, end)) + "}++)";
    rest.remove_prefix(std::min(end + 1, rest.size()));
  }
  std::string text;
  for (char32_t c = 0; c < 0x110000; ++c)
    if (c < 0xD800 || c > 0xDFFF) append_utf8(text, c);
  int error = 0;
  PCRE2_SIZE offset = 0;
  pcre2_code* const code =
      pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(), PCRE2_UTF | PCRE2_UCP, &error, &offset, nullptr);
  std::vector<Run> runs;
  if (code == nullptr) return runs;  // another version of PCRE2: every character has any script
  pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);
  pcre2_match_data* const data = pcre2_match_data_create_from_pattern(code, nullptr);
  for (std::size_t at = 0; at < text.size();) {
    const int groups = pcre2_match(code, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), at, PCRE2_NO_UTF_CHECK, data, nullptr);
    if (groups <= 0) break;
    const PCRE2_SIZE* const range = pcre2_get_ovector_pointer(data);
    if (range[0] > at) runs.push_back({decode_utf8(text.data() + at).value, kAnyScript});
    runs.push_back({decode_utf8(text.data() + range[0]).value, groups - 2 <= 2 ? 0 : groups - 2});
    at = range[1];
    if (at < text.size()) runs.push_back({decode_utf8(text.data() + at).value, kAnyScript});
  }
  pcre2_match_data_free(data);
  pcre2_code_free(code);
  // Where a run begins at which another was thought to have ended, the later entry counts.
  std::vector<Run> clean;
  for (const Run& run : runs) {
    if (!clean.empty() && clean.back().first == run.first) clean.pop_back();
    clean.push_back(run);
  }
  return clean;
}

}  // namespace

int script_of(char32_t c) {
  static const std::vector<Run> runs = make_runs();
  if (c == 0x30FC) return 0;
  if (c == ' ') return kAnyScript;
  const auto at = std::upper_bound(runs.begin(), runs.end(), c, [](char32_t value, const Run& run) { return value < run.first; });
  return at == runs.begin() ? kAnyScript : std::prev(at)->script;
}

}  // namespace weft::model
