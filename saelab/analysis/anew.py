"""Short trainings, of what an SAE is compared with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from saelab.sae import SAE, SAEConfig


def trained(
    config: SAEConfig,
    rows: Tensor,
    targets: Tensor | None,
    *,
    seed: int,
    steps: int,
    batch_size: int,
    device: Any,
) -> SAE:
    """A short training.

    Args:
        config: Of the SAE.
        rows: Activations [n d_in], those of several hook points side by side.
        targets: Of a transcoder [n d_out], else None.
        seed: Of weights and order.
        steps: How many.
        batch_size: Rows a step, at most.
        device: Where it is trained.

    Returns:
        It, in eval mode.
    """
    from saelab.training import train

    given: Any = rows if targets is None else (rows, targets)
    if config.widths:
        given = tuple(rows.split(list(config.widths), 1))
    how: dict[str, Any] = {"steps": steps, "batch_size": min(batch_size, len(rows))}
    return train(config, given, seed=seed, progress=False, device=device, **how).sae.eval()


__all__ = ["trained"]
