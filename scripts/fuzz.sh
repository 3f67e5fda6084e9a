#!/usr/bin/env bash
# fuzz.sh SECONDS: builds the fuzz targets and runs each for so long on a corpus of its own, seeded from fuzz/corpus; what it finds goes to
# build/fuzz/findings. The runs are counted in docs/security.md.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=$1
scripts/build.sh fuzz weft_fuzz_targets
mkdir -p build/fuzz/findings
for source in fuzz/*.cc; do
  name=$(basename "$source" .cc)
  corpus=build/fuzz/corpus/$name
  mkdir -p "$corpus"
  seeds=()
  [ ! -d "fuzz/corpus/$name" ] || seeds=("fuzz/corpus/$name")
  echo "== $name, $seconds s"
  log=build/fuzz/$name.log
  status=0
  "build/fuzz/fuzz/fuzz_$name" -max_total_time="$seconds" -timeout=25 -print_final_stats=1 -rss_limit_mb=2048 -artifact_prefix="build/fuzz/findings/$name-" \
    "$corpus" "${seeds[@]}" > "$log" 2>&1 || status=$?
  tail -n 12 "$log"
  runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
  python3 scripts/count_fuzz_runs.py "$name" "${runs:-0}"
  [ "$status" -eq 0 ] || { echo "fuzz_$name failed; its input is in build/fuzz/findings, the whole report in $log" >&2; exit "$status"; }
done
