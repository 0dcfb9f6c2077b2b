"""ICC profiles: which fit the pixels that were read, and what has no RGB becomes sRGB."""

from __future__ import annotations

import contextlib
import io
import logging
from pathlib import Path
from typing import Any

from PIL import Image, ImageCms

logger = logging.getLogger(__name__)
_cms: Any = ImageCms  # half of its types are unknown to pyright
_PROFILE_ERRORS = (OSError, TypeError, ValueError, ImportError, ImageCms.PyCMSError)


WITHOUT_RGB = ("CMYK", "LAB")
"""Pillow's modes of colour that become sRGB."""


def to_srgb(image: Image.Image) -> Image.Image:
    """CMYK or LAB to sRGB; by the embedded profile, by LAB's definition, or by Pillow's plain rule for CMYK."""
    profile = image.info.get("icc_profile")
    srgb = _cms.createProfile("sRGB")
    if image.mode == "LAB":
        transform = _cms.buildTransform(_cms.createProfile("LAB"), srgb, "LAB", "RGB")
        return transform.apply(image)
    if profile is not None and _colour_space(profile) == "CMYK":
        with contextlib.suppress(*_PROFILE_ERRORS):
            transform = _cms.buildTransform(io.BytesIO(profile), srgb, "CMYK", "RGB")
            return transform.apply(image)
    return image.convert("RGB")


def _colour_space(profile: bytes) -> str:
    """What the profile's header says: "RGB", "GRAY", "CMYK", ...; "broken" if it cannot be opened."""
    try:
        return _cms.ImageCmsProfile(io.BytesIO(profile)).profile.xcolor_space.strip()
    except _PROFILE_ERRORS:
        return "broken"


def fitting_profile(profile: bytes | None, grey: bool, path: Path | str) -> bytes | None:
    """The embedded profile if it describes the samples as they were read, else None."""
    if not profile:
        return None
    space = _colour_space(profile)
    if space == ("GRAY" if grey else "RGB"):
        return profile
    logger.warning("%s: its ICC profile (%s) does not fit the picture and is dropped; sRGB is assumed.", path, space)
    return None
