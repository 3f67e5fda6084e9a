#!/usr/bin/env bash
# Builds the benchmarks and runs each; what they print is also kept in build/release/bench/NAME.txt.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/build.sh release benches weft_command
for source in bench/*_bench.cc; do
  bench=build/release/bench/$(basename "$source" .cc)
  echo "== $(basename "$bench")"
  "$bench" | tee "$bench.txt"
done
