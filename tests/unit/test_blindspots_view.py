"""`lab.blindspots`: what is listed, whose images stand beside it, and what a page keeps of them."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import saelab
from saelab.analysis import blindspots
from saelab.types import ConfigError, CorpusError
from saelab.widgets import BlindspotsView

D = 6
PALETTE = np.uint8([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0], [0, 255, 255], [255, 0, 255]])


def sae():
    """Latent j is coordinate j, where it is positive."""
    own = saelab.SAE.create(saelab.recipe("relu", d_in=D, d_sae=D, normalise="none", hook="0"), 0).eval()
    with torch.no_grad():
        for name, value in (("W_enc", torch.eye(D)), ("b_enc", 0.0), ("b_dec", 0.0)):
            getattr(own, name).copy_(torch.as_tensor(value))
        own.dictionary.set(torch.eye(D))
    return own


def coloured(n, seed, lost=False):
    """Images of 2 x 2 patches in six colours, one in each; in a generator's, never the first."""
    rng = np.random.default_rng(seed)
    which = rng.integers(lost, D, (n, 2, 2))
    images = [PALETTE[each].repeat(8, 0).repeat(8, 1) for each in which]
    return saelab.corpora.images(images, ids=[f"<b>{seed}-{i}" for i in range(n)]), which


@pytest.fixture(scope="module")
def lost():
    """A model whose channels are the six colours, and what its generator never shows."""
    corners = torch.from_numpy(PALETTE / 255).float()
    patches = torch.nn.Conv2d(3, D, 8, 8)
    with torch.no_grad():  # one half at its own colour, below 0 at the others
        patches.weight.copy_((2 * corners - 1)[:, :, None, None].expand(-1, -1, 8, 8) / 64)
        patches.bias.copy_(0.5 - corners.sum(1))

    def prepare(raw):
        return torch.stack([torch.as_tensor(np.array(each)).permute(2, 0, 1) / 255 for each in raw])

    subject = saelab.TorchModule(
        torch.nn.Sequential(patches, torch.nn.Identity()), prepare=prepare,
        example=[np.zeros((16, 16, 3), np.uint8)],
    )  # fmt: skip
    real, of_real = coloured(60, 1)
    generated, of_generated = coloured(60, 2, lost=True)
    found = blindspots(real, generated, sae(), subject, splits=2, draws=2000)
    return SimpleNamespace(
        subject=subject, real=real, generated=generated, found=found, which=(of_real, of_generated)
    )


def asked(view, question, **args):
    header, buffers = view.answers()[question](**args).encoded()
    fields = {}
    for told, data in zip(header["fields"], buffers, strict=True):
        json_ = told["dtype"] == "json"
        fields[told["name"]] = json.loads(data) if json_ else np.frombuffer(data, told["dtype"])
    return header, fields


def test_the_images_of_either_side_are_those_in_which_a_latent_has_most(lost):
    view = saelab.Lab(lost.subject, sae()).blindspots(lost.found, lost.real, lost.generated)
    header, fields = asked(view, "spots")
    assert fields["latents"][0] == 0  # the colour that is never generated comes first
    assert fields["flags"][0] == -1
    assert fields["relative"][0] == -1
    assert [line[0] for line in header["figures"]] == [
        "flagged share",
        "suppressed share",
        "exaggerated share",
    ]
    what = [control[0] for control in header["figures"][0][4]]
    assert what == ["real against held-out real", "untrained SAE", "raw neurons"]
    for latent in range(1, D):
        told, pictures = asked(view, "pair", latent=latent)
        at = 0
        for side, which, corpus in zip(told["sides"], lost.which, (lost.real, lost.generated), strict=True):
            patches = (which == latent).sum((1, 2))
            documents = list(corpus)
            assert len(side) == min(8, (patches > 0).sum())
            numbers = [int(name.split("-")[1]) for name, _, _ in side]
            assert patches[numbers].tolist() == sorted(patches, reverse=True)[: len(side)]
            assert [energy for _, energy, _ in side] == sorted((e for _, e, _ in side), reverse=True)
            for number, (_, _, size) in zip(numbers, side, strict=True):
                assert pictures["pictures"][at : at + size].tobytes() == documents[number].media
                at += size
        assert at == len(pictures["pictures"])
    told, _ = asked(view, "pair", latent=0)
    assert [len(side) for side in told["sides"]] == [8, 0]


def test_other_images_are_refused_and_none_are_needed(lost):
    lab = saelab.Lab(lost.subject, sae())
    with pytest.raises(CorpusError, match=r"generated must be the images that were read[.] Got '<b>1-"):
        lab.blindspots(lost.found, lost.real, lost.real)
    with pytest.raises(CorpusError, match=r"real must be the images that were read[.] Got none"):
        lab.blindspots(lost.found, lost.real.take(3), lost.generated)
    with pytest.raises(ConfigError, match="shows what saelab"):
        lab.blindspots(3)
    view = lab.blindspots(lost.found)
    assert not asked(view, "spots")[0]["pictured"]
    told, pictures = asked(view, "pair", latent=1)
    assert [size for side in told["sides"] for _, _, size in side] == [0] * 16
    assert not len(pictures["pictures"])
    with pytest.raises(ConfigError, match="one of those that are alive"):
        view.answers()["pair"](latent=99)


def test_where_nothing_runs_the_flagged_stand_in_words(lost):
    view = BlindspotsView(lost.found, named=lambda: {0: "<script>red"})
    assert "suppressed" in view.text()
    shown = view.html()
    assert "&lt;script&gt;red" in shown
    assert "<script" not in shown
    assert "-1.000" in shown
    assert "real against held-out real" in shown
