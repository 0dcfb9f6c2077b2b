"""A user's own LoRA files on the UNet of a pipeline, by diffusers' names and in its formats.

They come on top of a finished checkpoint, unlike the adapters of `lora`, which a checkpoint is made of. peft and
transformers, which diffusers wants for it, are imported at the call.
"""

import logging
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from diffusers.loaders.lora_base import LoraBaseMixin
from diffusers.loaders.peft import PeftAdapterMixin
from diffusers.models.modeling_utils import ModelMixin
from safetensors import SafetensorError
from torch import Tensor

from ..errors import CheckpointError, CTSRError, first_line
from ..models.lora import lora_layers

logger = logging.getLogger(__name__)

_USUAL_NAME = "pytorch_lora_weights.safetensors"
Source = str | os.PathLike[str] | Mapping[str, Tensor]
# What diffusers and peft raise for adapters of another model.
_UNFIT = (AttributeError, KeyError, TypeError, ValueError, RuntimeError)


class UserLoraMixin(LoraBaseMixin):
    """`load_lora_weights` and its like for a pipeline with a `unet`; diffusers' base has the rest of them."""

    _lora_loadable_modules = ["unet"]  # noqa: RUF012  # diffusers' own way to say it
    _from_users: tuple[str, ...] = ()

    unet: ModelMixin

    def load_lora_weights(  # pyright: ignore[reportIncompatibleMethodOverride]  # theirs is but a stub
        self, source: Source, adapter_name: str | None = None, **options: Any
    ) -> None:
        """Adds a LoRA to the UNet, at full strength; `set_adapters` sets others.

        Args:
            source: a safetensors file or folder, a name on the hub, or a state dict; of diffusers or kohya. What is
                for a text encoder is left out, since nothing encodes text at run time.
            adapter_name: for `set_adapters` and `delete_adapters`; counted by default.
            options: `weight_name` and what diffusers takes for the hub.

        Raises:
            ValueError: the UNet takes no LoRA, carries some of its own, or is of another shape.
            CheckpointError: no readable LoRA there.
            CTSRError: peft or transformers is not installed.
        """
        loader, unet = _lora_loader(self.unet), cast(Any, self.unet)
        known = _adapters_of(unet)
        if not set(known) <= set(self._from_users):
            raise ValueError(
                "The UNet carries LoRA of its own: fold it in with ctsr.models.lora.merge_lora(pipe.unet) first."
            )
        if adapter_name in known:
            raise ValueError(f"There is a LoRA {adapter_name!r} already: take another name, or unload_lora_weights().")
        state, alphas, metadata = _read_lora(loader, source, options)
        active: list[str] = cast(Any, self).get_active_adapters() if known else []
        try:
            loader.load_lora_into_unet(
                state, network_alphas=alphas, unet=unet, adapter_name=adapter_name, _pipeline=self, **metadata
            )
        except _UNFIT as error:
            remove(unet, set(_adapters_of(unet)) - set(known), active)
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"This LoRA does not fit the UNet ({reason}): is it of another base?") from error
        self._from_users = _adapters_of(unet)

    def unload_lora_weights(self) -> None:
        """Removes every LoRA that `load_lora_weights` added; those that a checkpoint came with stay."""
        if self._from_users:
            base: Any = super()
            base.unload_lora_weights()
            self._from_users = ()

    def set_adapters(  # pyright: ignore[reportIncompatibleMethodOverride]  # theirs has wider types
        self, adapter_names: str | Sequence[str], adapter_weights: float | Sequence[float] | None = None
    ) -> None:
        """Which LoRA act, and how strongly: one weight for all or one each, 1 by default.

        Raises:
            ValueError: no LoRA of such a name is loaded.
        """
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        known = _adapters_of(self.unet)
        if missing := [name for name in names if name not in known]:
            raise ValueError(f"There is no LoRA {missing[0]!r}: call load_lora_weights first (loaded: {list(known)}).")
        weights = list(adapter_weights) if isinstance(adapter_weights, Sequence) else adapter_weights
        base: Any = super()
        base.set_adapters(names, weights)


def _adapters_of(unet: ModelMixin) -> tuple[str, ...]:
    """Names of the adapters on a UNet."""
    return tuple(getattr(unet, "peft_config", ()))


def remove(unet: Any, adapters: Collection[str], active: Sequence[str]) -> None:
    """Takes half-loaded adapters off again and leaves `active` as those that act, or plain layers where there is none.

    Newer releases of diffusers have done the first, older ones have not.
    """
    if not active:
        unet.unload_lora()
        return
    if adapters:
        unet.delete_adapters(list(adapters))
    for layer in lora_layers(unet).values():  # older releases know of no adapters that a file brought: not by the UNet
        layer.set_adapter(active)


def _lora_loader(unet: ModelMixin) -> Any:
    """diffusers' functions for LoRA of Stable Diffusion.

    Raises:
        ValueError: the UNet takes no LoRA of users.
        CTSRError: peft or transformers is not installed.
    """
    if not isinstance(unet, PeftAdapterMixin):
        raise ValueError(f"{type(unet).__name__} takes no LoRA: load a checkpoint with a Stable Diffusion UNet.")
    try:
        import peft  # noqa: F401  # pyright: ignore[reportUnusedImport]
        from diffusers.loaders.lora_pipeline import StableDiffusionLoraLoaderMixin
    except ImportError as error:
        message = f"LoRA needs peft and transformers ({first_line(error)}): pip install 'ctsr[sd]'."
        raise CTSRError(message) from error
    return StableDiffusionLoraLoaderMixin


def _read_lora(
    loader: Any, source: Source, options: Mapping[str, Any]
) -> tuple[dict[str, Tensor], Any, dict[str, Any]]:
    """Tensors for the UNet, kohya's alphas, and the metadata that newer releases of diffusers keep alphas in."""
    place, file = (dict(source), None) if isinstance(source, Mapping) else _locate(Path(source))
    names = {} if file is None else {"weight_name": file}
    try:
        state, alphas, *metadata = loader.lora_state_dict(
            place, **{"use_safetensors": True, "return_lora_metadata": True, **names, **options}
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{source} gives no LoRA in safetensors ({first_line(error)}).") from error
    own = {key: tensor for key, tensor in state.items() if not key.startswith("text_encoder")}
    if not own or not all("lora" in key or key.endswith(".alpha") for key in own):
        raise CheckpointError("This holds no LoRA of a UNet: give a file in diffusers' or kohya's format.")
    if len(own) < len(state):
        logger.warning("The LoRA's part for a text encoder is left out: the prompt is baked in.")
    return own, alphas, {"metadata": metadata[0]} if metadata else {}


def _locate(path: Path) -> tuple[str, str | None]:
    """Folder and file of a LoRA, or a name on the hub and None; older releases of diffusers guess no file offline.

    Raises:
        CheckpointError: a safetensors file that is not there.
    """
    if path.is_file():
        return str(path.parent), path.name
    if path.suffix == ".safetensors":
        raise CheckpointError(f"{path} does not exist, or is no file: check the path.")
    return path.as_posix(), _USUAL_NAME if (path / _USUAL_NAME).is_file() else None
