#!/usr/bin/env python3
"""The layers of the design hold: no file includes a later layer, and headers stay light.

Usage: layers_test.py SOURCE_FOLDER
"""

import re
import sys
import tempfile
import unittest
from pathlib import Path

# Each layer may include itself and those before it; the families of methods share a rank and do not know each other.
ORDER = [
    ["base"],
    ["math"],
    ["codec"],
    ["checkpoint"],
    ["model"],
    ["merge", "edit", "align", "quantize", "prune", "factor", "adapt", "inherit", "measure", "sync", "hyper"],
    ["report"],
    ["engine"],
]
RANK = {layer: rank for rank, layers in enumerate(ORDER) for layer in layers}

# Each belongs into few .cc files; in a header it would be compiled everywhere.
HEAVY = re.compile(r"(nlohmann|CLI|gtest|gmock|hwy|yaml-cpp|oneapi|re2|benchmark)/|(xxhash|cblas|lapacke|pcre2|utf8proc|zip)\.h")

STANDARD = set(
    """algorithm any array atomic barrier bit bitset cassert cctype cerrno cfenv cfloat charconv chrono cinttypes climits clocale cmath codecvt compare complex
    concepts condition_variable coroutine csetjmp csignal cstdarg cstddef cstdint cstdio cstdlib cstring ctime cuchar cwchar cwctype deque exception execution
    filesystem format forward_list fstream functional future initializer_list iomanip ios iosfwd iostream istream iterator latch limits list locale map memory
    memory_resource mutex new numbers numeric optional ostream queue random ranges ratio regex scoped_allocator semaphore set shared_mutex source_location span
    sstream stack stdexcept stop_token streambuf string string_view strstream syncstream system_error thread tuple type_traits typeindex typeinfo
    unordered_map unordered_set utility valarray variant vector version""".split()
)

INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', re.MULTILINE)


def problems_of(root):
    problems = []
    for path in sorted(root.glob("src/*/**/*")) + sorted(root.glob("include/weft/**/*")):
        if path.suffix not in (".h", ".cc"):
            continue
        parts = path.relative_to(root).parts
        public = parts[0] == "include"
        layer = None if public else parts[1]
        if not public and layer not in RANK:
            problems.append(f"{path.relative_to(root)}: '{layer}' is no layer")
            continue
        for bracket, name in INCLUDE.findall(path.read_text(encoding="utf-8")):
            where = f"{path.relative_to(root)} includes {name}"
            first = name.split("/")[0]
            if public:
                if not (name in STANDARD if bracket == "<" else first == "weft"):
                    problems.append(f"{where}: a public header includes only the standard library and weft/")
                continue
            inline = path.name.endswith("-inl.h")
            if HEAVY.match(name):
                if path.suffix == ".h" and not (inline and layer == "math"):
                    problems.append(f"{where}: heavy headers belong into .cc files")
                if first == "hwy" and layer != "math":
                    problems.append(f"{where}: nothing outside of math knows Highway")
                continue
            if bracket == "<" or first == "weft":
                continue
            if first not in RANK:
                problems.append(f"{where}: name a file of ours by its layer, such as base/file.h")
            elif RANK[first] > RANK[layer]:
                problems.append(f"{where}: {layer} comes before {first}")
            elif RANK[first] == RANK[layer] and first != layer:
                problems.append(f"{where}: families of methods do not know each other")
    return problems


class Layers(unittest.TestCase):
    root = Path(__file__).resolve().parent.parent

    def test_no_file_includes_a_later_layer_and_public_headers_only_the_standard_library(self):
        problems = problems_of(self.root)
        self.assertEqual(problems, [], "\n" + "\n".join(problems))

    def test_the_build_knows_every_layer_that_there_is(self):
        cmake = (self.root / "src/CMakeLists.txt").read_text()
        built = re.search(r"set\(weft_layers ([^)]*)\)", cmake).group(1).split()
        there = [p.name for p in (self.root / "src").iterdir() if p.is_dir() and any(p.glob("*.cc"))]
        self.assertEqual([layer for layer in there if layer not in built], [])


class Checker(unittest.TestCase):
    """The check itself finds what it is there for."""

    def problems(self, files):
        with tempfile.TemporaryDirectory() as folder:
            for name, text in files.items():
                path = Path(folder) / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
            return problems_of(Path(folder))

    def test_allowed_includes_pass(self):
        self.assertEqual(
            self.problems(
                {
                    "src/merge/a.cc": '#include <tbb/task_arena.h>\n#include "merge/a.h"\n#include "base/file.h"\n#include "weft/error.h"\n',
                    "src/merge/a.h": "#include <vector>\n#include <sys/stat.h>\n",
                    "src/math/a-inl.h": '#include "hwy/highway.h"\n',
                    "include/weft/a.h": '#include <vector>\n#include "weft/b.h"\n',
                }
            ),
            [],
        )

    def test_each_kind_of_mistake_is_found(self):
        for name, text in {
            "src/base/a.cc": '#include "math/b.h"',
            "src/math/a.h": '  #  include "engine/b.h"',
            "src/merge/a.cc": '#include "prune/b.h"',
            "src/base/b.cc": '#include "b.h"',
            "src/other/b.cc": "",
            "src/checkpoint/b.h": "#include <nlohmann/json.hpp>",
            "src/merge/b.cc": "#include <hwy/highway.h>",
            "include/weft/a.h": "#include <fmt/format.h>",
            "include/weft/b.h": "#include <sys/stat.h>",
            "include/weft/c.h": '#include "base/file.h"',
        }.items():
            with self.subTest(name):
                self.assertEqual(len(self.problems({name: text})), 1)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        Layers.root = Path(sys.argv.pop(1))
    unittest.main()
