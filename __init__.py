"""ComfyUI's entry: the host loads this file by path, under whatever name the folder has.

Importing it imports neither torch nor diffusers: the nodes follow when the host asks for them, the library at the first
execution.
"""

import importlib.util
import sys
from pathlib import Path

WEB_DIRECTORY = "./web"

__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]


def _import_library_instead() -> None:
    """Put the library in this module's place.

    `import ctsr` in the folder that holds a checkout named `ctsr` finds this file before the installed library.
    """
    library = Path(__file__).parent / "ctsr"
    spec = importlib.util.spec_from_file_location(
        __name__, library / "__init__.py", submodule_search_locations=[str(library)]
    )
    if spec is None or spec.loader is None:
        raise ImportError(f"{library} cannot be imported: start Python in another folder than {Path.cwd()}.")
    sys.modules[__name__] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


if __name__ == "ctsr":
    _import_library_instead()
else:
    from .nodes import comfy_entrypoint
