"""The tables of a feature store out of the lines of an export: sorted by DuckDB, which spills to disk."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from saelab.config import is_integer
from saelab.files import claim
from saelab.stores import manifest as manifests
from saelab.stores import tables
from saelab.stores.directions import NAME as DIRECTIONS
from saelab.stores.feature_fields import KIND
from saelab.stores.lacking import LACKED
from saelab.stores.lenses import Lenses
from saelab.stores.neuronpedia_fields import MAX_LATENT
from saelab.stores.neuronpedia_parts import SHIFT
from saelab.stores.summary_writer import GROUPS
from saelab.types import FormatError, HookPoint, RangeError, StoreError

MEMORY = "1GB"
"""Of the sort; what is beyond goes to disk."""
WINDOW = (10, 10)
NEAR = 0.02
"""How far the rows that `source.jsonl` says may be off what histograms and shares say together."""
ROUNDED = 0.5e-5
"""How far a share is off, at most."""
LENS = 20
"""Tokens of a side, at most."""
BATCH = 2048
SOURCE = (
    "dataset", "hfRepoId", "hfFolderId", "saelensRelease", "saelensSaeId", "num_prompts",
    "num_tokens_in_prompt",
)  # fmt: skip
"""Fields of source.jsonl that are kept."""

PREPARE = """
    create view all_features as select * from {features};
    create view all_windows as select * from {windows};
    create table lines as select latent, min(place) as place, count(*) as n from all_features group by latent;
    create view features as select f.* from all_features f join lines using (latent, place);
    create view windows as select * from all_windows where latent in (select latent from lines);
    create table kept as
        select min(place) as place, latent, kind, bin, peak, value, key, any_value(tokens[peak + 1]) as token
        from windows group by latent, kind, bin, peak, value, key;
    create table texts as
        with firsts as (select key, min(place) as place from windows group by key),
        sized as (select f.key, place, len(tokens) as n from firsts f join windows using (place))
        select key, place, n, row_number() over (order by place) - 1 as document,
            (sum(n) over (order by place rows unbounded preceding) - n)::bigint as first_row
        from sized;
"""
DUPLICATE = """
    with twice as (
        select latent, place, hash(share, most, heights, edges, raised, lowered, hook, vector) as said
        from all_features where latent in (select latent from lines where n > 1)
    )
    select latent, min(place), arg_max(place, (said != first, place)) from (
        select *, first_value(said) over (partition by latent order by place) as first from twice
    ) group by latent having count(distinct said) > 1 order by latent limit 1
"""
DOCUMENTS = """
    select document, 'window-' || document as id, 'text' as kind, array_to_string(tokens, '') as text,
        'line' as layout, []::varchar[] as labels, null::blob as media, first_row, n as n_rows
    from texts join windows using (place) order by document
"""
EXAMPLES = """
    with ranked as (
        select place, latent, kind, peak, value, key,
            row_number() over (partition by latent, kind order by
                case kind when 'top' then -value when 'bottom' then value else abs(value) end, place
            ) - 1 as rank,
            case kind when 'quantile'
                then dense_rank() over (partition by latent, kind order by bin) - 1 else -1 end as stratum
        from kept
    )
    select r.latent, r.kind, rank, stratum, first_row + r.peak as row, document, r.peak as position,
        0 as call, r.value, greatest(r.peak - {before}, 0) as start,
        tokens[greatest(r.peak - {before}, 0) + 1 : r.peak + 1 + {after}] as names,
        values[greatest(r.peak - {before}, 0) + 1 : r.peak + 1 + {after}] as values
    from ranked r join windows w using (place) join texts t on t.key = r.key
    order by r.latent, r.kind, rank
"""
LATENTS = """
    with fired as (
        select latent, max(value) as highest, min(value) as lowest, count(distinct (key, peak)) as fired,
            count(distinct case when value < 0 then (key, peak) end) as below
        from kept group by latent
    ),
    named as (
        select latent, kind, token, row_number() over (
            partition by latent, kind order by count(*) desc, max(abs(value)) desc, token) as place
        from kept where kind in ('top', 'bottom') group by latent, kind, token
    ),
    names as (
        select latent, list(token order by place) filter (kind = 'top') as top_names,
            list(token order by place) filter (kind = 'bottom') as bottom_names
        from named where place <= 3 group by latent
    )
    select f.latent, share, most, heights, edges,
        coalesce(highest, 0) as highest, coalesce(lowest, 0) as lowest,
        coalesce(fired, 0) as fired, coalesce(below, 0) as below,
        coalesce(top_names, []) as top_names, coalesce(bottom_names, []) as bottom_names
    from features f left join fired using (latent) left join names using (latent) order by f.latent
