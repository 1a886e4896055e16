#!/usr/bin/env bash
# Makes the pictures of the guides anew, from the real page in a real browser. Needs chromium.
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p docs/pictures
PICTURES="$PWD/docs/pictures" go test -count=1 -run '^TestPictures$' ./internal/dashboard
