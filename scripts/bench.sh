#!/usr/bin/env bash
# Builds the benchmarks and runs each; what they print is also kept in build/release/bench/NAME.txt.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/build.sh release benches weft_command
for bench in build/release/bench/*_bench; do
  [ -x "$bench" ] || continue
  echo "== $(basename "$bench")"
  "$bench" | tee "$bench.txt"
done
