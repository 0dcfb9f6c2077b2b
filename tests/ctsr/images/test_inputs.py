"""Pictures and maps of t as a caller hands them over: every kind gives the same numbers, and what is none says so."""

import numpy as np
import pytest
import torch
from PIL import Image

from ctsr.images.inputs import as_maps, as_tensors

RAMP = np.linspace(0, 1, 12).reshape(3, 4)
BYTES = (RAMP * 255).round().astype(np.uint8)
DEEP = (RAMP * 65535).round().astype(np.uint16)

GREYS = {
    "8 bits": (Image.fromarray(BYTES), BYTES / 255),
    "I;16": (Image.fromarray(DEEP), DEEP / 65535),
    "I;16B": (Image.frombytes("I;16B", (4, 3), DEEP.astype(">u2").tobytes()), DEEP / 65535),
    "I": (Image.fromarray(DEEP.astype(np.int32)), DEEP / 65535),
    "F": (Image.fromarray(RAMP.astype(np.float32)), RAMP),
}


@pytest.mark.parametrize("kind", GREYS)
def test_grey_pictures_of_any_depth(kind):
    picture, values = GREYS[kind]
    (batch,) = as_tensors(picture)
    assert batch.shape == (1, 3, 3, 4)
    assert np.allclose(batch[0], values, atol=1e-6)
    assert np.allclose(as_maps(picture, 1)[0], values, atol=1e-6)


@pytest.mark.parametrize(
    ("given", "values"),
    [
        (BYTES, BYTES / 255),
        (DEEP, DEEP / 65535),
        (DEEP.astype(">u2"), DEEP / 65535),
        (RAMP, RAMP),
        (RAMP[:, ::-1], RAMP[:, ::-1]),
        (RAMP > 0.5, RAMP > 0.5),
        ((RAMP > 0.5).astype(np.int64), RAMP > 0.5),
        (np.zeros((3, 4), np.uint8), np.zeros((3, 4))),
    ],
)
def test_maps_as_arrays_and_tensors(given, values):
    (by_array,) = as_maps(given, 1)
    assert by_array.dtype == torch.float32
    assert np.allclose(by_array, values, atol=1e-6)
    native = np.ascontiguousarray(given, dtype=given.dtype.newbyteorder("="))
    assert torch.equal(as_maps(torch.from_numpy(native), 1)[0], by_array)


@pytest.mark.parametrize(
    "given", [RAMP, [RAMP], RAMP[None], RAMP[None, None], torch.tensor(RAMP)[None], [Image.fromarray(BYTES)]]
)
def test_one_map_is_for_every_picture(given):
    maps = as_maps(given, 3)
    assert [one.shape for one in maps] == [(3, 4)] * 3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.zeros(2, 3, 4), "one map or one a picture: got 2 for 3"),
        (torch.zeros(3), r"t_map must be \[h, w\] for each picture, not \[3\]"),
        (torch.zeros(1, 2, 3, 4), r"not \[1, 2, 3, 4\]"),
        (np.zeros((0, 4)), r"not \[0, 4\]"),
        (np.full((3, 4), 1.5), "t_map has values from 1.5 to 1.5"),
        (np.full((3, 4), np.nan), "t_map has values from nan"),
        (Image.fromarray(np.full((3, 4), 2, np.float32)), "t_map has values from 2 to 2"),
        ((RAMP > 0.5).astype(np.uint8), "holds 0 and 1 in torch.uint8, whose white is 255: pass bools"),
        (np.full((3, 4), "x"), "array of numbers"),
        ("map.png", "PIL picture, an array or a tensor, not str"),
        ([[0.1, 0.2]], "not float"),
    ],
)
def test_maps_that_are_none(given, message):
    with pytest.raises(ValueError, match=message):
        as_maps(given, 3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (Image.fromarray(np.full((3, 4), 2, np.float32)), "values from 2 to 2"),
        (Image.fromarray(np.full((3, 4), np.nan, np.float32)), "NaN"),
        (Image.fromarray(np.full((3, 4), 300000, np.int32)), "values from 4.58"),
        (np.full((3, 4, 3), "x"), "array of numbers"),
        (np.zeros((3, 4, 3), bool), "uint8, uint16, or float"),
    ],
)
def test_pictures_out_of_range(given, message):
    with pytest.raises(ValueError, match=message):
        as_tensors(given)
