"""Which file is what, whatever its name; and 300 files that are damaged or malicious: refused, or loaded right."""

import copy
import io
import os
import pickle
import random
import subprocess
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor

from ctsr import CheckpointError, CTSRPipeline
from ctsr.checkpoints.formats import (
    BASES,
    MODELS,
    OSEDIFF_KEYS,
    PISA_KEYS,
    PUBLISHED,
    TADSR_KEYS,
    find,
    unknown,
)
from ctsr.checkpoints.inspect import Contents, look, read
from ctsr.convert.convert import OPENERS, PARSERS, Options, assemble, open_published
from ctsr.convert.published import Published
from ctsr.convert.stable_diffusion import Base
from ctsr.load import load_pipeline
from tests.checkpoints import WRITERS, osediff

Networks = tuple[UNet2DConditionModel, AutoencoderKL]
Change = Callable[[dict[str, Any], random.Random], None]
PROMPT = torch.zeros(1, 4, 16)


def opened(path: Path) -> Published:
    return open_published(read(path))[1]


def pipeline_of(path: Path, sd21: Networks) -> CTSRPipeline:
    """Of a published file on the tiny base."""
    base = Base(Path("base"), lambda: copy.deepcopy(sd21[0]), lambda: copy.deepcopy(sd21[1]), lambda prompt: PROMPT)
    return assemble(opened(path), base, Options(), {})


def refused(load: Callable[[], object]) -> str:
    """The one sentence that `load` refuses with."""
    with pytest.raises(CheckpointError) as caught:
        load()
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(".")
    return message


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """`write(data)`: what torch.save makes of it, under a name that says nothing."""

    def make(data: object, name: str = "file") -> Path:
        torch.save(data, tmp_path / name)
        return tmp_path / name

    return make


# ----------------------------------------------------------------------------------------------------------- detection


def test_each_is_told_by_its_entries(sd21, write, tiny_mini, tiny_mini_file, sd21_folder, tmp_path):
    tiny_mini.save_pretrained(tmp_path / "ours")
    paths = {name: write(writer(*sd21), name) for name, writer in WRITERS.items()}
    formats = (*PUBLISHED, *BASES, *MODELS)
    found = {
        name: [form.what for form in formats if form.detect(read(path))]
        for name, path in {**paths, "file": tiny_mini_file, "folder": tmp_path / "ours", "base": sd21_folder}.items()
    }
    assert found == {
        "osediff": ["an OSEDiff checkpoint"],
        "tadsr": ["a TADSR checkpoint"],
        "pisa": ["a PiSA-SR checkpoint"],
        "file": ["a file of ctsr"],
        "folder": ["a folder of ctsr"],
        "base": ["a Stable Diffusion folder"],
    }


def test_the_entries_of_the_published_files(sd21):
    assert [len(keys) for keys in (OSEDIFF_KEYS, TADSR_KEYS, PISA_KEYS)] == [8, 9, 9]
    for name, keys in (("osediff", OSEDIFF_KEYS), ("tadsr", TADSR_KEYS), ("pisa", PISA_KEYS)):
        assert set(WRITERS[name](*sd21)) == keys


def test_what_a_stranger_is_told(sd21, write, tmp_path):
    lacking, more = osediff(*sd21), osediff(*sd21)
    del lacking["rank_vae"]
    more["state_dict_sft"] = {}
    save_file({"lora.up": torch.zeros(1)}, tmp_path / "x.safetensors")
    (tmp_path / "page.pkl").write_bytes(b"<!DOCTYPE html><html></html>")
    (tmp_path / "pointer.pkl").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    (tmp_path / "empty.pkl").touch()
    cases = {
        write(lacking, "lacking"): "looks like an OSEDiff checkpoint but lacks rank_vae",
        write(more, "more"): "looks like an OSEDiff checkpoint but also holds state_dict_sft",
        write({"weight": torch.zeros(1)}, "other"): "is a pickle that ctsr did not write and does not know (it holds",
        write([1, 2], "list"): "holds no dictionary by names",
        tmp_path / "x.safetensors": "is a safetensors file that ctsr did not write and does not know",
        tmp_path / "page.pkl": "is a web page",
        tmp_path / "pointer.pkl": "git lfs pull",
        tmp_path / "empty.pkl": "truncated",
        tmp_path / "none.pkl": "does not exist",
        tmp_path: "is a folder without model_index.json",
    }
    for path, message in cases.items():
        assert message in refused(lambda path=path: opened(path))
    assert "(it holds nothing)" in str(unknown(Contents(tmp_path, "folder")))


