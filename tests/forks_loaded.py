"""What the server of `forks` imports, once: all that a model and the first training run load."""

from __future__ import annotations

import os

import torch

import saelab

os.fsync = lambda descriptor: os.fstat(descriptor) and None  # as in conftest.py
torch.set_num_threads(1)  # a fork has none of the threads that its parent started
saelab.load_subject(str(saelab.embedded.model_folder()))
_config = saelab.recipe("topk", d_in=4, d_sae=8, k=2)
saelab.train(_config, torch.randn(64, 4), steps=1, batch_size=16, progress=False)
