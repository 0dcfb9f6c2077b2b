"""What the stages' tests train on, and for how long."""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from PIL import Image

from ctsr import CTSRPipeline
from training.data.datasets import Data
from training.data.pairs import Pairs
from training.data.photos import is_held_back
from training.engine.run import Run
from training.engine.sources import Sample

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def fresh_process() -> Iterator[None]:
    """Each test may train in another precision, which accelerate allows once a process."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


@pytest.fixture(scope="session")
def start_processes() -> Callable[..., list[subprocess.Popen[bytes]]]:
    """`start_processes(script, words, ...)`: one process for each row of words, with what a launcher gives them."""

    def start(script: str, *rows: Sequence[str]) -> list[subprocess.Popen[bytes]]:
        shared = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "ACCELERATE_USE_CPU": "true",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port()),
            "WORLD_SIZE": str(len(rows)),
            "LOCAL_WORLD_SIZE": str(len(rows)),
        }
        return [
            subprocess.Popen(
                [sys.executable, script, *words],
                cwd=ROOT,
                env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stderr=subprocess.PIPE,
            )
            for rank, words in enumerate(rows)
        ]

    return start


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three pictures to train on, one held back, one broken."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    names = [f"{number:02d}.png" for number in range(60)]
    train = [name for name in names if not is_held_back(name)][:3]
    for name in [*train, next(name for name in names if is_held_back(name))]:
        small = rng.integers(0, 255, (20, 20, 3), np.uint8)
        Image.fromarray(small).resize((272, 272), Image.Resampling.BICUBIC).save(folder / name)
    (folder / "broken.jpg").write_bytes(b"not a picture")
    return folder


@pytest.fixture(scope="session")
def make_run() -> Callable[..., Run]:
    """`make_run(out, **changes)`: two steps of one sample."""

    def make(out: Path, **changes: Any) -> Run:
        return replace(Run(out, steps=2, batch=1, workers=0, validate_every=2, log_every=1), **changes)

    return make


@pytest.fixture(scope="session")
def make_batch() -> Callable[..., Sample]:
    """`make_batch(count, first)`: noise pictures of 32 px, numbered from `first`, each a function of its number."""

    def make(count: int = 2, first: int = 0) -> Sample:
        rows = [torch.Generator().manual_seed(number) for number in range(first, first + count)]
        sharp = torch.stack([torch.rand(3, 32, 32, generator=generator) * 2 - 1 for generator in rows])
        lr = torch.nn.functional.avg_pool2d(sharp, 4)
        soft = torch.nn.functional.avg_pool2d(sharp, 3, stride=1, padding=1)
        index = torch.arange(first, first + count)
        return {"index": index, "lr": lr, "soft": soft, "sharp": sharp, "step": torch.tensor(0)}

    return make


@pytest.fixture
def batch(make_batch: Callable[..., Sample]) -> Sample:
    """Two of them."""
    return make_batch()


@pytest.fixture(scope="session")
def make_prior(make_mini: Callable[..., CTSRPipeline]) -> Callable[..., CTSRPipeline]:
    """`make_prior(seed)`: a tiny mini prior, noise prediction on the tiny mini's latents."""

    def make(seed: int = 0) -> CTSRPipeline:
        whole = make_mini(seed)
        channels = whole.vae.config["latent_channels"]
        config = {key: value for key, value in whole.unet.config.items() if not key.startswith("_")}
        unet = type(whole.unet)(**{**config, "out_channels": channels})
        state = whole.unet.state_dict()
        unet.load_state_dict(
            {**state, **{f"conv_out.{k}": state[f"conv_out.{k}"][:channels] for k in ("weight", "bias")}}
        )
        return CTSRPipeline(whole.vae, unet, family="osediff", parameterization="epsilon")

    return make


@pytest.fixture(scope="session")
def tiny_prior_file(make_prior: Callable[..., CTSRPipeline], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny prior as one file."""
    path = tmp_path_factory.mktemp("prior") / "prior.safetensors"
    make_prior().save_single_file(path, dtype=torch.float32)
    return path


@pytest.fixture(scope="session")
def sd_folder(
    make_sd: Callable[..., CTSRPipeline], text_encoder_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A tiny Stable Diffusion folder: plain autoencoder and UNet, tokenizer, text encoder and scheduler."""
    folder, pipeline = tmp_path_factory.mktemp("sd"), make_sd("osediff")
    shutil.copytree(text_encoder_folder, folder, dirs_exist_ok=True)
    config = {key: value for key, value in pipeline.vae.config.items() if not key.startswith("_")}
    vae = AutoencoderKL.from_config(config)
    weights = pipeline.vae.state_dict()
    vae.load_state_dict({key: weights[key] for key in vae.state_dict()})
    vae.save_pretrained(folder / "vae")
    pipeline.unet.to(memory_format=torch.contiguous_format).save_pretrained(folder / "unet")
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps({"prediction_type": "epsilon"}))
    return folder


@pytest.fixture(scope="session")
def stage_files(
    make_mini: Callable[..., CTSRPipeline],
    make_sd: Callable[..., CTSRPipeline],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:
    """What earlier stages would have left: `mini`, another one as `mini fidelity`, and `sd` of one output group."""
    folder = tmp_path_factory.mktemp("stages")
    pipelines = {"mini": make_mini(0), "mini fidelity": make_mini(7), "sd": make_sd("osediff")}
    paths = {name: folder / f"{name}.safetensors" for name in pipelines}
    for name, pipeline in pipelines.items():
        pipeline.save_single_file(paths[name], torch.float32)
    return paths


@pytest.fixture
def on_tiny_files(
    photos: Path, stage_files: dict[str, Path], make_run: Callable[..., Run], tmp_path: Path
) -> Callable[[Any, str], Any]:
    """`on_tiny_files(recipe, "mini" or "sd")`: a recipe of CTSR's stages on these files, for two steps."""

    def make(recipe: Any, size: str) -> Any:
        return replace(
            recipe,
            data=Data(photos, pairs=Pairs(crop={"mini": 32, "sd": 64}[size])),
            run=make_run(tmp_path / "out"),
            start=str(stage_files[size]),
            fidelity=stage_files.get(f"{size} fidelity", stage_files[size]),
        )

    return make


@pytest.fixture(scope="session")
def moved() -> Callable[[CTSRPipeline, CTSRPipeline, str], set[str]]:
    """`moved(before, after, part)`: names of the tensors of a part that differ."""

    def compare(before: CTSRPipeline, after: CTSRPipeline, part: str) -> set[str]:
        old, new = (getattr(pipeline, part).state_dict() for pipeline in (before, after))
        assert old.keys() == new.keys()
        return {name for name in new if not torch.equal(old[name], new[name])}

    return compare


@pytest.fixture(scope="session")
def reload() -> Callable[[Path], CTSRPipeline]:
    """`reload(out)`: what a stage wrote, after it has enlarged a picture of 20x12 px."""

    def load(out: Path) -> CTSRPipeline:
        pipeline = CTSRPipeline.from_single_file(out / "model.safetensors", torch_dtype=torch.float32)
        (picture,) = pipeline(Image.new("RGB", (20, 12), "teal")).images
        assert picture.size == (80, 48)
        return pipeline

    return load
