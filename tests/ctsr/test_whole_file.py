"""Files that are there whole or not at all."""

import os
from pathlib import Path

import pytest

from ctsr.whole_file import check_writable, whole_file


def test_the_file_appears_when_all_is_written(tmp_path: Path) -> None:
    path = tmp_path / ("long" * 60 + ".txt")
    path.write_text("old")
    with whole_file(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_after_an_error_nothing_has_changed(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail() -> None:
        with whole_file(path) as partial:
            partial.write_text("half")
            raise RuntimeError("disk")

    with pytest.raises(RuntimeError, match="disk"):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), whole_file(tmp_path / "none" / "a.txt"):
        pass


@pytest.mark.skipif(os.name == "nt", reason="no such permissions there")
def test_others_may_read_it_as_any_new_file(tmp_path: Path) -> None:
    """Whatever its writer does: here one that replaces the file by one for the owner alone."""
    path, plain = tmp_path / "a.txt", tmp_path / "b.txt"
    plain.write_text("")
    with whole_file(path) as partial:
        partial.unlink()
        partial.touch(mode=0o600)
    assert path.stat().st_mode == plain.stat().st_mode


def test_check_writable_leaves_nothing(tmp_path: Path) -> None:
    check_writable(tmp_path / "new/folder/a.txt")
    assert list(tmp_path.iterdir()) == []


def test_check_writable_refuses_a_folder(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        check_writable(tmp_path)
