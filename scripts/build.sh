#!/usr/bin/env bash
# build.sh PRESET [TARGET...]: configures (quietly, unless it fails) and builds.
set -euo pipefail
cd "$(dirname "$0")/.."
preset=$1
shift
jobs=${JOBS:-$(nproc)}
folder=build/$preset

mkdir -p "$folder"
if ! cmake --preset "$preset" > "$folder/configure.log" 2>&1; then
  cat "$folder/configure.log" >&2
  exit 1
fi
targets=()
[ $# -eq 0 ] || targets=(--target "$@")
cmake --build "$folder" --parallel "$jobs" "${targets[@]}"
