#!/bin/sh
# Form and types of the widgets' JavaScript; without npm they are left unchecked, with a word.
set -eu
cd "$(dirname "$0")/../widgets"
if ! command -v npm >/dev/null 2>&1; then
    echo "npm not found: the JavaScript is not checked." >&2
    exit 0
fi
npm ls >/dev/null 2>&1 || npm ci --no-audit --no-fund
npm run lint
npm run check
