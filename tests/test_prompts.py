"""Prompts through a tiny CLIP, its tokenizer written in the files' true formats."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ctsr import CheckpointError, CTSRError
from ctsr.prompts import encode_prompts

WIDTH = 16
LENGTH = 77


def byte_characters() -> list[str]:
    """CLIP's printable stand-ins for the 256 bytes, in the order of its vocabulary ("!" is the first)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + index) for index in range(len(others))]


def vocabulary() -> dict[str, int]:
    """Bytes, bytes that end a word, one merge, and the two special tokens last, as in CLIP's own."""
    characters = byte_characters()
    words = [*characters, *(character + "</w>" for character in characters), "ca", "cat</w>"]
    return {word: index for index, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}


def write_text_encoder(folder: Path) -> Path:
    """tokenizer/ and text_encoder/ of a tiny Stable Diffusion folder."""
    transformers = pytest.importorskip("transformers")
    vocab = vocabulary()
    tokenizer = folder / "tokenizer"
    tokenizer.mkdir(parents=True)
    (tokenizer / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    (tokenizer / "merges.txt").write_text("#version: 0.2\nc a\nca t</w>\n", encoding="utf-8")
    marks = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    kept = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    special = {name: {"content": content, **kept} for name, content in marks.items()}
    (tokenizer / "special_tokens_map.json").write_text(json.dumps({**special, "pad_token": "!"}), encoding="utf-8")
    config = {name: {"__type": "AddedToken", **token} for name, token in special.items()}
    config |= {"add_prefix_space": False, "do_lower_case": True, "errors": "replace", "model_max_length": LENGTH}
    config |= {"pad_token": "<|endoftext|>", "tokenizer_class": "CLIPTokenizer"}
    (tokenizer / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    shape = transformers.CLIPTextConfig(
        vocab_size=len(vocab),
        hidden_size=WIDTH,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
        bos_token_id=vocab["<|startoftext|>"],
        eos_token_id=vocab["<|endoftext|>"],
        pad_token_id=0,
    )
    torch.manual_seed(0)
    transformers.CLIPTextModel(shape).save_pretrained(folder / "text_encoder")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text_encoder(tmp_path_factory.mktemp("sd"))


def hidden_states(folder: Path, tokens: list[int]) -> Tensor:
    import transformers

    encoder = transformers.CLIPTextModel.from_pretrained(folder / "text_encoder").eval()
    with torch.no_grad():
        return encoder(torch.tensor([tokens])).last_hidden_state


def test_what_the_encoder_sees(folder):
    vocab = vocabulary()
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
