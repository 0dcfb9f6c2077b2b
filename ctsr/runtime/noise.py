"""Where the start noise of each result comes from."""

from collections.abc import Sequence

import torch

Noise = torch.Generator | None


def noise_sources(
    generator: torch.Generator | Sequence[torch.Generator] | None, pictures: int, images: int
) -> list[list[Noise]]:
    """A generator for each of `images` results of each of `pictures`, to be drawn from in this order.

    One generator alone is in its present state for every picture, so that no result depends on its place in a batch.

    Raises:
        ValueError: no result asked for, or a list of another length than there are results.
    """
    if images < 1:
        raise ValueError(f"num_images_per_prompt must be at least 1, not {images}.")
    if generator is None:
        return [[None] * images for _ in range(pictures)]
    if isinstance(generator, torch.Generator):
        copies = [torch.Generator(generator.device).set_state(generator.get_state()) for _ in range(pictures - 1)]
        return [[own] * images for own in (*copies, generator)]
    if len(generator) != pictures * images:
        raise ValueError(f"generator must be one, or one a result: got {len(generator)} for {pictures * images}.")
    return [list(generator[first : first + images]) for first in range(0, pictures * images, images)]
