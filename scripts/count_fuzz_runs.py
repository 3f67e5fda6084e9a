#!/usr/bin/env python3
"""count_fuzz_runs.py TARGET RUNS: adds to the table at the end of docs/security.md."""

import pathlib
import sys

MARK = "<!-- fuzz-counter -->\n| target | runs |\n| --- | --- |\n"


def main():
    target, runs = sys.argv[1], int(sys.argv[2])
    path = pathlib.Path(__file__).resolve().parent.parent / "docs" / "security.md"
    before, rows = path.read_text().split(MARK)
    counts = {}
    for row in rows.splitlines():
        _, name, count, _ = (cell.strip() for cell in row.split("|"))
        counts[name] = int(count.replace(",", ""))
    counts[target] = counts.get(target, 0) + runs
    path.write_text(before + MARK + "".join(f"| {name} | {counts[name]:,} |\n" for name in sorted(counts)))


if __name__ == "__main__":
    main()
