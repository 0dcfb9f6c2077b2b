"""Pictures by their names without suffix, by which those of several folders belong together."""

from collections.abc import Mapping
from pathlib import Path, PurePath


def by_stem(named: Mapping[str, Path]) -> dict[str, Path]:
    """Files by their names without suffix, in the same order.

    Args:
        named: files by names that may have folders before them, such as "set/a.jpg".

    Raises:
        ValueError: two names are the same but for the suffix, so that nobody can say which of them is meant.
    """
    found: dict[str, Path] = {}
    for name, path in named.items():
        if (other := found.setdefault(PurePath(name).with_suffix("").as_posix(), path)) != path:
            raise ValueError(f"{other} and {path.name} have the same name but for the suffix: remove one of them.")
    return found
