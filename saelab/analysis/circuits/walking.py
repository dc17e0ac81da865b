"""Many readings of one text taken back at once through a frozen model, to latents, errors and embeddings.

`saelab.analysis.attention.recursive` follows one reading part by part, as a tree; here all ways from a
reading to a source are summed, as a backward pass through what is linear.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch

from saelab.analysis.attention.frozen import (
    INTO,
    Frozen,
    Place,
    Reading,
    decoder_of,
    encoders_of,
    linear_values,
    place_of,
    refuse_norm,
)
from saelab.analysis.attention.recursive import MLPS
from saelab.analysis.circuits.graphs import GraphNode

if TYPE_CHECKING:
    from torch import Tensor

    from saelab.sae import SAE
    from saelab.subjects.head_maps import Norm

ENTRIES = 2**20
"""Numbers that are carried back at once: 8 MB, about what a processor has at hand."""


class Stand:
    """An SAE in its place of one text: what fires, what it gives, and what it leaves out.

    Args:
        sae: It.
        x: float64 [positions d_in], what it reads.
        y: float64 [positions d_out], what it stands for.
    """

    def __init__(self, sae: SAE, x: Tensor, y: Tensor) -> None:
        self.sae, self.x, self.y = sae, x, y
        self._place(str(sae.hook), str(sae.writes[-1]))
        with torch.no_grad():
            out = sae(x.to(sae.W_enc))
        self.codes, self.pre = (each.double().cpu() for each in (out.codes, out.pre))
        self.latents = [row.nonzero()[:, 0] for row in self.codes]
        found = [decoder_of(sae, row, at) for row, at in zip(x, self.latents, strict=True)]
        self.given = [
            codes[at, None] * rows
            for codes, at, (rows, _) in zip(self.codes, self.latents, found, strict=True)
        ]
        """by position: float64 [active d_out], code times decoder row"""
        self.earlier: list[tuple[tuple[str, int], list[Tensor]]] = []
        """the same of latents that stand elsewhere and write here too"""
        self.bias = torch.stack([bias for _, bias in found])
        self.skip = None
        if sae.W_skip is not None:
            self.skip = (sae.W_skip.detach() * sae.out_scale / sae.input_scale).double().cpu()
        whole = torch.stack([each.sum(0) for each in self.given]) + self.bias
        self.error = y - whole - (0 if self.skip is None else x @ self.skip)

    def _place(self, read: str, written: str) -> None:
        self.read, self.written = read, written
        self.place = None if self.read.endswith(MLPS) else _behind(place_of(self.read))
        """where its latents read, None where they read what no linear way leads to"""
        self.layer = int(self.written.split(".")[1])

    def encoders(self, position: int, latents: Tensor) -> tuple[Tensor, Tensor]:
        """(w [n width], c [n]) of some latents at a position: pre-activation = w . x + c.

        Args:
            position: Of the text.
            latents: int64 [n].
        """
        return encoders_of(self.sae, self.x[position], latents)


def _behind(place: Place) -> Place:
    """The same rows have two names: before a block, and behind the one before it."""
    if place.name == "hook_resid_pre" and place.layer:
        return Place(place.layer - 1, "hook_resid_post")
    return place


class Target(NamedTuple):
    """Readings w . x + c of one position of a place."""

    place: Place
    position: int
    w: Tensor
    """float64 [n width]"""
    constant: Tensor
    """float64 [n]"""
    own: bool = False
    """whether they are of the SAE that stands in this very place, which they do not go through"""


class Columns:
    """Where in a row of edges each source has its place: latents of each SAE by position, then errors, MLPs
    that nothing stands for, and embeddings.

    Args:
        stands: By what they stand for and its layer, as `standing` has them.
        n_layers: Of the model.
        n: Positions.
    """

    def __init__(self, stands: Mapping[tuple[str, int], Stand], n_layers: int, n: int) -> None:
        self.latents: dict[tuple[str, int], list[slice]] = {}
        self.errors: dict[tuple[str, int], slice] = {}
        self.n_latents = 0
        for at, stand in stands.items():
            self.latents[at] = []
            for found in stand.latents:
                self.latents[at].append(slice(self.n_latents, self.n_latents + len(found)))
                self.n_latents += len(found)
        end = self.n_latents
        # an MLP that nothing stands for, and one whose SAE reads what the MLP gives, is where ways end
        plain = [
            ("plain", i) for i in range(n_layers)
            if ("mlp", i) not in stands or stands["mlp", i].place is None
        ]  # fmt: skip
        for at in [*stands, *plain]:
            self.errors[at] = slice(end, end + n)
            end += n
        self.embeddings = slice(end, end + n)
        self.n = end + n


class Walk:
    """How readings of one text are taken back.

    Args:
        frozen: The pass.
        stands: As `standing` has them.
    """

    def __init__(self, frozen: Frozen, stands: Mapping[tuple[str, int], Stand]) -> None:
        self.frozen, self.stands = frozen, stands
        self.n_layers = frozen.subject.n_layers
        self.columns = Columns(stands, self.n_layers, frozen.n)
        self.acts = {name: x.double() for name, x in frozen.acts.items()}
        self.first = self.acts["blocks.0.hook_resid_pre"]
        self.causal = not any(x.triu(1).any() for x in frozen.patterns.values())
        self.most = max(1, ENTRIES // (frozen.n * self.first.shape[1]))
        """readings that go together"""
        self._places = [
            (at, position, i)
            for at, stand in stands.items()
            for position, found in enumerate(stand.latents)
            for i in range(len(found))
        ]

    def places(self) -> list[tuple[tuple[str, int], int, int]]:
        """Of each latent that fires: whose it is, at which position, and which of those that fire there."""
        return self._places

    def positions(self) -> Tensor:
        """int64 [latents that fire]."""
        return torch.tensor([position for _, position, _ in self._places], dtype=torch.int64)

    def pre_of(self, chosen: Tensor) -> Tensor:
        """float32 [n]: the pre-activations that the SAEs compute.

        Args:
            chosen: int64 [n], columns.
        """
        found = []
        for at, position, i in (self._places[j] for j in chosen.tolist()):
            stand = self.stands[at]
            found.append(float(stand.pre[position, stand.latents[position][i]]))
        return torch.tensor(found, dtype=torch.float32)

    def latent_nodes(self, chosen: Tensor) -> list[GraphNode]:
        """The nodes of some latents.

        Args:
            chosen: int64 [n], columns.
        """
        found = []
        for at, position, i in (self._places[j] for j in chosen.tolist()):
            stand = self.stands[at]
            latent = int(stand.latents[position][i])
            value = float(stand.codes[position, latent])
            found.append(GraphNode("latent", stand.written, stand.layer, latent, position, value))
        return found

    def source_nodes(self, tokens: Sequence[str], ids: Sequence[int]) -> list[GraphNode]:
        """The nodes of errors, of MLPs that nothing stands for, and of embeddings.

        Args:
            tokens: Of the text.
            ids: Theirs.
        """
        found, nan = [], float("nan")
        for at in self.columns.errors:
            kind, layer = at
            hook, label = f"blocks.{layer}.hook_mlp_out", f"MLP {layer}"
            if kind != "plain":
                stand = self.stands[at]
                hook, layer, label = stand.written, stand.layer, f"error of {stand.written}"
            elif ("mlp", layer) in self.stands:
                hook, label = f"blocks.{layer}.mlp.hook_in", f"MLP {layer}, as its SAE reads it"
            found += [GraphNode("error", hook, layer, -1, i, nan, label) for i in range(len(tokens))]
        first = "blocks.0.hook_resid_pre"
        pairs = enumerate(zip(ids, tokens, strict=True))
        return found + [GraphNode("embedding", first, -1, token, i, nan, word) for i, (token, word) in pairs]

    def of(self, chosen: Tensor) -> Tensor:
        """Direct effects on some latents' pre-activations, as `rows` gives them.

        Args:
            chosen: int64 [n], columns in order.
        """
        groups: dict[tuple[tuple[str, int], int], list[int]] = {}
        for at, position, i in (self._places[j] for j in chosen.tolist()):
            groups.setdefault((at, position), []).append(i)
        return self.rows([self.of_latents(*where, torch.tensor(some)) for where, some in groups.items()])

    def of_latents(self, at: tuple[str, int], position: int, chosen: Tensor) -> Target | Tensor:
        """The pre-activations of some of an SAE's latents at a position; where they read what no linear way
        leads to, their row of edges.

        Args:
            at: Which SAE.
            position: Of the text.
            chosen: int64, places among those that fire there.
        """
        stand = self.stands[at]
        latents = stand.latents[position][chosen]
        w, constant = stand.encoders(position, latents)
        if stand.place is None:
            row = torch.zeros(len(latents), self.columns.n + 1, dtype=torch.float64)
            row[:, self.columns.errors["plain", at[1]].start + position] = w @ stand.x[position]
            row[:, -1] = constant
            return row
        return Target(stand.place, position, w, constant, stand.read == stand.written)

    def rows(self, targets: Sequence[Target | Tensor]) -> Tensor:
        """Direct effects: float64 [readings, sources + 1], of all readings in order, the constant behind
        them. A row sums to its reading.

        Args:
            targets: Of each either readings, or rows that are known.
        """
        groups: list[list[Target] | Tensor] = []
        for target in targets:
            last = groups[-1] if groups else None
            if not isinstance(target, Target):
                groups.append(target)
            elif isinstance(last, list) and sum(len(e.w) for e in (*last, target)) <= self.most:
                last.append(target)
            else:
                groups.append([target])
        found = [self._back(each) if isinstance(each, list) else each for each in groups]
        return torch.cat(found) if found else torch.zeros(0, self.columns.n + 1, dtype=torch.float64)

    def _back(self, targets: Sequence[Target]) -> Tensor:
        total = sum(len(target.w) for target in targets)
        self.out = torch.zeros(total, self.columns.n + 1, dtype=torch.float64)
        self.entering: dict[tuple[int, str, bool], list[tuple[slice, int, Tensor]]] = {}
        start = 0
        for target in targets:
            at = slice(start, start + len(target.w))
            start = at.stop
            self.out[at, -1] += target.constant
            self._enter_at(at, target)
        # what comes later in the text, or above, has no part in them
        self.n = 1 + max(target.position for target in targets) if self.causal else len(self.first)
        g = torch.zeros(total, self.n, self.first.shape[1], dtype=torch.float64)
        for i in reversed(range(1 + max(target.place.layer for target in targets))):
            g = self._stream(g, i, "post")
            self._mlp(g, i)
            g = self._stream(g, i, "mid")
            g = self._attention(g, i)
            g = self._stream(g, i, "pre")
            if not self.entering and not g.any():  # all of it has come to SAEs
                return self.out
        self.out[:, self._at(self.columns.embeddings)] += (g * self._rows("blocks.0.hook_resid_pre")).sum(-1)
        return self.out

    def _rows(self, hook: str) -> Tensor:
        """float64 [n width]: what was read at a hook point, as far as it counts."""
        return self.acts[hook][: self.n]

    def _at(self, columns: slice) -> slice:
        """Of columns with one for each position those that count."""
        return slice(columns.start, columns.start + self.n)

    def _enter_at(self, at: slice, target: Target) -> None:
        """Note where readings begin: those of what attention or an MLP reads before the norm."""
        (layer, name), position, w, _, own = target
        if name in INTO:
            reading = self.frozen.to_stream(Reading(target.place, position, w))
            (layer, name), w = reading.place, reading.w
            self.out[at, -1] += reading.constant
            own = False
        stage = name if name in ("attn.hook_z", "hook_attn_out") else self.frozen.stage(Place(layer, name))
        self.entering.setdefault((layer, stage, own), []).append((at, position, w))

    def _enter(self, g: Tensor, layer: int, stage: str, own: bool) -> None:
        for at, position, w in self.entering.pop((layer, stage, own), ()):
            g[at, position] += w

    def _stream(self, g: Tensor, i: int, stage: str) -> Tensor:
        """Readings of the stream at a stage of a block, as readings of what it is made of there."""
        self._enter(g, i, stage, own=False)
        if (stage, i) in self.stands:
            self._given((stage, i), g)
            g = torch.zeros_like(g)
        self._enter(g, i, stage, own=True)
        return g

    def _given(self, at: tuple[str, int], g: Tensor) -> None:
        """Edges from an SAE's latents and errors to readings of what it stands for."""
        stand = self.stands[at]
        for source, given in ((at, stand.given), *stand.earlier):
            for position in range(self.n):
                self.out[:, self.columns.latents[source][position]] += g[:, position] @ given[position].t()
        self.out[:, self._at(self.columns.errors[at])] += (g * stand.error[: self.n]).sum(-1)
        self.out[:, -1] += (g * stand.bias[: self.n]).sum((1, 2))

    def _mlp(self, g: Tensor, i: int) -> None:
        """Of what the MLP adds; the skip of a transcoder goes on before it."""
        stand, hook = self.stands.get(("mlp", i)), f"blocks.{i}.hook_mlp_out"
        added = self._rows(hook)
        if stand is None:
            self.out[:, self._at(self.columns.errors["plain", i])] += (g * added).sum(-1)
            return
        if stand.written != hook:  # what it gives before a norm behind it
            g = self._through(self._norm(i, "mlp_out", hook), stand.y[: self.n], added, g, hook)
        self._given(("mlp", i), g)
        if stand.skip is not None:
            assert stand.place is not None
            rows = slice(0, len(g))
            for position, w in enumerate((g @ stand.skip.t()).unbind(1)):
                zero = torch.zeros(len(g), dtype=torch.float64)
                self._enter_at(rows, Target(stand.place, position, w, zero))

    def _attention(self, g: Tensor, i: int) -> Tensor:
        """Of the stream after attention, as readings of the stream before it."""
        frozen, stand = self.frozen, self.stands.get(("attention", i))
        maps, hook = linear_values(frozen.subject, i), f"blocks.{i}.hook_attn_out"
        assert maps.read is not None
        a = g.clone()
        a = self._branch(a, i, "hook_attn_out", stand)
        norm = self._norm(i, "attn_out", hook)
        if norm is not None:
            z = self._rows(f"blocks.{i}.attn.hook_z")
            before = z @ maps.write.flatten(0, 1) + maps.write_bias
            a = self._through(norm, before, self._rows(hook), a, hook)
        self.out[:, -1] += (a @ maps.write_bias).sum(1)
        z = self._branch(a @ maps.write.flatten(0, 1).t(), i, "attn.hook_z", stand)
        pattern = frozen.patterns[i][:, : self.n, : self.n].double()
        heads, groups = len(pattern), maps.read.shape[1]
        z = z.unflatten(2, (groups, heads // groups, -1))
        value = torch.einsum("bdghe,ghds->bsge", z, pattern.unflatten(0, (groups, -1)))
        self.out[:, -1] += (value * maps.read_bias).sum((1, 2, 3))
        into, read = value.flatten(2) @ maps.read.flatten(1).t(), f"blocks.{i}.attn.hook_in"
        x, y = self._rows(f"blocks.{i}.hook_resid_pre"), self._rows(read)
        return g + self._through(self._norm(i, "attn_in", read), x, y, into, read)

    def _branch(self, g: Tensor, i: int, name: str, stand: Stand | None) -> Tensor:
        """Readings of what attention gives, at a hook point where an SAE may stand."""
        self._enter(g, i, name, own=False)
        if stand is not None and stand.written.endswith(name):
            self._given(("attention", i), g)
            g = torch.zeros_like(g)
        self._enter(g, i, name, own=True)
        return g

    def _norm(self, i: int, name: str, hook: str) -> Norm | None:
        norms = self.frozen.maps(i).norms
        if name not in norms:
            refuse_norm(self.frozen.subject, hook)
        return norms[name]

    def _through(self, norm: Norm | None, x: Tensor, y: Tensor, g: Tensor, hook: str) -> Tensor:
        """Readings [n positions width] behind a norm that made y of x, as readings before it."""
        if norm is None:
            return g
        self.out[:, -1] += (g @ norm.bias).sum(1)
        back = g * norm.gain * self.frozen.scale(norm, x, y, hook)[:, None]
        return back - back.mean(-1, keepdim=True) if norm.centred else back


__all__ = ["Columns", "Stand", "Target", "Walk"]
