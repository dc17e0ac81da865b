"""Hugging Face causal language models as subjects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn

from saelab.arguments import checked, flag, floats, is_listed, prepared, sequence
from saelab.config import is_integer
from saelab.subjects.alone import check_segments, difference, masks, restarting
from saelab.subjects.attention import ReadsHeads
from saelab.subjects.base import TorchSubject, config_facts
from saelab.subjects.bridge import Bridge, bridge_points, is_bridge_point, is_square, weights
from saelab.subjects.direct import End, Tail, end_at, measure, project
from saelab.subjects.foretelling import ForetellsTokens
from saelab.subjects.generation import WritesTexts
from saelab.subjects.hooks import EditFn, Site, View, plan, stream_view
from saelab.subjects.passes import LIVE, Passed, run_hooked
from saelab.subjects.points import Architecture
from saelab.subjects.reading import ReadsTexts
from saelab.subjects.tokens import check_ids, check_texts, context_length, encode, token_text
from saelab.types import (
    CorpusError,
    HookError,
    HookPoint,
    Inputs,
    RangeError,
    ShapeError,
    SubjectError,
    nearest,
    short,
)


class LanguageModel(ReadsTexts, WritesTexts, ReadsHeads, ForetellsTokens, TorchSubject):
    """A Hugging Face causal language model, read and edited at hook points in TransformerLens vocabulary.

    Points that are a module's input or output are read by plain hooks on the model, and the pass stops after
    the last that is needed; `blocks.{i}.attn.hook_{q,k,v,rot_q,rot_k,attn_scores,pattern}` go through
    TransformerBridge (booted at first use on a copy that shares the weights). Activations are [samples,
    positions, width], the heads of hook_z, q, k and v concatenated; patterns and scores are [samples, heads,
    query, key]. Every point is met once in a pass, so that "name@0" and "name@all" are "name".

    Args:
        model: A `...ForCausalLM`; it is put into eval mode.
        tokenizer: The one that belongs to it.
        n_ctx: Tokens of the longest text that is read, and of a block; None: as many as the model takes.

    Attributes:
        n_ctx: Tokens of the longest text.
        bos_id: The token put first, or None.
        d_vocab: Logits of a position.
        d_model: Width of the residual stream.
        n_layers: How many blocks.
        n_heads: Query heads of each.

    Raises:
        SubjectError: The architecture's blocks are not found, or the model has no output embeddings.
        ConfigError: n_ctx is below 1 or more than the model takes.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, n_ctx: int | None = None) -> None:
        super().__init__(model)
        head = _call(model, "get_output_embeddings")
        if hasattr(model, "get_output_embeddings") and head is None:
            _refuse(model, "no output embeddings")
        self._arch = Architecture(model)
        if head is None:
            _refuse(model, "no get_output_embeddings()")
        if not hasattr(tokenizer, "convert_ids_to_tokens"):
            _refuse(model, f"a tokenizer of type {type(tokenizer).__name__}")
        self.tokenizer = tokenizer
        self._text = token_text(tokenizer)
        config = self._arch.config
        self.d_vocab = int(head.weight.shape[0])
        self.n_layers = len(self._arch.layers)
        self.n_heads = self._arch.n_heads
        self.n_ctx = context_length(config, tokenizer, n_ctx)
        self.bos_id: int | None = getattr(tokenizer, "bos_token_id", None)
        self._bridge: Bridge | None = None
        self._masks: dict[bool, bool] = {}
        self._tail: tuple[Any, Tail] | None = None
        self._remembers: dict[Any, bool] = {}
        if self.device.type != "meta":
            inputs = self._to_device(self._example(None, None).data)
            view = stream_view(*inputs["input_ids"].shape)
            self._arch.settle(view, lambda: self.module(**inputs, use_cache=False))

    @property
    def model(self) -> nn.Module:
        """The Hugging Face model."""
        return self.module

    @property
    def layers(self) -> list[nn.Module]:
        """Its blocks, from the embeddings on."""
        return list(self._arch.layers)

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.unembed.shape[0]

    @property
    def unembed(self) -> Tensor:
        """W_U [d_model d_vocab]: logits = final norm's output @ W_U (+ bias, where there is one)."""
        weight: Tensor = self.model.get_output_embeddings().weight.detach().T  # type: ignore[operator,union-attr]
        project = _project_out(self.model)
        return weight if project is None else project.weight.detach().T @ weight

    def to_residual(self, hook: HookPoint | str, vectors: Tensor) -> Tensor:
        """What directions at a hook point add to the residual stream.

        The identity on the stream and on what is added to it; hook_z and mlp.hook_post pass through their
        output projection.

        Args:
            hook: The hook point.
            vectors: [n width].

        Returns:
            [n d_model].

        Raises:
            HookError: It does not write to the stream linearly.
        """
        point = self.hook_point(hook)
        if (
            point.name.endswith(("hook_embed", "hook_attn_out", "hook_mlp_out"))
            or ".hook_resid_" in point.name
        ):
            return vectors
        if point.name.endswith(("attn.hook_z", "mlp.hook_post")) and not is_bridge_point(
            point.name, self.n_layers
        ):
            return project(self._arch.points[point.name].module, vectors)
        msg = (
            f"Only hook points that write to the residual stream have a direct effect on it. Got "
            f"{point.name!r}. "
            "Use hook_resid_*, hook_attn_out, hook_mlp_out, attn.hook_z or mlp.hook_post."
        )
        raise HookError(msg)

    @checked(vectors=floats)
    def residual_to_logits(self, vectors: Tensor) -> Tensor:
        """Linear effect of directions of the final residual stream on the logits.

        It is that of the linear part of the final norm, W_U, and what scales logits, measured on the model
        (`saelab.subjects.direct`). The division by the norm depends on the text and is left out; so are
        soft caps.

        Args:
            vectors: [n d_model].

        Returns:
            [n d_vocab].

        Raises:
            SubjectError: The model never calls its head, or does more than norm the stream before it.
        """
        return self._linear_end()(vectors, self.model.get_output_embeddings().weight.detach())  # type: ignore[operator,union-attr]

    @checked(x=floats)
    def frozen_end(self, x: Tensor) -> End:
        """What makes logits of one row of the stream after the last block, the scale of the norm frozen.

        Args:
            x: [d_model].

        Raises:
            SubjectError: The model never calls its head, or does more than norm the stream before it.
            ShapeError: The row is of another width.
        """
        if x.shape != (self.d_model,):
            message = f"A row of the stream must be [{self.d_model}]. Got {list(x.shape)}. Pass one row."
            raise ShapeError(message)
        return end_at(self, self._linear_end(), x.double().cpu())

    def _linear_end(self) -> Tail:
        """What follows the stream, but for the scale of its norm, measured once for the weights."""
        state = weights(self.model)
        if self._tail is None or self._tail[0] != state:
            self._tail = (state, measure(self))
        return self._tail[1]

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """(start, end) characters of each token of `to_tokens(text)`; (0, 0) for BOS. Needs a fast
        tokenizer."""
        ids = self.to_tokens(text)
        found = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        own = [tuple(pair) for pair in found["offset_mapping"]]
        return [(0, 0)] * (len(ids) - len(own)) + own

    def hooks(self, *, bridge: bool = False) -> list[str]:
        """Every hook point that is a module's, in the order of the pass; with bridge=True the bridge's
        too."""
        return [*self._arch.points, *(bridge_points(self.n_layers, self._arch.rotary) if bridge else [])]

    def hook_point(self, name: HookPoint | str) -> HookPoint:
        """The HookPoint of a name, n_heads filled where heads are concatenated.

        Raises:
            HookError: It is unknown.
        """
        hook = HookPoint.of(name)
        self._site(hook)
        heads = self.n_heads if hook.module.endswith(("attn.hook_z", "hook_q", "hook_rot_q")) else None
        if hook.module.endswith(("attn.hook_k", "attn.hook_v", "hook_rot_k")):
            heads = getattr(self._arch.config, "num_key_value_heads", None) or self.n_heads
        return HookPoint(hook.module, n_heads=heads)

    def width(self, hook: HookPoint | str) -> int:
        """Size of the last axis at a hook point, heads concatenated.

        Raises:
            HookError: The hook point is unknown, not met in a pass, or has no width.
        """
        name = HookPoint.of(hook).module
        if is_bridge_point(name, self.n_layers) and is_square(name):
            msg = (
                "A width is needed of [samples, positions, width] activations. "
                f"Got {name!r}, which is [samples, heads, query, key]. "
                "Read it with run(), or choose a hook point of the stream or of hook_z."
            )
            raise HookError(msg)
        return super().width(hook)

    @checked(bos=flag)
    def to_tokens(self, text: str, bos: bool = True) -> list[int]:
        """Token ids of a text.

        Args:
            text: Any.
            bos: Whether the BOS token (if the tokenizer has one) stands first, exactly once.
        """
        return encode(self.tokenizer, text, self.bos_id if bos else None)

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids of the tokenizer's special tokens."""
        return frozenset(self.tokenizer.all_special_ids)

    @checked(ids=sequence)
    def token_strings(self, ids: Sequence[int]) -> list[str]:
        """Readable text of each token alone; together they show the text.

        Raises:
            RangeError: An id outside of the vocabulary.
        """
        if not len(ids):
            return []
        return [self._text(i) for i in check_ids(ids, max(self.d_vocab, len(self.tokenizer))).tolist()]

    @checked(truncate=flag)
    def prepare(self, raw: Sequence[str] | str, truncate: bool = False) -> Inputs:
        """Texts to ids [samples, positions], padded on the right; BOS first exactly once.

        Args:
            raw: Texts, or one.
            truncate: Cut texts longer than the context of n_ctx tokens (BOS included) instead of refusing
                them.

        Raises:
            CorpusError: An empty list, an empty or non-string text, or a text longer than the context.
        """
        rows = [self.to_tokens(text) for text in check_texts(raw)]
        if truncate:
            rows = [ids[: self.n_ctx] for ids in rows]
        return self.prepare_tokens(rows)

    def prepare_tokens(
        self, rows: Sequence[Sequence[int]], segments: Sequence[Sequence[int]] | None = None
    ) -> Inputs:
        """Lists of token ids to padded inputs [samples, positions].

        Args:
            rows: Ids of each sample; BOS is theirs to hold.
            segments: For each token a number; every run of equal numbers is read as if it were alone, which
                is measured on the model at the first use.

        Raises:
            CorpusError: There is no sample, one is empty or longer than the context, or has other segments
                than one for each token.
            RangeError: An id outside of the vocabulary.
            SubjectError: Segments, where they would change what is read.
        """
        inputs = self.padded(rows, segments)
        if segments is not None:
            self._with_masks(bridged=False)
        return inputs

    def padded(
        self, rows: Sequence[Sequence[int]], segments: Sequence[Sequence[int]] | None = None
    ) -> Inputs:
        """As `prepare_tokens`, without the measurement.

        Args:
            rows: Ids of each sample.
            segments: For each token a number, or None.

        Raises:
            CorpusError: There is no sample, one is empty or longer than the context, or has other segments
                than one for each token.
            RangeError: An id outside of the vocabulary.
        """
        if not is_listed(rows):
            msg = f"Token ids must be a list of int for each sample. Got {short(rows)}. Pass e.g. [[5, 6]]."
            raise CorpusError(msg)
        lists = [check_ids(ids, self.d_vocab) for ids in rows]
        if not lists:
            msg = "Token ids must not be an empty list. Got []. Pass at least one sample."
            raise CorpusError(msg)
        lengths = np.array([len(ids) for ids in lists], dtype=np.int64)
        for i in np.flatnonzero(lengths > self.n_ctx)[:1]:
            msg = (
                f"A text must fit the model's context of {self.n_ctx} tokens. "
                f"Got {lengths[i]} tokens in sample {i}: {''.join(self.token_strings(lists[i][:12]))!r}... "
                "Split it into documents, or cut it: prepare(texts, truncate=True)."
            )
            raise CorpusError(msg)
        ids = np.zeros((len(lists), int(lengths.max())), dtype=np.int64)
        for row, values in enumerate(lists):
            ids[row, : len(values)] = values
        mask = np.arange(ids.shape[1]) < lengths[:, None]
        data = {"input_ids": torch.from_numpy(ids)}
        if segments is None:
            data["attention_mask"] = torch.from_numpy(mask).long()
        else:
            data["position_ids"] = restarting(check_segments(segments, lengths.tolist()), ids.shape[1])
        bos = -1 if self.bos_id is None else self.bos_id
        special = mask & np.isin(ids, list(self.special_ids))
        return Inputs(data, lengths, counted=mask & (ids != bos), special=special)

    def _with_masks(self, bridged: bool) -> bool:
        """Whether segments need masks beside positions that start anew, in each of the two ways through the
        model. Measured once. Raises SubjectError where neither keeps them alone."""
        last = f"blocks.{self.n_layers - 1}.{'attn.hook_q' if bridged else 'hook_resid_post'}"
        with self._lock:
            if bridged not in self._masks:
                try:
                    for self._masks[bridged] in (False, True):  # the measurement comes this way itself
                        if (why := difference(self, last)) is None:
                            return self._masks[bridged]
                except SubjectError:
                    del self._masks[bridged]
                    raise
                del self._masks[bridged]
                raise SubjectError(why)
            return self._masks[bridged]

    @checked(inputs=prepared)
    def label(self, inputs: Inputs, sample: int, position: int) -> str:
        """The token's text.

        Args:
            inputs: What `prepare` gave.
            sample: Its number, from 0.
            position: In the sample, from 0.

        Raises:
            RangeError: Outside of the inputs.
        """
        ids = inputs.data["input_ids"]
        numbers = is_integer(sample) and is_integer(position)
        if not (numbers and 0 <= sample < ids.shape[0] and 0 <= position < ids.shape[1]):
            msg = (
                f"A row must lie in {list(ids.shape)} (samples, positions). "
                f"Got ({sample}, {position}). Pass a row of these inputs."
            )
            raise RangeError(msg)
        return self._text(int(ids[sample, position]))

    def _site(self, hook: HookPoint) -> Site:
        name, call = hook.module, hook.call
        site = self._arch.points.get(name)
        if site is None and is_bridge_point(name, self.n_layers):
            site = _BRIDGED
        if site is not None and call not in (None, 0, "all"):
            msg = (
                f"A call must be one that the pass makes. Got {hook.name!r}, a hook point that a language "
                f"model meets once. Pass {name!r}."
            )
            raise HookError(msg)
        if site is not None:
            return site
        if why := self._arch.missing.get(name):
            msg = (
                f"{name!r} does not exist in {type(self.model).__name__}: {why}. "
                "Use hook_resid_pre or hook_resid_post of the same block."
            )
            raise HookError(msg)
        msg = (
            f"A hook point must be one of this model's. Got {hook.name!r}. "
            f"{nearest(name, self.hooks(bridge=True))}subject.hooks() lists them ({self.n_layers} "
            "blocks)."
        )
        raise HookError(msg)

    def _forward(
        self,
        inputs: Inputs,
        reads: list[HookPoint],
        edits: list[tuple[HookPoint, EditFn]],
        output: bool,
        grad: bool,
    ) -> Passed:
        if self.module.training:
            self.module.eval()
        data = self._to_device(inputs.data)
        bridged = any(self._site(h) is _BRIDGED for h in (*reads, *(h for h, _ in edits)))
        if "position_ids" in data and self._with_masks(bridged):
            data["attention_mask"] = masks(self.module, data["position_ids"])
        if bridged:
            if id(self.module) in LIVE:
                message = (
                    "What is applied to a model, or spliced into it, holds for passes through its modules. "
                    "Got a pass through TransformerBridge. Leave the context first, or name points out of "
                    "subject.hooks()."
                )
                raise HookError(message)
            if self._bridge is None or not self._bridge.is_current(self.module):
                self._bridge = Bridge(self.module, self.tokenizer, self.device)
            return self._bridge.forward(inputs, data, reads, edits, output=output, grad=grad)
        return run_hooked(
            lambda: self.module(**data, use_cache=False),
            plan(reads, edits, self._site),
            self._view(inputs),
            inputs,
            output=output,
            grad=grad,
        )

    def _view(self, inputs: Inputs) -> View:
        samples, positions = next(iter(inputs.data.values())).shape[:2]
        return stream_view(samples, positions)

    def _example(self, hook: HookPoint | None, inputs: Inputs | None) -> Inputs:
        n = min(6, self.n_ctx)
        first = 0 if self.bos_id is None else self.bos_id
        ids = [first, *((first + 1 + 7 * i) % self.d_vocab for i in range(n - 1))]
        return self.prepare_tokens([ids])

    def _architecture(self) -> Any:
        return [type(self.model).__name__, config_facts(self.model.config)]


def _call(model: Any, method: str) -> Any:
    return getattr(model, method)() if hasattr(model, method) else None


def _refuse(model: nn.Module, got: str) -> NoReturn:
    msg = (
        f"A language model needs output embeddings and its tokenizer. Got {type(model).__name__} with {got}. "
        "Load it by AutoModelForCausalLM and AutoTokenizer, or by saelab.load_subject. Without texts, "
        "saelab.TorchModule(model) reads any module at its modules' paths."
    )
    raise SubjectError(msg)


_BRIDGED = Site(nn.Identity())


def _project_out(model: nn.Module) -> nn.Linear | None:
    """OPT-350m narrows the stream before the unembedding."""
    return next(
        (m for name, m in model.named_modules() if name.endswith("project_out") and m is not None), None
    )  # type: ignore[return-value]


__all__ = ["LanguageModel"]
