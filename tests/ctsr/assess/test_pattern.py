"""The fixed pattern, found where one is and not where none is."""

import numpy as np

from ctsr.assess.pattern import FixedPattern


def photographs(count: int = 12) -> list[np.ndarray]:
    """Smooth pictures with grain, of odd sizes."""
    rng = np.random.default_rng(0)
    return [
        np.clip(128 + 20 * rng.standard_normal((1, 1, 3)) + 3 * rng.standard_normal((203, 157, 3)), 0, 255)
        for _ in range(count)
    ]


def peak(pictures: list[np.ndarray]) -> float:
    pattern = FixedPattern()
    for picture in pictures:
        pattern.add(np.rint(picture).astype(np.uint8))
    return pattern.peak()


def test_photographs_have_none() -> None:
    assert peak(photographs()) < 0.15


def test_a_pattern_of_two_levels_is_found_at_its_size() -> None:
    pictures = photographs()
    for picture in pictures:
        picture[3::8, 5::8, 1] += 2
    assert 1.7 < peak(pictures) < 2.2


def test_edges_of_the_pictures_own_do_not_count() -> None:
    pictures = photographs()
    for number, picture in enumerate(pictures):
        picture[:, 17 + 11 * number :] *= 0.3
    assert peak(pictures) < 0.3


def test_without_pictures_it_is_zero() -> None:
    assert FixedPattern().peak() == 0
