"""SAEs that are spliced into a model give what SAELens' HookedSAETransformer makes of them (see
regenerate_splices.py)."""

from __future__ import annotations

import pytest
import regenerate_splices as golden
import safetensors.torch
import torch

import saelab

THEIRS = safetensors.torch.load_file(golden.ARRAYS)
CASES = [pytest.param(*case, id=golden.name_of(*case)) for case in golden.cases()]


def near(found: torch.Tensor, expected: torch.Tensor) -> None:
    """To 1e-5 of the largest."""
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * max(1.0, float(expected.abs().max())))


@pytest.mark.parametrize(("kind", "error", "bos"), CASES)
def test_outputs_codes_errors_and_gradients_are_theirs(kind, error, bos):
    wanted = {
        key.removeprefix(prefix): value
        for key, value in THEIRS.items()
        if key.startswith(prefix := f"{golden.name_of(kind, error, bos)}/")
    }
    model, tokens = golden.model(kind), golden.ids()
    saes = {name: saelab.load_sae(golden.FOLDER / name) for name in golden.SAES}
    hooks = {name: hook for name, (_, hook, _) in golden.SAES.items()}
    with saelab.spliced(model, list(saes.values()), error, everywhere=bos) as splices:
        logits = model(tokens).logits
    golden.loss_of(logits, tokens).backward()
    near(logits.detach(), wanted.pop("logits"))
    near(model.get_input_embeddings().weight.grad, wanted.pop("embedding"))
    counts = torch.ones_like(tokens, dtype=torch.bool) if bos else tokens != golden.BOS
    for name, sae in saes.items():
        codes = splices.codes[hooks[name]]
        # they show codes of rows that they do not splice, which no gradient reaches
        theirs, gradient = wanted.pop(f"codes/{name}"), wanted.pop(f"grad/codes/{name}")
        assert torch.equal((codes != 0)[counts], (theirs != 0)[counts])
        near(codes.detach()[counts], theirs[counts])
        assert not codes[~counts].any()
        assert not gradient[~counts].any()
        assert gradient[counts].any()
        near(codes.grad[counts], gradient[counts])
        near(sae.W_enc.grad, wanted.pop(f"W_enc/{name}"))
        if error:
            left = splices.errors[hooks[name]].detach()
            near(left, wanted.pop(f"errors/{name}").reshape(left.shape))
    assert not wanted, "nothing of theirs is left out"
    with torch.no_grad():
        plain = model(tokens).logits
    assert torch.equal(plain, logits) is error


@pytest.mark.parametrize(("kind", "error", "bos"), CASES)
def test_they_still_do(kind, error, bos):
    """The same with the original library at hand."""
    pytest.importorskip("sae_lens")
    for key, value in golden.run(kind, error, bos).items():
        near(value, THEIRS[f"{golden.name_of(kind, error, bos)}/{key}"])


def test_all_are_small():
    assert sum(f.stat().st_size for f in golden.FOLDER.rglob("*") if f.is_file()) < 400_000
