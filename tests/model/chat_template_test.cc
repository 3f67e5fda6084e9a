#include "model/chat_template.h"

#include <gtest/gtest.h>

#include <string>

#include "checkpoint/json.h"
#include "support/errors.h"

// Expected texts are those of jinja2 3.1.6 with the settings of transformers.
namespace weft::model {
namespace {

std::string render(const std::string& source) {
  const Json variables = parse_json(
      R"({"messages": [{"role": "system", "content": " S "}, {"role": "user", "content": "Hi\nyou"}, {"role": "assistant", "content": "\u00e9"}],
          "n": 7, "f": 2.5, "s": "Hello, World", "l": [3, 1, 2], "d": {"b": 1, "a": "x"}, "none": null, "bos_token": "<s>"})",
      "variables");
  return ChatRenderer(source).render(variables);
}

TEST(ChatTemplate, whitespace_around_tags_goes_as_transformers_has_it) {
  EXPECT_EQ(render("a\n{% if true %}\nb\n{% endif %}\nc\n"), "a\nb\nc");
  EXPECT_EQ(render("  {% if true %}x{% endif %}  \n"), "x  ");
  EXPECT_EQ(render("  {%+ if true %}x{% endif +%}\ny"), "  x\ny");
  EXPECT_EQ(render("a  {{- ' b' -}}\n  c"), "a bc");
  EXPECT_EQ(render("a {# gone #}\nb"), "a b");
  EXPECT_EQ(render("{% raw %}{{ n }}{% endraw %}"), "{{ n }}");
}

TEST(ChatTemplate, values_print_and_compute_as_in_python) {
  EXPECT_EQ(render("{{ n / 2 }} {{ n // 2 }} {{ -n // 2 }} {{ -n % 4 }} {{ 2 ** 10 }} {{ 1e16 }} {{ 0.1 }} {{ 1e-7 }} {{ 3.0 }}"),
            "3.5 3 -4 1 1024 1e+16 0.1 1e-07 3.0");
  EXPECT_EQ(render("{{ true }} {{ none }} {{ [1, 'a', none, {'k': 2.0}] }} {{ (1,) }} {{ \"it's\" }} {{ [\"it's\"] }}"),
            "True None [1, 'a', None, {'k': 2.0}] (1,) it's [\"it's\"]");
  EXPECT_EQ(render("{{ s[::-1] }} {{ s[-5:] }} {{ s[1] }} {{ l[1:] + [9] }} {{ 'ab' * 2 }} {{ '%s=%d' % ('a', 3) }}"),
            "dlroW ,olleH World e [1, 2, 9] abab a=3");
  EXPECT_EQ(render("{{ d | tojson }}{{ d | tojson(indent=2) }}{{ '<\u00e9>' | tojson }}"),
            "{\"b\": 1, \"a\": \"x\"}{\n  \"b\": 1,\n  \"a\": \"x\"\n}\"<\u00e9>\"");
  EXPECT_EQ(render("{{ messages | map(attribute='role') | join('|') }} {{ messages | selectattr('role', 'equalto', 'user') | list | length }}"),
            "system|user|assistant 1");
  EXPECT_EQ(render("{{ undefined_name }}|{{ undefined_name is defined }}|{{ none.x }}|{{ messages[9] }}"), "|False||");
}

TEST(ChatTemplate, scopes_are_those_of_jinja) {
  EXPECT_EQ(render("{% set x = 1 %}{% for i in l %}{% set x = x + i %}{{ x }} {% endfor %}{{ x }}"), "4 2 3 1");
  EXPECT_EQ(render("{% set ns = namespace(a=0) %}{% for i in l %}{% set ns.a = ns.a + i %}{% endfor %}{{ ns.a }}"), "6");
  EXPECT_EQ(render("{% macro m(a, b=2) %}[{{ a }}{{ b }}]{% endmacro %}{{ m(1) }}{{ m(1, b='q') }}"), "[12][1q]");
  EXPECT_EQ(render("{% for i in range(9) %}{% if i == 2 %}{% continue %}{% endif %}{% if i == 4 %}{% break %}{% endif %}{{ i }}{% endfor %}"), "013");
}

