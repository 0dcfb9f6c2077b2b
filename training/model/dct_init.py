"""Starts the mini autoencoder as a block-cosine codec.

Its residual blocks start as the identity, so what is left is a chain of linear maps. Here the chain of the encoder is
set to the lowest frequencies of an 8x8 cosine transform of luma and chroma, and the decoder's to its transpose: some 35
dB on photographs before the first step, where a random start takes a thousand steps to 30.
"""

import math

import torch
from torch import Tensor, nn

from ctsr.models.autoencoder_mini import TimeAwareAutoencoderMini

YCC = ((0.577, 0.577, 0.577), (0.707, 0.0, -0.707), (0.408, -0.816, 0.408))  # orthonormal, luma first
CHROMA_GAIN = 3.0  # chroma varies some three times less than luma
LUMA_SHARE = 4 / 7  # of the latents: all of luma at 112; the rest is split between the two chromas


def cosine_basis(size: int) -> Tensor:
    """Orthonormal DCT-II, [frequency, position]."""
    n = torch.arange(size, dtype=torch.float64)
    basis = torch.cos(math.pi / size * (n + 0.5) * n[:, None]) * math.sqrt(2 / size)
    basis[0] /= math.sqrt(2)
    return basis


def lowest_frequencies(count: int) -> list[tuple[int, int]]:
    """The `count` lowest pairs of an 8x8 transform."""
    pairs = [(u, v) for u in range(8) for v in range(8)]
    return sorted(pairs, key=lambda p: (p[0] ** 2 + p[1] ** 2, p))[:count]


def block_transform(latents: int) -> tuple[Tensor, Tensor]:
    """Orthonormal rows [latents, 3, 8, 8], and the gains [latents] that make each about unit variance on
    photographs."""
    luma = round(LUMA_SHARE * latents)
    counts = (luma, (latents - luma + 1) // 2, (latents - luma) // 2)
    basis, colours = cosine_basis(8), torch.tensor(YCC, dtype=torch.float64)
    rows: list[Tensor] = []
    gains: list[float] = []
    for index, (colour, count) in enumerate(zip(colours, counts, strict=True)):
        for u, v in lowest_frequencies(count):
            rows.append(colour[:, None, None] * torch.outer(basis[u], basis[v]))
            gains.append(max(0.25, math.hypot(u, v)) / 1.5 * (CHROMA_GAIN if index else 1.0))
    return torch.stack(rows), torch.tensor(gains, dtype=torch.float64)


def set_middle(conv: nn.Conv2d, matrix: Tensor) -> None:
    """The convolution becomes `matrix` [out, in] at its middle pixel."""
    middle = conv.kernel_size[0] // 2
    conv.weight.zero_()
    conv.weight[:, :, middle, middle] = matrix.to(conv.weight.dtype)
    if conv.bias is not None:
        conv.bias.zero_()


@torch.no_grad()
def dct_init_(model: TimeAwareAutoencoderMini) -> None:
    """Sets the linear chains of encoder and decoder; the residual blocks stay the identity."""
    half, quarter, eighth = model.config["block_out_channels"]
    latents = model.config["latent_channels"]
    embed_4 = nn.init.orthogonal_(torch.empty(quarter, 48, dtype=torch.float64))
    embed_2 = nn.init.orthogonal_(torch.empty(half, 12, dtype=torch.float64))
    mix = nn.init.orthogonal_(torch.empty(eighth, 192, dtype=torch.float64))
    # 8x8 pixels as 2x2 cells (p, q) of 4x4 pixels (y, x); channels run [cell or channel, ...] as in pixel_unshuffle.
    transform, gains = block_transform(latents)
    raw = torch.einsum("lcpyqx->lcyxpq", transform.reshape(latents, 3, 2, 4, 2, 4)).reshape(latents, 48 * 4)
    gather = torch.einsum("wm,pk->mpwk", embed_4, torch.eye(4, dtype=torch.float64)).reshape(192, quarter * 4)
    encoder, decoder = model.encoder, model.decoder
    set_middle(encoder.conv_in, embed_4)
    set_middle(encoder.down, mix @ gather)
    set_middle(encoder.conv_out, gains[:, None] * raw @ mix.T)
    set_middle(decoder.conv_in, mix @ raw.T / gains)
    set_middle(decoder.up_4, (mix @ gather).T)
    cells = embed_4.T.reshape(3, 2, 2, 2, 2, quarter)  # channel, row of cells, row in it, column of cells, column in it
    spread = torch.einsum("hcab,ciajbw->hijw", embed_2.reshape(half, 3, 2, 2), cells)
    set_middle(decoder.up_2, spread.reshape(half * 4, quarter))
    set_middle(decoder.conv_out, embed_2.T)
