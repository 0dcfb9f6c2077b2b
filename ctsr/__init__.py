"""One-step, time-aware super-resolution with a dial from realism (t = 0) to fidelity (t = 1).

    from ctsr import CTSRPipeline
    CTSRPipeline.mini()(picture, t=0.3).images[0].save("large.png")

Everything is imported eagerly: diffusers finds the classes of a saved pipeline only in modules that are loaded.
"""

import safetensors.torch  # noqa: F401  # pyright: ignore[reportUnusedImport]  # diffusers before 0.33 needs it loaded

from .errors import CheckpointError, CTSRError, ImageReadError, ImageWriteError, TileMemoryError
from .families import FAMILIES, Endpoints, Family, blend, get_family
from .models.autoencoder_kl_time_aware import TimeAwareAutoencoderKL
from .models.autoencoder_mini import TimeAwareAutoencoderMini
from .models.lora_variant import LoraVariant
from .models.prompt_embeddings import PromptEmbeddings
from .models.unet_mini import TimeConditionedUNetMini
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
    "TimeConditionedUNetMini",
    "blend",
    "get_family",
]
