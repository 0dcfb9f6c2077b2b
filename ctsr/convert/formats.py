"""A table of what this library reads beside its own files, each told by the names inside it, never by its own name."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

from ..checkpoints.inspect import Contents
from ..errors import CheckpointError
from . import published, stable_diffusion
from .published import Published
from .stable_diffusion import Base

T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True)
class Format(Generic[T_co]):
    """One kind of file or folder.

    Attributes:
        what: what a person would call it, after "is".
        remedy: what to do where something else is wanted.
        detect: by the names inside.
        load: of the contents, and for what runs as it is also of dtype and device; raises CheckpointError.
        names: all entries of a pickle, so that a near miss can be named.
    """

    what: str
    remedy: str
    detect: Callable[[Contents], bool]
    load: Callable[..., T_co]
    names: frozenset[str] = frozenset()


def pickled(what: str, names: frozenset[str], parse: Callable[..., Published]) -> Format[Published]:
    """A published checkpoint: a pickle with exactly these entries."""
    return Format(
        what,
        "convert it with `ctsr convert` and Stable Diffusion 2.1-base as --base",
        lambda contents: contents.kind == "pickle" and contents.keys == names,
        partial(published.parsed, parse=parse),
        names,
    )


BASE_REMEDY = "name it with --base in `ctsr convert`, beside a checkpoint of OSEDiff, PiSA-SR or TADSR"
PUBLISHED = (
    pickled("an OSEDiff checkpoint", published.OSEDIFF_KEYS, published.osediff_of),
    pickled("a TADSR checkpoint", published.TADSR_KEYS, published.tadsr_of),
    pickled("a PiSA-SR checkpoint", published.PISA_KEYS, published.pisa_of),
)
BASES: tuple[Format[Base], ...] = (
    Format("a Stable Diffusion folder", BASE_REMEDY, stable_diffusion.is_folder, stable_diffusion.open_folder),
    Format(
        "a Stable Diffusion 2.x file",
        BASE_REMEDY,
        stable_diffusion.is_single_file,
        stable_diffusion.open_single_file,
    ),
)


def find(contents: Contents, formats: Iterable[Format[T_co]]) -> Format[T_co] | None:
    """The first that it is."""
    return next((form for form in formats if form.detect(contents)), None)


def unknown(contents: Contents) -> CheckpointError:
    """The sentence for what no format fits: what it comes nearest to, or what is in it."""
    near = max(PUBLISHED, key=lambda form: len(form.names & contents.keys) - len(form.names - contents.keys))
    if contents.kind == "pickle" and near.names & contents.keys:
        lacking, extra = sorted(near.names - contents.keys), sorted(contents.keys - near.names)
        but = f"lacks {lacking[0]}" if lacking else f"also holds {extra[0]}, as a method unknown here may"
        return CheckpointError(f"{contents.path} looks like {near.what} but {but}; fetch the method's own file.")
    what = {"safetensors": "a safetensors file", "pickle": "a pickle", "folder": "a folder"}[contents.kind]
    some = ", ".join(sorted(contents.keys)[:3])[:200] or "nothing"
    known = "ctsr, OSEDiff, TADSR, PiSA-SR or Stable Diffusion 2.1-base"
    return CheckpointError(
        f"{contents.path} is {what} that ctsr did not write and does not know (it holds {some}); give one of {known}."
    )
