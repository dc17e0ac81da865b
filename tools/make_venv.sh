#!/bin/sh
# Make .venv with the given Python, and say in plain words what is missing where that fails.
set -eu
python=${1:-python3}

if ! command -v "$python" >/dev/null 2>&1; then
    echo "saelab needs Python 3.11 or newer. Found no '$python'. Install it, or run: make PYTHON=/path/to/python3.11" >&2
    exit 1
fi
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "saelab needs Python 3.11 or newer. Got $("$python" --version). Run: make PYTHON=/path/to/python3.11" >&2
    exit 1
fi
[ -x .venv/bin/pip ] && exit 0

if ! "$python" -c 'import ensurepip' 2>/dev/null; then
    # Debian ships venv apart from Python
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
        apt-get update -qq && apt-get install -y -qq python3-venv
    else
        echo "This Python cannot make virtual environments. Install the package first: sudo apt-get install python3-venv" >&2
        exit 1
    fi
fi
"$python" -m venv .venv
