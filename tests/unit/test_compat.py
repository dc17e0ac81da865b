"""`saelab.compat` without the other libraries: what it reads of their objects, and what it refuses; with them
tests/golden/test_golden_compat.py."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import saelab
from saelab import compat
from saelab.types import ConfigError, FormatError, MissingDependency

FORMATS = Path(__file__).parents[1] / "golden" / "formats"


@pytest.mark.parametrize("method", ["save_model", "save_inference_model"])
def test_an_object_of_saelens_is_what_it_saves(method):
    folder = FORMATS / "saelens" / "jumprelu"
    theirs = SimpleNamespace(
        cfg=object(), **{method: lambda to: shutil.copytree(folder, to, dirs_exist_ok=True)}
    )
    found, expected = compat.from_saelens(theirs), saelab.load_sae(folder)
    assert found.config == expected.config
    for name, tensor in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor)


class BatchTopKSAE(nn.Module):
    """What one of dictionary_learning has."""

    def __init__(self) -> None:
        super().__init__()
        self.activation_dim, self.dict_size = 6, 16
        self.register_buffer("k", torch.tensor(3, dtype=torch.int))
        self.register_buffer("threshold", torch.tensor(0.3))
        self.encoder, self.decoder = nn.Linear(6, 16), nn.Linear(16, 6, bias=False)
        self.b_dec = nn.Parameter(torch.randn(6))


def test_an_object_of_dictionary_learning_is_its_weights():
    theirs = BatchTopKSAE()
    x = torch.randn(40, 6)
    sae = compat.from_dictionary_learning(theirs, hook="blocks.1.hook_resid_post")
    with torch.no_grad():
        pre = torch.relu(theirs.encoder(x - theirs.b_dec))
        codes = pre * (pre > 0.3)
        torch.testing.assert_close(sae.encode(x), codes)
        torch.testing.assert_close(sae(x).x_hat, theirs.decoder(codes) + theirs.b_dec)
        assert sae.config.options["k"] == 3
        assert str(sae.hook) == "blocks.1.hook_resid_post"
        before = sae.encode(x)
        theirs.encoder.weight.zero_()
        assert torch.equal(sae.encode(x), before), "weights are copies"


def test_what_is_none_of_theirs_or_cannot_be_is_refused(monkeypatch):
    sae = saelab.SAE.create(saelab.recipe("topk", d_in=6, d_sae=16, k=3))
    for name in ("sae_lens", "dictionary_learning.utils"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingDependency, match=r"pip install 'sae-lens>=6'"):
        compat.to_saelens(sae)
    with pytest.raises(MissingDependency, match=r"pip install 'dictionary-learning'"):
        compat.to_dictionary_learning(sae)
    for other in (sae, None, 3, nn.Linear(2, 2)):
        with pytest.raises(ConfigError, match=r"must be an SAE of SAELens. Got"):
            compat.from_saelens(other)
        with pytest.raises(ConfigError, match=r"must be a dictionary of dictionary_learning. Got"):
            compat.from_dictionary_learning(other)
    with pytest.raises(ConfigError, match="must be"):
        compat.to_saelens(nn.Linear(2, 2))  # type: ignore[arg-type]
    unknown = type("Own", (BatchTopKSAE,), {})()
    with pytest.raises(FormatError, match="dict_class"):
        compat.from_dictionary_learning(unknown)
