#!/usr/bin/env bash
# A tour on the tiny models of models/. Writes to demo-out/ only, and starts afresh each time.
set -euo pipefail
cd "$(dirname "$0")/.."
weft=build/release/bin/weft
out=demo-out
[ -x "$weft" ] || { echo "build it first: make demo" >&2; exit 1; }
rm -rf "$out"
mkdir "$out"

bold='' dim='' plain=''
if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then bold=$'\e[1m' dim=$'\e[2m' plain=$'\e[0m'; fi
say() { printf '\n%s%s%s\n' "$bold" "$1" "$plain"; }
# Shows a command as one would type it, then runs it.
show() {
  local typed='' word
  for word in "$@"; do
    [[ $word == *' '* ]] && word="\"$word\""
    typed+=" $word"
  done
  printf '%s$ weft%s%s\n' "$dim" "$typed" "$plain"
  "$weft" "$@"
}

say '1. What is this model? Headers only, so it is as quick on 100 GB.'
show info models/tiny-base

say '2. What did fine-tuning on German change?'
show diff models/tiny-base models/tiny-german

say '3. A mergekit config, planned but not run: every tensor, its inputs and parameters, the size of the result.'
show merge examples/slerp.yml "$out/slerp" --dry-run

say '4. Three merges of the German and the Python model onto their base.'
show merge examples/slerp.yml "$out/slerp"
show merge examples/ties.yml "$out/ties"
show merge examples/dare-ties.yml "$out/dare-ties" --seed 7

say '5. How far did the second go from the base, and is every byte of it sound?'
show diff models/tiny-base "$out/ties"
show verify "$out/ties"

say '6. Does it still read and write? Perplexity beside the base, and a few words.'
show eval "$out/ties" --against models/tiny-base --text README.md --window 128 --windows 8
show generate "$out/ties" --prompt 'In the beginning' --max-tokens 40

say 'The results are in demo-out/. Next: weft methods, weft help merge, examples/README.md.'
