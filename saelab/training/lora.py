"""A model that learns to live with an SAE: low-rank adapters of the blocks after it (Chen et al. 2025, arXiv
2501.19406).

The SAE and the model's weights stay as they are. With the reconstruction in place of the rows, adapters

    W' = W + alpha / rank B A,    A [rank d_in], B [d_out rank] = 0 at first

of the linear maps after it are trained by KL(p || q) of what the model says as it is (p) and of what it says
with SAE and adapters (q). The adapters are those of peft, whose files other tools read.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from safetensors import SafetensorError

from saelab.arguments import a_subject, an_integer, checked, flag, maybe, real
from saelab.errors import fitting, needing
from saelab.files import Stamp, new_folder, path_of, write_json, writing
from saelab.harvesting.batches import check_hooks
from saelab.interventions.reconstruction import Reconstruct
from saelab.progress import new_bar
from saelab.sae.model import SAE
from saelab.subjects.bridge import twin_of
from saelab.subjects.language import LanguageModel
from saelab.subjects.reading import How
from saelab.training.arguments import made_of
from saelab.training.interrupt import Interrupt
from saelab.training.model_passes import Passes, Place
from saelab.training.moving import Schedule
from saelab.types import ConfigError, FormatError, NonFiniteError, SubjectError, short

if TYPE_CHECKING:
    import pandas as pd

    from saelab.types import Subject

STAMP = Stamp("saelab-adapted", 1, remedy="Pass a folder that Adapted.save wrote.")
FILE = "saelab.json"
_LINEAR = ("Linear", "Conv1D")
_BLOCK = re.compile(r"blocks\.(\d+)\.")


class Adapting(NamedTuple):
    """One step of `adapt`, measured before its update."""

    step: int
    """From 1."""
    kl: float
    """Nats, a mean over the positions of its pass where something is foretold."""
    lr: float
    """Learning rate."""


@dataclass(eq=False, repr=False)
class Adapted:
    """What `adapt` gives.

    `saelab.evaluate(sae, adapted.subject, corpus)` measures the SAE in the adapted model: its "loss with the
    SAE" beside that of `saelab.evaluate(sae, subject, corpus)` says what the adapters bring, its clean loss
    what they cost where the SAE is not spliced. What the model says before the SAE is the same, and so is the
    FVU.

    Attributes:
        subject: The adapted model; its weights are shared with the one that was given, which is as it was.
        sae: The SAE.
        history: A line for each step.
        rank: Of the adapters.
        alpha: Their scale, times the rank.
    """

    subject: LanguageModel
    sae: SAE
    history: list[Adapting]
    rank: int
    alpha: float
    _held: Any
    _base: str

    def __repr__(self) -> str:
        last = f", KL {self.history[-1].kl:.4f}" if self.history else ""
        return f"Adapted(rank {self.rank} around {self.sae.config.title}, {len(self.history)} steps{last})"

    @property
    def n_parameters(self) -> int:
        """Numbers of all adapters."""
        return sum(p.numel() for n, p in self.subject.model.named_parameters() if "lora_" in n)

    def to_frame(self) -> pd.DataFrame:
        """The history: step, kl (nats), lr."""
        import pandas as pd

        return pd.DataFrame(self.history, columns=list(Adapting._fields))

    def save(self, folder: str | Path) -> None:
        """Write peft's files (`PeftModel.from_pretrained(model, folder)` reads them) and one of saelab's.

        Args:
            folder: It is written whole or not at all.

        Raises:
            StoreError: It cannot be written.
        """
        folder = path_of(folder, "folder")
        told = {"rank": self.rank, "alpha": self.alpha, "sae": self.sae.fingerprint()}
        told |= {"subject": self._base, "history": [list(line) for line in self.history]}
        with writing(folder), new_folder(folder) as temporary:
            self._held.save_pretrained(temporary, save_embedding_layers=False)
            (temporary / "README.md").unlink(missing_ok=True)
            write_json(temporary / FILE, {**STAMP.fields(), **told})

    @classmethod
    @checked(subject=a_subject)
    def load(cls, folder: str | Path, subject: Subject, sae: SAE) -> Adapted:
        """What `save` wrote.

        Args:
            folder: Where.
            subject: The model that was adapted.
            sae: The SAE around which it was.

        Raises:
            ConfigError: The model or the SAE is another one.
            FormatError: The files are damaged.
            StoreError: They cannot be read.
        """
        folder = path_of(folder, "folder")
        told = STAMP.read(folder / FILE, "adapters of a model")
        for name, given in (("subject", subject.fingerprint()), ("sae", sae.fingerprint())):
            if told.get(name) != given:
                message = (
                    f"Adapters are read for the {name} that they were trained with, {short(told.get(name))}. "
                    f"Got {given}. Pass that one."
                )
                raise ConfigError(message)
        try:
            history = [Adapting(int(step), float(kl), float(lr)) for step, kl, lr in told["history"]]
            rank, alpha = int(told["rank"]), float(told["alpha"])
            with _quietly():
                held = _peft().PeftModel.from_pretrained(twin_of(_language(subject).model), str(folder))
        except (KeyError, TypeError, ValueError, RuntimeError, OSError, SafetensorError) as error:
            message = f"Adapters must be whole. Got {folder}: {short(error)}. Adapt the model again."
            raise FormatError(message) from error
        return cls(_within(subject, held), sae, history, rank, alpha, held, subject.fingerprint())


@fitting("A pass", "Pass a lower documents, or rank.")
@checked(
    subject=a_subject, steps=an_integer(1), rank=an_integer(1), alpha=maybe(real(0.0)), lr=real(0.0),
    documents=an_integer(1), seed=an_integer(0), progress=flag,
)  # fmt: skip
def adapt(
    sae: SAE,
    subject: Subject,
    corpus: Any,
    *,
    steps: int,
    rank: int = 16,
    alpha: float | None = None,
    lr: float = 1e-3,
    documents: int = 16,
    packing: str = "document",
    long: str = "split",
    schedule: str | Schedule = "linear",
    seed: int = 0,
    progress: bool = True,
) -> Adapted:
    """Adapt a model to an SAE in it, so that less of what it says is lost with the reconstruction.

    Every linear map of the blocks after the SAE's gets an adapter (Adam, gradients clipped at norm 1); each
    step is a pass of `documents`. The subject that is given stays as it is.

    Args:
        sae: An autoencoder or a transcoder with its hook point.
        subject: A Hugging Face language model.
        corpus: What it reads.
        steps: Updates. Ctrl-C ends them; what was learnt is given back.
        rank: Of the adapters.
        alpha: Their scale times the rank; by default the rank.
        lr: The highest learning rate.
        documents: Of a pass.
        packing: See `saelab.harvest`.
        long: See `saelab.harvest`.
        schedule: See `saelab.train`.
        seed: Of A, and of the order.
        progress: Show a bar.

    Returns:
        The adapted model, and how the KL fell.

    Raises:
        ConfigError: An argument is out of range, or no block comes after the SAE.
        HookError: The subject has no such hook point.
        SubjectError: It is no Hugging Face language model.
        CorpusError: There are no rows.
        NonFiniteError: Training diverges.
        MissingDependency: peft is not installed: pip install 'saelab[lora]'.
        DeviceMemoryError: A pass does not fit into memory.
    """
    peft, model = _peft(), _language(subject)
    edit = Reconstruct(sae)
    texts = subject.corpus(corpus)
    hooks = check_hooks(subject, [str(hook) for hook in edit.hooks], texts)
    plan = made_of("schedule", schedule, Schedule)
    alpha = float(rank) if alpha is None else alpha
    names = _linear_after(model, hooks[-1].name)
    passes = Passes(subject, texts, hooks, How(documents, packing, long), seed, probabilities=True)
    asked = peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=names)
    trained = [(p, p.requires_grad) for p in model.model.parameters()]
    with torch.random.fork_rng(devices=[]), _quietly():
        torch.manual_seed(seed)
        held = peft.get_peft_model(twin_of(model.model), asked)
    for parameter, before in trained:  # which are the given model's own
        parameter.requires_grad_(before)
    adapted = Adapted(_within(subject, held), sae, [], rank, alpha, held, subject.fingerprint())
    _train(adapted, edit, passes, steps, lr, plan, progress)
    return adapted


def _train(
    adapted: Adapted, edit: Reconstruct, passes: Passes, steps: int, lr: float, plan: Schedule, progress: bool
) -> None:
    moved = [p for n, p in adapted.subject.model.named_parameters() if "lora_" in n]
    for parameter in moved:
        parameter.requires_grad_(True)
    optimizer = torch.optim.Adam(moved, lr=lr)
    bar = new_bar(total=steps, desc="adapt", unit=" passes", disable=not progress)
    with bar, Interrupt() as interrupt, contextlib.suppress(KeyboardInterrupt):
        for step, (each, _) in enumerate(itertools.islice(passes.after(Place()), steps)):
            with interrupt.held():
                loss = each.kl(adapted.subject.run(each.inputs, edits=[edit], grad=True).output)
                value, rate = float(loss.detach()), lr * plan.factor(step, steps)
                if not math.isfinite(value):
                    message = f"The KL must stay finite. Got {value} at step {step + 1}. Pass lr<{lr:.2g}."
                    raise NonFiniteError(message)
                for parameter, grad in zip(moved, torch.autograd.grad(loss, moved), strict=True):
                    parameter.grad = grad
                torch.nn.utils.clip_grad_norm_(moved, 1.0)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                optimizer.step()
                adapted.history.append(Adapting(step + 1, value, rate))
            bar.update()
    for parameter in moved:
        parameter.requires_grad_(False)
        parameter.grad = None


def _linear_after(model: LanguageModel, hook: str) -> list[str]:
    """Paths of the linear maps of the blocks after a hook point's. Raises ConfigError where there are
    none."""
    found = _BLOCK.match(hook)
    first = int(found[1]) + 1 if found else 0 if hook == "hook_embed" else model.n_layers
    blocks = model.layers[first:]
    inside = {id(m) for block in blocks for m in block.modules() if type(m).__name__ in _LINEAR}
    names = [name for name, module in model.model.named_modules() if id(module) in inside]
    if not names:
        message = (
            f"Adapters are of the blocks after the SAE. Got an SAE at {hook!r} of {model.n_layers} blocks. "
            "Pass one of an earlier block."
        )
        raise ConfigError(message)
    return names


def _language(subject: Any) -> LanguageModel:
    if not isinstance(subject, LanguageModel):
        message = (
            f"Adapters are put into a Hugging Face language model. Got {type(subject).__name__}. Pass "
            "saelab.load_subject(...) of one."
        )
        raise SubjectError(message)
    return subject


def _within(subject: Any, held: Any) -> LanguageModel:
    """The subject of a model with adapters, which are its own and nobody trains."""
    return LanguageModel(held.get_base_model(), subject.tokenizer, subject.n_ctx)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without peft's words on what it sets right itself, and transformers' on what peft asks for."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "fan_in_fan_out")
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        yield


def _peft() -> Any:
    with needing("An adapter", "peft", "'saelab[lora]'"):
        import peft
    return peft


__all__ = ["Adapted", "Adapting", "adapt"]
