"""Which file becomes which: the jobs of a run, from the paths on the command line."""

import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ..images.read import readable_suffixes
from ..images.write import output_suffix, writable_suffixes

logger = logging.getLogger(__name__)

WITHOUT_ALPHA = frozenset({".bmp", ".jpeg", ".jpg"})


@dataclass(frozen=True)
class Job:
    """One picture to make: `source` is read, `target` written (for a sweep: the folder)."""

    source: Path
    target: Path


def plan(inputs: Sequence[Path], output: str | None) -> list[Job]:
    """Which file becomes which.

    Args:
        inputs: files, and folders that are searched for pictures, with their subfolders.
        output: for one file a file or a folder, else a folder; None puts NAME-ctsr.png of every file into the current
            folder. A trailing slash makes it a folder. In a folder pictures keep their relative names, and their
            suffixes where the format can be written without loss of alpha, else .png.

    Raises:
        ValueError: no pictures; an output that is an input, or that two inputs share; no output for a folder.
        ImageWriteError: the output is a file of an unknown format.
    """
    folders = [path for path in inputs if path.is_dir()]
    if output is None:
        if folders:
            raise ValueError(f"{folders[0]} is a folder: say with -o into which folder its pictures go.")
        jobs = [Job(path, Path(f"{path.stem}-ctsr.png")) for path in inputs]
    elif is_one_file(inputs, output):
        output_suffix(output)
        jobs = [Job(inputs[0], Path(output))]
    else:
        jobs = plan_folder(inputs, folder_of(output))
    if not jobs:
        raise ValueError(f"No pictures in {', '.join(map(str, inputs))}: name a picture or a folder with pictures.")
    return checked(jobs)


def is_folder_name(output: str) -> bool:
    """Whether a folder is meant: it exists, ends in a slash, or has no suffix."""
    return output.endswith(("/", os.sep)) or os.path.isdir(output) or not Path(output).suffix


def is_one_file(inputs: Sequence[Path], output: str) -> bool:
    """Whether `output` names the file that a single input becomes."""
    return len(inputs) == 1 and not inputs[0].is_dir() and not is_folder_name(output)


def folder_of(output: str) -> Path:
    """`output` as a folder for several pictures; raises ValueError for what looks like a file, or is one."""
    path = Path(output)
    if path.is_file():
        raise ValueError(f"{output} is a file, but several pictures need a folder: name another with -o.")
    if not is_folder_name(output) and path.suffix.lower() in writable_suffixes():
        raise ValueError(
            f"{output} looks like one picture, but several need a folder: end it with a slash if it is one."
        )
    return path


def plan_folder(inputs: Sequence[Path], output: Path) -> list[Job]:
    """Jobs into a folder: relative names; where one that becomes PNG meets another it is NAME.gif.png instead."""
    sources: dict[Path, Path] = {}  # source -> name below `output`
    for path in inputs:
        if not path.is_dir():
            sources[path] = Path(path.name)
            continue
        if path.resolve() == output.resolve():
            raise ValueError(f"{output} is the input folder itself: name another with -o.")
        sources.update((picture, picture.relative_to(path)) for picture in find_pictures(path, output.resolve()))
    converted = {source: name.with_suffix(".png") for source, name in sources.items() if becomes_png(source)}
    wanted = Counter(converted.get(source, name) for source, name in sources.items())
    for source, name in converted.items():
        if wanted[name] > 1:
            converted[source] = sources[source].with_name(f"{source.name}.png")
    return [Job(source, output / converted.get(source, name)) for source, name in sources.items()]


def find_pictures(folder: Path, leave_out: Path) -> Iterator[Path]:
    """Pictures below a folder by their suffix, sorted; nothing hidden, nothing in `leave_out` (resolved)."""

    def unreadable(error: OSError) -> None:
        logger.warning("%s is left out (%s).", error.filename, error.strerror)

    suffixes = readable_suffixes()
    for root, folders, files in os.walk(folder, onerror=unreadable):
        here = Path(root)
        folders[:] = sorted(x for x in folders if not x.startswith(".") and (here / x).resolve() != leave_out)
        for name in sorted(files):
            path = here / name
            if not name.startswith(".") and path.suffix.lower() in suffixes and (path.is_file() or path.is_symlink()):
                yield path


def becomes_png(source: Path) -> bool:
    """Whether writing a picture under its own suffix is impossible or would lose its alpha."""
    suffix = source.suffix.lower()
    if suffix not in writable_suffixes():
        return True
    if suffix not in WITHOUT_ALPHA:
        return False
    try:
        with Image.open(source) as image:
            return image.has_transparency_data
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return False  # the run will say what is wrong with it


def checked(jobs: Iterable[Job]) -> list[Job]:
    """The jobs, each once; raises ValueError where an output is an input, or of two different inputs."""
    sources = {key(job.source) for job in jobs}
    targets: dict[str, Job] = {}
    for job in jobs:
        if key(job.target) in sources:
            raise ValueError(f"{job.target} would overwrite an input: name another output with -o.")
        other = targets.setdefault(key(job.target), job)
        if key(other.source) != key(job.source):
            raise ValueError(f"{other.source} and {job.source} would both become {job.target}: run them one by one.")
    return list(targets.values())


def key(path: Path) -> str:
    """The same for the same file, whatever way it is named."""
    return os.path.normcase(path.resolve())
