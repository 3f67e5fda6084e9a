#!/usr/bin/env bash
# Makes the Debian package in dist/ and shows what is in it.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/build.sh release weft_command weft weft_generated_files
mkdir -p dist
(cd build/release && cpack -G DEB -B "$PWD/package" > package.log) || { cat build/release/package.log >&2; exit 1; }
for package in build/release/package/*.deb; do
  cp "$package" dist/
  echo "dist/$(basename "$package")"
  dpkg-deb -f "$package" Package Version Architecture Installed-Size Depends
done
