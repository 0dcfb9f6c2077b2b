"""What a LATENT says of its picture, and when that is no longer true."""

import logging

import pytest
import torch

MODEL = "ctsr-mini (built-in)"
PAD = 16
FACTOR = 8
SIZE = (68, 90)  # of the result; padded 80x96, or 10x12 latents


@pytest.fixture
def origin(values):
    """Of two pictures of 17x22."""
    return values.Origin(MODEL, SIZE, torch.rand(2, 3, 17, 22), timestep=300, seed=7)


def samples(batch: int = 2, height: int = 10, width: int = 12) -> torch.Tensor:
    return torch.zeros(batch, 32, height, width)


def test_a_fresh_latent_brings_its_origin(values, origin, caplog):
    x = samples()
    latent = values.make_latent(x, origin)
    assert latent["samples"] is x
    assert values.origin_of(latent, MODEL, PAD, FACTOR) is origin
    assert not caplog.records


def test_a_copy_with_further_entries_brings_it_too(values, origin):
    latent = {**values.make_latent(samples(), origin), "noise_mask": torch.zeros(1)}
    assert values.origin_of(latent, MODEL, PAD, FACTOR) is origin


def test_an_origin_without_a_picture_has_no_batch_to_compare(values):
    bare = values.Origin(MODEL, SIZE)
    assert values.origin_of(values.make_latent(samples(5), bare), MODEL, PAD, FACTOR) is bare


def test_a_latent_of_another_node_is_all_picture(values, caplog):
    assert values.origin_of({"samples": samples()}, MODEL, PAD, FACTOR) == values.Origin(MODEL, (80, 96))
    assert not caplog.records


@pytest.mark.parametrize(
    ("batch", "height", "width"), [(2, 20, 24), (2, 10, 14), (2, 8, 12), (2, 12, 10), (1, 10, 12), (4, 10, 12)]
)
def test_a_stale_origin_is_ignored_with_a_warning(values, origin, batch, height, width, caplog):
    latent = values.make_latent(samples(batch, height, width), origin)
    with caplog.at_level(logging.WARNING):
        found = values.origin_of(latent, MODEL, PAD, FACTOR)
    assert found == values.Origin(MODEL, (8 * height, 8 * width))
    (record,) = caplog.records
    assert "neither cropped nor colour-fixed" in record.getMessage()


def test_changed_samples_of_the_same_size_keep_nothing_that_lies_on_the_picture(values, origin, caplog):
    """As the host's LatentFlip leaves them."""
    latent = {**values.make_latent(samples(), origin), "samples": samples().flip(2)}
    with caplog.at_level(logging.WARNING):
        found = values.origin_of(latent, MODEL, PAD, FACTOR)
    assert (found.size, found.timestep, found.seed) == (SIZE, 300, 7)
    assert found.reference is found.alpha is found.second is None
    (record,) = caplog.records
    assert "colours are not fixed" in record.getMessage()


def test_the_padding_is_the_checkpoints(values, origin):
    """What fits a UNet of two levels is stale for one of four, which pads 68x90 to 128x128."""
    assert values.origin_of(values.make_latent(samples(), origin), MODEL, 64, FACTOR).reference is None
    assert values.origin_of(values.make_latent(samples(2, 16, 16), origin), MODEL, 64, FACTOR) is origin


@pytest.mark.parametrize("batch", [2, 3])
def test_another_checkpoints_latent_is_refused(values, origin, batch):
    latent = values.make_latent(samples(batch), origin)
    with pytest.raises(ValueError, match=r"^latent was made by .*: connect both to the same LoadCTSR") as refusal:
        values.origin_of(latent, "other.safetensors", PAD, FACTOR)
    assert MODEL in str(refusal.value)
    assert "other.safetensors" in str(refusal.value)
