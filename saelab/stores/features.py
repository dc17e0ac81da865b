"""The feature store: where every latent fires, as Parquet files that DuckDB, pandas and polars open
unaided."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd

from saelab.arguments import checked, listed
from saelab.config import integer, is_integer
from saelab.files import path_of
from saelab.stores import manifest as manifests
from saelab.stores import tables
from saelab.stores.annotations import Named, Notes
from saelab.stores.compare import Comparison, compare
from saelab.stores.directions import open_directions
from saelab.stores.feature_fields import checked_manifest
from saelab.stores.labels import attach, labels_of
from saelab.stores.lacking import check_made_with, explained, lacks, need, need_latent
from saelab.stores.latent_tables import LatentTables
from saelab.stores.naming import Apart, Telling, names_of, telling
from saelab.stores.queries import BRIEF, Connection, ask, select
from saelab.stores.records import COLUMNS, NUMBERS, DocumentRecord, Example, LatentStats, RowRecord
from saelab.stores.search import ExampleIndex, search
from saelab.types import ConfigError, HookPoint, RangeError, StoreError, nearest, short

KINDS = ("top", "bottom", "quantile")
PICTURED = "media is not null or layout like '%grid%'"


class FeatureStore:
    """An index of an SAE's latents over a corpus, read from a folder: `open` gives one.

    Nothing is loaded before it is asked for.

    Args:
        folder: Where it is.
        manifest: All that is known of it, checked, with the fingerprints of SAE, subject and corpus.

    Attributes:
        n_latents: How many latents.
        n_rows: How many rows.
        n_documents: How many documents.
        signed: Whether any code is negative.
        kept: Which codes it holds, "full", "sampled=p" or "none"; everything else is of all rows.
        facets: Kinds of what rows show ("token", "patch", "item", ...).
        hook: The HookPoint whose activations were encoded.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder = folder
        self.manifest = manifest
        self.n_latents: int = manifest["n_latents"]
        self.n_rows: int = manifest["n_rows"]
        self.n_documents: int = manifest["n_documents"]
        self.signed: bool = manifest["signed"]
        self.kept: str = manifest["codes"]
        self.facets: tuple[str, ...] = tuple(manifest["facets"])
        self.hook = HookPoint(**manifest["hook"])
        self._tables = LatentTables(folder)
        self._recent: tuple[int, list[Example]] = (-1, [])

    @classmethod
    def open(cls, folder: str | Path) -> FeatureStore:
        """The store in a folder; sizes of files are checked here, their hashes by `verify`.

        Raises:
            StoreError: There is no whole feature store of a known version.
        """
        folder = path_of(folder, "The folder of a store")
        manifest = checked_manifest(folder)
        there = [n for n in ("latents", "rows", "documents") if not lacks(manifest, n)]
        tables.check_counts(folder, {name: manifest[f"n_{name}"] for name in there})
        return cls(folder, manifest)

    def latent(self, latent: int) -> LatentStats:
        """Statistics of one latent.

        Raises:
            RangeError: It is out of range.
        """
        found = self._tables.of("latents", self._checked(latent)).to_pylist()[0]
        edges = np.array(found["edges"])
        used = max(int(np.searchsorted(edges, max(found["max"], 0), side="right")), 1)
        fields = {name: found[name] for name in COLUMNS if name not in ("histogram", "edges")}
        histogram = np.array(found["histogram"][:used], dtype=np.int64)
        return LatentStats(**fields, n_rows=self.n_rows, histogram=histogram, edges=edges[: used + 1])

    def firings(self, latent: int, n: int = 20, facet: str | None = None) -> pd.DataFrame:
        """What the rows show on which a latent fires most often.

        Args:
            latent: which.
            n: lines, at most.
            facet: only what is of this kind ("token", "patch", ...).

        Returns:
            facet, name, count (rows where it is != 0), negative (of these < 0), lift (how many times as often
            as on any row), most often first.

        Raises:
            RangeError: The latent is out of range.
            ConfigError: No row shows such a facet.
        """
        return pd.DataFrame(self._firings(latent, n, facet))

    def _firings(self, latent: int, n: int, facet: str | None) -> dict[str, np.ndarray]:
        """The columns of `firings`."""
        n = integer("n", n, 0, error=RangeError)
        need(self.manifest, "firings")
        found = self._tables.of("firings", self._checked(latent))
        facets, names = self._vocabulary
        shown = found.column("shown").to_numpy()
        if facet is None:
            at = np.arange(min(n, len(shown)))
        else:
            self._check_facet(facet)
            at = np.flatnonzero(facets[shown] == facet)[:n]
        counts = {name: found.column(name).to_numpy()[at] for name in ("count", "negative", "lift")}
        return {"facet": facets[shown[at]], "name": names[shown[at]], **counts}

    def tokens(self, latent: int, n: int = 20) -> pd.DataFrame:
        """`firings` of facet "token": token, count, negative, lift.

        Args:
            latent: Its number.
            n: At most so many.

        Raises:
            RangeError: The latent is out of range.
            ConfigError: The store has no tokens.
        """
        found = self._firings(latent, n, "token")
        del found["facet"]
        return pd.DataFrame({"token": found.pop("name"), **found})

    @functools.cached_property
    def _vocabulary(self) -> tuple[np.ndarray, np.ndarray]:
        """(facets, names) of what rows show, by number."""
        found = self._tables.vocabulary
        return found.column("facet").to_numpy(), found.column("name").to_numpy()

    def _check_facet(self, facet: str) -> None:
        if not isinstance(facet, str) or facet not in self.facets:
            known = ", ".join(map(repr, self.facets))
            message = (
                f"facet must be one of the store's, {known}. Got {short(facet)}. "
                f"{nearest(str(facet), self.facets)}Leave it out for all."
            )
            raise ConfigError(message)

    def partners(self, latent: int, n: int = 20) -> pd.DataFrame:
        """The latents that fire together with one most often, on the rows of the table `sample`.

        Args:
            latent: Its number.
            n: At most so many.

        Returns:
            partner, count (rows where both fire), jaccard (by rows where any of the two does), lift (by rows
            expected of independent ones).

        Raises:
            RangeError: The latent is out of range.
        """
        n = integer("n", n, 0, error=RangeError)
        need(self.manifest, "coactivation")
        found = self._tables.of("coactivation", self._checked(latent))
        found = found.slice(0, min(n, len(found)))
        return found.drop_columns(["latent", "rank"]).to_pandas()

    def examples(self, latent: int, n: int = 10, kind: str = "top") -> list[Example]:
        """Windows around firings of a latent.

        Args:
            latent: Its number.
            n: At most so many.
            kind: "top", the largest values > 0, or "bottom", the smallest < 0, strongest first; "quantile",
                both signs from weak to strong, n of them evenly out of those that are kept.

        Raises:
            RangeError: The latent is out of range, or n negative.
            StoreError: An unknown kind.
        """
        n = integer("n", n, 0, error=RangeError)
        if not isinstance(kind, str) or kind not in KINDS:
            message = (
                f"kind must be one of {', '.join(map(repr, KINDS))}. Got {kind!r}. "
                f"{nearest(str(kind), KINDS)}Pass kind='top'."
            )
            raise StoreError(message)
        found = [e for e in self._examples(self._checked(latent)) if e.kind == kind]
        if kind == "quantile" and 0 < n < len(found):
            found = [found[i] for i in np.linspace(0, len(found) - 1, n).round().astype(int)]
        return found[:n]

    def rows(self, row: int) -> RowRecord:
        """A row of the corpus with the latents that fire on it.

        Raises:
            RangeError: There is no such row.
            StoreError: Its codes were not kept.
        """
        need(self.manifest, "rows")
        row = _index(row, self.n_rows, "row")
        where = ask(self._connection, "select * from rows where row = ?", [row]).iloc[0]
        codes = ask(self._connection, "select latent, value from codes_by_row where row = ?", [row])
        if self.kept != "full" and codes.empty:
            self.need_codes()
        order = np.lexsort((codes["latent"], -codes["value"].abs()))
        facet, name = (column[int(where["shown"])] for column in self._vocabulary)
        numbers = {key: int(where[key]) for key in ("document", "position", "call", "id")}
        latents, values = codes["latent"].to_numpy()[order], codes["value"].to_numpy()[order]
        return RowRecord(row, facet=facet, name=name, latents=latents, values=values, **numbers)

    def document(self, document: int) -> DocumentRecord:
        """A document as it was indexed, with its text, layout, labels and picture.

        Raises:
            RangeError: There is no such document.
        """
        found = self.documents([int(document)]) if is_integer(document) else {}
        if not found:
            message = (
                f"document must be the number of one of the store's {self.n_documents:,} documents. Got "
                f"{document!r}. Pass one out of examples, or of the table documents."
            )
            raise RangeError(message)
        return found[int(document)]

    def documents(self, of: Iterable[int], *, seen: bool = False) -> dict[int, DocumentRecord]:
        """Documents by number, as they were indexed.

        Args:
            of: their numbers; those that the store does not have are left out.
            seen: only documents that are more than their rows' names: those with a grid or a picture.
        """
        if seen and not self._pictured:
            return {}
        columns = ", ".join(DocumentRecord._fields)
        sql = f"select {columns} from documents where document in (select unnest(?::bigint[]))"
        sql += f" and ({PICTURED})" if seen else ""
        found = ask(self._connection, sql, [sorted({int(number) for number in of})], "arrow").to_pylist()
        return {
            each["document"]: DocumentRecord(**{**each, "labels": tuple(each["labels"] or ())})
            for each in found
        }

    @functools.cached_property
    def _pictured(self) -> bool:
        """Whether any document has a grid or a picture."""
        return bool(len(ask(self._connection, f"select 1 from documents where {PICTURED} limit 1")))

    def codes(self, latent: int) -> tuple[np.ndarray, np.ndarray]:
        """Every firing of a latent, of the sampled rows where the store has codes of these alone.

        Returns:
            (rows int64 ascending, values float32).

        Raises:
            RangeError: The latent is out of range.
            StoreError: No codes were kept.
        """
        at = self._checked(latent)
        need(self.manifest, "codes_by_latent")
        if self.kept == "none":
            self.need_codes()
        sql = "select row, value from codes_by_latent where latent = ? order by row"
        found = ask(self._connection, sql, [at])
        return found["row"].to_numpy(), found["value"].to_numpy()

    def need_codes(self) -> None:
        """Refuse a store without the codes of all rows.

        Raises:
            StoreError: They were not kept.
        """
        need(self.manifest, "codes_by_row")
        if self.kept != "full":
            message = (
                f"This needs the codes of every row. Got a store with codes={self.kept!r} in {self.folder}. "
                "Index the corpus again with codes='full', or use the tables latents, examples and sample."
            )
            raise StoreError(message)

    def latents(self) -> pd.DataFrame:
        """Statistics of all latents, one row each: the table `latents` without its lists."""
        return self._tables.columns("latents", NUMBERS).to_pandas()

    def top_names(self) -> dict[int, list[str]]:
        """What each latent is > 0 on most often; latents that never are are left out."""
        return self._most("top_names")

    def bottom_names(self) -> dict[int, list[str]]:
        """What each latent is < 0 on most often; latents that never are are left out."""
        return self._most("bottom_names")

    @functools.cached_property
    def apart(self) -> Apart:
        """What sets each latent apart: of what its rows show, up to three names for each pole (`naming`)."""
        return names_of(self.folder, self.manifest)

    @checked(latents=listed)
    def telling(self, latents: Sequence[int]) -> dict[int, tuple[list[Telling], list[Telling]]]:
        """What sets some latents apart, with figures: latent -> (of its positive pole, of the negative).

        Args:
            latents: Their numbers.

        Raises:
            RangeError: One is out of range.
            StoreError: The store does not say how often latents fire on what.
        """
        need(self.manifest, "firings")
        return telling(self._tables, [self._checked(latent) for latent in latents], self.n_rows)

    def _most(self, name: str) -> dict[int, list[str]]:
        column = self._tables.columns("latents", (name,)).column(name).to_pylist()
        return {j: names for j, names in enumerate(column) if names}

    def query(
        self, sql: str, values: list[Any] | dict[str, Any] | None = None, format: str = "pandas"
    ) -> Any:
        """Any one SELECT of DuckDB's SQL over the tables of the store and its labels (docs/stores.md).

        Args:
            sql: the statement; `?` and `$name` stand for values.
            values: a list for `?`, a dict for names.
            format: "pandas" for a DataFrame, "arrow" for a pyarrow Table.

        Raises:
            StoreError: DuckDB's complaint, or the statement would write.
            ConfigError: Another format.
        """
        try:
            if isinstance(sql, str) and BRIEF in sql:
                self._connected.hold(self)
            return select(self._connection, sql, values, format)
        except StoreError as error:
            raise explained(self.manifest, error) or error from error.__cause__

    def verify(self) -> None:
        """Compare every file with its hash.

        Raises:
            StoreError: One differs; it names it.
        """
        manifests.verify(self.folder, self.manifest)

    def check(self, given: Any) -> None:
        """Refuse an SAE or a subject that the store was not indexed with.

        Raises:
            StoreError: Its fingerprint is another.
        """
        check_made_with(self.manifest, given)

    def __repr__(self) -> str:
        of = f"{self.n_rows:,} rows of {self.n_documents:,} documents"
        return f"FeatureStore({self.n_latents:,} latents at {self.hook} over {of})"

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "manifest": self.manifest}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["folder"], state["manifest"])

    def _examples(self, latent: int) -> list[Example]:
        # a card asks for one kind after the other
        kept, found = self._recent
        if kept != latent:
            found = self._tables.examples(latent)
            self._recent = latent, found
        return found

    @property
    def _connection(self) -> duckdb.DuckDBPyConnection:
        return self._connected.current(self)

    _connected = functools.cached_property(Connection)

    def _checked(self, latent: Any) -> int:
        at = _index(latent, self.n_latents, "latent")
        need_latent(self.manifest, at)
        return at

    @functools.cached_property
    def directions(self) -> np.ndarray:
        """float16 [n_latents, d_out]: unit decoder rows, zeros where a row is 0; mapped from disk.

        Raises StoreError where the store has none: older versions wrote none.
        """
        return open_directions(self.folder, self.n_latents, self.manifest)

    def search(
        self,
        *,
        token: str | None = None,
        value: str | tuple[str, str] | None = None,
        label: str | None = None,
        example: str | None = None,
        direction: Any = None,
        latent: int | None = None,
        n: int = 20,
    ) -> pd.DataFrame:
        """The n latents that answer best to exactly one question: latent, score and the evidence, best first.

        Args:
            token: which fire on this token, written as the store has it (`" cat"`). Score: F1 of "fires" and
                "is the token"; with the count of both, precision (of the latent's firings), recall (of the
                token's rows) and lift.
            value: the same of whatever rows show, by its name, or as (facet, name): ("patch", "3,5").
            label: which have a label that holds all these words, or parts of words, whatever the case. Score:
                the share of the label that they are.
            example: whose example windows hold these words. Score: sum over its windows of their BM25
                (Robertson & Zaragoza 2009, eq. 3.15, k1 1.2, b 0.75, inverse document frequency
                ln(1 + (N - n + 0.5) / (n + 0.5))), with the number of windows that hold one and the best of
                them. Words are whole and case-folded, cut out of the joined names of a window; the first such
                search indexes them.
            direction: whose decoder direction is nearest to this vector [d_out]. Score: cosine.
            latent: whose direction is nearest to that of another latent.
            n: lines, at most.

        Raises:
            ConfigError: There is not one question, or it is empty.
            CorpusError: A token or value that no row shows.
            RangeError, ShapeError, NonFiniteError, StoreError: A bad latent, vector or store.
        """
        asked = {"token": token, "value": value, "label": label, "example": example}
        return search(self, n, **asked, direction=direction, latent=latent)

    def attach_labels(
        self,
        labels: Mapping[int, str] | str | Path,
        source: str | None = None,
        *,
        of: str | None = None,
        scores: Mapping[int, Mapping[str, float]] | None = None,
    ) -> None:
        """Write labels of latents into the store, beside those that it has.

        Those of a store that may not be written, or that came with saelab, are kept in the user's data folder
        ($SAELAB_DATA, else that of this system), and are read with its own.

        Those of the same latent and source are replaced, or taken out by an empty string. Whoever reads the
        store meanwhile goes on reading, and where several write, each waits for its turn. Nothing is written
        where it raises.

        Args:
            labels: Latent -> label, or a file or folder of explanations that neuronpedia.org exports, with
                their scores where it has them (`saelab.stores.neuronpedia`).
            source: Where they are from, "user" by default. For an export "neuronpedia" by default, followed
                by who explained, as in "neuronpedia:gpt-4o-mini:oai_token-act-pair".
            of: Which SAE of an export of several, as "gpt2-small/6-res-jb".
            scores: What judges gave these labels: latent -> name -> score.

        Raises:
            RangeError: A latent is out of range.
            ConfigError: A label or source is no text, a score no number, or `of` is needed or not there.
            FormatError: An export is missing, broken or of another kind.
            StoreError: The store cannot be written.
        """
        attach(self, labels, source, of, scores)

    def labels(self) -> pd.DataFrame:
        """Every label that is attached now: latent, label, source; by latent, of one latent the newest last.

        Raises:
            StoreError: The file is not what was written.
        """
        return labels_of(self)

    @property
    def notes(self) -> Notes:
        """Latent -> what is noted of it, kept as labels are: `store.notes[7] = "fires on names"`."""
        return Notes(self)

    @property
    def tags(self) -> Named:
        """Tag -> latents, kept as labels are: `store.tags.add("to check", [7, 9])`."""
        return Named(self, "tag")

    @property
    def lists(self) -> Named:
        """Name -> latents in their order, kept as labels are: `store.lists["names"] = [7, 3]`."""
        return Named(self, "list")

    def compare(self, other: FeatureStore, n: int = 1, *, min_rows: int = 10, seed: int = 0) -> Comparison:
        """For each latent the n most similar of another SAE's, with what chance would find beside it.

        See `saelab.stores.compare`.

        Args:
            other: The other SAE's store.
            n: Partners of each.
            min_rows: Latents that fire on fewer rows are not compared by co-firing.
            seed: Seed of the controls.

        Raises:
            StoreError: They share neither a space nor a corpus.
            RangeError: n or min_rows is out of range.
            ConfigError: `other` is no store.
        """
        return compare(self, other, n, min_rows=min_rows, seed=seed)

    @functools.cached_property
    def example_index(self) -> ExampleIndex:
        """The words of the example windows, indexed when they are first searched."""
        return ExampleIndex(self.folder)


def _index(value: Any, n: int, name: str) -> int:
    return integer(name, value, 0, n - 1, error=RangeError, remedy=f"Pass one of the store's {n:,}.")
