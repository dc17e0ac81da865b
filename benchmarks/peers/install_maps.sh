#!/bin/sh
# Make .venv-maps, the environment of the scatter plots that benchmarks/maps.py compares with, and of their
# kernel. Does nothing where it is already there. Usage: benchmarks/peers/install_maps.sh [python]
set -eu
cd "$(dirname "$0")/../.."
[ -f .venv-maps/installed ] && exit 0

"${1:-python3}" -m venv .venv-maps
pip() { .venv-maps/bin/python -m pip "$@" --quiet --disable-pip-version-check; }
pip install ipykernel==7.4.0 anywidget==0.11.0 ipywidgets==8.1.9 plotly==7.1.0 jupyter-scatter==1.0.1
# its widget alone: what embeds texts and images takes gigabytes
pip install --no-deps embedding-atlas==0.26.0
pip install narwhals duckdb pyarrow inquirer tqdm platformdirs click
touch .venv-maps/installed
