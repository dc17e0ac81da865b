"""SAE: the one class of sparse autoencoder, built of a sparsifier and a dictionary."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.arguments import an_integer, checked, floats, mapping, maybe, place
from saelab.devices import torch_device
from saelab.files import path_of
from saelab.sae import publish, storage
from saelab.sae.config import SAEConfig
from saelab.sae.initial import initialise
from saelab.sae.network import Network
from saelab.types import ConfigError, HookError, HookPoint


class SAE(Network):
    """A sparse autoencoder: x -> codes -> x_hat.

        pre   = (x / input_scale - b_dec) @ W_enc + b_enc          (b_dec only with `apply_b_dec_to_input`)
        codes = sparsifier(pre)
        x_hat = (codes @ W_dec + b_dec) * input_scale

    Parameters: W_enc [d_in d_sae], b_enc [d_sae], W_dec [d_sae d_out] (of the dictionary), b_dec [d_out].
    Buffer: input_scale [], the mean Euclidean norm of the raw inputs that training began with (1 without
    normalisation); codes, biases and W_dec are in units of x / input_scale. With normalise="layernorm" each
    row is centred and divided by its norm instead, which the decoder undoes (`Scale`); so are "zscore" and
    "sphere" (see `normalised`).

    d_out is d_in but for transcoders, whose output is another activation y than their input: they have an
    output_scale [] of their own, never subtract b_dec from the input and, as skip_transcoder, add
    x / input_scale @ W_skip [d_in d_out] to the normalised output. A crosscoder's input is the concatenation
    of several activations, with an input_scale [d_in] that is constant within each.

    A cross-layer transcoder of L layers has inputs and outputs of all layers side by side, a scale for each,
    and d_sae / L latents a layer, the first layer's first: each reads its own layer by its column of W_enc
    [d_in / L d_sae], and writes to that layer and all later ones (`layered.CrossLayer`).

    Inputs have any leading shape; they must be floating point, finite, on the SAE's device and of width d_in
    (ShapeError, NonFiniteError). Make one by `SAE.create`, `SAE.load` or `saelab.train`; `SAE(config)` alone
    is all zeros, to be filled.
    """

    stored_dtype = "float32"
    """The dtype of the file that it was loaded from."""

    @classmethod
    @checked(rows=maybe(floats), targets=maybe(floats), seed=an_integer())
    def create(
        cls,
        config: SAEConfig,
        seed: int = 0,
        rows: Float[Tensor, "n d_in"] | None = None,
        targets: Float[Tensor, "n d_out"] | None = None,
    ) -> SAE:
        """An untrained SAE (the control of every score): random unit decoder rows, W_enc as the config says.

        It comes in eval mode. The same seed gives the same weights, and the global random state is left
        alone.

        Args:
            config: What `saelab.recipe` gives.
            seed: Seed of the weights.
            rows: Activations from which the scales, b_dec, an archetypal dictionary and, with tied_init, the
                factor of W_enc are taken, as training does. The factor is the one whose reconstruction is
                best in least squares: latents overlap, so that W_enc = W_dec^T alone overshoots. Without rows
                the scales and the factor are 1 and b_dec is 0.
            targets: Targets of the same rows, for transcoders.
        """
        sae = cls(config)
        initialise(sae, seed, rows, targets)
        return sae.eval()

    @property
    def hook(self) -> HookPoint:
        """Where it reads. Raises HookError on an SAE that names no hook point."""
        if self.config.hook is None:
            message = (
                "An SAE must name the hook point that it reads. Got hook=None. Set it: "
                "saelab.recipe(..., hook=...)."
            )
            raise HookError(message)
        return self.config.hook

    @property
    def reads(self) -> tuple[HookPoint, ...]:
        """The hook points whose activations, side by side, are its input: several of a crosscoder."""
        return self.config.hooks or (self.hook,)

    @property
    def writes(self) -> tuple[HookPoint, ...]:
        """The hook points that its reconstruction stands for, side by side. Raises HookError on a transcoder
        that names no target."""
        if self.config.d_out is None:
            return self.reads
        if self.config.hooks_out:
            return self.config.hooks_out
        if self.config.hook_out is None:
            message = (
                "A transcoder must name its target. Got hook_out=None. Set it: recipe(..., hook_out=...)."
            )
            raise HookError(message)
        return (self.config.hook_out,)

    def save(self, folder: str | Path, dtype: str = "float32") -> Path:
        """Write config.json and sae.safetensors, each by a temporary file and a rename.

        Args:
            folder: Made if it is not there.
            dtype: "float32", or "float16" / "bfloat16" to halve the size (loads as float32, `stored_dtype`
                tells).

        Returns:
            The folder.

        Raises:
            StoreError: The folder cannot be written.
            NonFiniteError: Weights are not finite (or overflow in float16).
        """
        place = path_of(folder, "An SAE's folder")
        storage.save(self.config, self.state_dict(), place, dtype)
        return place

    @classmethod
    @checked(folder=place)
    def load(cls, folder: str | Path, device: str | torch.device = "cpu") -> SAE:
        """The SAE that `save` wrote, bit-equal.

        Args:
            folder: Where it wrote.
            device: Where the SAE goes.

        Raises:
            StoreError: There is none.
            FormatError: The folder is truncated, altered, inconsistent or of a newer version.
        """
        where = torch_device(device)
        stored = storage.load(Path(folder), lambda config: _on_meta(cls, config).state_dict())
        sae = cls.from_tensors(stored.config, stored.tensors)
        sae.stored_dtype = stored.dtype
        return sae.to(where)

    @classmethod
    @checked(tensors=mapping)
    def from_tensors(cls, config: SAEConfig, tensors: Mapping[str, Tensor | None]) -> SAE:
        """An SAE in eval mode that holds these tensors, without a copy.

        Args:
            config: What it is.
            tensors: By their names in `state_dict`. The sparsifier's, and scales, may be missing: they start
                as in any SAE.

        Raises:
            ConfigError: Weights are missing.
            RuntimeError: For a name or shape that an SAE of that config does not have.
        """
        sae = _on_meta(cls, config)
        # what its buffers hold besides is not among the tensors
        sae.sparsifier = config.entry.sparsifier(config)
        rest = {f"sparsifier.{name}": tensor for name, tensor in sae.sparsifier.state_dict().items()}
        rest["input_scale"] = torch.ones(config.d_in if config.widths else (), dtype=torch.float32)
        rest["output_scale"] = torch.ones(config.d_out or () if config.widths else (), dtype=torch.float32)
        absent = [name for name in sae.state_dict() if name not in tensors]
        if lost := [name for name in absent if name not in rest]:
            message = (
                f"Tensors of an SAE must hold its weights. Got none of {', '.join(lost)}. Pass them by their "
                "names in sae.state_dict()."
            )
            raise ConfigError(message)
        missing = {name: rest[name] for name in absent}
        sae.load_state_dict({**missing, **tensors}, assign=True)
        return sae.eval()

    def push_to_hub(
        self,
        repository: str,
        *,
        metrics: Mapping[str, Any] | None = None,
        provenance: Mapping[str, Any] | None = None,
        dtype: str = "float32",
        private: bool = False,
        subfolder: str | None = None,
        report: publish.Reported | None = None,
    ) -> str:
        """Write it, with a model card, into a repository of the Hugging Face hub.

        Args:
            repository: Its id; made if it is not there.
            metrics: Name -> value, for the card.
            provenance: Name -> value, for the card.
            dtype: As for `save`.
            private: Whether a new repository is private.
            subfolder: In the repository.
            report: What `saelab.evaluate` gave of it: a table of the card, and report.json beside the SAE.

        Returns:
            The commit's address.

        Raises:
            ConfigError: The report is of another SAE.
            StoreError: The hub cannot be reached or written.
        """
        return publish.push(
            self.config,
            self.state_dict(),
            repository,
            metrics or {},
            provenance or {},
            dtype,
            private,
            subfolder,
            report,
        )

    def fingerprint(self) -> str:
        """Hex SHA-256 of config and weights; equal for equal SAEs, whatever their device."""
        return storage.fingerprint(self.config, self.state_dict())

    def check_parameters(self) -> None:
        """Refuse weights that are NaN or infinite.

        Raises:
            NonFiniteError: There is one; it names the parameter.
        """
        storage.check_finite(self.state_dict())

    def extra_repr(self) -> str:
        at = f", hook={self.config.hook.name!r}" if self.config.hook else ""
        out = f", d_out={self.d_out}" if self.config.d_out is not None else ""
        return f"{self.config.title!r}, d_in={self.d_in}, d_sae={self.d_sae}{out}{at}"


def _on_meta(cls: type[SAE], config: SAEConfig) -> SAE:
    """An SAE whose tensors take no memory. Of float32 whatever the default is: a model that another thread
    loads meanwhile changes that, and weights would be rounded."""
    with torch.device("meta"):
        return cls(config).float()
