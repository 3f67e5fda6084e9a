#!/usr/bin/env bash
# fuzz.sh SECONDS: builds the fuzz targets and runs each for so long on a corpus of its own; what it finds stays in build/fuzz/findings.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=$1
scripts/build.sh fuzz
mkdir -p build/fuzz/findings
found=0
for target in build/fuzz/fuzz/*_fuzz; do
  [ -x "$target" ] || continue
  found=1
  name=$(basename "$target")
  corpus=build/fuzz/corpus/$name
  mkdir -p "$corpus"
  seeds=()
  [ ! -d "fuzz/corpus/$name" ] || seeds=("fuzz/corpus/$name")
  echo "== $name, $seconds s"
  "$target" -max_total_time="$seconds" -print_final_stats=1 -rss_limit_mb=2048 -artifact_prefix="build/fuzz/findings/$name-" "$corpus" "${seeds[@]}"
done
[ "$found" = 1 ] || { echo "no fuzz targets were built" >&2; exit 1; }
