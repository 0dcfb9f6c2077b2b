"""A full, read-only or missing disk: no file that is not whole, one error that says so, and no work for nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ctsr.app.jobs import Job
from ctsr.app.run import run
from ctsr.errors import ImageWriteError, OutputFolderError
from ctsr.images.picture import Picture
from ctsr.images.read import read_picture
from ctsr.images.write import check_target, write_picture
from ctsr.whole_file import PROBE_BYTES

PAGE = 4096
FORMATS = [".png", ".jpg", ".webp", ".tif", ".avif"]
PICTURE = Picture(torch.rand(1, 3, 192, 256, generator=torch.Generator().manual_seed(0)))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte in memory, which only the superuser of Linux can make."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if sys.platform != "linux" or os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("cannot mount a file system here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def leave_pages(disk: Path, pages: int) -> None:
    """Fill a disk but for so many pages."""
    filler = disk / "filler"
    filler.unlink(missing_ok=True)
    filler.touch()
    state = os.statvfs(disk)
    filler.write_bytes(bytes(state.f_bavail * state.f_frsize - pages * PAGE))


def pages_of_the_end(size: int) -> list[int]:
    """Numbers of pages that end within the last 128 KB of a file of that size, but do not hold it."""
    needed = -(-size // PAGE)
    return list(range(max(0, needed - 32), needed))


@pytest.mark.parametrize("suffix", FORMATS)
def test_full_disk_never_leaves_a_part_of_a_picture(small_disk: Path, suffix: str) -> None:
    """Cut at every page of the last 128 KB; the whole disk, then, takes the picture."""
    target = small_disk / f"a{suffix}"
    write_picture(target, PICTURE.rgb, PICTURE)
    size = target.stat().st_size
    target.unlink()
    for pages in pages_of_the_end(size):
        leave_pages(small_disk, pages)
        with pytest.raises(OutputFolderError, match="No space left"):
            write_picture(target, PICTURE.rgb, PICTURE)
        assert os.listdir(small_disk) == ["filler"]
    leave_pages(small_disk, -(-size // PAGE))
    write_picture(target, PICTURE.rgb, PICTURE)
    assert read_picture(target).width == 256


@pytest.mark.parametrize("suffix", FORMATS)
def test_cut_off_writes_never_leave_a_part_of_a_picture(tmp_path: Path, suffix: str) -> None:
    """As above where nothing can be mounted: the system refuses what lies beyond a file's largest size."""
    resource = pytest.importorskip("resource")
    target = tmp_path / f"a{suffix}"
    write_picture(target, PICTURE.rgb, PICTURE)
    size = target.stat().st_size
    before = target.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for pages in pages_of_the_end(size)[::5]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (pages * PAGE, hard))
        try:
            with pytest.raises(ImageWriteError, match="was not written"):
                write_picture(target, PICTURE.rgb, PICTURE)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert os.listdir(tmp_path) == [target.name]
        assert target.read_bytes() == before


def test_full_target_is_found_before_the_work(small_disk: Path) -> None:
    leave_pages(small_disk, PROBE_BYTES // PAGE - 1)
    with pytest.raises(OutputFolderError, match="No space left"):
        check_target(small_disk / "a.png")
    leave_pages(small_disk, PROBE_BYTES // PAGE)
    check_target(small_disk / "a.png")
    assert os.listdir(small_disk) == ["filler"]


def test_read_only_target_is_found_before_the_work(small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for name in ("a.png", "new/folder/a.png"):
        with pytest.raises(OutputFolderError, match="Read-only"):
            check_target(small_disk / name)
        with pytest.raises(OutputFolderError, match="Read-only"):
            write_picture(small_disk / name, PICTURE.rgb, PICTURE)


def test_folder_below_a_file_is_found_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ImageWriteError, match="was not written"):
        check_target(tmp_path / "file" / "a.png")


@pytest.mark.parametrize("name", ["folder", "n" * 300 + ".png"])
def test_name_that_cannot_be_a_file_is_found_before_the_work(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(ImageWriteError) as caught:
        check_target(tmp_path / name)
    assert not isinstance(caught.value, OutputFolderError)


def test_run_stops_at_the_first_folder_that_takes_no_file(tmp_path: Path) -> None:
    jobs = [Job(tmp_path / f"{name}.png", tmp_path / f"out/{name}.png") for name in "abcd"]
    tried = []

    def work(job: Job) -> str:
        tried.append(job.source.stem)
        if job.source.stem == "a":
            raise ImageWriteError("a name that cannot be")
        raise OutputFolderError("the disk is full")

    assert [outcome.state for outcome in run(jobs, work)] == ["failed", "failed"]
    assert tried == ["a", "b"]
