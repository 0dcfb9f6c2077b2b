"""The component that holds a baked prompt."""

import pytest
import torch

from ctsr.models.prompt_embeddings import PromptEmbeddings


def test_round_trip(tmp_path):
    embeds = torch.randn(1, 7, 16, generator=torch.Generator().manual_seed(0)).half()
    model = PromptEmbeddings.from_embeds(embeds)
    model.save_pretrained(tmp_path)
    loaded = PromptEmbeddings.from_pretrained(tmp_path, torch_dtype=torch.float16)
    assert (loaded.config.tokens, loaded.config.dim) == (7, 16)
    assert loaded.dtype == torch.float16
    assert torch.equal(loaded(3), embeds.expand(3, -1, -1))
    assert list(loaded.parameters()) == []


def test_one_prompt_of_any_source_tensor():
    embeds = torch.ones(7, 16)
    model = PromptEmbeddings.from_embeds(embeds)
    embeds.zero_()
    assert torch.equal(model(1), torch.ones(1, 7, 16))
    with pytest.raises(ValueError, match="one prompt"):
        PromptEmbeddings.from_embeds(torch.ones(2, 7, 16))
