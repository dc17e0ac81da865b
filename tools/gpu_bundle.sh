#!/bin/sh
# A folder with this tree and the wheels that `make gpu` needs and a bare machine with a GPU lacks, for CPython 3.12
# on x86-64 Linux: tools/gpu_bundle.sh OUT. There, without network:
#   cd OUT/saelab && python3 -m pip install --no-index --no-deps --target ../site ../wheels/*.whl
#   PYTHONPATH=../site make gpu
# PyTorch, Triton, transformers, safetensors, numpy, pandas, pyarrow, scipy and tqdm are expected to be there.
set -eu
out=${1:?"tools/gpu_bundle.sh needs a folder. Pass one that does not exist yet."}
python=${PYTHON:-.venv/bin/python}
cd "$(dirname "$0")/.."
if [ -e "$out" ]; then
    echo "The bundle needs a folder of its own. Got $out, which exists. Pass another name." >&2
    exit 1
fi

mkdir -p "$out/saelab" "$out/wheels"
# the tree as it is committed, without most tests, the embedded models and what is kept to compare with
git archive HEAD Makefile README.md LICENSE CHANGELOG.md pyproject.toml constraints.txt benchmarks saelab \
    tests/unit/test_gpu.py tests/compiling.py widgets/shared widgets/views ':!saelab/embedded/assets' | tar -x -C "$out/saelab"

pinned=$(for name in duckdb iniconfig jaxtyping lazy-loader platformdirs pluggy pygments pytest wadler_lindig; do
    grep -i "^$name==" constraints.txt || { echo "constraints.txt pins no $name." >&2; exit 1; }
done)
# shellcheck disable=SC2086 # names, one a word
"$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
    --python-version 3.12 --implementation cp --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 \
    --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 -d "$out/wheels" $pinned

size=$(du -sk "$out" | cut -f1)
echo "$out: $size kB"
[ "$size" -le 40960 ] || { echo "A bundle must take at most 40 MB. Got $size kB." >&2; exit 1; }
