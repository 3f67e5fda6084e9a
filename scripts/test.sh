#!/usr/bin/env bash
# test.sh PRESET [CTEST OPTION...]: builds and tests. The last line is "N passed, N failed", for programs that read it.
set -euo pipefail
cd "$(dirname "$0")/.."
preset=$1
shift
folder=build/$preset
jobs=${JOBS:-$(nproc)}
rm -f "$folder/summary.txt" "$folder/tests.xml"
scripts/build.sh "$preset"
if [[ $preset == asan ]]; then
  # Of libraries that are loaded late the leak checker of GCC 12 guesses where their thread-local data lies, and may read where nothing is.
  export ASAN_OPTIONS=intercept_tls_get_addr=0${ASAN_OPTIONS:+:$ASAN_OPTIONS}
fi

status=0
ctest --test-dir "$folder" --output-on-failure --no-tests=error -j "$jobs" --output-junit tests.xml "$@" < /dev/null || status=$?

# Counted from ctest's own report: a test that neither passed nor was skipped has failed, whatever the reason.
summary=$(python3 - "$folder/tests.xml" "$status" <<'PY'
import sys
import xml.etree.ElementTree as ET

counts = {"run": 0, "notrun": 0, "disabled": 0, "fail": 0}
skipped = []
try:
    for case in ET.parse(sys.argv[1]).getroot().iter("testcase"):
        status = case.get("status")
        counts[status if status in counts else "fail"] += 1
        if status in ("notrun", "disabled"):
            skipped.append(case.get("name"))
except (OSError, ET.ParseError):
    counts["fail"] += 1
if sys.argv[2] != "0" and not counts["fail"]:
    counts["fail"] = 1
if skipped:
    print(f"{len(skipped)} skipped: " + ", ".join(skipped[:8]) + (", ..." if len(skipped) > 8 else ""))
print(f"{counts['run']} passed, {counts['fail']} failed")
PY
)
echo "$summary"
tail -n 1 <<< "$summary" > "$folder/summary.txt"
exit "$status"
