"""One-step, time-aware super-resolution with a dial t from realism (t = 0) to fidelity (t = 1).

    from ctsr import CTSRPipeline
    CTSRPipeline.mini()(picture, t=0.3).images[0].save("large.png")

Public names are imported at first use (PEP 562), so that `import ctsr` and `ctsr --help` do without torch.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .errors import CheckpointError, CTSRError, ImageReadError, ImageWriteError, TileMemoryError
    from .families import FAMILIES, Endpoints, Family, blend, get_family
    from .models.autoencoder_kl_time_aware import TimeAwareAutoencoderKL
    from .models.autoencoder_mini import TimeAwareAutoencoderMini
    from .models.autoencoder_mini2 import TimeAwareAutoencoderMini2
    from .models.lora_variant import LoraVariant
    from .models.prompt_embeddings import PromptEmbeddings
    from .models.unet_mini import TimeConditionedUNetMini
    from .models.unet_mini2 import TimeConditionedUNetMini2
    from .pipeline import CTSRPipeline, CTSRPipelineOutput, Encoded

__version__ = "0.1.0"

__all__ = [
    "FAMILIES",
    "CTSRError",
    "CTSRPipeline",
    "CTSRPipelineOutput",
    "CheckpointError",
    "Encoded",
    "Endpoints",
    "Family",
    "ImageReadError",
    "ImageWriteError",
    "LoraVariant",
    "PromptEmbeddings",
    "TileMemoryError",
    "TimeAwareAutoencoderKL",
    "TimeAwareAutoencoderMini",
    "TimeAwareAutoencoderMini2",
    "TimeConditionedUNetMini",
    "TimeConditionedUNetMini2",
    "blend",
    "get_family",
]

_MODULES = {
    "errors": ("CTSRError", "CheckpointError", "ImageReadError", "ImageWriteError", "TileMemoryError"),
    "families": ("FAMILIES", "Endpoints", "Family", "blend", "get_family"),
    "models.autoencoder_kl_time_aware": ("TimeAwareAutoencoderKL",),
    "models.autoencoder_mini": ("TimeAwareAutoencoderMini",),
    "models.autoencoder_mini2": ("TimeAwareAutoencoderMini2",),
    "models.lora_variant": ("LoraVariant",),
    "models.prompt_embeddings": ("PromptEmbeddings",),
    "models.unet_mini": ("TimeConditionedUNetMini",),
    "models.unet_mini2": ("TimeConditionedUNetMini2",),
    "pipeline": ("CTSRPipeline", "CTSRPipelineOutput", "Encoded"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> object:
    """Import a public name at its first use."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
