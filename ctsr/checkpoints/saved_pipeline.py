"""What a checkpoint tells of a pipeline, and its files: one safetensors file, or a folder, here or on the hub."""

import copy
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import nn
from typing_extensions import Self, Unpack  # in typing from Python 3.11

from ..families import Family, Parameterization, get_family
from ..models.lora import lora_layers
from . import hub, own
from .formats import refusal
from .inspect import look

_REEXPORT = "from ctsr import CTSRPipeline\n"
"""pipeline.py of a folder, for `DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, ...)`."""


class SavedPipeline(DiffusionPipeline):
    """A pipeline of `own.COMPONENTS` and `own.SETTINGS` that is loaded and saved whole."""

    vae: Any
    unet: Any
    _own_t: float | None = None

    @property
    def family(self) -> Family:
        """The method, with this checkpoint's constants."""
        family = get_family(cast(str, self.config["family"]))
        if (parameterization := self.config["parameterization"]) is not None:
            family = replace(family, parameterization=cast(Parameterization, parameterization))
        if (timesteps := self.config["encoder_timesteps"]) is not None:
            family = replace(family, encoder_timesteps=tuple(timesteps))
        if self.config["time_aware_unet"]:
            family = replace(family, unet_timesteps=None)
        return family if self._own_t is None else family.at(self._own_t, self.config["dial_timesteps"] or ())

    def at(self, t: float) -> Self:
        """This pipeline at t of the method's own dial, as its paper has it: one pass at the timestep that t stands for.

        In TADSR and OFTSR, `t` of a call blends the latents of two timesteps: another t costs a decode, and a map of it
        is possible. Here every t costs an encode and a UNet pass. TADSR's table t -> tau is the checkpoint's
        `dial_timesteps`; without a table, tau is linear between the ends.

        Args:
            t: 0 = most realistic, 1 = most faithful.

        Returns:
            A pipeline that shares all components with this one and has no dial.

        Raises:
            ValueError: t is not a number in [0, 1], or the method's dial is no timestep: pass t to the call instead.
        """
        other = copy.copy(self)
        other._own_t = None
        other.family.at(t)
        other._own_t = t
        return other

    @property
    def default_scale(self) -> float:
        """Side of the result / side of the picture that the checkpoint is trained for."""
        return float(cast(float, self.config["default_scale"]))

    @property
    def changes_light(self) -> bool:
        """Whether results are to be lighter than their pictures, whose low frequencies no colour fix may bring back."""
        return self.config["task"] == "lowlight"

    @property
    def scaling_factor(self) -> float:
        """s of z = s * E(x)."""
        return float(self.vae.config["scaling_factor"])

    # --- loading and saving ---------------------------------------------------------------------------------------

    @classmethod
    def mini(
        cls,
        torch_dtype: hub.DTypeOption = None,
        device: str | torch.device = "cpu",
        *,
        dtype: hub.DTypeOption = None,
    ) -> Self:
        """The built-in ctsr-mini: no download, no text encoder. Arguments as for `from_single_file`."""
        return cls.from_single_file(own.MINI_WEIGHTS, torch_dtype, device, dtype=dtype)

    @classmethod
    def from_single_file(
        cls,
        path: str | Path,
        torch_dtype: hub.DTypeOption = None,
        device: str | torch.device = "cpu",
        *,
        dtype: hub.DTypeOption = None,
    ) -> Self:
        """A pipeline from one safetensors file with the configuration in its metadata, as `save_single_file` writes it.

        Args:
            path: the file.
            torch_dtype, dtype: as for `from_pretrained`: fp32 by default, whatever the file holds.
            device: where it runs.

        Raises:
            CheckpointError: the file is missing, truncated, or not one of ours; the message says what to do.
        """
        place = torch.device(device)
        hub.dtype_of("unet", dtype, torch_dtype, place)  # refuses before it loads
        return own.load_single_file(cls, Path(path))._placed(own.COMPONENTS, dtype, torch_dtype, place)

    def save_single_file(self, path: str | Path, dtype: torch.dtype | None = None) -> None:
        """Writes everything into one safetensors file, by a temporary name and a rename.

        Args:
            path: of the file; its folder is made if it is missing.
            dtype: of the weights in the file; by default as they are, so that a pipeline loaded in that dtype gives the
                same bits. torch.float16 halves the file of one in fp32.
        """
        own.save_single_file(self, Path(path), dtype)

    @classmethod
    def from_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]  # theirs names none but the first
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        torch_dtype: hub.DTypeOption = None,
        dtype: hub.DTypeOption = None,
        device_map: str | torch.device | Mapping[str, Any] | None = None,
        variant: str | None = None,
        use_safetensors: bool = True,
        low_cpu_mem_usage: bool = False,
        cache_dir: str | os.PathLike[str] | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        revision: str | None = None,
        token: str | bool | None = None,
        **given: Any,
    ) -> Self:
        """A pipeline from a folder that `save_pretrained` wrote, here or on the hub; nothing of it is run as code.

        Args:
            pretrained_model_name_or_path: the folder, or a name on the hub such as "user/model".
            torch_dtype, dtype: two spellings of one argument: a torch.dtype, or a dict of them by component with
                "default". fp32 by default, as everywhere in Python and whatever the files hold, so that loading what
                was saved gives the same bits. "auto" is bf16 where the device has it in hardware, but for UNets whose
                error is amplified: see `precision.accurate_dtype`.
            device_map: one device, such as "cuda".
            variant: of the weight files, such as "fp16".
            use_safetensors: False reads pickled weights, and of these tensors alone.
            low_cpu_mem_usage: taken as diffusers takes it; makes no difference.
            cache_dir, force_download, local_files_only, revision, token: as huggingface_hub takes them.
            given: components (`vae`, `unet`, `prompt_embeddings`, `text_encoder`, `tokenizer`) and settings instead of
                the folder's; `text_encoder=None` loads none.

        Raises:
            CheckpointError: nothing loadable there; the message says what to do.
            ValueError: an argument that does not fit, or a device_map that spreads the networks.
        """
        if unknown := set(given) - {*own.COMPONENTS, *own.TEXT_PARTS, *own.SETTINGS}:
            raise ValueError(f"from_pretrained takes no {sorted(unknown)[0]}: leave it out, or see its docstring.")
        device = hub.one_device(device_map)
        parts = (*own.COMPONENTS, own.TEXT_ENCODER)
        hub.dtype_of("unet", dtype, torch_dtype, device)  # refuses before it loads
        folder = Path(pretrained_model_name_or_path)
        if not folder.exists():
            place: hub.HubOptions = {
                "cache_dir": cache_dir,
                "force_download": force_download,
                "local_files_only": local_files_only,
                "revision": revision,
                "token": token,
            }
            name = os.fspath(pretrained_model_name_or_path)
            wanted = [part for part in (*own.COMPONENTS, *own.TEXT_PARTS) if part not in given]
            folder = hub.fetch(name, wanted, variant, use_safetensors, place)
        contents = look(folder)
        if not contents.is_ours:
            raise refusal(contents)
        hub.check_weights(folder, set(own.COMPONENTS) - set(given), variant, use_safetensors)
        pipeline = own.load_folder(cls, folder, variant, use_safetensors, given)
        pipeline._placed(set(parts) - set(given), dtype, torch_dtype, device)
        cast(Any, pipeline).register_to_config(_name_or_path=os.fspath(pretrained_model_name_or_path))
        return pipeline

    def _placed(
        self, names: Iterable[str], dtype: hub.DTypeOption, torch_dtype: hub.DTypeOption, device: torch.device
    ) -> Self:
        """This pipeline, its components of these names on a device and in the dtypes asked for."""
        for name in names:
            if (component := getattr(self, name)) is not None:
                own.move(component, device, hub.dtype_of(name, dtype, torch_dtype, device, self.family.gain))
        return self

    @classmethod
    def from_pipe(  # pyright: ignore[reportIncompatibleMethodOverride]  # theirs names none but the first
        cls,
        pipeline: DiffusionPipeline,
        *,
        torch_dtype: hub.DTypeOption = None,
        dtype: hub.DTypeOption = None,
        **given: Any,
    ) -> Self:
        """A pipeline that shares the networks and settings of another one.

        Args:
            pipeline: one of ours, or of Stable Diffusion, whose `unet` and `vae` a family such as OSEDiff can take.
            torch_dtype, dtype: as for `from_pretrained`, but by default the networks stay as they are: a cast is one of
                the given pipeline's, too.
            given: components and settings instead of its own.
        """
        base: Any = super()
        parts: dict[str, Any] = {**pipeline.components, **given}
        before: dict[str, torch.dtype] = {
            name: cast(Any, part).dtype for name, part in parts.items() if isinstance(part, nn.Module)
        }
        made: Self = base.from_pipe(pipeline, **given)  # newer releases of diffusers cast to fp32
        asked = dtype is not None or torch_dtype is not None
        for name, part in made.components.items():
            if isinstance(part, nn.Module):
                target = (
                    hub.dtype_of(name, dtype, torch_dtype, made.device, made.family.gain) if asked else before[name]
                )
                nn.Module.to(part, dtype=target)
        return made

    @classmethod
    def download(  # pyright: ignore[reportIncompatibleMethodOverride]  # theirs names none but the first
        cls,
        pretrained_model_name: str,
        *,
        variant: str | None = None,
        use_safetensors: bool = True,
        **options: Unpack[hub.HubOptions],
    ) -> str:
        """Fetches what `from_pretrained` reads of a pipeline on the hub; returns the folder it lies in.

        diffusers' own refuses components of classes that are not its own.

        Raises:
            CheckpointError: no such pipeline, or the hub cannot be reached.
        """
        parts = (*own.COMPONENTS, *own.TEXT_PARTS)
        return str(hub.fetch(pretrained_model_name, parts, variant, use_safetensors, options))

    def save_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]  # hands all on
        self, save_directory: str | Path, **options: Any
    ) -> None:
        """A folder for `from_pretrained`, as diffusers writes it; its older releases refuse channels-last weights.

        A pipeline.py of one line lets `DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder,
        trust_remote_code=True)` load it too.

        Args:
            save_directory: made if it is missing.
            options: `variant`, `safe_serialization`, `max_shard_size` and the like, as diffusers takes them.

        Raises:
            ValueError: a component carries LoRA, which such a folder cannot tell of.
        """
        base: Any = super()
        if lora_layers(self.vae) or lora_layers(self.unet):
            raise ValueError("A folder cannot hold LoRA apart: use save_single_file, or fold it in with merge_lora.")
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        (Path(save_directory) / "pipeline.py").write_text(_REEXPORT, encoding="utf-8")
        for component in self.components.values():
            if isinstance(component, nn.Module):
                cast(Any, nn.Module).to(component, memory_format=torch.contiguous_format)  # until the next run
        base.save_pretrained(save_directory, **options)
