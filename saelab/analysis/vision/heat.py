"""Where in an image a latent fires: its codes as a map over the patches, and over the pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from saelab.arguments import checked
from saelab.config import integer
from saelab.layout import Layout
from saelab.types import ConfigError, ShapeError, short

if TYPE_CHECKING:
    from torch import Tensor


@checked(layout=lambda name, value: Layout.parse(value))
def patch_boxes(layout: Layout | str, size: tuple[int, int]) -> np.ndarray:
    """Which pixels each position of an image stands for.

    Args:
        layout: How the positions lie, such as "extra 1, grid 14x14".
        size: (height, width) of the image that the grid covers, in pixels: of a subject that cuts or pads
            its images, that of `subject.seen(image)`.

    Returns:
        int64 [positions 4]: top, left, bottom, right, of which the last two are no more in it. Boxes of one
        grid share no pixel and leave none out. Positions that stand for the whole image have all of it.

    Raises:
        ConfigError: The layout is none, is of open length, has not one grid, or has more rows than pixels.
    """
    written = Layout.parse(layout)
    height, width = (integer(f"size[{i}]", each, 1) for i, each in enumerate(_pair(size)))
    grids = [segment for segment in written.segments if segment.kind == "grid"]
    if len(grids) != 1 or written.size is None:
        message = f"A layout must have one grid, and a length. Got '{written}'. Pass e.g. 'grid 14x14'."
        raise ConfigError(message)
    rows, columns = int(grids[0].n or 0) // grids[0].width, grids[0].width
    if rows > height or columns > width:
        message = (
            f"An image must have a pixel for each patch of {rows}x{columns}. Got {height}x{width}. Pass the "
            "size of the image that the model sees."
        )
        raise ConfigError(message)
    tops, lefts = (np.arange(n + 1) * of // n for n, of in ((rows, height), (columns, width)))
    parts = []
    for segment in written.segments:
        n = int(segment.n or 0)
        if segment.kind == "grid":
            row, column = np.divmod(np.arange(n), columns)
            parts.append(np.stack([tops[row], lefts[column], tops[row + 1], lefts[column + 1]], 1))
        else:
            parts.append(np.tile([0, 0, height, width], (n, 1)))
    return np.concatenate(parts).astype(np.int64)


@checked(layout=lambda name, value: Layout.parse(value))
def patch_map(
    codes: np.ndarray | Tensor, layout: Layout | str, size: tuple[int, int] | None = None
) -> np.ndarray:
    """The codes of an image's positions as a map over its patches, or over its pixels.

    Args:
        codes: float [positions], or [positions latents].
        layout: How the positions lie, such as "extra 1, grid 14x14"; positions outside of the grid, class and
            register tokens, are left out.
        size: (height, width) in pixels: each pixel has the code of its patch (`patch_boxes`). None: a number
            for each patch.

    Returns:
        float32 [rows columns], or [height width]; with a last axis of the latents where there are several.

    Raises:
        ConfigError: As `patch_boxes`.
        ShapeError: The codes are of another number of positions.
    """
    written = Layout.parse(layout)
    found = np.asarray(codes.detach().cpu() if hasattr(codes, "detach") else codes, np.float32)  # type: ignore[union-attr]
    grids = [segment for segment in written.segments if segment.kind == "grid"]
    if len(grids) != 1 or written.size is None:
        message = f"A layout must have one grid, and a length. Got '{written}'. Pass e.g. 'grid 14x14'."
        raise ConfigError(message)
    if found.ndim not in (1, 2):
        message = (
            f"codes must be [positions] or [positions latents]. Got {list(found.shape)}. Pass one image's."
        )
        raise ShapeError(message)
    written.check(len(found), "codes")
    kinds = np.concatenate([[segment.kind == "grid"] * int(segment.n or 0) for segment in written.segments])
    grid = found[kinds].reshape(-1, grids[0].width, *found.shape[1:])
    if size is None:
        return grid
    boxes = patch_boxes(written, size)[kinds]
    down = np.diff(boxes[:: grids[0].width, [0, 2]], axis=1).ravel()
    across = np.diff(boxes[: grids[0].width, [1, 3]], axis=1).ravel()
    return grid.repeat(down, 0).repeat(across, 1)


def _pair(size: Any) -> tuple[Any, Any]:
    if not isinstance(size, tuple | list) or len(size) != 2:
        message = f"size must be (height, width). Got {short(size)}. Pass e.g. size=(224, 224)."
        raise ConfigError(message)
    return size[0], size[1]


__all__ = ["patch_boxes", "patch_map"]
