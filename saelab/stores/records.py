"""What a feature store says of a latent, an example, a row and a document: one record each, from the files to
the screen."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from saelab.errors import CorpusError, headline, short
from saelab.layout import Layout

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

MEDIA_BYTES = 1 << 16
"""Bytes of one document's picture, at most."""
_MEDIA = {
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"GIF8": "image/gif",
    b"RIFF": "image/webp",
}


@dataclass(frozen=True)
class LatentStats:
    """Statistics of one latent over all rows of a store. Its fields but `n_rows` are columns of the table
    `latents`, and all of them go to the screen."""

    latent: int
    n_rows: int
    """of the store"""
    count: int
    """rows where it is != 0"""
    density: float
    """count / n_rows, in [0, 1]"""
    mean: float
    """mean value where it fires; 0 if it never does"""
    min: float
    max: float
    negative: int
    """rows where it is < 0"""
    mean_abs: float
    """mean |value| where it fires; 0 if it never does"""
    min_abs: float
    """least |value| where it fires; 0 if it never does"""
    histogram: np.ndarray
    """int64 [bins]: firings in each bin, sums to count; 21 to 40 bins"""
    edges: np.ndarray
    """float64 [bins + 1]: multiples of a power of two, from the last <= min(0, min) to the first > max"""
    top_names: list[str]
    """what it is > 0 on most often, at most three"""
    bottom_names: list[str]
    """what it is < 0 on most often, at most three"""

    def figure(self) -> go.Figure:
        """Bar chart of the histogram of the values where the latent fires."""
        import plotly.graph_objects as go

        centres = (self.edges[:-1] + self.edges[1:]) / 2
        figure = go.Figure(go.Bar(x=centres, y=self.histogram, width=np.diff(self.edges)))
        figure.update_layout(
            title=f"latent {self.latent}: fires on {self.density:.2%} of {self.n_rows:,} rows",
            xaxis_title="activation", yaxis_title="rows", bargap=0, template="simple_white",
        )  # fmt: skip
        return figure

    def to_frame(self) -> pd.DataFrame:
        """One line for each bin of the histogram: low, high, count."""
        import pandas as pd

        return pd.DataFrame({"low": self.edges[:-1], "high": self.edges[1:], "count": self.histogram})

    __repr__ = headline

    def __str__(self) -> str:
        if not self.count:
            return f"latent {self.latent}: never fires on {self.n_rows:,} rows"
        fires = f"fires on {self.count:,} of {self.n_rows:,} rows ({self.density:.3%})"
        if self.negative:
            share = f"{self.negative / self.count:.1%} of them negative, mean |value| {self.mean_abs:.3g}"
            return f"latent {self.latent}: {fires}, {share}, from {self.min:.3g} to {self.max:.3g}"
        mean = "unknown" if self.mean != self.mean else f"{self.mean:.3g}"
        return f"latent {self.latent}: {fires}, mean {mean}, max {self.max:.3g}"


COLUMNS = tuple(field.name for field in fields(LatentStats) if field.name != "n_rows")
"""Columns of the table `latents` that make a LatentStats."""
LISTS = ("histogram", "edges", "top_names", "bottom_names")
NUMBERS = tuple(name for name in COLUMNS if name not in LISTS)


class Example(NamedTuple):
    """A window of a document around one firing of a latent."""

    latent: int
    kind: str
    """"top": the largest values > 0, "bottom": the smallest < 0, ties to the lower row; "quantile": spread
    over the range of |value|s"""
    rank: int
    stratum: int
    """for "quantile" which of the 5 to 8 equal parts of the range of |value|s its own lies in, 0 the
    lowest; else -1"""
    row: int
    document: int
    position: int
    """of the firing in its document"""
    call: int
    """of the module in its pass; 0 but where it runs several times"""
    value: float
    start: int
    """position of the window's first row"""
    names: list[str]
    """what each row shows"""
    values: np.ndarray
    """float32 [len(names)]: the latent's code on each row, 0 where it does not fire"""

    def to_frame(self) -> pd.DataFrame:
        """One line for each row of the window: position, name, value."""
        import pandas as pd

        position = np.arange(self.start, self.start + len(self.names))
        return pd.DataFrame({"position": position, "name": self.names, "value": self.values})

    def __repr__(self) -> str:
        name = self.names[self.position - self.start]
        place = f"row {self.row}, document {self.document}"
        return f"Example(latent {self.latent}, {self.kind}: {self.value:.3g} on {name!r}, {place})"


@dataclass(frozen=True)
class RowRecord:
    """One row of the corpus and what fires on it."""

    row: int
    document: int
    position: int
    call: int
    facet: str
    """kind of what it shows: "token", "patch", "item", ..."""
    name: str
    """what it shows"""
    id: int
    """the subject's own number of that, such as a token id; -1 where it has none"""
    latents: np.ndarray
    """int32 [l0], largest |value| first"""
    values: np.ndarray
    """float32 [l0]"""

    def __repr__(self) -> str:
        where = f"document {self.document}, position {self.position}"
        return (
            f"RowRecord({self.row}: {self.facet} {self.name!r} of {where}; {len(self.latents)} latents fire)"
        )


class DocumentRecord(NamedTuple):
    """A document as it was indexed."""

    document: int
    """its number"""
    id: str
    kind: str
    text: str
    layout: str
    """how its positions lie, see `saelab.layout`"""
    labels: tuple[str, ...] = ()
    media: bytes | None = None
    """a small picture of it: PNG, JPEG, GIF or WebP of at most 64 KiB"""

    def __repr__(self) -> str:
        text = short(self.text, 80) if self.text else "no text"
        return f"DocumentRecord({self.document}, {self.title}: {text}, {self.layout})"

    @classmethod
    def of(cls, number: int, document: Any, layout: str) -> DocumentRecord:
        """The record of a `saelab.corpora.Document`.

        Args:
            number: In the corpus, from 0.
            document: The Document.
            layout: How its positions lie, see `saelab.layout`.

        Raises:
            CorpusError: Its media is no picture, or beyond the budget.
        """
        check_media(document.media, document.id)
        return cls(
            number, document.id, document.kind, document.text, layout, document.labels, document.media or None
        )

    @property
    def title(self) -> str:
        """For people: kind, id and labels, as "image 3 «cat»"."""
        labels = f" «{', '.join(self.labels)}»" if self.labels else ""
        return f"{self.kind or 'document'} {self.id}{labels}"

    @property
    def grids(self) -> int:
        """How many grids its positions lie on: of one, its picture is what the grid covers."""
        return sum(segment.kind == "grid" for segment in Layout.parse(self.layout).segments)


def media_type(media: bytes) -> str | None:
    """The MIME type of a picture by its first bytes; None of what is none."""
    return next((kind for start, kind in _MEDIA.items() if media.startswith(start)), None)


def check_media(media: bytes | None, id: str) -> None:
    """Refuse what is no small picture. Raises CorpusError."""
    if not media:
        return
    if len(media) > MEDIA_BYTES or media_type(media) is None:
        got = f"{len(media):,} bytes" if media_type(media) else "bytes that begin as none of these"
        message = (
            f"A document's media must be a PNG, JPEG, GIF or WebP of at most {MEDIA_BYTES:,} bytes. "
            f"Got {got} of document {id!r}. Make it smaller: saelab.corpora.images does."
        )
        raise CorpusError(message)
