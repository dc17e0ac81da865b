"""What only some subjects can do: protocols, asked for by `need` where they are needed."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from saelab.errors import SubjectError
from saelab.types import HookPoint, Inputs, Intervention, Run

if TYPE_CHECKING:
    from torch import Tensor


@runtime_checkable
class HasTokens(Protocol):
    """Reads tokens of a vocabulary."""

    n_ctx: int
    bos_id: int | None

    def to_tokens(self, text: str, bos: bool = True) -> list[int]:
        """Token ids of a text.

        Args:
            text: Any.
            bos: Whether BOS stands first.
        """
        ...

    def token_strings(self, ids: Sequence[int]) -> list[str]:
        """Readable text of each token alone."""
        ...

    def prepare_tokens(self, rows: Sequence[Sequence[int]]) -> Inputs:
        """Lists of token ids to padded inputs [samples, positions]."""
        ...


@runtime_checkable
class HasLogits(Protocol):
    """Its output is logits over a vocabulary, to which the hook points have a direct path."""

    def to_residual(self, hook: HookPoint | str, vectors: Tensor) -> Tensor:
        """What directions at a hook point add to the residual stream.

        Args:
            hook: The hook point.
            vectors: [n width].

        Returns:
            [n d_model].
        """
        ...

    def residual_to_logits(self, vectors: Tensor) -> Tensor:
        """[n d_vocab]: what directions [n d_model] of the stream add to the logits."""
        ...

    def token_strings(self, ids: Sequence[int]) -> list[str]:
        """Readable text of each token alone."""
        ...


@runtime_checkable
class HasLoss(Protocol):
    """Knows how wrong its output is on its inputs."""

    def loss(self, inputs: Inputs, edits: Sequence[Intervention] = ()) -> tuple[np.ndarray, np.ndarray]:
        """The summed loss of each sample, in nats for language models.

        Args:
            inputs: What `prepare` gave.
            edits: As for `run`.

        Returns:
            (summed loss float64 [samples], number of targets int64 [samples]).
        """
        ...


@runtime_checkable
class HasTargets(Protocol):
    """Its output is logits, and it knows which each position should choose."""

    def targets(self, inputs: Inputs) -> Tensor:
        """The number that the logits of each position should choose.

        Args:
            inputs: What `prepare` gave.

        Returns:
            int64 [samples positions], -1 where nothing is foretold.
        """
        ...


@runtime_checkable
class Resumes(Protocol):
    """Goes on from the middle of a pass that is known."""

    n_layers: int

    def resume(
        self,
        inputs: Inputs,
        block: int,
        stream: Tensor,
        edits: Sequence[Intervention] = (),
        *,
        grad: bool = False,
    ) -> Run:
        """The rest of a pass, from a stream that is known.

        Args:
            inputs: What `prepare` gave.
            block: The first that is computed; `n_layers`: what follows the last.
            stream: [samples positions d_model], what that block reads.
            edits: As for `run`, of hook points from that block on.
            grad: As for `run`.
        """
        ...


@runtime_checkable
class HasPictures(Protocol):
    """Reads images, of which it may see a part."""

    def seen(self, sample: Any) -> Any:
        """The image as a grid of its positions covers it, in a form that `saelab.corpora.images` takes."""
        ...


@runtime_checkable
class Generates(Protocol):
    """Continues a prompt."""

    def generate(self, prompt: str, edits: Sequence[Intervention] = ()) -> str:
        """The prompt and its continuation.

        Args:
            prompt: A text.
            edits: As for `run`, at each step.
        """
        ...


@runtime_checkable
class HasHeads(Protocol):
    """Has attention whose heads can be read."""

    n_layers: int

    def attend(self, inputs: Inputs, read: Sequence[HookPoint | str] = ()) -> Any:
        """`run`, with the patterns and values of the layers that the pass comes to.

        Args:
            inputs: What `prepare` gave.
            read: Hook points whose activations are kept.
        """
        ...

    def layer_maps(self, layer: int) -> Any:
        """The linear maps of a layer that its heads read and write through.

        Args:
            layer: From 0.
        """
        ...


def lacking(subject: Any, capability: type) -> list[str]:
    """What a subject lacks of a capability, by name; [] where it has all.

    Args:
        subject: Any.
        capability: A protocol, such as HasLogits.
    """
    names = [*inspect.get_annotations(capability), *vars(capability)]
    public = dict.fromkeys(n for n in names if not n.startswith("_"))
    return [name for name in public if not hasattr(subject, name)]


def need(subject: Any, capability: type, what: str) -> None:
    """Refuse a subject that lacks a capability.

    Args:
        subject: whose it should be.
        capability: `HasTokens`, `HasLogits`, `HasLoss`, `HasTargets`, `Resumes`, `HasPictures`, `HasHeads`
            or `Generates`.
        what: who needs it, for the message: "A logit lens".

    Raises:
        SubjectError: It lacks some of it.
    """
    missing = lacking(subject, capability)
    if missing:
        said = (capability.__doc__ or "").splitlines()[0].rstrip(".").lower()
        message = (
            f"{what} needs a subject that {said}. Got a {type(subject).__name__}, which lacks "
            f"{', '.join(missing)}. Pass a language model (saelab.load_subject), or give the subject these."
        )
        raise SubjectError(message)


__all__ = [
    "Generates",
    "HasHeads",
    "HasLogits",
    "HasLoss",
    "HasPictures",
    "HasTargets",
    "HasTokens",
    "Resumes",
    "lacking",
    "need",
]
