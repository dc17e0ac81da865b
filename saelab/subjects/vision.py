"""Image models as subjects: their own image processor, and rows that know their patch."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from saelab.arguments import one_of
from saelab.config import is_integer
from saelab.corpora.pictures import picture_of
from saelab.devices import torch_device
from saelab.layout import Layout, Place
from saelab.subjects.hooks import Site
from saelab.subjects.points import ATTENTION, block_points
from saelab.subjects.reading import FACETS, How, SampleReading
from saelab.subjects.seeing import Box, Seeing, cut, seeing
from saelab.subjects.streams import settle
from saelab.subjects.timm_processor import TimmProcessor
from saelab.subjects.torch_module import TorchModule, canonical
from saelab.types import (
    CorpusError,
    HookError,
    HookPoint,
    Inputs,
    MissingDependency,
    Shown,
    SubjectError,
    short,
)

ROWS = {"all": (), "patches": ("patch",), "class": ("class",)}
"""What may be rows -> facets of positions that are."""
NORMS = ("layernorm", "post_layernorm", "norm")


class VisionModel(TorchModule):
    """A vision transformer or another image model, read and edited at hook points.

    Blocks of a transformer have the names that language models have, `blocks.{i}.hook_resid_post` and the
    like, where they are what they are called; every module has its path. At a hook point that has a position
    for each patch, rows show where the patch lies ("patch", "2,5"); the positions before the patches show
    ("class", "class") and ("register", "1") and so on. Maps of a CNN are grids of their own. How many patches
    there are follows from the image that the processor gives and the model's patch size.

    Args:
        model: Of Hugging Face, taking `pixel_values`, or any that takes a batch of pixels; put into eval
            mode. Of a model that reads texts too (CLIPModel, SiglipModel) its vision tower.
        processor: Its image processor: (images=[...], return_tensors="pt") -> pixel_values.
        rows: Which positions are rows: "all", "patches" or "class" (the class token), wherever a hook point
            has patches. The others are left out of harvests, training and indices, and edits by an SAE leave
            them as they are.

    Attributes:
        grid: (rows, columns) of the patches, or None.
        before: How many positions come before the patches, or None where the model has no blocks.
        missing: Name of a usual hook point -> why there is none.

    Raises:
        SubjectError: The processor gives no pixel_values.
        ConfigError: Unknown rows.
    """

    def __init__(self, model: nn.Module, processor: Any, rows: str = "all") -> None:
        one_of(*ROWS)("rows", rows)
        self.processor, self.rows = processor, rows
        self._argument = "pixel_values"
        if isinstance(model, nn.Module):
            names = list(inspect.signature(model.forward).parameters)
            tower = getattr(model, "vision_model", None)
            if "input_ids" in names and isinstance(tower, nn.Module):
                model = tower
            elif "pixel_values" not in names and names:
                self._argument = names[0]
        self.grid: tuple[int, int] | None = None
        self.before: int | None = None
        super().__init__(model, prepare=self._pixels, example=[_blank()])
        assert self._sample is not None
        height, width = self._sample.data[self._argument].shape[-2:]
        patch = None if _blocks(self.module) is None else _patch(self.module)
        self.grid = None if patch is None else (height // patch[0], width // patch[1])
        self._live: list[str] | None = None
        self.points: dict[str, Site] = {}
        self.missing: dict[str, str] = {}
        self._seeing: tuple[Seeing | None] | None = None
        if self.device.type != "meta":
            self._find_points()
            self._sample = self.prepare([_blank()])  # which now says what counts

    @classmethod
    def load(cls, name: str | Path, device: str | torch.device = "cpu", *, rows: str = "all") -> VisionModel:
        """The model of a folder or a hub id, with its processor; of a classifier with its head.

        Args:
            name: The folder or id.
            device: A torch device.
            rows: See the class.

        Raises:
            SubjectError: It cannot be found, or is no image model.
            MissingDependency: Pillow is not installed.
        """
        place = torch_device(device, error=SubjectError)
        from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification

        try:
            config = AutoConfig.from_pretrained(str(name))
            classifies = any("ForImageClassification" in each for each in config.architectures or ())
            processor = AutoImageProcessor.from_pretrained(str(name))
            model = (AutoModelForImageClassification if classifies else AutoModel).from_pretrained(str(name))
        except ImportError as error:
            message = "Image processors need Pillow. It is not installed. Run: pip install pillow"
            raise MissingDependency(message) from error
        except Exception as error:
            first = str(error).strip().split("\n", 1)[0][:300]
            message = (
                f"An image model must load with its processor. Got {str(name)!r}: {first} Pass a folder that "
                "save_pretrained wrote, or VisionModel(model, processor)."
            )
            raise SubjectError(message) from None
        return cls(model.to(place).float().requires_grad_(False), processor, rows)

    @classmethod
    def timm(cls, model: nn.Module, *, rows: str = "all") -> VisionModel:
        """A model of timm, with the transform of its own data config.

        Args:
            model: What `timm.create_model` gave.
            rows: See the class.

        Raises:
            MissingDependency: timm is not installed.
        """
        return cls(model, TimmProcessor(model), rows)

    def hooks(self) -> list[str]:
        """Names of the blocks' hook points, then paths of the modules that the output answers to."""
        if self._live is None:
            # of the whole model without its head the output may answer to another tensor than the first
            whole = {getattr(self.module, "base_model_prefix", ""), "vision_model"}
            names = [*self.points, *(name for name in super().hooks() if name not in whole)]
            self._check_together([HookPoint.of(name) for name in names if HookPoint.of(name).call is None])
            self._live = list(filter(self._lives, names))
        return list(self._live)

    def _lives(self, name: str) -> bool:
        """Whether the output answers to a hook point: wrappers and heads are called whose result counts for
        nothing."""
        with contextlib.suppress(HookError):
            return self.width(name) > 0
        return False

    def hook_point(self, name: HookPoint | str) -> HookPoint:
        """The HookPoint of a name, a path as the whole path.

        Raises:
            HookError: The name is unknown or ambiguous.
        """
        hook = HookPoint.of(name)
        if hook.module in self.points:
            return hook
        if hook.module in self.missing:
            message = (
                f"A hook point must be what its name says. Got {hook.module!r}: {self.missing[hook.module]}. "
                "Pass one of subject.hooks(), such as a module's path."
            )
            raise HookError(message)
        return super().hook_point(hook)

    def read(self, documents: Sequence[tuple[int, Any]], how: How) -> SampleReading:
        """How consecutive images are read: each is one sample, its patches in a grid.

        Args:
            documents: (number, item) of each.
            how: Batches and the like; with include_bos every position is a row.
        """
        layout = None if self.grid is None else self._lies
        counts = None if self.rows == "all" else self._counts
        return SampleReading(
            documents, how.batch_size, self.prepare, layout, shown=self._shown, counts=counts,
            whole=how.include_bos,
        )  # fmt: skip

    def stretch(self, how: How) -> int:
        """Images that `read` takes at once: those of one pass, for they may be large.

        Raises:
            ConfigError: A packing, which images have not.
        """
        super().stretch(how)
        return how.batch_size

    def box(self, image: Any, position: int, layout: Layout | str | None = None) -> Box:
        """Where a patch lies in an image, in pixels of the image as it was before the processor took it.

        >>> left, top, right, bottom = subject.box(image, example.position)  # doctest: +SKIP

        Args:
            image: As `prepare` takes it.
            position: Of the patch in its document, as rows and examples have it.
            layout: How the positions of the hook point lie, as `store.document(i).layout` says; by default
                those of the model's patches. Of a CNN's map a cell is its share of the picture, and less than
                what the unit sees.

        Raises:
            SubjectError: What the processor does to an image is not known, or there are no patches.
            CorpusError: The position is no patch, or the image none.
            RangeError: There is no such position.
        """
        if layout is None and self.grid is None:
            message = (
                f"box() needs a layout where a model has no patches. Got a {type(self.module).__name__}. "
            )
            raise SubjectError(message + "Pass layout=store.document(i).layout.")
        own = Layout.parse(layout or self._written(self.before or 0))
        place = own.place(position)
        if place.kind != "grid":
            message = (
                f"A position must be a patch. Got {position}, which is {place.kind} {place.name} of '{own}'. "
                "Pass one of the grid."
            )
            raise CorpusError(message)
        segment = own.segments[place.segment]
        rows = (segment.n or 0) // segment.width
        height, width = picture_of(image).shape[:2]
        return self._view_of(height, width).within(rows, segment.width, place.row, place.column)

    def seen(self, sample: Any) -> Any:
        """An image as the model sees it: the sample itself, unless the processor cuts or pads it.

        Args:
            sample: As `prepare` takes it.
        """
        pixels = picture_of(sample)
        height, width = pixels.shape[:2]
        try:
            box = self._view_of(height, width)
        except SubjectError:
            return sample
        whole = np.allclose(box, (0, 0, width, height), atol=0.5)
        return sample if whole else cut(pixels, box)

    def _view_of(self, height: int, width: int) -> Box:
        if self._seeing is None:
            self._seeing = (seeing(self.processor),)
        if self._seeing[0] is None:
            message = (
                "Where a patch lies follows from a processor that resizes and cuts out the middle. Got a "
                f"{type(self.processor).__name__}, which does something else. Pass one that does."
            )
            raise SubjectError(message)
        return self._seeing[0](height, width)

    def _find_points(self) -> None:
        found = _blocks(self.module)
        if found is None:
            return
        path, blocks = found
        points: dict[str, Site] = {}
        for i, block in enumerate(blocks):
            points |= block_points(f"blocks.{i}", block)
        for stem in (path.rpartition(".")[0], path.rpartition(".")[0].rpartition(".")[0]):
            norm = next(
                (f"{stem}.{n}".strip(".") for n in NORMS if f"{stem}.{n}".strip(".") in self._paths), None
            )
            if norm is not None:
                points["ln_final.hook_out"] = Site(self._paths[norm])
                break
        assert self._sample is not None
        positions: list[int] = []
        handle = blocks[0].register_forward_pre_hook(
            lambda module, args, named: positions.append((args or (named["hidden_states"],))[0].shape[1]),
            with_kwargs=True,
        )
        try:
            sample = self._sample
            self.points, self.missing = settle(blocks, points, canonical(1), lambda: self._call(sample))
        finally:
            handle.remove()
        # parts that a pass goes by, such as weights that the parent uses itself, are no hook points; nor is a
        # norm before its gain, for its module has a path and one reading
        met = self._calls(sample)
        self.points = {n: s for n, s in self.points.items() if id(s.module) in met and s.inner is None}
        if self.grid is not None and positions:
            self.before = positions[0] - self.grid[0] * self.grid[1]

    def _site(self, hook: HookPoint) -> Site:
        return (
            self.points[hook.module] if hook.module in self.points else super()._site(self.hook_point(hook))
        )

    def _architecture(self) -> Any:
        # jobs of one model that make rows of other positions are not the same job
        return [*super()._architecture(), *([] if self.rows == "all" else [f"rows {self.rows}"])]

    def _written(self, before: int) -> str:
        assert self.grid is not None
        grid = "grid {}x{}".format(*self.grid)
        return grid if not before else f"extra {before}, {grid}"

    def _lies(self, raw: Any, n: int) -> str | None:
        assert self.grid is not None
        before = n - self.grid[0] * self.grid[1]
        if before < 0:  # a hook point without patches, such as a pooled vector
            return None
        if not before and self.rows == "class":
            message = (
                f"rows='class' needs a model with a class token. Got a {type(self.module).__name__}, whose "
                f"{n} positions are patches. Pass rows='patches'."
            )
            raise HookError(message)
        return self._written(before)

    def _shown(self, place: Place, layout: Layout) -> Shown:
        """What a position shows; before patches stand the class token and what follows it."""
        if place.kind == "extra" and len(layout.segments) > 1:
            registers = _registers(self.module)
            others = (layout.segments[0].n or 0) - registers
            if place.at == 0 and others:
                return Shown("class", "class")
            if place.at >= others:
                return Shown("register", str(place.at - others + 1))
        return Shown(FACETS[place.kind], place.name)

    def _counts(self, shown: Shown, layout: Layout) -> bool:
        """Whether a position is a row."""
        return shown.facet in ROWS[self.rows] or not self._tokens(layout)

    def _tokens(self, layout: Layout) -> bool:
        """Whether a layout is that of the model's class token and patches."""
        return self.grid is not None and layout.size == self.grid[0] * self.grid[1] + (self.before or 0)

    def _pixels(self, raw: Sequence[Any]) -> Inputs:
        from PIL import Image

        try:
            made = self.processor(
                images=[Image.fromarray(picture_of(each)) for each in raw], return_tensors="pt"
            )
        except (ValueError, TypeError, CorpusError) as error:
            message = (
                f"Samples must be images that the model's processor takes. Got {type(raw[0]).__name__}: "
                f"{error}. Pass PIL images or uint8 arrays [H W C]."
            )
            raise CorpusError(message) from None
        if not isinstance(made, Mapping) or "pixel_values" not in made:
            message = (
                f"An image processor must give pixel_values. Got {short(list(made) if made else made)} of "
                f"{type(self.processor).__name__}. Pass the processor that belongs to the model."
            )
            raise SubjectError(message)
        pixels = made["pixel_values"]
        counted = None
        if self.rows != "all" and self.before is not None:
            layout = Layout.parse(self._written(self.before))
            places = [layout.place(at) for at in range(layout.size or 0)]
            own = [self._counts(self._shown(place, layout), layout) for place in places]
            counted = np.tile(np.array(own, bool), (len(pixels), 1))
        return Inputs({self._argument: pixels}, None, counted)

    def _to_device(self, data: Mapping[str, Any]) -> dict[str, Any]:
        dtype = next((p.dtype for p in self.module.parameters() if p.is_floating_point()), torch.float32)
        placed = super()._to_device(data)
        return {k: v.to(dtype) if v.is_floating_point() else v for k, v in placed.items()}


