"""A folder to upload to the hub: pipeline, blocks, single file, tiny test pipeline and card."""

from pathlib import Path
from typing import Any

from ..checkpoints.own import COMPONENTS
from ..errors import CTSRError
from ..modular import SETTINGS, CTSRBlocks
from ..pipeline import CTSRPipeline
from .card import model_card
from .tiny import tiny_pipeline

BLOCKS = "from ctsr.modular import CTSRBlocks as CTSRBlocks\n"
"""modular.py of the folder, which modular_config.json names."""


def write_hub_folder(pipeline: CTSRPipeline, folder: Path, name: str, repo: str, licence: str, about: str = "") -> None:
    """Write everything; nothing is sent.

    Args:
        pipeline: in the dtype that its weights shall have in the folder.
        folder: new or empty.
        name: of the model, and of the single file.
        repo: where it will lie on the hub, such as "user/name".
        licence, about: for the card, see `model_card`.

    Raises:
        CTSRError: the folder holds something already.
    """
    if folder.exists() and any(folder.iterdir()):
        raise CTSRError(f"{folder} is not empty: name a new folder.")
    pipeline.save_pretrained(folder)
    write_modular(pipeline, folder, repo)
    pipeline.save_single_file(folder / f"{name}.safetensors")
    tiny = tiny_pipeline(pipeline)
    tiny.save_pretrained(folder / "tiny")
    write_modular(tiny, folder / "tiny", repo, "tiny/")
    (folder / "README.md").write_text(model_card(pipeline, name, repo, licence, about), encoding="utf-8")


def write_modular(pipeline: CTSRPipeline, folder: Path, repo: str, below: str = "") -> None:
    """modular_config.json, modular_model_index.json and modular.py beside the components of a saved pipeline.

    Args:
        pipeline: that was saved in `folder`.
        folder: in it.
        repo: where the components will lie; in a copy on disk diffusers takes those of the copy.
        below: folder of the repository that holds the components, with a slash at its end.
    """
    blocks: Any = CTSRBlocks()
    blocks.save_pretrained(str(folder))
    (folder / "modular.py").write_text(BLOCKS, encoding="utf-8")
    made: Any = blocks.init_pipeline()
    parts = {key: part for key in COMPONENTS if (part := getattr(pipeline, key)) is not None}
    made.update_components(**parts, **{key: pipeline.config[key] for key in SETTINGS})
    for key in parts:
        library, class_name, place = made.config[key]
        place = {**place, "pretrained_model_name_or_path": repo, "subfolder": below + key}
        made.register_to_config(**{key: (library, class_name, place)})
    made.save_config(str(folder))
