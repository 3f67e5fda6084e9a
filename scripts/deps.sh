#!/usr/bin/env bash
# Installs the Debian packages that packages.txt (and the arguments) name and this machine lacks. Does nothing when all are there.
set -euo pipefail
cd "$(dirname "$0")/.."

wanted=()
while read -r line; do
  line=${line%%#*}
  line=${line//[[:space:]]/}
  [ -z "$line" ] || wanted+=("$line")
done < packages.txt
wanted+=("$@")

if ! command -v dpkg-query > /dev/null; then
  echo "this is no Debian system; make sure that you have the equivalents of: ${wanted[*]}" >&2
  exit 0
fi

missing=()
for package in "${wanted[@]}"; do
  state=$(dpkg-query -W -f='${db:Status-Status} ' "$package" 2> /dev/null || true)
  [[ " $state" == *" installed "* ]] || missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0

echo "missing packages: ${missing[*]}"
as_root=()
if [ "$(id -u)" -ne 0 ]; then
  if ! command -v sudo > /dev/null; then
    echo "cannot install them without root or sudo; as root run: apt-get update && apt-get install ${missing[*]}" >&2
    exit 1
  fi
  as_root=(sudo)
fi
"${as_root[@]}" apt-get update
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${missing[@]}" < /dev/null
