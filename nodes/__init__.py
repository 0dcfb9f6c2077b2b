"""The ComfyUI pack: thin V3 shells round `ctsr`.

`host` alone imports `comfy`, for its memory management; `checks`, `values`, `latents`, `masks`, `steady`, `target` and
`frames` know nothing of the host; `checkpoints`, `inputs`, `room`, `progress`, `steps` and `extension` are what the
nodes share; every other file is one node. `ctsr`, and diffusers with it, is imported at the first execution, not when
the host starts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .extension import CTSRExtension


async def comfy_entrypoint() -> CTSRExtension:
    """What the host calls to learn of the nodes."""
    from .checkpoints import register_folder
    from .extension import CTSRExtension

    register_folder()
    return CTSRExtension()
