"""How the shipped models are optimised, and their checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch

from saelab.files import new_file


class Rates(Protocol):
    """A plan's learning rates."""

    @property
    def lr_matrices(self) -> float:
        """Of Muon."""
        ...

    @property
    def lr_others(self) -> float:
        """Of AdamW."""
        ...

    def lr(self, step: int) -> float:
        """Factor on both."""
        ...


class Optimizers:
    """Muon for the matrices of a model's blocks, AdamW for all else.

    Args:
        model: Whose parameters.
        plan: Their learning rates.
        blocks: What names of parameters of the blocks hold, such as ".h.".
        weight_decay: Of Muon.
    """

    def __init__(self, model: Any, plan: Rates, blocks: str, weight_decay: float) -> None:
        named = list(model.named_parameters())
        matrices = [p for n, p in named if p.ndim == 2 and blocks in n]
        others = [p for n, p in named if not (p.ndim == 2 and blocks in n)]
        self.model, self.plan = model, plan
        self.muon = torch.optim.Muon(
            matrices, lr=plan.lr_matrices, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
        )
        self.adam = torch.optim.AdamW(others, lr=plan.lr_others, betas=(0.9, 0.95), weight_decay=0.0)

    def rate(self, step: int) -> None:
        """Set the learning rates of a step."""
        for group, rate in ((self.muon, self.plan.lr_matrices), (self.adam, self.plan.lr_others)):
            group.param_groups[0]["lr"] = rate * self.plan.lr(step)

    def step(self) -> None:
        """Clip the gradients to norm 1, take a step by them, and let them go."""
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in (self.muon, self.adam):
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def save(self, checkpoint: Path, step: int, history: list[dict[str, float]]) -> None:
        """Write all that going on needs."""
        parts = {"model": self.model, "muon": self.muon, "adam": self.adam}
        state = {name: part.state_dict() for name, part in parts.items()}
        with new_file(checkpoint) as temporary:
            torch.save({**state, "step": step, "history": history}, temporary)

    def resumed(
        self, checkpoint: Path, device: str, report: Callable[[str], None]
    ) -> tuple[int, list[dict[str, float]]]:
        """The step and the history from which a training goes on; 0 and none without a checkpoint."""
        if not checkpoint.exists():
            return 0, []
        saved = torch.load(checkpoint, map_location=device, weights_only=True)
        for name, part in (("model", self.model), ("muon", self.muon), ("adam", self.adam)):
            part.load_state_dict(saved[name])
        report(f"resumed at step {saved['step']}")
        return saved["step"], saved["history"]
