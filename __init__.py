"""ComfyUI's entry: the host loads this file by path, under whatever name the folder has.

The nodes are still to come. Until then the mapping is there and empty, since the host reports a pack that has neither
a mapping nor an entry point as a failed import. Importing this imports neither torch nor diffusers.
"""

NODE_CLASS_MAPPINGS: dict[str, type] = {}