def test_conv_in_with_and_without_base_layer(sd21, write):
    """Resumed runs have the plain name."""
    data = osediff(*sd21)
    plain = copy.deepcopy(data)
    state = plain["state_dict_unet"]
    for kind in ("weight", "bias"):
        state[f"conv_in.{kind}"] = state.pop(f"conv_in.base_layer.{kind}")
    expected, found = pipeline_of(write(data), sd21), pipeline_of(write(plain), sd21)
    assert same(expected, found)
    changed = found.unet.conv_in.bias - sd21[0].conv_in.bias
    torch.testing.assert_close(changed, data["state_dict_unet"]["conv_in.base_layer.bias"] - sd21[0].conv_in.bias)
    state["conv_in.base_layer.bias"] = state["conv_in.bias"]
    assert "conv_in.base_layer.bias of state_dict_unet is unknown" in refused(lambda: opened(write(plain)))


@pytest.mark.parametrize("rank", [1, 2, 8])
def test_another_rank_scales_otherwise(rank, sd21, write):
    checkpoint = opened(write(osediff(*sd21, rank=rank)))
    assert (checkpoint.unet.rank, checkpoint.unet.scaling) == (rank, 8 / rank)
    name = "mid_block.resnets.0.conv1"
    a, b = checkpoint.unet.pairs["default_others"][name]
    weight = pipeline_of(write(osediff(*sd21, rank=rank)), sd21).unet.get_submodule(name).weight
    change = torch.einsum("or,rikl->oikl", b[..., 0, 0], a) * 8 / rank
    torch.testing.assert_close(weight, sd21[0].get_submodule(name).weight + change, rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------------------------------------------------------- code

MARKER = "marker"


class Call:
    """Unpickled by calling a function: what a malicious checkpoint does."""

    def __init__(self, function: Any, *arguments: Any):
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call


def payloads(marker: Path) -> Iterator[Any]:
    """Objects that would create `marker`."""
    command, code = f"touch {marker}", f"open({str(marker)!r}, 'w').close()"
    yield Call(os.system, command)
    yield Call(eval, code)
    yield Call(exec, code)
    yield Call(open, str(marker), "w")
    yield Call(subprocess.run, ["touch", str(marker)])
    yield Call(subprocess.Popen, ["touch", str(marker)])
    yield Call(os.mkdir, str(marker))
    yield Call(getattr, Call(__import__, "os"), "system")
    yield Call(torch.hub.load_state_dict_from_url, str(marker))
    yield Call(Path.touch, marker)


def disguises(payload: Any, data: dict[str, Any]) -> Iterator[bytes]:
    """The payload as a file: alone, in a checkpoint's place for a number, name or tensor, in older formats."""
    for content in (
        payload,
        {**data, "rank_unet": payload},
        {**data, "state_dict_unet": {**data["state_dict_unet"], "x": payload}},
    ):
        yield saved(content)
    yield saved({**data, "unet_lora_others_modules": [payload]}, _use_new_zipfile_serialization=False)
    yield pickle.dumps({**dict.fromkeys(data, 0), "x": payload}, protocol=2)


def saved(content: Any, **options: Any) -> bytes:
    """What torch.save writes."""
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def test_fifty_files_with_code_are_refused_and_nothing_runs(sd21, tmp_path):
    marker, path, data = tmp_path / MARKER, tmp_path / "osediff.pkl", osediff(*sd21)
    files = [file for payload in payloads(marker) for file in disguises(payload, data)]
    assert len(files) == 50
    for content in files:
        path.write_bytes(content)
        message = refused(lambda: opened(path))
        assert "nothing of it ran" in message
        assert not marker.exists()
        assert "convert it first" in refused(lambda: load_pipeline(path))
        assert not marker.exists()
    torch.load(io.BytesIO(files[0]), weights_only=False)  # it is no dud
    assert marker.exists()


def test_the_refusal_names_the_code(tmp_path):
    path = tmp_path / "x.pkl"
    path.write_bytes(saved(Call(os.system, "true")))
    assert f"holds code ({os.system.__module__}.system), so it was not opened" in refused(lambda: opened(path))


def test_a_compressed_archive_is_refused(tmp_path, sd21):
    """torch.save never compresses; what unpacks to terabytes does."""
    path = tmp_path / "x.pkl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", b"\x80\x02" + bytes(10**6))
    assert "a compressed entry" in refused(lambda: opened(path))


# ------------------------------------------------------------------------------------------------------------- damage


def same(one: CTSRPipeline, other: CTSRPipeline) -> bool:
    """Whether two pipelines hold the same numbers and settings."""
    settings = ("family", "parameterization", "encoder_timesteps", "color_fix")
    return all(one.config[key] == other.config[key] for key in settings) and all(
        torch.equal(x, b.state_dict()[key])
        for a, b in zip(one.components.values(), other.components.values(), strict=True)
        if a is not None
        for key, x in a.state_dict().items()
    )


def outcome(load: Callable[[], CTSRPipeline], expected: CTSRPipeline) -> str:
    """What becomes of a damaged file; fails for any other error, a long one, or a wrong model."""
    try:
        found = load()
    except CheckpointError as error:
        message = str(error)
    else:
        assert same(found, expected)
        return "loaded"
    assert "\n" not in message
    assert len(message) < 700
    return "refused"