TEST(ChatTemplate, what_the_template_raises_and_what_python_would_raise_are_errors) {
  EXPECT_WEFT_ERROR(render("{{ raise_exception('roles must alternate') }}"), invalid_argument, "roles must alternate");
  EXPECT_WEFT_ERROR(render("{{ nothing.x }}"), invalid_argument, "'nothing' is undefined");
  EXPECT_WEFT_ERROR(render("{{ 1 + 'a' }}"), invalid_argument, "unsupported operand types for +: 'int' and 'str'");
  EXPECT_WEFT_ERROR(render("{{ l.append(1) }}"), invalid_argument, "may not change a list");
  EXPECT_WEFT_ERROR(render("{% for x in none %}{% endfor %}"), invalid_argument, "not iterable");
}

TEST(ChatTemplate, what_is_outside_the_supported_part_is_named) {
  EXPECT_WEFT_ERROR(render("{% include 'x' %}"), unsupported, "the block 'include' (line 1)");
  EXPECT_WEFT_ERROR(render("\n\n{{ s | nosuch }}"), unsupported, "the filter 'nosuch' (line 3)");
  EXPECT_WEFT_ERROR(render("{{ s is nosuch }}"), unsupported, "the test 'nosuch'");
  EXPECT_WEFT_ERROR(render("{{ f(*l) }}"), unsupported, "unpacked arguments");
  EXPECT_WEFT_ERROR(render("{% if n %}"), corrupt, "unexpected the end, expected '{% endif %}' in line 1");
  EXPECT_WEFT_ERROR(render("{{ n "), corrupt, "a tag does not end");
  EXPECT_WEFT_ERROR(render("{% nosuch %}"), corrupt, "unknown block 'nosuch'");
}

TEST(ChatTemplate, templates_that_would_not_end_are_stopped) {
  EXPECT_WEFT_ERROR(render("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"), invalid_argument, "runs too long");
  EXPECT_WEFT_ERROR(render("{% macro r() %}{{ r() }}{% endmacro %}{{ r() }}"), invalid_argument, "deep");
  EXPECT_WEFT_ERROR(render("{% set ns = namespace(s='x') %}{% for i in range(80) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}"), invalid_argument,
                    "too");
  EXPECT_WEFT_ERROR(render("{{ 'x' * 99999999999 }}"), invalid_argument, "too long");
  EXPECT_WEFT_ERROR(render("{{ range(9999999) }}"), invalid_argument, "range too big");
  EXPECT_WEFT_ERROR(render("{{ " + std::string(100'000, '(') + "1" + std::string(100'000, ')') + " }}"), corrupt, "nesting");
  std::string chain = "{{ 1";
  for (int i = 0; i < 100'000; ++i) chain += "+1";
  EXPECT_WEFT_ERROR(render(chain + " }}"), corrupt, "more than 1000 parts");
  EXPECT_WEFT_ERROR(render("{% set ns = namespace() %}{% set ns.a = ns %}{{ ns }}"), unsupported, "holds itself");
}

TEST(ChatTemplate, an_answer_can_be_continued_from_its_end) {
  const Json messages = parse_json(R"([{"role": "assistant", "content": " So be "}])", "m");
  EXPECT_EQ(continue_last_message("<a> So be <end>", messages), "<a> So be");
  EXPECT_EQ(continue_last_message("<a>So be <end>", parse_json(R"([{"content": "So be "}])", "m")), "<a>So be ");
  EXPECT_EQ(continue_last_message("<a>So be<end>", messages), "<a>So be");
  EXPECT_WEFT_ERROR(continue_last_message("<a>", messages), invalid_argument, "cannot be continued");
}

}  // namespace
}  // namespace weft::model
