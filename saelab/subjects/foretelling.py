"""What a language model foretells, how wrong it is, and passes that go on from the middle of one that is
known."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F

from saelab.arguments import checked, floats, prepared
from saelab.config import integer
from saelab.subjects.bridge import weights
from saelab.subjects.hooks import main_tensor, normalise_edits
from saelab.subjects.passes import real
from saelab.types import RangeError, ShapeError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from saelab.types import Inputs, Run


class ForetellsTokens:
    """How a language model is told from what comes; `LanguageModel` has what it asks for."""

    n_layers: int
    d_model: Any
    run: Any
    width: Any
    _arch: Any
    _example: Any
    _lock: threading.RLock
    _middle: tuple[Any, dict[int, list[Callable[[Tensor], Any]] | None]] | None = None
    """the state of the weights, and for each block what those before it return; None: it can't be begun at"""

    @checked(inputs=prepared)
    def targets(self, inputs: Inputs) -> Tensor:
        """The token that the logits of each position should choose.

        Args:
            inputs: of `prepare`.

        Returns:
            int64 [samples positions], -1 where nothing is foretold.
        """
        ids = inputs.data["input_ids"].cpu()
        there = real(inputs, *ids.shape)
        there = np.ones(ids.shape, dtype=bool) if there is None else there
        known = torch.from_numpy(there[:, 1:] & there[:, :-1])
        found = torch.full_like(ids, -1)
        found[:, :-1] = ids[:, 1:].where(known, torch.tensor(-1))
        return found

    def loss(self, inputs: Inputs, edits: Sequence[Any] | Any = ()) -> tuple[np.ndarray, np.ndarray]:
        """Cross-entropy of the next token.

        Args:
            inputs: of `prepare`.
            edits: as in `run`.

        Returns:
            (summed over the tokens of a sample, in nats, float64 [samples]; tokens that were predicted, int64
            [samples]).
        """
        logits: Any = self.run(inputs, edits=edits).output
        targets = self.targets(inputs).to(logits.device)
        where = targets >= 0
        each = F.cross_entropy(logits[where].float(), targets[where], reduction="none")
        summed = torch.zeros(len(targets), dtype=torch.float64)
        summed.index_add_(0, where.nonzero()[:, 0].cpu(), each.double().cpu())
        return summed.numpy(), where.sum(1).cpu().numpy()

    @checked(inputs=prepared, stream=floats)
    def resume(
        self,
        inputs: Inputs,
        block: int,
        stream: Tensor,
        edits: Sequence[Any] | Any = (),
        *,
        grad: bool = False,
    ) -> Run:
        """The rest of a pass, from a stream that is known.

        Blocks before are not computed where the model's passes show, at the first use, that this changes
        nothing; else the stream is put in its place in a whole pass.

        Args:
            inputs: of `prepare`.
            block: the first that is computed; `n_layers`: what follows the last.
            stream: [samples positions d_model], what that block reads.
            edits: as in `run`, of hook points from that block on.
            grad: As in `run`: whether a gradient goes back to the stream and the edits.

        Returns:
            As `run`, with the output alone.

        Raises:
            HookError: edits are none.
            RangeError: There is no such block.
            ShapeError: The stream is not of the inputs' shape.
        """
        integer("block", block, 0, self.n_layers, error=RangeError)
        lead = inputs.data["input_ids"].shape
        if stream.shape[:2] != lead:
            message = (
                f"A stream must be [{lead[0]} {lead[1]} d_model], as the inputs are. Got "
                f"{list(stream.shape)}. Read it in a pass over the same inputs."
            )
            raise ShapeError(message)
        with self._lock:
            return self._begun(inputs, block, stream, normalise_edits(edits), self._before(block), grad=grad)

    def _begun(
        self,
        inputs: Inputs,
        block: int,
        stream: Tensor,
        edits: Sequence[Any],
        before: list[Callable[[Tensor], Any]] | None,
        *,
        grad: bool = False,
    ) -> Run:
        last = block == self.n_layers
        name = f"blocks.{block - 1}.hook_resid_post" if last else f"blocks.{block}.hook_resid_pre"
        self.width(name)  # a hook point that is used for the first time is tried in whole passes
        with _passed_on(self._arch.layers, before or []):
            return self.run(inputs, edits=[(name, lambda acts: stream.to(acts)), *edits], grad=grad)

    def _before(self, block: int) -> list[Callable[[Tensor], Any]] | None:
        """How the blocks before this one hand on a stream that they leave as it is; None where the model's
        passes need more of them. Measured once for the weights: a pass begun there must give, to the bit,
        what a whole one gives."""
        state = weights(self._arch.layers)
        if self._middle is None or self._middle[0] != state:
            self._middle = (state, {0: []})
        known = self._middle[1]
        if block not in known:
            inputs = self._example(None, None)
            before = _returned(self._arch.layers[:block], lambda: self.run(inputs))
            shape = (*inputs.data["input_ids"].shape, self.d_model)
            stream = torch.randn(shape, generator=torch.Generator().manual_seed(0))
            whole: Any = self._begun(inputs, block, stream, (), None).output
            self._begun(inputs, 0, -stream, (), None)  # what blocks left somewhere else is another pass's now
            begun: Any = None
            try:
                begun = None if before is None else self._begun(inputs, block, stream, (), before).output
            except Exception:  # whatever a block misses of those before, they are run then
                pass
            known[block] = before if begun is not None and torch.equal(whole, begun) else None
        return known[block]


def _returned(layers: Sequence[nn.Module], run: Callable[[], Any]) -> list[Callable[[Tensor], Any]] | None:
    """How each layer returns a stream, with nothing of this pass in it; None where one returns another
    thing."""
    found: dict[int, Callable[[Tensor], Any]] = {}

    def hook(number: int) -> Callable[..., None]:
        def seen(module: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, torch.Tensor):
                found[number] = lambda new: new
            elif isinstance(output, tuple):  # what else it holds (weights, a cache) nobody asked for
                rest = (None,) * (len(output) - 1)
                found[number] = lambda new: (new, *rest)

        return seen

    handles = [layer.register_forward_hook(hook(i)) for i, layer in enumerate(layers)]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return [found[i] for i in range(len(layers))] if len(found) == len(layers) else None


@contextmanager
def _passed_on(layers: Sequence[nn.Module], ways: Sequence[Callable[[Tensor], Any]]) -> Iterator[None]:
    """The first layers hand on what they read."""
    kept = []
    try:
        for layer, way in zip(layers, ways, strict=False):
            kept.append((layer, layer.__dict__.get("forward")))
            layer.forward = _handing_on(way)
        yield
    finally:
        for layer, own in kept:
            if own is None:
                del layer.forward
            else:
                layer.forward = own


def _handing_on(way: Callable[[Tensor], Any]) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Any:
        own: Any = main_tensor(args)[0]
        return way(main_tensor(kwargs)[0] if own is None else own)  # type: ignore[arg-type]

    return forward


__all__ = ["ForetellsTokens"]
