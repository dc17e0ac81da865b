"""Search over the latents of a store: by token, label, example text or decoder direction, with no model."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import numpy as np
import pandas as pd

from saelab.config import integer
from saelab.stores import tables
from saelab.stores.characters import BYTES, read
from saelab.stores.directions import cosines
from saelab.types import ConfigError, CorpusError, NonFiniteError, RangeError, ShapeError, StoreError

if TYPE_CHECKING:
    from saelab.stores.protocol import Latents

WAYS = ("token", "value", "label", "example", "direction", "latent")
K1, B = 1.2, 0.75
INDEX_MEMORY = "1GB"

# how often each latent fires on rows that show one thing, beside those rows and the latent's firings; of one
# name there may be several facets
FIRINGS = """
    with wanted as (
        select shown, count from vocabulary where name = $name and ($facet is null or facet = $facet)
    ),
    here as (select sum(count) as n from wanted),
    fired as (
        select latent, sum(count)::bigint as count from firings
        where shown in (select shown from wanted) group by latent
    )
    select latent, f.count, f.count / l.count as precision, f.count / here.n as recall,
        (f.count / l.count) * ($rows / here.n) as lift, 2 * f.count / (l.count + here.n) as score
    from fired f join latents l using (latent), here
    order by score desc, latent limit $n
"""

# words of a text: lower(upper()) also folds letters of several lower cases, such as the two sigmas. Signs are
# words each, and so are letters of scripts that put no spaces between words
ALONE = r"\p{{Han}}\p{{Hiragana}}\p{{Katakana}}\p{{Thai}}\p{{Lao}}\p{{Khmer}}\p{{Myanmar}}\p{{So}}"
APART = rf"regexp_replace(nfc_normalize({{}}), '([{ALONE}])', ' \1 ', 'g')"
WORDS = rf"regexp_extract_all(lower(upper({APART})), '[\p{{{{L}}}}\p{{{{M}}}}\p{{{{N}}}}_\p{{{{So}}}}]+')"

BM25 = """
    with wanted as (select distinct hash(unnest($words::varchar[])) as word),
    hits as (
        select row, tf, count(*) over (partition by word) as df from postings join wanted using (word)
    ), scored as (
        select row, sum(ln(1 + (c.n - df + 0.5) / (df + 0.5))
            * tf / (tf + $k1 * (1 - $b + $b * w.length / c.mean_length))) as bm25
        from hits join windows w using (row), collection c group by row
    )
    select latent, sum(bm25) as score, count(*) as windows, arg_max(row, (bm25, -row)) as row
    from scored join members using (row) group by latent
    order by score desc, latent limit $n
"""


class ExampleIndex:
    """An inverted index of the words of a store's example windows, made when it is first searched.

    One window a row of the store, however many latents show it. It lives in a database of its own that holds
    at most INDEX_MEMORY and spills the rest to a temporary folder, which goes with this object.
    """

    def __init__(self, folder: Path) -> None:
        source = tables.source(folder, "examples")
        # the folder must outlive the connection that spills into it
        self._spill = tempfile.TemporaryDirectory(prefix="saelab-words-", ignore_cleanup_errors=True)
        self._connection = duckdb.connect(
            config={"threads": 2, "memory_limit": INDEX_MEMORY, "temp_directory": self._spill.name}
        )
        run = self._connection.execute
        run("set enable_progress_bar = false")
        run("set preserve_insertion_order = false")
        run(f"create table members as select distinct latent, row from {source} order by row")
        run(f"""
            create table texts as select row, any_value(array_to_string(names, '')) as text
            from {source} group by row
        """)
        _join_characters(self._connection)
        run(f"create table terms as select row, {WORDS.format('text')} as words from texts")
        run("drop table texts")
        run("create table windows as select row, len(words) as length from terms")
        run("create table collection as select count(*) as n, avg(length) as mean_length from windows")
        # words as hashes of 64 bits, of which two are equal once in 10^7 indices of a million words
        run("""
            create table counts as select word, row, count(*)::int as tf
            from (select row, hash(unnest(words)) as word from terms) group by word, row
        """)
        run("drop table terms")
        run("create table postings as from counts order by word")
        run("drop table counts")

    def search(self, text: str, n: int) -> pd.DataFrame:
        """latent, score, windows, row; see BM25. A cursor of its own, so that threads do not meet."""
        cursor = self._connection.cursor()
        words = cursor.execute(f"select {WORDS.format('$text')}", {"text": text}).fetchone()
        values = {"words": words[0] if words else [], "n": n, "k1": K1, "b": B}
        return cursor.execute(BM25, values).df()


def _join_characters(connection: duckdb.DuckDBPyConnection) -> None:
    """Texts of tokens that hold parts of characters, as people read them."""
    split = connection.execute(rf"select row, text from texts where regexp_matches(text, '{BYTES}')").df()
    if len(split):
        split["text"] = [read([text], window=True) for text in split["text"]]
        connection.register("joined", split)
        connection.execute("update texts set text = joined.text from joined where texts.row = joined.row")
        connection.unregister("joined")


def search(store: Latents, n: int = 20, labels: pd.DataFrame | None = None, **asked: Any) -> pd.DataFrame:
    """See `FeatureStore.search`. labels: those that are looked through, by default the store's own."""
    given = {way: value for way, value in asked.items() if value is not None}
    if len(given) != 1:
        message = (
            f"A search takes exactly one of {', '.join(f'{w}=' for w in WAYS)}. Got "
            f"{' and '.join(given) or 'none'}. Pass e.g. token=' cat'."
        )
        raise ConfigError(message)
    n = integer("n", n, 1, error=RangeError)
    ((way, value),) = given.items()
    if way in ("token", "label", "example") and not (
        isinstance(value, str) and (value if way == "token" else value.strip())
    ):
        message = f"{way} must be a text that is not empty. Got {value!r}. Pass e.g. {way}=' cat'."
        raise ConfigError(message)
    if way == "label":
        found = _label(store.labels() if labels is None else labels, value, int(n))
    else:
        ways = {"value": _value, "example": _example, "direction": _direction, "latent": _latent}
        found = ways.get(way, _token)(store, value, int(n))
    return found.reset_index(drop=True)