"""


@dataclass
class Said:
    """What was met in the files of an export."""

    files: Mapping[str, list[Path]]
    """by kind"""
    of: str = ""
    """MODEL/SOURCE"""
    source: dict[str, Any] = field(default_factory=dict)
    """the line of source.jsonl"""
    lines: dict[str, int] = field(default_factory=lambda: {"features": 0, "activations": 0})
    skipped: int = 0
    first: str = ""
    """the first line that was skipped, and why"""
    silent: int = 0
    """windows in which nothing fires"""

    def add(self, kind: str, said: Mapping[str, Any]) -> None:
        """What `neuronpedia_parts.written` gave of a file.

        Args:
            kind: Of the file.
            said: That.
        """
        self.of = self.of or said["of"] or ""
        self.lines[kind] += said["lines"]
        self.skipped += said["skipped"]
        self.silent += said["silent"]
        self.first = self.first or said["first"]


class Assembly:
    """Puts a store together.

    Args:
        folder: Of the store.
        parts: Where the tables of `neuronpedia_parts` lie.
        said: What was met when they were written.
    """

    def __init__(self, folder: Path, parts: Path, said: Said) -> None:
        self.folder, self.parts, self.said = folder, parts, said

    def write(self, n_rows: int | None, skip: bool, fields: Mapping[str, Any]) -> Lenses:
        """All tables and the manifest.

        Args:
            n_rows: Of the corpus; None: as the export says.
            skip: Whether of two lines of one feature the first is taken.
            fields: More of the manifest.

        Returns:
            The logit lenses, which are no part of a store.

        Raises:
            FormatError: Two lines say different things of one feature, or vectors are of several widths.
            StoreError: The export does not say over how many tokens it is, or the disk is full.
            RangeError: n_rows is less than a feature fires on.
        """
        try:
            with _database(self.parts) as run:
                self._run = run
                run.execute(PREPARE.format(**{f"{k}": self._source(k) for k in ("features", "windows")}))
                if not skip:
                    self._refuse_duplicates()
                return self._write(n_rows, fields)
        except (duckdb.IOException, duckdb.OutOfMemoryException, OSError) as error:
            message = (
                f"What an export says is sorted on disk. Got: {error}. Free some space or memory at "
                f"{self.parts}, and call again."
            )
            raise StoreError(message) from error

    def _source(self, kind: str) -> str:
        files = sorted(self.parts.glob(f"{'activations' if kind == 'windows' else kind}-*.parquet"))
        return f"read_parquet([{', '.join(tables.quoted(tables.exact(file)) for file in files)}])"

    def _write(self, n_rows: int | None, fields: Mapping[str, Any]) -> Lenses:
        latents, found = self._one("select count(*), max(latent) from lines")
        orphans = self._one(
            "select count(*) from all_windows where latent not in (select latent from lines)"
        )[0]
        n_latents = max(found + 1, self._d_sae())
        rows, counted = self._rows(n_rows)
        absent, signed, n_codes = self._write_latents(n_latents, rows)
        counts = dict(self._run.execute("select kind, max(n) from (select kind, count(*) as n from kept "
                                        "group by latent, kind) group by kind").fetchall())  # fmt: skip
        self._copy("documents", DOCUMENTS)
        self._copy("examples", EXAMPLES.format(before=WINDOW[0], after=WINDOW[1]))
        self._write_directions(n_latents)
        hook = self._hook()
        own = {
            "n_rows": rows,
            "n_latents": n_latents,
            "n_documents": self._one("select count(*) from texts")[0],
            "n_codes": n_codes,
            "codes": "none",
            "sample_rows": 0,
            "window": list(WINDOW),
            "n_examples": max(counts.get("top", 0), counts.get("bottom", 0)),
            "n_quantile": counts.get("quantile", 0),
            "seed": 0,
            "signed": signed,
            "facets": ["token"],
            "packing": "document",
            "hook": {"name": hook.name, "io": hook.io, "n_heads": hook.n_heads},
            "sae": f"neuronpedia:{self.said.of}",
            "subject": f"neuronpedia:{self.said.of.partition('/')[0]}",
            "corpus": None,
            "lacks": list(LACKED),
            "absent": absent,
            "export": {
                "of": self.said.of,
                "rows": counted,
                "features": latents,
                "windows": self._one("select count(*) from kept")[0],
                "silent": self.said.silent,
                "without_feature": orphans,
                "skipped": self.said.skipped,
                "first_skipped": self.said.first,
                "source": {k: v for k, v in self.said.source.items() if _is_told(k, v)},
            },
        }
        manifests.write_manifest(self.folder, KIND, {**own, **fields})
        return self._lenses()

    def _one(self, sql: str) -> tuple[Any, ...]:
        found = self._run.execute(sql).fetchone()
        assert found is not None
        return found

    def _refuse_duplicates(self) -> None:
        found = self._run.execute(DUPLICATE).fetchone()
        if found is None:
            return
        latent, *places = found
        files = self.said.files["features"]
        one, other = (f"object {p % (1 << SHIFT) + 1} of {files[p >> SHIFT]}" for p in places)
        message = (
            f"An export must say one thing of each feature. Got two of {latent}: {one}, and {other}. Get it "
            "again, or pass skip=True to take the first."
        )
        raise FormatError(message)

    def _d_sae(self) -> int:
        """Latents that the SAE has, as far as the source says it; else 0."""
        config = self.said.source.get("saelensConfig")
        if isinstance(config, str):
            with contextlib.suppress(ValueError, RecursionError):
                config = json.loads(config)
        said = config.get("d_sae") if isinstance(config, dict) else None
        return said if is_integer(said) and 0 < said <= MAX_LATENT else 0

    def _rows(self, given: int | None) -> tuple[int, str]:
        """(rows of the corpus, how that is known)."""
        most = self._one("select coalesce(max(list_sum(heights)), 0)::bigint from features")[0]
        if given is not None:
            if given < most:
                message = (
                    f"n_rows must be at least {most:,}, on which a feature fires. Got {given:,}. "
                    "Leave it out, or pass all tokens that the SAE was run over."
                )
                raise RangeError(message)
            return given, "given"
        prompts, tokens = (self.said.source.get(name) for name in ("num_prompts", "num_tokens_in_prompt"))
        known = prompts * tokens if is_integer(prompts) and is_integer(tokens) else 0
        known = known if 0 < known < 2**53 else 0
        fired, share, some = self._one(
            "select coalesce(sum(list_sum(heights)), 0)::double, coalesce(sum(share), 0), count(*) "
            "from features where len(heights) > 0 and share > 0"
        )
        if share:
            about = fired / share
            if known and abs(known / about - 1) <= max(NEAR, ROUNDED * some / share):
                return known, "source.jsonl"
            return max(round(about), most, 1), "histograms and shares"
        if known:
            return known, "source.jsonl"
        message = (
            f"An export must say over how many tokens it is. Got {self.said.of}, whose source.jsonl has no "
            "num_prompts and num_tokens_in_prompt, and whose features have no histograms. Pass n_rows=."
        )
        raise StoreError(message)

    def _hook(self) -> HookPoint:
        """Where the SAE reads, as the export says it; else what the export is called."""
        found = self._run.execute(
            "select hook from features where hook != '' order by latent limit 1"
        ).fetchone()
        return HookPoint(found[0] if found else self.said.of)

    def _write_latents(self, n_latents: int, n_rows: int) -> tuple[list[list[int]], bool, int]:
        """The table latents; (ranges of absent latents, whether any is negative, codes in all)."""
        absent: list[list[int]] = []
        signed, n_codes, at = False, 0, 0
        with tables.writer(self.folder, "latents") as out:
            waiting: list[dict[str, Any]] = []

            def put(row: dict[str, Any]) -> None:
                waiting.append(row)
                if len(waiting) == GROUPS["latents"]:
                    flush()

            def flush() -> None:
                columns = {name: [row[name] for row in waiting] for name in tables.SCHEMAS["latents"].names}
                out.write_table(tables.named("latents", columns))
                waiting.clear()

            def missing(until: int) -> None:
                if at < until:
                    absent.append([at, until - 1])
                for latent in range(at, until):
                    put(_nothing(latent))

            for batch in self._batches(LATENTS):
                for row in batch.to_pylist():
                    missing(row["latent"])
                    told = _statistics(row, n_rows)
                    put(told)
                    at = row["latent"] + 1
                    signed = signed or told["negative"] > 0
                    n_codes += told["count"]
            missing(n_latents)
            if waiting:
                flush()
        return absent, signed, n_codes

    def _copy(self, name: str, sql: str) -> None:
        schema, size = tables.SCHEMAS[name], GROUPS.get(name, BATCH)
        with tables.writer(self.folder, name) as out:
            for batch in self._batches(sql, size):
                out.write_table(pa.Table.from_batches([batch]).cast(schema), size)

    def _write_directions(self, n_latents: int) -> None:
        low, high, n = self._one(
            "select min(len(vector)), max(len(vector)), count(*) from features where len(vector) > 0"
        )
        if not n:
            return
        if low != high:
            message = (
                f"The vectors of an export must have one width. Got {low} and {high} in {self.said.of}. "
                "Get it again."
            )
            raise FormatError(message)
        path = self.folder / DIRECTIONS
        header = {"descr": "<f2", "fortran_order": False, "shape": (n_latents, high)}
        claim(path, 128 + 2 * n_latents * high)
        with path.open("rb+") as file:
            np.lib.format.write_array_header_1_0(file, header)
            start = file.tell()
            for batch in self._batches("select latent, vector from features where len(vector) > 0"):
                vectors = np.asarray(batch.column("vector").flatten(), np.float64).reshape(-1, high)
                norms = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))[:, None]
                unit = np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0).astype("<f2")
                for latent, row in zip(batch.column("latent").to_pylist(), unit, strict=True):
                    file.seek(start + 2 * high * latent)
                    file.write(row.tobytes())
            file.truncate(start + 2 * n_latents * high)

    def _lenses(self) -> Lenses:
        """Of the latents of which the export says at least as many tokens as of most."""
        sizes = "least(len(raised), len(lowered))"
        n = self._one(f"select median({sizes}) from features where {sizes} > 0")[0]
        if n is None:
            return Lenses.none()
        n = min(int(n), LENS)
        number: dict[str, int] = {}
        latents, tokens, logits, spread = [], [], [], []
        for batch in self._batches(
            f"select latent, raised[1:{n}] as raised, lowered[1:{n}] as lowered, spread from features "
            f"where {sizes} >= {n} order by latent"
        ):
            for row in batch.to_pylist():
                pairs = row["raised"] + row["lowered"]
                latents.append(row["latent"])
                tokens.append([number.setdefault(pair["token"], len(number)) for pair in pairs])
                logits.append([pair["logit"] for pair in pairs])
                spread.append(row["spread"])
        arrays = (np.array(tokens, np.int32), np.array(logits, np.float32), np.array(spread, np.float32))
        return Lenses(np.array(latents, np.int32), *arrays, list(number))

    def _batches(self, sql: str, size: int = BATCH) -> Iterator[pa.RecordBatch]:
        with self._run.cursor() as cursor:
            yield from cursor.sql(sql).to_arrow_reader(size)


def _is_told(name: str, value: Any) -> bool:
    """Whether this of source.jsonl is kept with the store."""
    return name in SOURCE and isinstance(value, str | int) and len(str(value)) <= 500


def _statistics(row: Mapping[str, Any], n_rows: int) -> dict[str, Any]:
    """A row of the table latents. What follows from a histogram is known to within half a bin."""
    heights, edges = np.array(row["heights"], np.int64), np.array(row["edges"], np.float64)
    count = int(heights.sum()) or max(round((row["share"] or 0) * n_rows), row["fired"])
    if not count:
        return _nothing(row["latent"])
    told = {"latent": row["latent"], "count": count, "density": count / n_rows}
    told |= {name: row[name] for name in ("top_names", "bottom_names")}
    highest = max(row["most"], row["highest"])
    some = np.flatnonzero(heights)
    if not len(some):
        unknown = dict.fromkeys(("mean", "min", "mean_abs", "min_abs", "sum", "sum_abs"), math.nan)
        return told | unknown | {"max": highest, "negative": row["below"], "histogram": [], "edges": [0.0]}
    centres = (edges[1:] + edges[:-1]) / 2
    total, total_abs = float(heights @ centres), float(heights @ np.abs(centres))
    low, high = float(edges[some[0]]), float(edges[some[-1] + 1])
    negative = int(heights[centres < 0].sum())
    # the first bin of values > 0 begins at 0 or above, but for how it was rounded
    low = min(low, row["lowest"]) if negative or row["below"] else max(low, 0.0)
    least = np.minimum(np.abs(edges[some]), np.abs(edges[some + 1]))
    least[(edges[some] < 0) & (edges[some + 1] > 0)] = 0
    return told | {
        "mean": total / count,
        "min": low,
        "max": highest if highest > 0 else high,
        "negative": max(negative, row["below"]),
        "mean_abs": total_abs / count,
        "min_abs": float(least.min()),
        "sum": total,
        "sum_abs": total_abs,
        "histogram": heights.tolist(),
        "edges": edges.tolist(),
    }


def _nothing(latent: int) -> dict[str, Any]:
    """The row of a latent that never fires, or of which nothing is known."""
    zeros: dict[str, Any] = dict.fromkeys(
        ("count", "density", "mean", "min", "max", "negative", "mean_abs", "min_abs", "sum", "sum_abs"), 0
    )
    lists = {"histogram": [0], "edges": [0.0, 1.0], "top_names": [], "bottom_names": []}
    return {"latent": latent, **zeros, **lists}


@contextlib.contextmanager
def _database(parts: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    spill = parts / "spill"
    shutil.rmtree(spill, ignore_errors=True)
    config: Any = {"threads": 2, "memory_limit": MEMORY, "temp_directory": str(spill)}
    with duckdb.connect(config=config) as run:
        run.execute("set enable_progress_bar = false")
        run.execute("set preserve_insertion_order = false")
        yield run
