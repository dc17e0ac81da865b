"""Whether every causal language model family of transformers is read right, tiny and with random weights.

python benchmarks/families.py [FAMILY ...]

For each: the identities of the residual stream at every hook point that is offered, the direct effect on the
logits beside central differences of the model's own last steps, and documents that share a block beside the
same alone. Ends with 1 where anything is neither right nor refused by name.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import families
import subjects_zoo as zoo

import saelab
from saelab.subjects import LanguageModel
from saelab.types import HookError, SaelabError

TEXTS = ["Once upon a time there was a little dog named Tim.", "Lily saw a red ball and ran.", "The sun."]


def streams(subject: LanguageModel) -> float:
    """The largest error of an identity, relative to the largest value of the stream."""
    inputs, known, worst = subject.prepare(TEXTS[:1]), set(subject.hooks()), 0.0
    for i in range(subject.n_layers):
        at: dict[str, Any] = {}
        for name in ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post"):
            hook = f"blocks.{i}.hook_{name}"
            if hook in known:
                try:
                    at[name] = subject.run(inputs, read=hook).acts[hook]
                except HookError:  # dead here, which is a refusal
                    continue
        sums = [("resid_pre", "attn_out", "resid_mid"), ("resid_mid", "mlp_out", "resid_post")]
        if "resid_mid" not in at:
            sums = [("resid_pre", "attn_out", "mlp_out", "resid_post")]
        for *parts, total in sums:
            if {*parts, total} <= set(at):
                error = sum(at[p] for p in parts) - at[total]
                worst = max(worst, float(error.abs().max() / at[total].abs().max()))
    return worst


def direct(subject: LanguageModel) -> float:
    """Relative difference of the direct effect from central differences at a stream that keeps its length."""
    draw = torch.Generator().manual_seed(3)
    d = subject.width(f"blocks.{subject.n_layers - 1}.hook_resid_post")
    x = torch.randn(d, generator=draw).double()
    x = x - x.mean()
    x = x / x.square().mean().sqrt()
    v = torch.randn(d, generator=draw).double() + 0.5
    v = v - (v @ x) / (x @ x) * x
    hook, one = f"blocks.{subject.n_layers - 1}.hook_resid_post", subject.prepare_tokens([[1]])

    def logits(stream: torch.Tensor) -> torch.Tensor:
        edit = (hook, lambda acts: stream.to(acts.dtype).expand_as(acts).clone())
        return subject.run(one, edits=[edit]).output[0, 0].double()  # type: ignore[index]

    expected = (logits(x + 1e-2 * v) - logits(x - 1e-2 * v)) / 2e-2
    return float((subject.residual_to_logits(v[None])[0] - expected).norm() / expected.norm())


def blocks(subject: LanguageModel) -> float:
    """Relative difference of the rows of documents that share a block from those of each alone."""
    hook = f"blocks.{subject.n_layers - 1}.hook_resid_post"
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for packing in ("document", "blocks_masked"):
            out = f"{folder}/{packing}"
            store = saelab.harvest(subject, TEXTS, [hook], out, packing=packing, progress=False)
            found.append(torch.as_tensor(store.acts(np.arange(len(store)), hook)).float())
    return float(((found[0] - found[1]).norm(dim=1) / found[0].norm(dim=1)).max())


CHECKS: dict[str, tuple[Callable[[LanguageModel], float], float]] = {
    "streams": (streams, 1e-4),
    "direct": (direct, 5e-3),
    "blocks": (blocks, 2e-3),
}


def main() -> None:
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    total: dict[str, Counter[str]] = {name: Counter() for name in ("load", *CHECKS)}
    for family in sys.argv[1:] or families.names():
        model = families.build(family)
        if model is None:
            total["load"]["not built"] += 1
            continue
        for name in ("final_logit_softcapping", "logits_soft_cap"):
            if isinstance(getattr(model.config, name, None), float):
                setattr(model.config, name, 1e6)
        line = []
        try:
            tokenizer = zoo.byte_tokenizer()
            tokenizer.model_max_length = 64
            subject = LanguageModel(model, tokenizer)
            total["load"]["right"] += 1
        except SaelabError as error:
            total["load"]["refused"] += 1
            print(f"{family:24} refused: {str(error)[:110]}", flush=True)
            continue
        except Exception as error:
            total["load"]["WRONG"] += 1
            print(f"{family:24} RAW {type(error).__name__}: {str(error)[:110]}", flush=True)
            continue
        for name, (check, bar) in CHECKS.items():
            try:
                value = check(subject)
                verdict = "right" if value <= bar else "WRONG"
                line.append(f"{name} {verdict} {value:.1g}")
            except SaelabError:
                verdict = "refused"
                line.append(f"{name} refused")
            except Exception as error:
                verdict = "WRONG"
                line.append(f"{name} RAW {type(error).__name__}: {str(error)[:80]}")
            total[name][verdict] += 1
        print(f"{family:24} {'  '.join(line)}", flush=True)
    for name, counts in total.items():
        print(f"{name:8} " + ", ".join(f"{n} {verdict}" for verdict, n in sorted(counts.items())))
    sys.exit(any(counts["WRONG"] for counts in total.values()))


if __name__ == "__main__":
    main()
