#include "report/assets.h"

// The assembler copies the files: a compiler would take seconds to read half a megabyte of numbers.
#define WEFT_EMBED(name, file)          \
  asm(".pushsection .rodata\n"          \
      ".global " #name                  \
      "_begin\n"                        \
      ".hidden " #name "_begin\n" #name \
      "_begin:\n"                       \
      ".incbin \"" file                 \
      "\"\n"                            \
      ".global " #name                  \
      "_end\n"                          \
      ".hidden " #name "_end\n" #name   \
      "_end:\n"                         \
      ".byte 0\n"                       \
      ".popsection\n");                 \
  extern "C" __attribute__((visibility("hidden"))) const char name##_begin[], name##_end[]

WEFT_EMBED(weft_report_vega, WEFT_REPORT_VEGA);
WEFT_EMBED(weft_report_script, WEFT_REPORT_SCRIPT);
WEFT_EMBED(weft_report_style, WEFT_REPORT_STYLE);

namespace weft::report {

std::string_view vega_script() noexcept { return {weft_report_vega_begin, weft_report_vega_end}; }
std::string_view page_script() noexcept { return {weft_report_script_begin, weft_report_script_end}; }
std::string_view page_style() noexcept { return {weft_report_style_begin, weft_report_style_end}; }

}  // namespace weft::report
