#!/usr/bin/env bash
# Builds the benchmarks and runs each; the JSON of each run goes to build/release/bench.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/build.sh release benches weft_command
for bench in build/release/bench/*_bench; do
  [ -x "$bench" ] || continue
  echo "== $(basename "$bench")"
  "$bench" --benchmark_out="$bench.json" --benchmark_out_format=json
done
