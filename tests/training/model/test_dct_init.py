"""The start of the mini autoencoder as a block-cosine codec."""

import pytest
import torch

from ctsr import TimeAwareAutoencoderMini
from training.model.dct_init import block_transform, cosine_basis, dct_init_


def test_the_basis_is_orthonormal() -> None:
    basis = cosine_basis(8)
    assert torch.allclose(basis @ basis.T, torch.eye(8, dtype=torch.float64), atol=1e-12)


@pytest.mark.parametrize("latents", [4, 48, 112])
def test_the_rows_are_orthonormal_to_the_digits_of_the_colours(latents: int) -> None:
    rows = block_transform(latents)[0].reshape(latents, -1)
    assert torch.allclose(rows @ rows.T, torch.eye(latents, dtype=torch.float64), atol=2e-3)


def test_what_the_kept_frequencies_hold_comes_back() -> None:
    torch.manual_seed(0)
    model = TimeAwareAutoencoderMini(latent_channels=48)
    dct_init_(model)
    rows, _ = block_transform(48)
    picture = torch.einsum("l,lcyx->cyx", torch.randn(48, dtype=torch.float64), rows).float().repeat(1, 3, 2)[None]
    back = model(picture).sample
    assert torch.allclose(back, picture, atol=5e-3)


def test_a_fresh_autoencoder_without_it_gives_nothing_like_the_picture() -> None:
    torch.manual_seed(0)
    picture = torch.rand(1, 3, 32, 32) * 2 - 1
    assert (TimeAwareAutoencoderMini(latent_channels=48)(picture).sample - picture).abs().mean() > 0.2
