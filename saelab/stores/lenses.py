"""The logit lens of a store's latents, kept beside it so that a card needs no model.

`.logit_lens.safetensors` in the store's folder is no part of the store: it is derived from the SAE and the
subject whose fingerprints it names, is ignored where they are others or anything in it is odd, and is made
anew. Where the folder cannot be written, or is one that was installed, it lies in the user's cache.

Tensors, m latents, n tokens on each side: `latents` int32 [m], ascending; `tokens` int32 [m 2n], the n that
it raises most and then the n that it lowers most, as numbers in `text`, uint16 where these are few enough;
`logits` float32 [m 2n]; `spread` float32 [m]; `text` uint8, a JSON list of strings in UTF-8. Metadata:
`saelab`, JSON of format, version, sae, subject and applies, false where no latent has a lens (one entry,
since safetensors writes several in any order).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from saelab.config import is_unicode
from saelab.files import new_file, parse_json
from saelab.stores import derived
from saelab.types import FormatError

if TYPE_CHECKING:
    from saelab.stores.features import FeatureStore

NAME = ".logit_lens.safetensors"
FORMAT, VERSION = "saelab-logit-lens", "1"
MAX_BYTES = 2**30
_DTYPES = {
    "latents": ("I32",),
    "tokens": ("I32", "U16"),
    "logits": ("F32",),
    "spread": ("F32",),
    "text": ("U8",),
}


class Lens(NamedTuple):
    """The direct effect of one unit of a latent on the logits."""

    top: tuple[tuple[str, float], ...]
    """(token, logit), largest first"""
    bottom: tuple[tuple[str, float], ...]
    """(token, logit), smallest first"""
    spread: float
    """standard deviation over the vocabulary; NaN where an export did not say it"""


class Lenses(NamedTuple):
    """The lenses of some latents."""

    latents: np.ndarray
    """int32 [m], ascending"""
    tokens: np.ndarray
    """int32 [m 2n]: numbers in `text`, of what it raises most and then of what it lowers most"""
    logits: np.ndarray
    """float32 [m 2n]"""
    spread: np.ndarray
    """float32 [m]"""
    text: list[str]
    applies: bool = True
    """False where the SAE's hook point has no direct path to logits: then there are none of any latent."""

    @classmethod
    def none(cls, applies: bool = True) -> Lenses:
        """Of no latent."""
        i, f = np.empty(0, np.int32), np.empty(0, np.float32)
        return cls(i, np.empty((0, 0), np.int32), np.empty((0, 0), np.float32), f, [], applies)

    def of(self, latent: int) -> Lens | None:
        """That of a latent, None where it is not among them."""
        at = int(np.searchsorted(self.latents, latent))
        if at == len(self.latents) or self.latents[at] != latent:
            return None
        texts = [self.text[i] for i in self.tokens[at].tolist()]
        pairs = tuple(zip(texts, self.logits[at].tolist(), strict=True))
        n = len(pairs) // 2
        return Lens(pairs[:n], pairs[n:], float(self.spread[at]))

    def lacks(self, latents: list[int]) -> list[int]:
        """Those that could have a lens and are not among these."""
        if not self.applies:
            return []
        wanted = np.asarray(latents, np.int64)
        return wanted[~np.isin(wanted, self.latents)].tolist()

    def with_(self, more: Lenses) -> Lenses:
        """Both; of a latent that both have, the one of `more`."""
        if not len(self.latents) or not more.applies:
            return more
        stays = ~np.isin(self.latents, more.latents)
        number = {token: i for i, token in enumerate(dict.fromkeys([*self.text, *more.text]))}
        theirs = np.array([number[token] for token in more.text], np.int32)
        latents = np.concatenate([self.latents[stays], more.latents])
        order = np.argsort(latents)
        tokens = np.concatenate([self.tokens[stays], theirs[more.tokens]])
        logits = np.concatenate([self.logits[stays], more.logits])
        spread = np.concatenate([self.spread[stays], more.spread])
        return Lenses(latents[order], tokens[order], logits[order], spread[order], list(number))


def read(store: FeatureStore) -> Lenses:
    """What is kept of a store's latents: of none, where nothing is, or nothing that is sound and of this SAE
    and this subject."""
    for path in derived.places(store.folder, NAME, _cached(store)):
        with contextlib.suppress(OSError):
            if 0 < path.stat().st_size <= MAX_BYTES and (found := _read(path, store)) is not None:
                return found
    return Lenses.none()


def keep(store: FeatureStore, lenses: Lenses, *, shipped: bool = False) -> None:
    """Write them in place of what was kept: beside the store, else into the user's cache.

    Args:
        store: Of the latents.
        lenses: Of some or all.
        shipped: Write beside the store, though it is part of an installation.
    """
    from safetensors.numpy import save_file

    tensors = {name: np.ascontiguousarray(getattr(lenses, name)) for name in _DTYPES if name != "text"}
    if len(lenses.text) <= 2**16:
        tensors["tokens"] = tensors["tokens"].astype(np.uint16)
    tensors["text"] = np.frombuffer(json.dumps(lenses.text).encode(), np.uint8)
    said = {"saelab": json.dumps({**_stamp(store), "applies": lenses.applies}, sort_keys=True)}
    if shipped:
        with contextlib.suppress(OSError), new_file(store.folder / NAME) as temporary:
            save_file(tensors, temporary, said)
        return
    derived.write(store.folder, NAME, _cached(store), lambda path: save_file(tensors, path, said))


def _cached(store: FeatureStore) -> str:
    key = hashlib.sha256(json.dumps(_stamp(store), sort_keys=True).encode()).hexdigest()
    return f"logit_lens/{key}.safetensors"


def _stamp(store: FeatureStore) -> dict[str, str]:
    fingerprints = {name: str(store.manifest[name]) for name in ("sae", "subject")}
    return {"format": FORMAT, "version": VERSION, **fingerprints}


def _read(path: Path, store: FeatureStore) -> Lenses | None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="np") as file:
            said = parse_json((file.metadata() or {}).get("saelab", "").encode(), path)
            if {name: said.get(name) for name in _stamp(store)} != _stamp(store):
                return None
            if set(file.keys()) != set(_DTYPES):
                return None
            if any(file.get_slice(name).get_dtype() not in known for name, known in _DTYPES.items()):
                return None
            found: dict[str, Any] = {name: file.get_tensor(name) for name in _DTYPES}
        found["tokens"] = found["tokens"].astype(np.int32)
        found["text"] = parse_json(found["text"].tobytes(), path, of=list)
        lenses = Lenses(**found, applies=said.get("applies") is not False)
        return lenses if _is_sound(lenses, store.n_latents) else None
    except (SafetensorError, FormatError, ValueError, OverflowError):
        return None


def _is_sound(lenses: Lenses, n_latents: int) -> bool:
    """Whether every number is in its range; then nothing that is read of them can fail."""
    latents, tokens, logits, spread, text, _ = lenses
    m, wide = len(latents), tokens.shape[-1] if tokens.ndim == 2 else 1
    if latents.ndim != 1 or spread.shape != (m,) or tokens.shape != (m, wide) or logits.shape != (m, wide):
        return False
    if wide % 2 or not np.isfinite(logits).all() or np.isinf(spread).any():
        return False
    if m and not (latents[0] >= 0 and latents[-1] < n_latents and (np.diff(latents) > 0).all()):
        return False
    if tokens.size and not (tokens.min() >= 0 and tokens.max() < len(text)):
        return False
    return all(isinstance(token, str) and is_unicode(token) for token in text)
