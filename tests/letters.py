"""A subject of letters and an SAE with planted latents: what a store must hold is known to the last bit."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch

from saelab.sae import SAE
from saelab.subjects.reading import ReadsSamples, ReadsTexts
from saelab.types import Codes, HookError, HookPoint, Inputs, Run

BOS, WIDTH = 0, 6
NEVER, ALWAYS, TIED, LONE, SIGNED, NEGATIVE = 0, 1, 2, 3, 4, 6
N_LATENTS = 12
TEXTS = [
    "hello there",
    "x",
    "abcabcabcabcabc",
    "zz",
    "the quick brown fox jumps over",
    "y",
    "aaaa bbbb cccc",
] * 3


class Bare(ReadsSamples):
    """A subject of letters: the activations at a position depend on letter and position alone."""

    def hooks(self):
        return ["h"]

    def width(self, hook):
        if str(hook) != "h":
            raise HookError(str(hook))
        return WIDTH

    def prepare(self, texts):
        return self.prepare_tokens([[ord(c) for c in t] for t in texts])

    def prepare_tokens(self, ids):
        lengths = np.array([len(i) for i in ids])
        padded = torch.full((len(ids), lengths.max()), 777)
        for i, some in enumerate(ids):
            padded[i, : len(some)] = torch.tensor(some)
        return Inputs({"input_ids": padded}, lengths)

    def run(self, inputs, read=(), edits=(), *, output=True):
        ids = inputs.data["input_ids"]
        position = torch.arange(ids.shape[1]).expand_as(ids)
        acts = torch.stack([torch.sin(ids * (i + 1.3) + position * 0.37) for i in range(WIDTH)], -1)
        return Run({str(h): acts for h in read}, None)

    special_ids = frozenset()

    def label(self, inputs, sample, position):
        return chr(int(inputs.data["input_ids"][sample, position]))

    def fingerprint(self):
        return "letters"


class Letters(ReadsTexts, Bare):
    """The same as a language model, with a BOS."""

    bos_id, n_ctx = BOS, 24

    def to_tokens(self, text, bos=True):
        return [BOS] * bos + [ord(c) for c in text]

    def token_strings(self, ids):
        return ["<bos>" if i == BOS else chr(i) for i in ids]

    def prepare(self, texts):
        return self.prepare_tokens([self.to_tokens(t) for t in texts])


class Planted:
    """An SAE whose latents are planted: one never fires, one always, one has ties, one fires once or so, one
    has both signs, one is only negative."""

    hook, reads, writes = SAE.hook, SAE.reads, SAE.writes

    def __init__(self, spoil=None):
        self.config = SimpleNamespace(hook=HookPoint("h"), hooks=(), d_in=WIDTH, d_sae=N_LATENTS, d_out=None)
        self.spoil = spoil
        self.W_dec = torch.randn(N_LATENTS, WIDTH, generator=torch.Generator().manual_seed(0))
        self.W_dec[NEVER] = 0

    def dense(self, x):
        codes = torch.zeros(len(x), N_LATENTS)
        codes[:, ALWAYS] = x[:, 0] + 2
        codes[:, TIED] = (x[:, 1] > 0.3).float() + (x[:, 1] > 0.8).float()
        codes[:, LONE] = (x[:, 2] > 0.9).float() * 3
        codes[:, SIGNED] = x[:, 3] * (x[:, 3].abs() > 0.5)
        weights = torch.linspace(-1, 1, WIDTH * (N_LATENTS - 5)).sin().reshape(WIDTH, -1)
        codes[:, 5:] = (x @ weights - 0.6).relu()
        codes[:, NEGATIVE] *= -1
        if self.spoil is not None:
            codes[-1, 7] = self.spoil
        return codes

    def encode_sparse(self, x):
        return Codes.from_dense(self.dense(x))

    def fingerprint(self):
        return "planted"
