"""Prompts through a tiny CLIP."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ctsr import CheckpointError, CTSRError
from ctsr.convert.prompts import encode_prompts

WIDTH = 16
LENGTH = 77


@pytest.fixture(scope="module")
def folder(text_encoder_folder: Path) -> Path:
    return text_encoder_folder


def hidden_states(folder: Path, tokens: list[int]) -> Tensor:
    import transformers

    encoder = transformers.CLIPTextModel.from_pretrained(folder / "text_encoder").eval()
    with torch.no_grad():
        return encoder(torch.tensor([tokens])).last_hidden_state


def test_what_the_encoder_sees(folder):
    vocab = json.loads((folder / "tokenizer" / "vocab.json").read_text(encoding="utf-8"))
    start, end, pad = vocab["<|startoftext|>"], vocab["<|endoftext|>"], vocab["!"]
    cat = [start, vocab["cat</w>"], end]
    empty = [start, end]
    long = [start, *[vocab["cat</w>"]] * (LENGTH - 2), end]
    states = encode_prompts(folder, ["Cat", "", "cat " * 200])
    assert states.shape == (3, LENGTH, WIDTH)
    assert states.dtype == torch.float32
    assert not states.requires_grad
    for row, tokens in zip(states, (cat, empty, long), strict=True):
        expected = hidden_states(folder, tokens + [pad] * (LENGTH - len(tokens)))
        torch.testing.assert_close(row[None], expected, rtol=1e-5, atol=1e-6)


def test_a_missing_part_is_named(folder, tmp_path):
    with pytest.raises(CheckpointError, match="holds no tokenizer/"):
        encode_prompts(tmp_path, ["cat"])
    (tmp_path / "tokenizer").symlink_to(folder / "tokenizer")
    with pytest.raises(CheckpointError, match="holds no text_encoder/"):
        encode_prompts(tmp_path, ["cat"])


def test_a_damaged_encoder_is_refused(folder, tmp_path):
    (tmp_path / "tokenizer").symlink_to(folder / "tokenizer")
    (tmp_path / "text_encoder").mkdir()
    with pytest.raises(CheckpointError, match="Fetch it again") as caught:
        encode_prompts(tmp_path, ["cat"])
    assert "\n" not in str(caught.value)


def test_an_incomplete_encoder_is_refused(folder, tmp_path):
    (tmp_path / "tokenizer").symlink_to(folder / "tokenizer")
    (tmp_path / "text_encoder").mkdir()
    (tmp_path / "text_encoder" / "config.json").symlink_to(folder / "text_encoder" / "config.json")
    tensors = load_file(folder / "text_encoder" / "model.safetensors")
    del tensors[next(key for key in tensors if key.endswith("final_layer_norm.weight"))]
    save_file(tensors, tmp_path / "text_encoder" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="incomplete text encoder"):
        encode_prompts(tmp_path, ["cat"])


def test_without_transformers(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(CTSRError, match=r"needs transformers: pip install"):
        encode_prompts(folder, ["cat"])
