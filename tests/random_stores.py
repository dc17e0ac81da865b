"""Feature stores whose directions are random, and whose latents fire on rows that are drawn."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from letters import WIDTH, Letters, Planted

import saelab
from saelab.types import Codes, HookPoint


class _Random(Planted):
    def __init__(self, n, width, seed):
        self.config = SimpleNamespace(hook=HookPoint("h"), hooks=(), d_in=WIDTH, d_sae=n, d_out=None)
        self.draw = torch.Generator().manual_seed(seed)
        self.W_dec = torch.randn(n, width, generator=self.draw)

    def encode_sparse(self, x):
        drawn = torch.rand(len(x), len(self.W_dec), generator=self.draw) < 0.1
        return Codes.from_dense(drawn.float())


def random_store(folder, n, width, seed):
    """A store of `n` latents with directions [n width] over 160 rows."""
    texts = [f"{i:020d}" for i in range(8)]
    return saelab.index(Letters(), _Random(n, width, seed), texts, folder, progress=False)
