"""Which checkpoints there are: the built-in ones, and files and folders in `models/ctsr` and in extra paths."""

from pathlib import Path

import folder_paths

from .checks import check_choice

KIND = "ctsr"
BUILT_IN = "ctsr-mini (built-in)"
LOWLIGHT = "ctsr-lowlight (built-in)"
BUILT_INS = {BUILT_IN: "mini", LOWLIGHT: "lowlight"}
"""Models that come with the pack, by the library's names."""
SUFFIX = ".safetensors"
INDEX = "model_index.json"
REMEDY = f"put the file into models/{KIND} and refresh the browser (R)"


def register_folder() -> None:
    """Makes `models/ctsr` known to the host, beside paths of that kind which the user has configured."""
    paths, _ = folder_paths.folder_names_and_paths.get(KIND, ([], set()))
    own = str(Path(folder_paths.models_dir) / KIND)
    folder_paths.folder_names_and_paths[KIND] = ([*paths, *([] if own in paths else [own])], {SUFFIX})


def choices() -> list[str]:
    """The built-in checkpoints, then single files, then folders that `save_pretrained` wrote."""
    folders = {name for root in folder_paths.get_folder_paths(KIND) for name in model_folders(Path(root))}
    files = [name for name in folder_paths.get_filename_list(KIND) if not any(inside(name, x) for x in folders)]
    return [*BUILT_INS, *files, *sorted(folders)]


def model_folders(root: Path) -> list[str]:
    """Names of the folders directly in `root` that hold a model."""
    return [index.parent.name for index in root.glob(f"*/{INDEX}")]


def inside(name: str, folder: str) -> bool:
    """Whether a relative file name lies in a folder of that name at the top."""
    return Path(name).parts[0] == folder


def portable(checkpoint: str) -> str:
    """The name with the separators that every system knows: Windows saves workflows with its own."""
    return checkpoint.replace("\\", "/")


def find(checkpoint: str) -> Path | None:
    """Path of one of `choices`, None for a built-in one.

    Raises:
        ValueError: no such checkpoint; the message says where to put one.
    """
    names = {portable(name): name for name in choices()}
    check_choice("checkpoint", portable(checkpoint), [*names], REMEDY)
    checkpoint = names[portable(checkpoint)]
    if checkpoint in BUILT_INS:
        return None
    candidates = (Path(root) / checkpoint for root in folder_paths.get_folder_paths(KIND))
    path = next((path for path in candidates if path.is_file() or (path / INDEX).is_file()), None)
    if path is None:
        raise ValueError(f"checkpoint {checkpoint!r} is no longer there: choose another, or {REMEDY}.")
    return path


def fingerprint(checkpoint: str) -> str:
    """Changes when the checkpoint's file does, so that the host loads it anew; equal for what cannot be found."""
    try:
        path = find(checkpoint)
    except ValueError:
        return checkpoint
    if path is None:
        return checkpoint
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    return ";".join(f"{file}:{file.stat().st_mtime_ns}:{file.stat().st_size}" for file in files)
