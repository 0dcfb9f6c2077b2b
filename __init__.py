"""ComfyUI's entry: the host loads this file by path, under whatever name the folder has.

Importing it imports neither torch nor diffusers: the nodes follow when the host asks for them, the library at the first
execution.
"""

from .nodes import comfy_entrypoint

WEB_DIRECTORY = "./web"

__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
