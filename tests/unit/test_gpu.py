"""What only a CUDA device can show: twins compiled at real shapes, training on it, resuming to the bit."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

import saelab
from saelab.sae import dense, dispatch, kernels
from saelab.training.rows import moved

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
N, D_IN, D_SAE, K = 1_024, 768, 24_576, 32


@pytest.fixture
def forced(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    if not dispatch.installed():
        pytest.skip("Triton is not installed")
    assert os.environ.get("TRITON_INTERPRET") != "1", "on a device kernels are compiled"
    return monkeypatch


def both(forced: pytest.MonkeyPatch, name: str, plain: object, *arguments: object) -> tuple[object, object]:
    """(result of the twin, result of the reference)"""
    forced.setenv("SAELAB_KERNELS", "triton")
    twin = dispatch._twin(name)(*arguments)
    forced.setenv("SAELAB_KERNELS", "reference")
    return twin, plain(*arguments)  # type: ignore[operator]


def test_sums_and_products_of_rows(forced: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    W, x = torch.randn(D_SAE, D_IN, device="cuda"), torch.randn(N, D_IN, device="cuda")
    indices = torch.randint(D_SAE, (N * K,), device="cuda")
    indices[::3] = 7  # one latent on in a third of all entries
    indptr, values = torch.arange(0, N * K + 1, K, device="cuda"), torch.randn(N * K, device="cuda")
    for table in (W, W.bfloat16()):
        twin, plain = both(forced, "rows.bag", kernels._bag_of_torch, table, indptr, indices, values)
        torch.testing.assert_close(twin, plain, atol=1e-3 if table is W else 0.3, rtol=2e-2)
    starts, rows, order = kernels._transpose(indptr, indices, D_SAE)
    given = (x, starts, rows, values[order])
    twin, plain = both(forced, "rows.bag", kernels._bag_of_torch, *given)
    torch.testing.assert_close(twin, plain, atol=2e-3, rtol=1e-3)
    assert torch.equal(twin, dispatch._twin("rows.bag")(*given)), "not the same every time"
    twin, plain = both(
        forced, "rows.sampled_product", kernels._sampled_product_of_torch, x, W, indptr, indices
    )
    torch.testing.assert_close(twin, plain, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("rounded", [False, True])
def test_the_k_largest_of_each_row(forced: pytest.MonkeyPatch, rounded: bool) -> None:
    torch.manual_seed(0)
    pre = torch.randn(N, D_SAE, device="cuda")
    pre = pre.bfloat16().float() if rounded else pre  # ties in every row
    pre[0], pre[1] = 0.0, torch.arange(D_SAE, device="cuda").float()
    for k in (1, K, 500):
        twin, _ = both(forced, "select.top_k", kernels._top_k, pre, k, False)
        assert isinstance(twin, Tensor)
        assert torch.equal(twin.sort(1).values, kernels.top_k_reference(pre, k))


@pytest.mark.parametrize("half", [False, True])
def test_encoding_straight_to_the_k_largest(forced: pytest.MonkeyPatch, half: bool) -> None:
    generator = torch.Generator("cuda").manual_seed(0)
    x = torch.randint(-2, 3, (N + 3, D_IN), generator=generator, device="cuda").float()
    W = torch.randint(-1, 2, (D_SAE - 5, D_IN), generator=generator, device="cuda").float().t()
    b = torch.zeros(D_SAE - 5, device="cuda")
    values, at = dispatch._twin("select.encoded")(x, W, b, K, half)
    pre = (x.double() @ W.double()).float()
    pre = pre.bfloat16().float() if half else pre
    assert torch.equal(at.sort(1).values, kernels.top_k_reference(pre, K))
    assert torch.equal(values, pre.gather(1, at))


def test_choices_over_a_batch(forced: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    score = torch.randn(N, D_SAE, device="cuda")
    threshold = torch.rand(D_SAE, device="cuda") * 4
    for bound in (threshold, torch.tensor(3.0, device="cuda")):
        twin, plain = both(forced, "batch.above", kernels._above, score, bound)
        assert torch.equal(twin, plain)
    forced.setenv("SAELAB_KERNELS", "triton")
    assert torch.equal(kernels.batch_top_k(score, N * K), kernels.batch_top_k_reference(score, N * K))


def test_jumprelu(forced: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    grad, pre = torch.randn(2, N, D_SAE, device="cuda")
    given = (grad, pre, torch.rand(D_SAE, device="cuda"), 0.2, True, True)
    twin, plain = both(forced, "steps.jump_gradients", dense._gradients, *given)
    for a, b in zip(twin, plain, strict=True):  # type: ignore[call-overload]
        torch.testing.assert_close(a, b, atol=5e-3, rtol=1e-3)
    assert torch.equal(*both(forced, "steps.exceeding", dense._exceeding_of_torch, grad, pre, given[2]))


@pytest.mark.parametrize("recipe", ["topk", "batchtopk", "jumprelu"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_training_by_twins_and_by_references_agree(
    forced: pytest.MonkeyPatch, recipe: str, precision: str
) -> None:
    torch.manual_seed(0)
    acts = torch.randn(4_096, 64, device="cuda")
    options = {} if recipe == "jumprelu" else {"k": 8}
    config = saelab.recipe(recipe, d_in=64, d_sae=512, **options)
    ends = []
    for asked in ("reference", "triton"):
        forced.setenv("SAELAB_KERNELS", asked)
        run = saelab.train(config, acts, steps=30, batch_size=512, precision=precision, progress=False)
        ends.append(run.history[-1].fvu)
    assert abs(ends[0] - ends[1]) < (1e-3 if precision == "float32" else 2e-2)


def test_an_interrupted_run_ends_the_same_to_the_bit(tmp_path: Path) -> None:
    torch.manual_seed(0)
    acts = torch.randn(2_048, 64)
    config = saelab.recipe("topk", d_in=64, d_sae=512, k=8)

    def run(out: Path, stop: int | None) -> saelab.SAE:
        def callback(event: saelab.training.Event) -> None:
            if event.name == "log" and event.step == stop:
                event.live.stop()

        return saelab.train(
            config, acts, steps=20, batch_size=256, out=out, progress=False, log_every=1, callbacks=[callback]
        ).sae

    whole = run(tmp_path / "a", None)
    run(tmp_path / "b", 9)
    again = run(tmp_path / "b", None)
    for a, b in zip(whole.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_no_matrix_of_pre_activations_is_made() -> None:
    d_sae, n = 131_072, 8_192
    config = saelab.recipe("topk", d_in=64, d_sae=d_sae, k=8, dead_after=10**12)
    acts = torch.randn(2 * n, 64, device="cuda")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    saelab.train(config, acts, steps=2, batch_size=n, progress=False)
    assert torch.cuda.max_memory_allocated() - before < 4 * n * d_sae / 2


def test_batches_travel_ahead_of_the_step_that_uses_them() -> None:
    batches = [torch.full((64, 512), float(i)) for i in range(6)]
    given = moved((batch for batch in [*batches, batches[0]]), torch.device("cuda"))
    found = [float(rows.double().mean()) for rows in given]
    assert found == [0, 1, 2, 3, 4, 5]
    there = [batch.cuda() for batch in batches]
    assert [id(rows) for rows in moved((rows for rows in there), torch.device("cuda"))] == list(
        map(id, there)
    )