def flipped(content: bytes, random: random.Random) -> bytes:
    """One to four of its bits inverted."""
    changed = bytearray(content)
    for _ in range(random.randint(1, 4)):
        changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
    return bytes(changed)


def state_of(data: dict[str, Any], random: random.Random) -> dict[str, Tensor]:
    """One of the dictionaries of tensors."""
    return data[random.choice([key for key in data if key.startswith("state_dict")])]


def drop_entry(data: dict[str, Any], random: random.Random) -> None:
    del data[random.choice(list(data))]


def rename_entry(data: dict[str, Any], random: random.Random) -> None:
    key = random.choice(list(data))
    data[key + "_new"] = data.pop(key)


def drop_tensor(data: dict[str, Any], random: random.Random) -> None:
    state = state_of(data, random)
    del state[random.choice(list(state))]


def rename_tensor(data: dict[str, Any], random: random.Random) -> None:
    state = state_of(data, random)
    key = random.choice(list(state))
    state["up_blocks.9." + key] = state.pop(key)


def drop_name(data: dict[str, Any], random: random.Random) -> None:
    names = data[random.choice([key for key in data if "_modules" in key])]
    lost = random.choice(names)
    names[:] = [name for name in names if name != lost]


def change_shape(data: dict[str, Any], random: random.Random) -> None:
    state = state_of(data, random)
    key = random.choice(list(state))
    x = state[key]
    state[key] = random.choice([x[:-1].clone(), x[None].clone(), torch.cat([x, x]), x.flatten().clone()[:0]])


def change_value(data: dict[str, Any], random: random.Random) -> None:
    state = state_of(data, random)
    key = random.choice(list(state))
    state[key] = random.choice([state[key] * float("nan"), state[key].int(), "text", None, state[key].to(torch.cfloat)])


def change_type(data: dict[str, Any], random: random.Random) -> None:
    key = random.choice(list(data))
    wrong: list[Any] = [None, 0, -1, 2.5, True, "text", [1], {"x": 1}, {}, []]
    data[key] = random.choice(wrong)


CHANGES: tuple[Change, ...] = (
    drop_entry,
    rename_entry,
    drop_tensor,
    rename_tensor,
    drop_name,
    change_shape,
    change_value,
    change_type,
)


@pytest.mark.parametrize("name", WRITERS)
def test_fifty_damaged_files_of_each_method(name, sd21, tmp_path):
    path, draw, data = tmp_path / "checkpoint", random.Random(name), WRITERS[name](*sd21)
    path.write_bytes(whole := saved(data))
    expected = pipeline_of(path, sd21)
    outcomes: list[str] = []
    for _ in range(24):
        path.write_bytes(flipped(whole, draw))
        outcomes.append(outcome(lambda: pipeline_of(path, sd21), expected))
    for _ in range(10):
        path.write_bytes(whole[: draw.randrange(len(whole))])
        assert outcome(lambda: pipeline_of(path, sd21), expected) == "refused"
    for change in CHANGES * 2:
        changed = copy.deepcopy(data)
        change(changed, draw)
        path.write_bytes(saved(changed))
        assert outcome(lambda: pipeline_of(path, sd21), expected) == "refused", change.__name__
    assert len(outcomes) + 10 + 2 * len(CHANGES) == 50
    assert outcomes.count("refused") > len(outcomes) / 2


@pytest.mark.parametrize("name", ["pisa", "mini"])
def test_fifty_damaged_files_of_ours(name, sd21, tiny_mini, tmp_path):
    """A flipped bit of a weight too: the file holds a checksum."""
    source, path, draw = tmp_path / "checkpoint", tmp_path / "ours", random.Random(name)
    source.write_bytes(saved(WRITERS["pisa"](*sd21)))
    expected = tiny_mini if name == "mini" else pipeline_of(source, sd21)
    expected.save_single_file(path, dtype=torch.float32)
    whole = path.read_bytes()
    outcomes: list[str] = []
    for number in range(50):
        path.write_bytes(flipped(whole, draw) if number < 40 else whole[: draw.randrange(len(whole))])
        outcomes.append(outcome(lambda: load_pipeline(path, torch.float32), expected))
    assert outcomes.count("refused") > 45
    path.write_bytes(whole)
    assert same(load_pipeline(path, torch.float32), expected)


def test_a_flipped_bit_of_a_weight(tiny_mini_file, tmp_path):
    content, path = bytearray(tiny_mini_file.read_bytes()), tmp_path / "x.safetensors"
    content[-3] ^= 1
    path.write_bytes(content)
    assert "its checksum does not fit" in refused(lambda: load_pipeline(path))
    assert find(look(path), MODELS) is not None


def test_every_format_that_is_told_can_be_opened() -> None:
    assert PARSERS.keys() == set(PUBLISHED)
    assert OPENERS.keys() == set(BASES)
