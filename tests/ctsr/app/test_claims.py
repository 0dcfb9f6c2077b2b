"""Claims on results: one at a time, freed by death, nothing left behind."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from filelock import FileLock

from ctsr.app.claims import claim, new_folders, remove_leftovers
from ctsr.errors import OutputFolderError
from ctsr.whole_file import hidden_name, partial_name


def files(folder: Path) -> list[str]:
    """Files and folders below a folder."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_one_has_it_and_leaves_nothing(tmp_path: Path) -> None:
    target = tmp_path / "new/folder" / ("n" * 250 + ".png")
    with new_folders([target.parent]):
        with claim(target) as mine, claim(target) as others, claim(target.with_name("b.png")) as another:
            assert (mine, others, another) == (True, False, True)
        assert files(tmp_path) == ["new", "new/folder"]
    assert files(tmp_path) == []


def test_folders_with_a_result_stay(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    with new_folders([tmp_path / "new", tmp_path / "old", tmp_path / "empty/too"]):
        (tmp_path / "empty/too").mkdir(parents=True)
        with claim(tmp_path / "new/a.png"):
            (tmp_path / "new/a.png").touch()
    assert files(tmp_path) == ["new", "new/a.png", "old"]


def test_who_waits_gets_it_after_the_other(tmp_path: Path) -> None:
    target, order = tmp_path / "a.png", []

    def second() -> None:
        with claim(target, wait=True) as mine:
            order.append(("second", mine))

    thread = threading.Thread(target=second)
    with claim(target):
        thread.start()
        thread.join(0.2)
        order.append(("first", True))
    thread.join(10)
    assert order == [("first", True), ("second", True)]
    assert files(tmp_path) == []


def test_leftovers_of_the_dead_are_removed_and_those_of_the_living_stay(tmp_path: Path) -> None:
    dead, living = tmp_path / "a.png", tmp_path / "b.png"
    for target in (dead, living):
        partial_name(target).touch()
        hidden_name(target, "claim").touch()
    (tmp_path / ".ctsr-notes").touch()
    with FileLock(hidden_name(living, "claim")):
        remove_leftovers([tmp_path, tmp_path / "missing"])
    left = files(tmp_path)
    assert len(left) == 3
    assert {name.split(".")[1][:21] for name in left} == {"ctsr-notes", hidden_name(living, "").name[1:22]}


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_folder_that_may_not_be_written_is_one_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputFolderError), claim(tmp_path / "a.png"):
        pass


def test_a_folder_below_a_file_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputFolderError), claim(tmp_path / "file/a.png"):
        pass
