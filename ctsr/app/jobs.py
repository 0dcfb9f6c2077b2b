"""Which file becomes which: the jobs of a run, from the paths on the command line."""

import contextlib
import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ..errors import ImageReadError
from ..images.formats import Encoding, output_format, writable_suffixes
from ..images.frames import look_for_frames
from ..images.read import readable_suffixes, reading

logger = logging.getLogger(__name__)

WITHOUT_ALPHA = frozenset({".bmp", ".jpeg", ".jpg"})


@dataclass(frozen=True)
class Job:
    """One picture to make: `source` is read, `target` written (for a sweep: the folder)."""

    source: Path
    target: Path


@dataclass(frozen=True)
class Naming:
    """How results are named: `suffix` is put behind the stem; `format` is the suffix of every file, such as ".png"."""

    suffix: str | None = None
    format: str | None = None

    def __post_init__(self) -> None:
        if self.suffix is not None and (os.sep in self.suffix or "/" in self.suffix):
            raise ValueError(f"--suffix is a part of a name, such as -x4, not {self.suffix!r}.")


def plan(inputs: Sequence[Path], output: str | None, naming: Naming | None = None) -> list[Job]:
    """Which file becomes which.

    Args:
        inputs: files, and folders that are searched for pictures, with their subfolders.
        output: for one file a file or a folder, else a folder; None puts NAME-ctsr.png of every file into the current
            folder. A trailing slash makes it a folder. In a folder pictures keep their relative names, and their
            suffixes where the format can be written without loss of alpha, frames or pages, else .png or .tif.
        naming: other names, and one format for all.

    Raises:
        ValueError: no pictures; an output that is an input, or that two inputs share; no output for a folder.
        ImageWriteError: the output is a file of an unknown format.
    """
    naming = naming or Naming()
    folders = [path for path in inputs if path.is_dir()]
    if output is None:
        if folders:
            raise ValueError(f"{folders[0]} is a folder: say with -o into which folder its pictures go.")
        behind = "-ctsr" if naming.suffix is None else naming.suffix
        jobs = [Job(path, Path(f"{path.stem}{behind}{naming.format or default_suffix(path)}")) for path in inputs]
    elif is_one_file(inputs, output):
        output_format(output)
        if naming != Naming():
            raise ValueError(f"{output} is a whole name: leave --suffix and --format out, or name a folder with -o.")
        jobs = [Job(inputs[0], Path(output))]
    else:
        jobs = plan_folder(inputs, folder_of(output), naming)
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


def plan_folder(inputs: Sequence[Path], output: Path, naming: Naming) -> list[Job]:
    """Jobs into a folder: relative names; what changes its format and would meet another is NAME.gif.png instead."""
    sources: dict[Path, Path] = {}  # source -> name below `output`
    for path in inputs:
        if not path.is_dir():
            sources[path] = Path(path.name)
            continue
        if path.resolve() == output.resolve():
            raise ValueError(f"{output} is the input folder itself: name another with -o.")
        sources.update((picture, picture.relative_to(path)) for picture in find_pictures(path, output.resolve()))
    if naming.suffix:
        sources = {x: name.with_name(f"{name.stem}{naming.suffix}{name.suffix}") for x, name in sources.items()}
    names: dict[Path, Path] = {}
    for source, name in sources.items():
        suffix = naming.format or folder_suffix(source)
        names[source] = name if suffix is None else name.with_suffix(suffix)
    wanted = Counter(names.values())
    for source, name in names.items():
        if wanted[name] > 1 and name != sources[source]:
            names[source] = sources[source].with_name(f"{sources[source].name}{name.suffix}")
    return [Job(source, output / name) for source, name in names.items()]


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


def default_suffix(source: Path) -> str:
    """Of a result whose name is not given: .png, but for several pages .tif."""
    return ".tif" if look_for_frames(source).kind == "pages" else ".png"


def folder_suffix(source: Path) -> str | None:
    """The suffix of a result in a folder; None where it keeps that of its source, since nothing is lost by that."""
    suffix = source.suffix.lower()
    if suffix == ".gif":
        return None if look_for_frames(source).kind else ".png"
    if suffix not in writable_suffixes():
        return default_suffix(source)
    if suffix not in WITHOUT_ALPHA:
        return None
    with contextlib.suppress(ImageReadError), reading(source), Image.open(source) as image:
        return ".png" if image.has_transparency_data else None
    return None  # the run will say what is wrong with it


def check_encoding(jobs: Iterable[Job], encoding: Encoding) -> None:
    """Raises ImageWriteError where a format of the results cannot do what is asked, ValueError where none can."""
    by_suffix = {job.target.suffix.lower(): job.target for job in jobs}
    forms = [output_format(target, encoding=encoding) for target in by_suffix.values()]
    if encoding.quality is not None and all(form.quality is None for form in forms):
        raise ValueError("--quality is for JPEG, WebP and AVIF: leave it out, or choose one of them with --format.")


def checked(jobs: Sequence[Job]) -> list[Job]:
    """The jobs, each once; raises ValueError where an output is an input, or of two different inputs."""
    folders: dict[Path, Path] = {}
    sources = {job.source: key(job.source, folders) for job in jobs}
    inputs, targets = set(sources.values()), dict[str, Job]()
    for job in jobs:
        target = key(job.target, folders)
        if target in inputs:
            raise ValueError(f"{job.target} would overwrite an input: name another output with -o.")
        other = targets.setdefault(target, job)
        if sources[other.source] != sources[job.source]:
            raise ValueError(f"{other.source} and {job.source} would both become {job.target}: run them one by one.")
    return list(targets.values())


def key(path: Path, folders: dict[Path, Path]) -> str:
    """The same for the same file, whatever way it is named; `folders` are those that are resolved already."""
    if os.path.islink(path) or path.name in ("", ".."):
        return os.path.normcase(path.resolve())
    if path.parent not in folders:
        folders[path.parent] = path.parent.resolve()
    return os.path.normcase(folders[path.parent] / path.name)
