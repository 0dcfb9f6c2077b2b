"""Which checkpoints are offered and found, on an imitation of the host's `folder_paths`.

That the real one behaves so is for tests/host to say.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from ctsr.load import BUILT_INS as LIBRARYS

BUILT_IN = "ctsr-mini (built-in)"
BUILT_INS = [BUILT_IN, "ctsr-lowlight (built-in)"]


class FolderPaths(ModuleType):
    """The part of the host's module that `checkpoints` uses."""

    def __init__(self, models_dir: Path):
        super().__init__("folder_paths")
        self.models_dir = str(models_dir)
        self.folder_names_and_paths: dict[str, tuple[list[str], set[str]]] = {}

    def get_folder_paths(self, kind: str) -> list[str]:
        return list(self.folder_names_and_paths[kind][0])

    def get_filename_list(self, kind: str) -> list[str]:
        """Relative names of all files below a kind's folders; an empty set of suffixes lists every file."""
        roots, suffixes = self.folder_names_and_paths[kind]
        names = {
            str(path.relative_to(root)) for root in roots for path in Path(root).rglob("*") if path.is_file()
        }  # of a folder that is not there: none
        return sorted(name for name in names if not suffixes or Path(name).suffix in suffixes)


@pytest.fixture
def host(tmp_path, monkeypatch) -> FolderPaths:
    """The imitation, with nothing in models/."""
    host = FolderPaths(tmp_path / "models")
    monkeypatch.setitem(sys.modules, "folder_paths", host)
    return host


@pytest.fixture
def checkpoints(host, submodule) -> Iterator[ModuleType]:
    """nodes/checkpoints.py on the imitation, with models/ctsr registered."""
    module = submodule("nodes.checkpoints")
    module.register_folder()
    yield module
    del sys.modules[module.__name__]  # the next test has an imitation of its own


@pytest.fixture
def own(checkpoints, host) -> Path:
    """models/ctsr, made."""
    folder = Path(host.models_dir, "ctsr")
    folder.mkdir(parents=True)
    return folder


def put(path: Path, content: str = "weights") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    return path


def put_folder(path: Path) -> Path:
    """As save_pretrained leaves it."""
    put(path / "model_index.json", "{}")
    for component in ("unet", "vae"):
        put(path / component / "diffusion_pytorch_model.safetensors")
    return path


def test_without_a_folder_there_is_the_built_in_one(checkpoints):
    assert checkpoints.choices() == BUILT_INS
    assert checkpoints.find(BUILT_IN) is None


def test_files_below_the_folder_are_offered_by_their_relative_names(checkpoints, own):
    file, below = put(own / "one.safetensors"), put(own / "sub" / "two.safetensors")
    put(own / "notes.txt")
    put(own / "old.ckpt")
    assert checkpoints.choices() == [*BUILT_INS, "one.safetensors", os.path.join("sub", "two.safetensors")]
    assert checkpoints.find("one.safetensors") == file
    assert checkpoints.find(os.path.join("sub", "two.safetensors")) == below


def test_a_saved_folder_is_one_choice_and_its_parts_are_none(checkpoints, own):
    folder, file = put_folder(own / "big"), put(own / "a.safetensors")
    put(own / "empty" / "readme.md")
    assert checkpoints.choices() == [*BUILT_INS, "a.safetensors", "big"]
    assert checkpoints.find("big") == folder
    assert checkpoints.find("a.safetensors") == file


def test_a_file_in_another_folder_of_the_same_name_stays(checkpoints, own):
    put_folder(own / "big")
    put(own / "tries" / "big" / "a.safetensors")
    assert os.path.join("tries", "big", "a.safetensors") in checkpoints.choices()


def test_extra_paths_are_kept_and_come_first(host, checkpoints, own, tmp_path):
    """The host has them registered, with every suffix allowed, before it loads any pack."""
    extra = tmp_path / "disk"
    host.folder_names_and_paths["ctsr"] = ([str(extra)], set())
    checkpoints.register_folder()
    put(extra / "notes.txt")
    put(own / "mine.safetensors")
    in_both = put(extra / "both.safetensors", "of the extra path")
    put(own / "both.safetensors", "of models/ctsr")
    folder = put_folder(extra / "big")
    assert checkpoints.choices() == [*BUILT_INS, "both.safetensors", "mine.safetensors", "big"]
    assert checkpoints.find("both.safetensors") == in_both
    assert checkpoints.find("big") == folder


def test_registering_twice_changes_nothing(host, checkpoints):
    once = host.folder_names_and_paths["ctsr"]
    assert once == ([str(Path(host.models_dir, "ctsr"))], {".safetensors"})
    checkpoints.register_folder()
    assert host.folder_names_and_paths["ctsr"] == once


@pytest.mark.parametrize("name", ["absent.safetensors", "../secret.safetensors", "", "big/unet"])
def test_an_unknown_name_is_refused_with_where_to_put_it(checkpoints, own, name):
    put(own.parent / "secret.safetensors")
    put_folder(own / "big")
    with pytest.raises(ValueError, match=r"^checkpoint is .*: choose one of .*models/ctsr and refresh") as refusal:
        checkpoints.find(name)
    assert repr(name) in str(refusal.value)
    assert "\n" not in str(refusal.value)


# ------------------------------------------------------------------------------------------------------ fingerprint


def touch_later(path: Path) -> None:
    """A second later than it was, whatever the file system's clock can tell."""
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))


def test_a_fingerprint_changes_with_the_file(checkpoints, own):
    file = put(own / "one.safetensors")
    other = put(own / "two.safetensors")
    first = checkpoints.fingerprint("one.safetensors")
    assert checkpoints.fingerprint("one.safetensors") == first
    touch_later(other)
    assert checkpoints.fingerprint("one.safetensors") == first
    touch_later(file)
    second = checkpoints.fingerprint("one.safetensors")
    assert second != first
    status = file.stat()
    put(file, "more weights")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert checkpoints.fingerprint("one.safetensors") != second


def test_a_fingerprint_changes_with_any_file_of_a_folder(checkpoints, own):
    folder = put_folder(own / "big")
    seen = {checkpoints.fingerprint("big")}
    for file in ("model_index.json", "unet/diffusion_pytorch_model.safetensors"):
        touch_later(folder / file)
        seen.add(checkpoints.fingerprint("big"))
    assert len(seen) == 3


def test_a_fingerprint_of_what_is_not_there_is_steady_until_it_is(checkpoints, own):
    built_in, absent = checkpoints.fingerprint(BUILT_IN), checkpoints.fingerprint("later.safetensors")
    assert checkpoints.fingerprint(BUILT_IN) == built_in
    assert checkpoints.fingerprint("later.safetensors") == absent
    put(own / "later.safetensors")
    assert checkpoints.fingerprint("later.safetensors") != absent


def test_every_built_in_model_of_the_library_can_be_chosen(checkpoints) -> None:
    assert [*checkpoints.BUILT_INS.values()] == [*LIBRARYS]