def _token(store: Latents, token: str, n: int) -> pd.DataFrame:
    return _shown(store, ("token", token), n, "token")


def _value(store: Latents, value: Any, n: int) -> pd.DataFrame:
    pair = (None, value) if isinstance(value, str) else value
    good = isinstance(pair, tuple | list) and len(pair) == 2 and isinstance(pair[1], str) and pair[1]
    if not good or not (pair[0] is None or isinstance(pair[0], str)):
        message = (
            f"value must be a name, or (facet, name). Got {value!r}. Pass e.g. value=' cat' or "
            "value=('patch', '3,5')."
        )
        raise ConfigError(message)
    return _shown(store, (pair[0], pair[1]), n, "value")


def _shown(store: Latents, wanted: tuple[str | None, str], n: int, way: str) -> pd.DataFrame:
    facet, name = wanted
    asked = {"name": name, "facet": facet}
    found = store.query(FIRINGS, {**asked, "n": n, "rows": float(store.n_rows)})
    same = "from vocabulary where ($facet is null or facet = $facet) and "
    if found.empty and not len(store.query(f"select 1 {same} name = $name", asked)):
        like = store.query(f"select name {same} lower(trim(name)) = lower(trim($name)) order by name", asked)[
            "name"
        ].tolist()
        hint = f"Did you mean {' or '.join(map(repr, like[:3]))}?" if like else "Search by example= instead."
        what = "one of the store's tokens" if way == "token" else "what a row of the store shows"
        message = f"{way} must be {what}, to the letter. Got {name!r}. {hint}"
        raise CorpusError(message)
    return found.loc[:, ["latent", "score", "count", "precision", "recall", "lift"]]


def _label(labels: pd.DataFrame, text: str, n: int) -> pd.DataFrame:
    words = text.casefold().split()
    folded = [label.casefold() for label in labels["label"]]
    hits = np.array([all(w in label for w in words) for label in folded], dtype=bool)
    found = labels.loc[hits].copy()
    asked = sum(map(len, words))
    lengths = [len("".join(label.split())) for label, hit in zip(folded, hits, strict=True) if hit]
    found.insert(1, "score", np.minimum(1.0, asked / np.array(lengths, dtype=np.float64)))
    order = np.lexsort((found["latent"].to_numpy(np.int64), -found["score"].to_numpy()))
    return found.iloc[order[:n]]


def _example(store: Latents, text: str, n: int) -> pd.DataFrame:
    try:
        found = store.example_index.search(text, n)
    except duckdb.Error as error:
        message = f"The words of the examples must be indexed. Got: {error}. Free some space or memory."
        raise StoreError(message) from error
    best = store.query(
        "select distinct on (latent, row) latent, row, names as window from examples "
        "where latent in (select unnest(?::int[])) and row in (select unnest(?::bigint[]))",
        [found["latent"].tolist(), found["row"].tolist()],
    )
    best["window"] = [read(list(names), window=True) for names in best["window"]]
    return found.merge(best, on=["latent", "row"], how="left")


def _direction(store: Latents, vector: Any, n: int, but: int | None = None) -> pd.DataFrame:
    directions = store.directions
    wanted = np.asarray(vector.detach().cpu().float() if hasattr(vector, "detach") else vector, np.float32)
    if wanted.shape != directions.shape[1:]:
        message = (
            f"direction must be a vector [{directions.shape[1]}], of the width that the SAE writes. "
            f"Got {list(wanted.shape)}. Pass e.g. a row of W_dec."
        )
        raise ShapeError(message)
    if not np.isfinite(wanted).all():
        message = "direction must be finite. Got NaN or infinity. Pass a vector of finite numbers."
        raise NonFiniteError(message)
    length = float(np.linalg.norm(wanted.astype(np.float64)))
    if not length:
        message = "direction must point somewhere. Got zeros alone. Pass another vector, or another latent."
        raise ConfigError(message)
    # a latent without a direction is near to nothing
    scores = cosines(directions, wanted / np.float32(length)).astype(np.float64)
    if but is not None:
        scores[but] = -np.inf
    best = np.argsort(-scores, kind="stable")[:n]
    best = best[np.isfinite(scores[best])]
    names = store.query(
        "select latent, top_names from latents where latent in (select unnest(?::int[]))", [best.tolist()]
    )
    found = pd.DataFrame({"latent": best, "score": scores[best]})
    return found.merge(names, on="latent", how="left")


def _latent(store: Latents, latent: Any, n: int) -> pd.DataFrame:
    at = store.latent(latent).latent
    return _direction(store, store.directions[at].astype(np.float32), n, but=at)
