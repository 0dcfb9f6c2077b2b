"""Which low-resolution picture belongs to which ground truth and to whose results: by their names without suffix."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..images.read import readable_suffixes
from ..images.stems import by_stem
from .metrics import BICUBIC, BLEND, DIAL

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pair:
    """A low-resolution picture and its ground truth. `others`: other people's results for it, one for each method."""

    lr: Path
    hr: Path
    others: tuple[Path, ...] = ()


def find_pairs(lr: Path, hr: Path, others: Sequence[Path]) -> list[Pair]:
    """Pairs the pictures of two folders, and of the folders of others' results, by their names without suffix.

    Raises:
        ValueError: not a folder; two pictures of one name; no pair at all; results of others that are missing.
    """
    low, high = pictures_in(lr), pictures_in(hr)
    stems = [stem for stem in low if stem in high]
    if not stems:
        raise ValueError(
            f"No picture in {lr} has its ground truth in {hr}: the names must be the same but for the suffix."
        )
    for folder, alone in ((lr, low.keys() - high), (hr, high.keys() - low)):
        if alone:
            logger.warning("%s: left out, being in one folder only: %s.", folder, listed(sorted(alone)))
    results = {folder: pictures_in(folder) for folder in others}
    for folder, found in results.items():
        if missing := [stem for stem in stems if stem not in found]:
            raise ValueError(f"{folder} lacks the results of {listed(missing)}.")
    return [Pair(low[stem], high[stem], tuple(found[stem] for found in results.values())) for stem in stems]


def pictures_in(folder: Path) -> dict[str, Path]:
    """Pictures in a folder (not below it) by their names without suffix, sorted; raises ValueError as `by_stem`."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder: name one with pictures.")
    files = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".") and not path.is_dir()]
    suffixes = readable_suffixes()
    return by_stem({path.name: path for path in files if path.suffix.lower() in suffixes})


def listed(names: Sequence[str], most: int = 10) -> str:
    """The names with commas between, the first `most` of them."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def name_folders(folders: Sequence[Path]) -> list[str]:
    """Names of the methods whose results lie in folders: the folder's name, or its path where that is taken.

    Raises:
        ValueError: a folder is given twice.
    """
    paths = [folder.resolve() for folder in folders]
    if twice := [path for path, count in Counter(paths).items() if count > 1]:
        raise ValueError(f"{twice[0]} is given twice: name each folder of results once.")
    taken = Counter([DIAL, BLEND, BICUBIC, *(path.name for path in paths)])
    return [path.name if taken[path.name] == 1 else str(path) for path in paths]
