"""What is known of a LATENT's picture after other nodes worked on it."""

import pytest
import torch

MODEL = "ctsr-mini (built-in)"
FACTOR = 8
SIZE = (68, 90)  # of the result; padded 80x96, or 10x12 latents
PICTURES = torch.rand(2, 3, 17, 22, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def latents(submodule):
    """nodes/latents.py."""
    return submodule("nodes.latents")


@pytest.fixture
def origin(submodule):
    """Of two pictures of 17x22."""
    return submodule("nodes.values").Origin(MODEL, SIZE, PICTURES, timestep=300, seed=7)


@pytest.fixture
def warnings():
    """What `read` warned of."""
    return []


@pytest.fixture
def read(latents, warnings):
    """Samples and origin of a LATENT."""
    return lambda latent, model=MODEL: latents.read_latent(latent, model, FACTOR, warnings.append)


def samples(batch: int = 2, seed: int = 0) -> torch.Tensor:
    """Smooth, as pictures are."""
    noise = torch.randn(batch, 32, 5, 6, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(noise, size=(10, 12), mode="bilinear")


def test_a_fresh_latent_brings_its_origin(latents, origin, read, warnings):
    latent = latents.make_latent(samples(), origin)
    x, found = read({**latent, "noise_mask": torch.zeros(1)})
    assert x is latent["samples"]
    assert found is origin
    assert warnings == []


def test_a_latent_of_another_node_is_all_picture(read, warnings):
    x, found = read({"samples": samples(seed=5)})
    assert torch.equal(x, samples(seed=5))
    assert (found.size, found.reference) == ((80, 96), None)
    assert warnings == []


@pytest.mark.parametrize("rows", [[0], [1], [1, 0], [0, 1, 0, 1], [1, 1, 1]])
def test_pictures_in_another_number_or_order(latents, origin, read, warnings, rows):
    latent = {**latents.make_latent(samples(), origin), "samples": samples()[rows]}
    x, found = read(latent)
    assert torch.equal(x, samples()[rows])
    assert (found.size, found.timestep, found.seed) == (SIZE, 300, 7)
    assert torch.equal(found.reference, PICTURES[rows])
    assert warnings == []


def test_a_latent_whose_entries_were_dropped_is_known_while_somebody_keeps_the_first(latents, origin, read):
    kept = latents.make_latent(samples(), origin)
    assert torch.equal(read({"samples": kept["samples"].clone()})[1].reference, PICTURES)
    del kept
    assert read({"samples": samples()})[1].reference is None


def test_pictures_of_two_latents_in_one_batch(latents, origin, read):
    first = latents.make_latent(samples(), origin)
    other = latents.make_latent(samples(1, seed=3), latents.replace(origin, reference=PICTURES[:1] / 2))
    batch = torch.cat([first["samples"], other["samples"]])
    assert torch.equal(read({**first, "samples": batch})[1].reference, torch.cat([PICTURES, PICTURES[:1] / 2]))


def test_pictures_of_several_sizes_cannot_be_one_batch(latents, origin, read):
    first = latents.make_latent(samples(), origin)
    other = latents.make_latent(samples(1, seed=3), latents.replace(origin, size=(70, 90), reference=None))
    with pytest.raises(ValueError, match=r"several sizes \(90x68, 90x70\): decode them apart"):
        read({**first, "samples": torch.cat([first["samples"], other["samples"]])})


@pytest.mark.parametrize("number", range(8))
def test_what_is_mirrored_or_turned_is_handed_to_the_network_upright(latents, origin, read, number):
    latent = latents.make_latent(samples(), origin)
    x, found = read({**latent, "samples": latents.turn(latent["samples"], number)})
    assert torch.equal(x, samples())
    assert found.turn == number
    assert torch.equal(latents.turn(x, found.turn), latents.turn(samples(), number))
    again = latents.make_latent(x, found)  # a node of ours in between
    assert torch.equal(again["samples"], latents.turn(samples(), number))
    assert torch.equal(read({**again, "samples": latents.turn_back(again["samples"], number)})[0], samples())


@pytest.mark.parametrize("number", range(8))
def test_turn_back_undoes_turn(latents, number):
    x = torch.arange(24).view(1, 1, 4, 6)
    assert torch.equal(latents.turn_back(latents.turn(x, number), number), x)


@pytest.mark.parametrize(
    ("top", "left", "height", "width", "size"),
    [(0, 0, 4, 5, (32, 40)), (2, 3, 8, 9, (52, 66)), (8, 11, 1, 1, (4, 2)), (0, 4, 10, 8, (68, 58))],
)
def test_a_part_that_was_cut_out(latents, origin, read, top, left, height, width, size):
    part = samples()[..., top : top + height, left : left + width]
    x, found = read({**latents.make_latent(samples(), origin), "samples": part})
    assert torch.equal(x, part)
    assert found.size == size
    assert found.reference.shape == (2, 3, *size)


def test_padding_alone_is_no_picture(latents, origin, read):
    with pytest.raises(ValueError, match="border that pads the picture"):
        read({**latents.make_latent(samples(), origin), "samples": samples()[..., 9:, :]})


@pytest.mark.parametrize("rows", [[0, 1], [1], [0, 0, 1]])
@pytest.mark.parametrize("mode", ["nearest-exact", "bilinear", "bicubic", "area"])
def test_resized_pictures_are_recognised_and_keep_the_share_of_the_border(latents, origin, read, mode, rows):
    large = torch.nn.functional.interpolate(samples()[rows], size=(20, 18), mode=mode)
    x, found = read({**latents.make_latent(samples(), origin), "samples": large})
    assert torch.equal(x, large)
    assert found.size == (136, 135)
    assert torch.equal(found.reference, PICTURES[rows])


def test_other_samples_of_the_same_size_keep_nothing_that_lies_on_the_picture(latents, origin, read, warnings):
    _, found = read({**latents.make_latent(samples(), origin), "samples": samples() * 0.9})
    assert (found.size, found.timestep) == (SIZE, 300)
    assert found.reference is found.alpha is found.second is None
    assert "colours are as they are decoded" in warnings[0]


def test_samples_without_a_trace_of_the_border_are_refused(latents, origin, read):
    joined = torch.cat([samples(seed=8), samples(seed=9)], dim=-1)
    with pytest.raises(ValueError, match=r"from 12x10 to 24x10 .* multiples of 64"):
        read({**latents.make_latent(samples(), origin), "samples": joined})
    whole = latents.make_latent(samples(), latents.replace(origin, size=(80, 96)))
    assert read({**whole, "samples": joined})[1].size == (80, 192)  # there was no border


@pytest.mark.parametrize("batch", [2, 3])
def test_another_checkpoints_latent_is_refused(latents, origin, read, batch):
    latent = {**latents.make_latent(samples(), origin), "samples": samples(batch)}
    with pytest.raises(ValueError, match=r"^latent was made by .*: connect both to the same Load CTSR") as refusal:
        read(latent, "other.safetensors")
    assert MODEL in str(refusal.value)
    assert "other.safetensors" in str(refusal.value)
