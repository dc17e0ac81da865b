"""The Triton twins against their plain references, in Triton's interpreter: no GPU is needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

import saelab
from saelab.sae import dispatch, kernels
from saelab.types import ConfigError

pytest.importorskip("triton", reason="Triton is not installed here: pip install 'saelab[gpu]'")
if torch.cuda.is_available():
    pytest.skip("the twins run compiled here: tests/unit/test_gpu.py", allow_module_level=True)

from saelab.sae.twins import batch, rows, select, steps

USED = {
    "topk": {"rows.bag", "rows.sampled_product", "select.encoded"},
    "batchtopk": {"rows.bag", "rows.sampled_product", "batch.guess", "batch.above"},
    "jumprelu": {"steps.exceeding", "steps.jump_gradients", "batch.above"},
}
"""The twins that a run of a recipe takes, at least."""


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sort takes the interpreter seconds; small tiles have more borders, too."""
    monkeypatch.setattr(select, "MATRIX", (2, 16))
    monkeypatch.setattr(select, "PRODUCT", (4, 16))


def pattern(lengths: list[int], d_sae: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A CSR pattern with rows of these lengths: (indptr, indices)."""
    generator = torch.Generator().manual_seed(seed)
    indices = [torch.randperm(d_sae, generator=generator)[:length] for length in lengths]
    indptr = torch.tensor([0, *lengths]).cumsum(0)
    return indptr, torch.cat([torch.empty(0, dtype=torch.int64), *indices])


@pytest.mark.parametrize(
    ("lengths", "m", "width", "dtype"),
    [
        ([3, 0, 5, 1], 7, 5, torch.float32),
        ([0], 3, 4, torch.float32),
        ([600, 2, 0, 300, 256, 257], 601, 3, torch.float32),  # rows that are summed in pieces
        ([4, 4], 9, 1030, torch.bfloat16),  # more than one block of columns
    ],
)
def test_sums_and_products_of_rows(lengths: list[int], m: int, width: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    indptr, indices = pattern(lengths, m)
    table, weights = torch.randn(m, width).to(dtype), torch.randn(len(indices)).to(dtype)
    codes = kernels.Sparse(indptr, indices, weights.double(), m)
    plain = codes.dense() @ table.double()
    found = rows.bag(table, indptr, indices, weights)
    tolerance = 2e-5 if dtype == torch.float32 else 2e-2
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), plain, atol=tolerance, rtol=tolerance)
    a = torch.randn(len(lengths), width).to(dtype)
    plain = (a.double() @ table.double().t())[codes.rows(), indices]
    found = rows.sampled_product(a, table, indptr, indices)
    torch.testing.assert_close(found.double(), plain, atol=5 * tolerance, rtol=tolerance)


def adversarial(n: int, d_sae: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(n)
    normal = torch.randn(n, d_sae, generator=generator)
    negative_zeros = torch.zeros(n, d_sae)
    negative_zeros[:, ::2] = -0.0
    return {
        "normal": normal,
        "ties": torch.randint(-2, 3, (n, d_sae), generator=generator).float(),
        "zeros of both signs": negative_zeros,
        "one value": torch.full((n, d_sae), -1.5),
        "ascending": torch.arange(n * d_sae).view(n, d_sae).float(),  # every tile fills the lists
        "bfloat16": normal.bfloat16().float(),
    }


@pytest.mark.parametrize(("n", "d_sae", "k"), [(1, 5, 2), (3, 150, 7), (2, 40, 40), (5, 70, 1)])
def test_the_k_largest_of_each_row(n: int, d_sae: int, k: int) -> None:
    for name, pre in adversarial(n, d_sae).items():
        for signed in (False, True) if name in ("normal", "ties") else (False,):
            values, at = select.largest(pre, k, signed)
            sizes = pre.abs() if signed else pre
            assert torch.equal(at.sort(1).values, kernels.top_k_reference(sizes, k)), name
            assert torch.equal(values, sizes.gather(1, at)), name


@pytest.mark.parametrize(("n", "d_in", "d_sae", "k"), [(1, 3, 40, 4), (9, 37, 130, 5), (2, 8, 20, 20)])
def test_encoding_straight_to_the_k_largest(n: int, d_in: int, d_sae: int, k: int) -> None:
    # whole numbers: products are exact, so that ties are ties
    generator = torch.Generator().manual_seed(n)
    x = torch.randint(-2, 3, (n, d_in), generator=generator).float()
    W = torch.randint(-2, 3, (d_sae, d_in), generator=generator).float().t()
    b = torch.randint(-1, 2, (d_sae,), generator=generator).float()
    pre = x @ W + b
    for half in (False, True):
        values, at = select.encoded(x, W.contiguous() if half else W, b, k, half)
        assert torch.equal(at.sort(1).values, kernels.top_k_reference(pre, k))
        assert torch.equal(values, pre.gather(1, at))


def test_encoding_in_bfloat16_rounds_as_autocast_does() -> None:
    torch.manual_seed(0)
    x, W, b = torch.randn(4, 40), torch.randn(40, 60), torch.randn(60).bfloat16().float()
    values, at = select.encoded(x, W, b, 6, half=True)
    exact = x.bfloat16().double() @ W.bfloat16().double() + b
    # sums that lie between two bfloat16 may go to either, all others to the nearest
    plain = exact.bfloat16().float()
    near = ((exact - plain).abs() - exact.abs() * 2**-9).abs() < 1e-5 * exact.abs()
    assert torch.equal(values, values.bfloat16().float())
    assert (values == plain.gather(1, at))[~near.gather(1, at)].all()
    assert ((exact > values[:, -1:].double() * (1 + 2**-7)).sum(1) <= 6).all()


@pytest.mark.parametrize(("n", "d_sae"), [(1, 3), (3, 5000), (40, 331)])
def test_a_bound_for_the_largest_of_a_batch(n: int, d_sae: int) -> None:
    for name, score in adversarial(n, d_sae).items():
        counts, flat = batch.histogram(score), score.reshape(-1)
        positive = int((flat > 0).sum())
        assert int(counts.sum()) == positive, name
        for total in {1, n, n * d_sae // 3 + 1, n * d_sae + 5}:
            bound = batch.bound(counts, total)
            over = flat[flat > bound]
            assert len(over) >= min(total, positive), name
            if len(over) > total:  # a bound one bin higher would be too high
                assert (over > over.min() * (1 + 2**-4)).sum() < total, name
            if positive <= total:
                assert bound == 0 or len(over) == positive, name


@pytest.mark.parametrize("own", [False, True])
def test_the_entries_above_a_threshold(own: bool) -> None:
    for n, d_sae in ((1, 1), (7, 900), (0, 4)):
        for name, pre in adversarial(n, d_sae).items():
            threshold = torch.linspace(-1, 1, d_sae) if own else torch.tensor(0.25)
            plain = (pre > threshold).reshape(-1).nonzero()[:, 0]
            assert torch.equal(batch.above(pre, threshold), plain), name


@pytest.mark.parametrize("to_input", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (130, 300), (77,)])
def test_jumprelu_and_its_straight_through_gradient(shape: tuple[int, ...], to_input: bool) -> None:
    torch.manual_seed(0)
    pre = (torch.randn(shape) / 4).requires_grad_()
    theta = (torch.rand(shape[-1]) / 4).requires_grad_()
    with torch.no_grad():
        pre.view(-1)[:1] = theta[0]  # exactly at the threshold: off
    grad = torch.randn(shape)
    # the definition, written out
    box = (((pre - theta) / 0.1).abs() < 0.5).float().detach()
    on = (pre > theta).float().detach()
    inside = grad * box
    columns = tuple(range(len(shape) - 1))
    whole = -theta.detach() / 0.1 * (inside.sum(columns) if columns else inside)
    d_pre, d_theta = steps.jump_gradients(grad, pre.detach(), theta.detach(), 0.1, to_input, True)
    plain = grad * on + (inside * theta.detach() / 0.1 if to_input else 0)
    torch.testing.assert_close(d_pre, plain, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(d_theta, whole, atol=1e-4, rtol=1e-5)
    d_pre, d_theta = steps.jump_gradients(grad, pre.detach(), theta.detach(), 0.1, to_input, False)
    torch.testing.assert_close(
        d_theta, -(inside.sum(columns) if columns else inside) / 0.1, atol=1e-3, rtol=1e-5
    )
    assert (d_pre is None) != to_input
    if d_pre is not None:
        torch.testing.assert_close(d_pre, inside / 0.1, atol=1e-6, rtol=1e-5)
    assert torch.equal(steps.exceeding(grad, pre.detach(), theta.detach()), grad * on)


@pytest.mark.parametrize("recipe", ["topk", "batchtopk", "jumprelu"])
def test_training_by_twins_ends_with_the_weights_of_the_references(
    recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(select, "MATRIX", (8, 32))
    monkeypatch.setattr(select, "PRODUCT", (8, 32))
    torch.manual_seed(0)
    acts = torch.randn(24, 6)
    options = {"bandwidth": 0.5} if recipe == "jumprelu" else {"k": 3}
    config = saelab.recipe(recipe, d_in=6, d_sae=20, **options)

    def trained(kernels: str) -> saelab.SAE:
        monkeypatch.setenv("SAELAB_KERNELS", kernels)
        return saelab.train(config, acts, steps=4, batch_size=8, lr=1e-2, progress=False).sae

    plain, calls = trained("reference"), []
    real = dispatch._twin
    monkeypatch.setattr(dispatch, "_twin", lambda name: calls.append(name) or real(name))
    twins = trained("triton")
    assert USED[recipe] <= set(calls)
    for (name, a), b in zip(plain.state_dict().items(), twins.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


def test_the_environment_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.ones(1)
    monkeypatch.setenv("SAELAB_KERNELS", "tritn")
    with pytest.raises(ConfigError, match="must be one of auto, reference, triton"):
        dispatch.possible(x)
    monkeypatch.setenv("SAELAB_KERNELS", "triton")
    assert dispatch.possible(x)
    assert not dispatch.possible(x.double())
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(ConfigError, match="needs a GPU"):
        dispatch.possible(x)
    monkeypatch.delenv("SAELAB_KERNELS")
    assert not dispatch.possible(x)


def test_every_kernel_compiles_for_a_gpu() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    script = Path(__file__).parents[1] / "compiling.py"
    said = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr[-3000:]
    made = {row["kernel"]: row for row in map(json.loads, said.stdout.splitlines())}
    assert all(row["shared bytes"] <= 96 * 1024 for row in made.values()), made
    assert all(row["tensor cores"] for name, row in made.items() if name.startswith("encode")), made
