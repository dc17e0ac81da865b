"""What steps the weights of an SAE: one optimizer of each kind that a run asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from saelab.training.moving import PARTS, Optimizer
from saelab.types import ConfigError, nearest


class Optimizers:
    """The optimizers of an SAE's parameters, stepped as one.

    Args:
        asked: Which.
        parameters: By name.
        lr: The learning rate to begin with.

    Raises:
        ConfigError: A part that decays is none of the SAE's.
    """

    def __init__(self, asked: Optimizer, parameters: Mapping[str, Tensor], lr: float) -> None:
        decaying = set()
        for part in asked.parts if asked.weight_decay else ():
            found = {name for name in parameters if name.rsplit(".", 1)[-1] == part}
            if not found and part not in PARTS:  # a dictionary may have no free rows
                own = [name.rsplit(".", 1)[-1] for name in parameters]
                message = (
                    f"Weight decay needs parts of the SAE: {', '.join(own)}. Got {part!r}. "
                    f"{nearest(part, own)}Pass parts=('W_enc',)."
                )
                raise ConfigError(message)
            decaying |= found
        matrices = {name for name, weight in parameters.items() if asked.kind == "muon" and weight.ndim == 2}
        self.each = [
            made
            for names, make in ((matrices, _muon), (set(parameters) - matrices, _elementwise))
            if (made := make(asked, _groups(parameters, names, decaying, asked.weight_decay), lr)) is not None
        ]
        self._of = {id(p): each for each in self.each for group in each.param_groups for p in group["params"]}

    def step(self, lr: float) -> None:
        """One update.

        Args:
            lr: The learning rate of this step.
        """
        for optimizer in self.each:
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.step()

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for optimizer in self.each:
            optimizer.zero_grad(set_to_none=True)

    def state(self, parameter: Tensor) -> dict[str, Tensor]:
        """What is kept of a weight; empty before the first step.

        Args:
            parameter: The weight.
        """
        return self._of[id(parameter)].state[parameter]


class Signum(torch.optim.Optimizer):
    """w -= lr sign(m), m = beta m + (1 - beta) g, after w *= 1 - lr weight_decay (Bernstein et al. 2018).

    Args:
        groups: Of parameters.
        lr: Learning rate.
        beta: Weight of the past.
    """

    def __init__(self, groups: list[dict[str, Any]], lr: float, beta: float) -> None:
        super().__init__(groups, {"lr": lr, "beta": beta, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update.

        Args:
            closure: None.
        """
        for group in self.param_groups:
            for weight in (each for each in group["params"] if each.grad is not None):
                state = self.state[weight]
                if not state:
                    state["average"] = torch.zeros_like(weight)
                state["average"].lerp_(weight.grad, 1 - group["beta"])
                if group["weight_decay"]:
                    weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.sub_(state["average"].sign(), alpha=group["lr"])


Groups = list[dict[str, Any]]


def _groups(parameters: Mapping[str, Tensor], names: set[str], decaying: set[str], decay: float) -> Groups:
    kept = [parameters[name] for name in parameters if name in names - decaying]
    less = [parameters[name] for name in parameters if name in names & decaying]
    told = (({"params": kept, "weight_decay": 0.0}), ({"params": less, "weight_decay": float(decay)}))
    return [group for group in told if group["params"]]


def _muon(asked: Optimizer, groups: Groups, lr: float) -> torch.optim.Optimizer | None:
    if not groups:
        return None
    return torch.optim.Muon(groups, lr=lr, momentum=asked.betas[0], adjust_lr_fn="match_rms_adamw")


def _elementwise(asked: Optimizer, groups: Groups, lr: float) -> torch.optim.Optimizer | None:
    if not groups:
        return None
    if asked.kind == "signum":
        return Signum(groups, lr, asked.betas[0])
    make: Callable[..., torch.optim.Optimizer] = (
        torch.optim.Adam if asked.kind == "adam" else torch.optim.AdamW
    )
    return make(groups, lr=lr, betas=asked.betas, fused=True)


__all__ = ["Optimizers", "Signum"]
