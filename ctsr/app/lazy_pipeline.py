"""A pipeline that is loaded at its first use."""

from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import torch

from .. import __version__
from ..checkpoints.own import stored_settings
from ..errors import CheckpointError
from ..images.color_fix import ColorFix
from ..images.tensors import DEFAULT_SCALE
from ..load import is_built_in, load_pipeline, path_of
from ..pipeline import CTSRPipeline
from ..precision import Precision, choose_dtype
from ..whole_file import digest
from .options import Options


@dataclass
class LazyPipeline:
    """A pipeline that is loaded when the first picture needs it: a run in which none can be read loads nothing."""

    name: str
    precision: Precision
    device: torch.device

    def __post_init__(self) -> None:
        self.dtype = choose_dtype(self.precision, self.device)
        if not self.path.exists():
            built_in = "The built-in model is missing from this installation"
            what = built_in if is_built_in(self.name) else "There is no model"
            raise CheckpointError(
                f"{what}: {self.path} does not exist; give a .safetensors file, a folder, 'mini' or 'lowlight'."
            )

    @property
    def path(self) -> Path:
        """The weights: a file or a folder."""
        return path_of(self.name)

    @cached_property
    def default_scale(self) -> float:
        """Side of a result / side of its picture where nothing is asked for; read without loading the networks."""
        return float(stored_settings(self.path).get("default_scale", DEFAULT_SCALE))

    def settled(self, options: Options) -> Options:
        """The options, with the checkpoint's own scale where they say nothing of how large results are."""
        return replace(options, size=options.size.or_scale(self.default_scale))

    @cached_property
    def pipeline(self) -> CTSRPipeline:
        """The pipeline; raises CheckpointError if it cannot be loaded."""
        try:
            pipeline = load_pipeline(self.name, "auto" if self.precision == "auto" else self.dtype, self.device)
        except OSError as error:
            raise CheckpointError(f"{self.path} cannot be read ({error.strerror or error}).") from error
        pipeline.set_attention_backend("auto")
        return pipeline

    @property
    def precision_name(self) -> str:
        """What decides the bits of a result: bf16 by `auto` may leave the UNet in another dtype."""
        name = str(self.dtype).removeprefix("torch.")
        return f"auto, {name}" if self.precision == "auto" and self.dtype == torch.bfloat16 else name

    @property
    def files(self) -> list[Path]:
        """The files of weights."""
        return [self.path] if self.path.is_file() else sorted(self.path.rglob("*.safetensors"))

    @cached_property
    def digest(self) -> str:
        """Tells these weights from all others."""
        return digest(*self.files)

    def settings(self, options: Options) -> dict[str, str | float | int | bool]:
        """What pictures are made with, but for their sources."""
        asked = {"strip_metadata": options.strip_metadata, **asdict(options.encoding)}
        return {
            "ctsr": __version__,
            "model": self.name if is_built_in(self.name) else self.path.resolve().name,
            "weights": self.digest,
            "t": options.t,
            **options.size.settings(),
            "tile": options.tile,
            "color_fix": self.color_fix(options),
            "precision": self.precision_name,
            **{key: value for key, value in asked.items() if value},
        }

    def color_fix(self, options: Options) -> ColorFix:
        """As asked, or the checkpoint's own."""
        return options.color_fix or self.pipeline.config["color_fix"]
