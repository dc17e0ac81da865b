"""What tools of other libraries make of our SAEs in their shape is what we make of them (see
regenerate_compat.py)."""

from __future__ import annotations

import json
import re

import pytest
import regenerate_compat as golden
import regenerate_formats as formats
import regenerate_splices as splices
import safetensors.torch
import torch
from torch import nn

import saelab
from saelab import compat

LOGITS = safetensors.torch.load_file(golden.LOGITS)
FIGURES = json.loads(golden.FIGURES.read_text())
ACTS = golden.activations()
ROWS = ACTS.flatten(0, 1)


@pytest.mark.parametrize("name", golden.CASES)
def test_hooked_sae_transformer_gives_our_logits(name):
    model, tokens = splices.model("gpt2"), splices.ids()
    with torch.no_grad():
        with saelab.spliced(model, golden.ours(name), error=False, everywhere=True) as splice:
            found = model(tokens).logits
        assert not torch.allclose(found, model(tokens).logits, atol=0.1)
    torch.testing.assert_close(found, LOGITS[name], atol=2e-5, rtol=1e-5)
    assert next(iter(splice.codes.values())).any()


def losses(name: str) -> tuple[float, float]:
    """Mean cross-entropy as it is, and with the SAE."""
    model, tokens, sae = splices.model("gpt2"), splices.ids(), golden.ours(name)
    with torch.no_grad():
        plain = model(tokens).logits
        with saelab.spliced(model, sae, error=False, everywhere=True):
            spliced = model(tokens).logits
    return tuple(float(splices.loss_of(logits, tokens)) for logits in (plain, spliced))  # type: ignore[return-value]


@pytest.mark.parametrize("name", FIGURES["saebench"])
def test_saebench_measures_what_we_do(name):
    theirs, sae = FIGURES["saebench"][name], golden.ours(name)
    with torch.no_grad():
        codes, x_hat = sae.encode(ROWS), sae(ROWS).x_hat
    plain, spliced = losses(name)
    mine = {
        "l0": (codes != 0).sum(1).float().mean(),
        "l1": codes.sum(1).mean(),
        "mse": (ROWS - x_hat).square().sum(1).mean() / len(ROWS),
        "cossim": nn.functional.cosine_similarity(ROWS, x_hat).mean(),
        "l2_norm_in": ROWS.norm(dim=1).mean(),
        "l2_norm_out": x_hat.norm(dim=1).mean(),
        "ce_loss_without_sae": plain,
        "ce_loss_with_sae": spliced,
    }
    for key, value in mine.items():
        assert theirs[key] == pytest.approx(float(value), rel=1e-4), key


@pytest.mark.parametrize("name", FIGURES["dictionary_learning"])
def test_dictionary_learning_measures_what_we_do(name):
    theirs, sae = FIGURES["dictionary_learning"][name], golden.ours(name)
    with torch.no_grad():
        codes, x_hat = sae.encode(ROWS), sae(ROWS).x_hat
    left = ROWS - x_hat
    if name == "relu":  # features that its AutoEncoderNew gives out are times the decoder's norms
        codes = codes * (sae.W_dec * sae.out_scale).norm(dim=1).detach()
    mine = {
        "l0": (codes != 0).sum(1).float().mean(),
        "l1_loss": codes.abs().sum(1).mean(),
        "l2_loss": left.norm(dim=1).mean(),
        "cossim": nn.functional.cosine_similarity(ROWS, x_hat).mean(),
        "frac_variance_explained": 1 - left.var(0).sum() / ROWS.var(0).sum(),
        "frac_alive": (codes != 0).any(0).float().mean(),
    }
    for key, value in mine.items():
        assert theirs[key] == pytest.approx(float(value), rel=1e-4), key


@pytest.mark.parametrize("name", FIGURES["dashboard"])
def test_saedashboard_shows_our_codes(name):
    """Its page folds decoder norms into codes."""
    sae = golden.ours(name)
    with torch.no_grad():
        codes = sae.encode(ROWS) * (sae.W_dec * sae.out_scale).norm(dim=1)
    shown = FIGURES["dashboard"][name]
    assert len(shown) == sae.d_sae
    for own, (density, largest) in zip(codes.t(), shown, strict=True):
        said = re.search(r"DENSITY = ([\d.]+)%", density)
        assert (float(said[1]) if said else 0) == pytest.approx(
            100 * float((own != 0).float().mean()), abs=2e-3
        )
        said = re.search(r"MAX = ([\d.]+)", largest)
        assert said
        assert float(said[1]) == pytest.approx(float(own.max()), abs=2e-3)


@pytest.mark.parametrize("case", formats.EXPORTED)
@pytest.mark.parametrize("library", ["sae_lens", "dictionary_learning"])
def test_objects_of_theirs_come_back(library, case):
    """With the library at hand."""
    pytest.importorskip(library)
    if library == "dictionary_learning" and case in formats.ONLY_SAELENS:
        pytest.skip("it has no such dictionary")
    sae, x = formats.ours(case), formats.rows(6)
    there = {"sae_lens": compat.to_saelens, "dictionary_learning": compat.to_dictionary_learning}[library](
        sae
    )
    back = compat.from_saelens(there) if library == "sae_lens" else compat.from_dictionary_learning(there)
    with torch.no_grad():
        for found in (there.encode(x), back.encode(x)):
            torch.testing.assert_close(found, sae.encode(x), atol=1e-5, rtol=1e-5)
        for found in (there(x), back(x).x_hat):
            torch.testing.assert_close(found, sae(x).x_hat, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("part", ["saelens", "dictionary_learning", "saebench"])
def test_they_still_do(part):
    """The same with the library at hand."""
    pytest.importorskip({"saelens": "sae_lens", "saebench": "sae_bench"}.get(part, part))
    if part == "saelens":
        for name, logits in golden.saelens().items():
            torch.testing.assert_close(logits, LOGITS[name], atol=2e-5, rtol=1e-5)
    else:
        for name, figures in getattr(golden, part)().items():
            assert figures == pytest.approx(FIGURES[part][name], rel=1e-4, nan_ok=True)
