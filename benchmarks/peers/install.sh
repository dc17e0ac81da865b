#!/bin/sh
# Make .venv-peers, the environment of the libraries that benchmarks/train.py compares with: their pins are
# not saelab's. Does nothing where it is already there. Usage: benchmarks/peers/install.sh [python]
set -eu
cd "$(dirname "$0")/../.."
[ -f .venv-peers/installed ] && exit 0

"${1:-python3}" -m venv .venv-peers
pip() { .venv-peers/bin/python -m pip "$@" --quiet --disable-pip-version-check; }
# torch alone and first: a looser request, by one of the peers, takes gigabytes of CUDA
pip install torch==2.13.0
pip install torch==2.13.0 eai-sparsify==1.3.3 sae-lens==6.54.12 dictionary-learning==0.1.0
# comes with nnsight, is built for one kind of torch alone, and breaks imports of transformers under another
pip uninstall --yes torchvision
touch .venv-peers/installed
