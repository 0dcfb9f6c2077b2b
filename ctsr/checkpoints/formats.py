"""The kinds of checkpoints that this library knows, each told by the names inside it, never by its own name.

A new kind is a `Format` here, named in one of three tuples: `MODELS` run as they are, by `own` and `ctsr.load`; of
`PUBLISHED` and `BASES` `ctsr.convert.convert` makes such, by the functions in its `PARSERS` and `OPENERS`.
"""

import shlex
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ..errors import CheckpointError
from .inspect import INDEX, Contents


@dataclass(frozen=True)
class Format:
    """One kind of file or folder.

    Attributes:
        what: what a person would call it, after "is".
        remedy: what to do where something else is wanted.
        detect: by the names inside.
        names: all entries of a pickle, so that a near miss can be named.
    """

    what: str
    remedy: str
    detect: Callable[[Contents], bool]
    names: frozenset[str] = frozenset()


# ---------------------------------------------------------------------------------------------------------------- ours

SINGLE_FILE_FORMAT = "ctsr-1"
"""`format` in the metadata of our files."""
SINGLE_FILE = Format(
    "a file of ctsr", "use from_single_file", lambda contents: contents.metadata.get("format") == SINGLE_FILE_FORMAT
)
FOLDER = Format("a folder of ctsr", "use from_pretrained", lambda contents: contents.is_ours)
_OWN_KEYS = frozenset(["unet", "vae"])
"""With which the names in our single files begin."""
MODELS = (SINGLE_FILE, FOLDER)
"""What runs as it is."""

# ------------------------------------------------------------------------------------------------------------- others'


def pickled(what: str, names: frozenset[str]) -> Format:
    """A published checkpoint: a pickle with exactly these entries."""
    remedy = "convert it with `ctsr convert` and Stable Diffusion 2.1-base as --base"
    return Format(what, remedy, lambda contents: contents.kind == "pickle" and contents.keys == names, names)


_UNET_LISTS = frozenset(f"unet_lora_{part}_modules" for part in ("encoder", "decoder", "others"))
OSEDIFF_KEYS = _UNET_LISTS | {"vae_lora_encoder_modules", "rank_unet", "rank_vae", "state_dict_unet", "state_dict_vae"}
TADSR_KEYS = OSEDIFF_KEYS | {"state_dict_vae_time"}
PISA_KEYS = frozenset(
    {f"{name}_{kind}" for name in (*_UNET_LISTS, "lora_rank_unet") for kind in ("pix", "sem")} | {"state_dict_unet"}
)
OSEDIFF = pickled("an OSEDiff checkpoint", OSEDIFF_KEYS)
TADSR = pickled("a TADSR checkpoint", TADSR_KEYS)
PISA = pickled("a PiSA-SR checkpoint", PISA_KEYS)
PUBLISHED = (OSEDIFF, TADSR, PISA)

SD_UNET = "model.diffusion_model."
SD_VAE = "first_stage_model."
SD_TEXT = "cond_stage_model.model."
_SD_PARTS = {SD_UNET + "input_blocks.0.0.weight", SD_VAE + "encoder.conv_in.weight", SD_TEXT + "ln_final.weight"}
"""Of a file with the original repository's names and all three networks."""
_BASE_REMEDY = "name it with --base in `ctsr convert`, beside a checkpoint of OSEDiff, PiSA-SR or TADSR"
SD_FOLDER = Format(
    "a Stable Diffusion folder",
    _BASE_REMEDY,
    lambda contents: contents.kind == "folder" and {"unet", "vae"} <= contents.keys and not contents.is_ours,
)
SD_FILE = Format("a Stable Diffusion 2.x file", _BASE_REMEDY, lambda contents: contents.keys >= _SD_PARTS)
BASES = (SD_FOLDER, SD_FILE)

# ------------------------------------------------------------------------------------------------------------ refusals


def find(contents: Contents, formats: Iterable[Format]) -> Format | None:
    """The first that it is."""
    return next((form for form in formats if form.detect(contents)), None)


def refusal(contents: Contents) -> CheckpointError:
    """The error for what cannot be run as it is: what it looks like and what to do."""
    path = contents.path
    if contents.kind == "pickle":
        file, out = shlex.quote(str(path)), shlex.quote(f"{path.stem}.safetensors")
        command = f"ctsr convert {file} --base STABLE_DIFFUSION_2_1_BASE -o {out}"
        what = "is a pickle, as OSEDiff, TADSR and PiSA-SR publish theirs"
        return CheckpointError(f"{path} {what}: convert it first, with `{command}`.")
    if (form := find(contents, (*MODELS, *BASES))) is not None:
        return CheckpointError(f"{path} is {form.what}: {form.remedy}.")
    if contents.kind == "folder":
        return CheckpointError(f"{path} is a folder without {INDEX}; give one that save_pretrained wrote.")
    return unknown(contents)


def unknown(contents: Contents) -> CheckpointError:
    """The error for what no format fits: what it comes nearest to, or what is in it."""
    if contents.kind == "safetensors" and {key.split(".")[0] for key in contents.keys} >= _OWN_KEYS:
        lost = "has lost its metadata, with the model's configuration, when another program saved it"
        return CheckpointError(f"{contents.path} holds weights of ctsr but {lost}; use the original file.")
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
