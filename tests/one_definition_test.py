"""No type is defined twice under one name in one namespace: the linker takes one of the two for both, and what it breaks is far from here.

Run by CTest with the root of the sources. Types that only one file knows belong in an anonymous namespace.
"""
import pathlib
import re
import sys
import unittest

ROOT = pathlib.Path(sys.argv.pop(1) if len(sys.argv) > 1 else pathlib.Path(__file__).parent.parent)

TOKEN = re.compile(
    r"""//[^\n]*|/\*.*?\*/            # comments
      | \#(?:[^\n\\]|\\\n|\\.)*       # directives, with the lines that they continue on
      | R"([^\s()\\]{0,16})\(.*?\)\1" # raw strings
      | "(?:[^"\\\n]|\\.)*" | '(?:[^'\\\n]|\\.)+'
      | [A-Za-z_]\w* | \d[\w.']* | ::|->|[^\s\w]""",
    re.VERBOSE | re.DOTALL,
)
OPAQUE = object()  # a function's body, an initialiser, an anonymous namespace: what is inside is nobody else's


def tokens_of(text):
    for match in TOKEN.finditer(text):
        token = match.group()
        if not token.startswith(("//", "/*", "#", '"', "'", 'R"')):
            yield token


def type_name(statement):
    """The name that a statement before '{' defines as a type, or nothing."""
    depth = 0
    for i, token in enumerate(statement):
        depth += token in "([" and len(token) == 1
        depth -= token in ")]" and len(token) == 1
        if depth or token not in ("struct", "class", "union", "enum") or "=" in statement[:i]:
            continue
        rest = statement[i + 1 :]
        while rest and (rest[0] in ("class", "struct") or rest[0].startswith("WEFT_")):
            rest = rest[1:]
        while rest[:2] == ["[", "["]:  # attributes
            rest = rest[rest.index("]") + 2 :]
        if token == "class" and i > 0 and statement[i - 1] in ("<", ","):
            continue  # a template's parameter
        if not rest or not re.match(r"[A-Za-z_]\w*$", rest[0]):
            return None
        name = rest[0]
        tail = rest[1:]
        while tail[:1] == ["::"]:  # a nested type, defined outside
            name += "::" + tail[1]
            tail = tail[2:]
        if tail and tail[0] == "final":
            tail = tail[1:]
        return name if not tail or tail[0] == ":" else None  # anything else is a function that returns one, or a specialisation
    return None


def definitions(text):
    """Qualified names of the types that a file defines where other files could define them too."""
    scopes, statement = [], []
    for token in tokens_of(text):
        if token == "{":
            scope = OPAQUE
            if "namespace" in statement:
                name = "".join(statement[statement.index("namespace") + 1 :])
                scope = ("namespace", name) if name else OPAQUE
            elif (name := type_name(statement)) is not None:
                scope = ("type", name)
                if OPAQUE not in scopes:
                    yield "::".join([s[1] for s in scopes] + [name])
            scopes.append(scope)
            statement = []
        elif token == "}":
            if scopes:
                scopes.pop()
            statement = []
        elif token == ";":
            statement = []
        elif token == ":" and statement in (["public"], ["private"], ["protected"]):
            statement = []
        else:
            statement.append(token)


class OneDefinition(unittest.TestCase):
    def test_no_type_is_defined_in_two_places(self):
        places = {}
        for folder in ("include", "src", "apps"):
            for path in sorted((ROOT / folder).rglob("*")):
                if path.suffix in (".h", ".cc"):
                    for name in definitions(path.read_text(encoding="utf-8")):
                        places.setdefault(name, []).append(str(path.relative_to(ROOT)))
        self.assertGreater(len(places), 300, "the sources were not found, or not understood")
        twice = {name: files for name, files in places.items() if len(files) > 1}
        self.assertEqual(twice, {}, "rename one of each, or put it into an anonymous namespace")

    def test_the_check_sees_types_and_only_types(self):
        text = """
        namespace a::b { struct One { struct Inner : X { int y = 0; }; enum class Kind : std::uint8_t { p, q }; };
        namespace { struct Hidden {}; }
        template <class T> class WEFT_API Two final : public One { public: struct Deep {}; };
        template <> struct One<int> {};
        struct One make(struct One x) { struct Local {}; return {}; }
        class Two::Later { };  // struct NotThis {};
        const char* text = R"(struct NorThis {})";
        auto f = [](struct One) { struct Local2 {}; };
        struct Forward; enum Plain { one };
        }
        struct Outside {};
        """
        self.assertEqual(
            list(definitions(text)),
            ["a::b::One", "a::b::One::Inner", "a::b::One::Kind", "a::b::Two", "a::b::Two::Deep", "a::b::Two::Later", "a::b::Plain", "Outside"],
        )


if __name__ == "__main__":
    unittest.main()
