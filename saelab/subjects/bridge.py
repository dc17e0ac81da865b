"""Hook points that are no module's (patterns, scores, q, k, v), served on demand by TransformerBridge.

The bridge is booted on a copy of the model that shares its weights, since booting forces eager attention and
replaces submodules; the model that users hold stays as it is.
"""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from saelab.errors import needing
from saelab.subjects.hooks import EditFn, Site, View, plan, stream_view, within
from saelab.subjects.passes import Passed, Visit, run_visited
from saelab.types import HookError, HookPoint, Inputs, SubjectError

KINDS = ("hook_q", "hook_k", "hook_v", "hook_rot_q", "hook_rot_k", "hook_attn_scores", "hook_pattern")
_POINT = re.compile(rf"^blocks\.(\d+)\.attn\.({'|'.join(KINDS)})$")
# [samples, heads, query, key] stays as it is; every other point has its heads concatenated
_SQUARE = ("hook_attn_scores", "hook_pattern")
_HEADS = View(to=lambda t: t.flatten(2) if t.ndim == 4 else t, back=lambda c, own: c.reshape(own.shape))
_OWN = View(to=lambda t: t, back=lambda c, own: c)


def is_bridge_point(name: str, n_layers: int) -> bool:
    """Whether a name is one of those that only the bridge can read, of a layer that exists."""
    match = _POINT.match(name)
    return bool(match) and int(match[1]) < n_layers


def is_square(name: str) -> bool:
    """Whether a point is [samples, heads, query, key] and so has no width."""
    return name.endswith(_SQUARE)


def bridge_points(n_layers: int, rotary: bool) -> list[str]:
    """The names that are asked of the bridge; the rotated ones only in models with rotary positions.

    Which of them can be edited, or exist at all, depends on what the library knows of the architecture.
    """
    kinds = [kind for kind in KINDS if rotary or "_rot_" not in kind]
    return [f"blocks.{i}.attn.{kind}" for i in range(n_layers) for kind in kinds]


class Bridge:
    """A TransformerBridge on a weight-sharing copy of a Hugging Face model.

    Raises MissingDependency without transformer_lens, SubjectError on an architecture unknown to it.
    """

    def __init__(self, model: Any, tokenizer: Any, device: Any) -> None:
        with needing("A pattern, score, q, k or v", "transformer_lens", "'transformer-lens>=3.5,<5'"):
            from transformer_lens.model_bridge import TransformerBridge
        self.weights = weights(model)
        twin = twin_of(model)
        twin.config.architectures = [type(model).__name__]
        words = copy.deepcopy(tokenizer)
        name = getattr(model.config, "_name_or_path", "") or type(model).__name__
        # it gets ids, never text; without this entry it would load the tokenizer anew, from the hub
        words.init_kwargs = {**words.init_kwargs, "name_or_path": name, "add_bos_token": True}
        try:
            self._bridge = TransformerBridge.boot_transformers(
                name, hf_model=twin, tokenizer=words, device=str(device), dtype=model.dtype
            )
        except Exception as error:
            msg = (
                "TransformerBridge must know the architecture to give patterns, scores, q, k and v. "
                f"Got {type(model).__name__}: {error}. Use the hook points of subject.hooks(), which need no "
                "bridge."
            )
            raise SubjectError(msg) from None

        self._bridge.set_use_hook_mlp_in(True)  # without it that point is none

    def is_current(self, model: nn.Module) -> bool:
        """False once the model's weights have changed: the bridge holds copies of some of them."""
        return self.weights == weights(model)

    def forward(
        self,
        inputs: Inputs,
        data: Mapping[str, Tensor],
        reads: list[HookPoint],
        edits: list[tuple[HookPoint, EditFn]],
        *,
        output: bool,
        grad: bool,
    ) -> Passed:
        """As `run_hooked`, every hook point through the bridge. data: of the inputs, on the device."""
        points, names = {}, {}
        flowing = within(stream_view(*data["input_ids"].shape), _HEADS)  # some flatten samples and positions

        def site(hook: HookPoint) -> Site:
            name = hook.module
            if name not in points:
                module = self._bridge.hook_dict.get(name) or self._bridge.get_hook_point(name)
                if module is None:
                    msg = (
                        "A hook point must exist in TransformerBridge's view of the model. "
                        f"Got {name!r}. Read it in a pass without points of the bridge, or choose "
                        "another."
                    )
                    raise HookError(msg)
                in_place = name.endswith("hook_resid_mid")
                points[name] = Site(module, "out", in_place, _OWN if is_square(name) else flowing)
                names[id(module)] = name
            return points[name]

        traffic = plan(reads, edits, site)

        def body(visit: Visit) -> Any:
            def hook(i: int) -> Any:
                def fn(acts: Tensor, hook: Any) -> Tensor | None:
                    flow = visit(i, acts)
                    return None if flow is acts and not grad else flow

                return fn

            hooks = [(names[id(t.site.module)], hook(i)) for i, t in enumerate(traffic)]
            with warnings.catch_warnings():
                # where the library drops an edit it warns; the check of liveness refuses such points instead
                warnings.filterwarnings("ignore", "A hook on .* returned a modified tensor", UserWarning)
                own: dict[str, Any] = {name: value for name, value in data.items() if name != "input_ids"}
                return self._bridge.run_with_hooks(
                    data["input_ids"], fwd_hooks=hooks, return_type="logits", use_cache=False, **own
                )

        return run_visited(body, traffic, _HEADS, inputs, output=output, grad=grad)


def twin_of(model: Any) -> Any:
    """A copy of a model that shares its weights; modules put into it leave the model as it is."""
    return copy.deepcopy(model, {id(t): t for t in (*model.parameters(), *model.buffers())})


def weights(model: nn.Module) -> list[tuple[int, int]]:
    """Of each, where it lies and how often it was written to: another list where any has changed."""
    return [(p.data_ptr(), p._version) for p in model.parameters()]


__all__ = ["Bridge", "bridge_points", "is_bridge_point", "is_square", "twin_of", "weights"]
