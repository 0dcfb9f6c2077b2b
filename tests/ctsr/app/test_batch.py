"""`ctsr batch`: jobs and files without Ray; with it, a cluster that loses a node and gains one."""

import json
import sys
from collections import Counter
from dataclasses import replace
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from ctsr.app import batch
from ctsr.app.arguments import Into
from ctsr.app.batch import Cluster, Line, ResultNames, Row, Task, Worker, line_of, rows_of, run_batch, write_manifest
from ctsr.app.cli import app
from ctsr.app.jobs import Job
from ctsr.app.lazy_pipeline import LazyPipeline
from ctsr.app.options import Options
from ctsr.app.run import Outcome
from ctsr.app.shards import Item, read_shard, record_of, write_shard
from ctsr.app.upscale import upscale
from ctsr.errors import CheckpointError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Nine pictures in three folders, and one that is broken."""
    rng = np.random.default_rng(0)
    for number in range(9):
        path = tmp_path / "in" / f"{number % 3}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8)).save(path)
    (tmp_path / "in" / "broken.png").write_bytes(b"not a picture")
    return tmp_path


@pytest.fixture
def task(tiny_mini_file: Path) -> Task:
    return Task(str(tiny_mini_file), "fp32", Options())


def plain(folder: Path, task: Task) -> dict[str, bytes]:
    """What the same pictures become one after the other on one thread."""
    model, found = LazyPipeline(task.model, task.precision, torch.device("cpu")), {}
    for path in sorted((folder / "in").rglob("*/*.png")):
        name = path.relative_to(folder / "in").as_posix()
        (folder / "plain" / name).parent.mkdir(parents=True, exist_ok=True)
        upscale(Job(path, folder / "plain" / name), model, task.options)
        found[name] = (folder / "plain" / name).read_bytes()
    return found


def results(out: Path) -> dict[str, bytes]:
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*.png")}


def test_a_worker_makes_what_the_plain_run_makes_once_and_reports_failures(folder: Path, task: Task) -> None:
    threads = torch.get_num_threads()
    try:
        worker = Worker(task, Cluster(cpus=1))
        expected = plain(folder, task)
        jobs = rows_of([str(folder / "in")], str(folder / "out"))
        for states in ({"done": 9, "failed": 1}, {"skipped": 9, "failed": 1}):
            lines = [line for row in jobs for line in worker(row)]
            assert {state: sum(line["state"] == state for line in lines) for state in states} == states
        assert "broken.png" in next(str(line["detail"]) for line in lines if line["state"] == "failed")
        assert results(folder / "out") == expected
    finally:
        torch.set_num_threads(threads)


def test_addresses_are_read_and_written_through_files_of_the_node(folder: Path, task: Task) -> None:
    memory = import_module("fsspec").filesystem("memory")
    memory.put(str(folder / "in"), "/bucket/in", recursive=True)
    jobs = rows_of(["memory://bucket/in"], "memory://bucket/out")
    assert len(jobs) == 10
    worker = Worker(task, Cluster(cpus=torch.get_num_threads()))
    for state in ("done", "skipped"):
        assert sum(line["state"] == state for row in jobs for line in worker(row)) == 9
    assert Image.open(memory.open("/bucket/out/0/3.png")).size == (32, 32)
    assert not memory.exists("/bucket/out/broken.png")


def test_an_address_whose_package_is_missing_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    said = CliRunner().invoke(app, ["batch", "s3://bucket/in", "-o", str(tmp_path / "out")])
    assert (said.exit_code, "without one more package (Install s3fs" in said.output) == (2, True)
    assert not (tmp_path / "out").exists()


def test_the_manifest_appears_whole(tmp_path: Path) -> None:
    lines = [line_of(name, name, Outcome(Job(Path(name), Path(name)), "done"), 0.0) for name in "ab"]
    passed = write_manifest(iter(lines), tmp_path)
    next(passed)
    assert not (tmp_path / "manifest.jsonl").exists()
    assert [*passed] == lines[1:]
    assert [json.loads(line) for line in (tmp_path / "manifest.jsonl").read_text().splitlines()] == lines


def test_without_ray_and_with_wrong_words_there_is_one_sentence(
    folder: Path, tiny_mini_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    words = ["batch", str(folder / "in"), "-o", str(folder / "out"), "--model", str(tiny_mini_file)]
    said = CliRunner().invoke(app, words)
    assert (said.exit_code, 'pip install "ctsr[ray]"' in said.output) == (2, True)
    assert not (folder / "out").exists()
    for more, sentence in (
        (["--workers", "0"], "1 or more workers"),
        (["--precision", "fp8"], "'fp8' is not one of"),
        (["--into", "zip"], "'zip' is not one of"),
        (["-o", "s3://bucket/out"], "say with --manifest"),
    ):
        said = CliRunner().invoke(app, [*words, *more])
        assert (said.exit_code, sentence in " ".join(said.output.split())) == (2, True), said.output
    (folder / "empty").mkdir()
    for output in (str(folder / "out"), "memory://out"):
        with pytest.raises(ValueError, match="No pictures in"):
            rows_of([str(folder / "empty")], output)


def states(worker: Worker, rows: list[Row]) -> Counter[str]:
    return Counter(line["state"] for row in rows for line in worker(row))


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_shards_become_shards_once_and_what_fails_is_named(kind: Into, folder: Path, task: Task) -> None:
    if kind == "parquet":
        pytest.importorskip("pyarrow")
    worker, expected = Worker(task, Cluster(cpus=torch.get_num_threads())), plain(folder, task)
    pictures = sorted((folder / "in").rglob("*.png"))
    items = [Item(path.relative_to(folder / "in").as_posix(), path.read_bytes()) for path in pictures]
    for number, part in enumerate((items[:4], items[4:])):
        write_shard(folder / "shards" / f"{number}.{kind}", part)
    rows = rows_of([str(folder / "shards")], str(folder / "out"))
    assert [row["target"] for row in rows] == [str(folder / "out" / f"{number}.{kind}") for number in (0, 1)]
    lines = [line for row in rows for line in worker(row)]
    assert [line["source"].partition("::")[2] for line in lines if line["state"] == "failed"] == ["broken.png"]
    made = {item.name: item.data for number in (0, 1) for item in read_shard(folder / "out" / f"{number}.{kind}")}
    assert {name: pixels(data) for name, data in made.items()} == {n: pixels(data) for n, data in expected.items()}
    assert states(worker, rows) == {"skipped": 2}
    record_of(folder / "out" / f"1.{kind}").unlink()  # as a node that died before it was done
    assert sum(states(worker, rows).values()) == 7  # six pictures again, one shard left alone
    other = Worker(replace(task, options=Options(t=0.0)), Cluster(cpus=torch.get_num_threads()))
    assert states(other, rows) == {"kept": 2}
    again = Worker(replace(task, options=Options(t=0.0), overwrite=True), Cluster(cpus=torch.get_num_threads()))
    assert states(again, rows) == {"done": 9, "failed": 1}


def pixels(data: bytes) -> bytes:
    return Image.open(BytesIO(data)).tobytes()


def test_pictures_become_shards_and_shards_pictures(folder: Path, task: Task) -> None:
    worker, memory = Worker(task, Cluster(cpus=torch.get_num_threads())), import_module("fsspec").filesystem("memory")
    rows = rows_of([str(folder / "in")], "memory://pack/out", "tar", 4)
    assert [len(row["sources"]) for row in rows] == [4, 4, 2]
    assert states(worker, rows) == {"done": 9, "failed": 1}
    assert states(worker, rows) == {"skipped": 3}
    assert memory.exists("/pack/out/000000.tar.json")
    small = [Item("a/../../up.png", next((folder / "in").rglob("0.png")).read_bytes())]
    write_shard(folder / "shards" / "few.tar", small)
    rows = rows_of([str(folder / "shards" / "few.tar")], str(folder / "unpacked"), "pictures")
    assert states(worker, rows) == {"done": 1}
    assert Image.open(folder / "unpacked" / "few" / "a" / "up.png").size == (32, 32)
    assert states(worker, rows) == {"skipped": 1}


def test_shards_and_pictures_together_are_refused(folder: Path) -> None:
    write_shard(folder / "in" / "few.tar", [Item("a.png", b"")])
    with pytest.raises(ValueError, match="Shards and pictures lie together"):
        rows_of([str(folder / "in")], str(folder / "out"))


def test_pictures_of_a_shard_that_differ_in_the_suffix_alone_are_both_there(folder: Path, task: Task) -> None:
    data = (folder / "in" / "0" / "0.png").read_bytes()
    write_shard(folder / "two.tar", [Item("x/a.png", data), Item("x/a.webp", data), Item("x/a.png", data)])
    worker = Worker(task, Cluster(cpus=torch.get_num_threads()))
    for into, target in ((None, "out"), ("pictures", "unpacked")):
        (row,) = rows_of([str(folder / "two.tar")], str(folder / target), into)
        assert [line["state"] for line in worker(row)] == ["done"] * 3
    names = ["x/a.png", "x/a.png.png", "x/a.webp.png"]
    assert sorted(item.name for item in read_shard(folder / "out" / "two.tar")) == names
    unpacked = folder / "unpacked" / "two"
    assert sorted(path.relative_to(unpacked).as_posix() for path in unpacked.rglob("*.png")) == names


@pytest.mark.parametrize("name", ["../../a.jpg", "/a.jpg", r"..\..\a.jpg", r"C:\a.jpg", "..", ""])
def test_no_name_in_a_shard_leads_out_of_the_folder(name: str) -> None:
    assert ResultNames().of(name) in ("a.png", "C/a.png", "unnamed.png")


def test_rows_as_hugging_face_datasets_have_them_and_a_damaged_shard(folder: Path, task: Task) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    data = next((folder / "in").rglob("0.png")).read_bytes()
    rows = [{"image": {"bytes": data, "path": "x.jpg"}, "label": 1}, {"image": {"bytes": data, "path": None}}]
    parquet.write_table(import_module("pyarrow").Table.from_pylist(rows), folder / "hf.parquet")
    assert [item.name for item in read_shard(folder / "hf.parquet")] == ["x.jpg", "00000001.png"]
    (folder / "bad.tar").write_bytes(b"no shard")
    worker = Worker(task, Cluster(cpus=torch.get_num_threads()))
    (line,) = worker(Row(sources=[str(folder / "bad.tar")], target=str(folder / "out.tar")))
    assert (line["state"], "not a whole shard" in line["detail"]) == ("failed", True)
    assert not (folder / "out.tar").exists()


def test_a_broken_model_ends_the_run_whatever_is_made(folder: Path, tmp_path: Path) -> None:
    model = tmp_path / "model.safetensors"
    model.write_bytes(b"no weights")
    worker = Worker(Task(str(model), "fp32", Options()), Cluster(cpus=torch.get_num_threads()))
    for into in ("pictures", "tar"):
        row = rows_of([str(folder / "in" / "0")], str(folder / "out"), into)[0]
        with pytest.raises(CheckpointError, match="fetch it again"):
            next(worker(row))


@pytest.mark.slow
@pytest.mark.parametrize("into", ["pictures", "tar"])
def test_a_broken_model_on_a_cluster_is_one_sentence(into: Into, folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    model = tmp_path / "model.safetensors"
    model.write_bytes(b"no weights")
    words = ["batch", str(folder / "in"), "-o", str(folder / "out"), "--model", str(model), "--into", into]
    said = CliRunner().invoke(app, [*words, "--cpus", "1"])
    assert said.exit_code == 2
    assert said.stderr.startswith(f"Error: {model} is truncated")
    assert len(said.stderr.splitlines()) == 1, said.stderr


@pytest.mark.slow
def test_a_cluster_that_loses_a_node_and_gains_one_makes_every_picture_once(folder: Path, task: Task) -> None:
    pytest.importorskip("ray")
    nodes: Any = import_module("ray.cluster_utils").Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 10**8}
    )
    lost = nodes.add_node(num_cpus=1, object_store_memory=10**8)
    jobs, seen = rows_of([str(folder / "in")], str(folder / "out")), list[Line]()
    try:
        for line in run_batch(jobs, task, Cluster(nodes.address, workers=2, cpus=1)):
            seen.append(line)
            if len(seen) == 3:
                nodes.remove_node(lost, allow_graceful=False)
                nodes.add_node(num_cpus=1, object_store_memory=10**8)
    finally:
        nodes.shutdown()
    assert sorted(line["source"] for line in seen) == sorted(row["sources"][0] for row in jobs)
    assert {line["state"] for line in seen} - {"skipped"} == {"done", "failed"}
    assert results(folder / "out") == plain(folder, task)
    assert batch.MANIFEST not in [path.name for path in (folder / "out").iterdir()]