def _blank() -> Any:
    """A picture to try the model on."""
    ramp = torch.linspace(0, 255, 64)
    planes = [ramp[:, None].expand(64, 64), ramp.expand(64, 64), ramp.flip(0).expand(64, 64)]
    return torch.stack(planes, -1).to(torch.uint8).numpy()


def _patch(model: nn.Module) -> tuple[int, int] | None:
    """Height and width of a patch in pixels, as the config or timm's embedding says."""
    config = getattr(model, "config", None)
    size = getattr(getattr(config, "vision_config", config), "patch_size", None)
    if size is None:
        size = getattr(getattr(model, "patch_embed", None), "patch_size", None)
    sides = (size, size) if is_integer(size) else tuple(size) if isinstance(size, tuple | list) else ()
    return sides if len(sides) == 2 and all(is_integer(side) and side > 0 for side in sides) else None  # type: ignore[return-value]


def _registers(model: nn.Module) -> int:
    """Register tokens, as the config or timm's model says."""
    config = getattr(model, "config", None)
    found = getattr(config, "num_register_tokens", None)
    if found is None:
        found = getattr(model, "num_reg_tokens", 0)
    return found if is_integer(found) else 0


def _blocks(model: nn.Module) -> tuple[str, list[nn.Module]] | None:
    """The path and the blocks of a transformer: the one list of alike modules with attention."""
    found = [
        (path, list(own))
        for path, own in model.named_modules()
        if isinstance(own, nn.ModuleList | nn.Sequential)
        and len(own)
        and len({type(block) for block in own}) == 1
        and any(isinstance(getattr(own[0], name.split(".")[0], None), nn.Module) for name in ATTENTION)
    ]
    return found[0] if len(found) == 1 else None


__all__ = ["VisionModel"]
