#!/usr/bin/env bash
# Builds the benchmarks and runs each; what they print is also kept in build/release/bench/NAME.txt. One that fails does not keep the others from
# running, but makes the whole fail.
set -uo pipefail
cd "$(dirname "$0")/.."
scripts/build.sh release benches weft_command || exit 1
failed=()
for source in bench/*_bench.cc; do
  bench=build/release/bench/$(basename "$source" .cc)
  echo "== $(basename "$bench")"
  "$bench" | tee "$bench.txt" || failed+=("$(basename "$bench")")
done
if ((${#failed[@]})); then
  echo "failed: ${failed[*]}" >&2
  exit 1
fi
