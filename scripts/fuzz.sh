#!/usr/bin/env bash
# fuzz.sh SECONDS: builds the fuzz targets and runs each for so long on a corpus of its own, seeded from fuzz/corpus; what it finds goes to
# build/fuzz/findings.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=$1
scripts/build.sh fuzz
mkdir -p build/fuzz/findings
for source in fuzz/*.cc; do
  name=$(basename "$source" .cc)
  corpus=build/fuzz/corpus/$name
  mkdir -p "$corpus"
  seeds=()
  [ ! -d "fuzz/corpus/$name" ] || seeds=("fuzz/corpus/$name")
  echo "== $name, $seconds s"
  "build/fuzz/fuzz/fuzz_$name" -max_total_time="$seconds" -print_final_stats=1 -rss_limit_mb=2048 -artifact_prefix="build/fuzz/findings/$name-" \
    "$corpus" "${seeds[@]}"
done
