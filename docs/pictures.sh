#!/usr/bin/env bash
# Makes the pictures of the guides anew, from the real pages in a real browser. Needs chromium. With the name of a
# folder, it makes a picture of every page there instead: in both languages, wide and narrow, light and dark.
set -euo pipefail
cd "$(dirname "$0")/.."
folder="$PWD/docs/pictures"
if [ $# -gt 0 ]; then
    mkdir -p "$1"
    folder="$(cd "$1" && pwd)"
    export SCREENS=all
fi
mkdir -p "$folder"
PICTURES="$folder" go test -count=1 -run '^TestPictures' ./internal/dashboard
