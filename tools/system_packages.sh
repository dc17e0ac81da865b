#!/bin/sh
# What the browser tests need from the system: chromium, and node for the tests of the JavaScript.
# Without them those tests are skipped with a reason; everything else runs.
set -eu
missing=""
command -v chromium >/dev/null 2>&1 || command -v chromium-browser >/dev/null 2>&1 ||
    command -v google-chrome >/dev/null 2>&1 || missing="$missing chromium"
command -v node >/dev/null 2>&1 || missing="$missing nodejs"
command -v npm >/dev/null 2>&1 || missing="$missing npm"
[ -z "$missing" ] && exit 0

if ! command -v apt-get >/dev/null 2>&1; then
    echo "Not found:$missing. Install them with this system's package manager; the browser tests are skipped without them." >&2
elif [ "$(id -u)" = 0 ]; then
    echo "Installing for the browser tests:$missing"
    # shellcheck disable=SC2086  # a list of words on purpose
    if ! { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $missing >/dev/null; }; then
        echo "Could not install$missing; the browser tests are skipped without them." >&2
    fi
else
    echo "Not found:$missing. The browser tests are skipped without them. To run them too, first type:" >&2
    echo "    sudo apt-get install$missing" >&2
fi
