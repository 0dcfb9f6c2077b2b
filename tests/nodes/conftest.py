"""The pack without a host: loaded by path, as the host does, under a name that no folder has.

Never `import nodes`: inside the host that name is the host's own module.
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
NAME = "custom-nodes/CTSR-main"

Submodule = Callable[[str], ModuleType]


@pytest.fixture(scope="session")
def submodule() -> Submodule:
    """`submodule("nodes.checks")` is that module of the pack."""
    spec = importlib.util.spec_from_file_location(NAME, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    assert spec is not None
    assert spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules[NAME] = package
    spec.loader.exec_module(package)
    return lambda name: importlib.import_module(f"{NAME}.{name}")


@pytest.fixture(scope="session")
def checks(submodule: Submodule) -> ModuleType:
    """nodes/checks.py."""
    return submodule("nodes.checks")


@pytest.fixture(scope="session")
def masks(submodule: Submodule) -> ModuleType:
    """nodes/masks.py."""
    return submodule("nodes.masks")
