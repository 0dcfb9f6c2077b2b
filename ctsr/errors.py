"""The errors this library raises on purpose. Each carries one sentence that names what is wrong and what to do."""


class CTSRError(Exception):
    """Base of them all: catch it to show its one sentence to a person instead of a traceback."""


class ImageReadError(CTSRError):
    """A picture is missing, is not a picture, is damaged or is too large to be opened."""


class ImageWriteError(CTSRError):
    """A picture cannot be written: unknown format, no room, no permission, or too large for the format."""


class OutputFolderError(ImageWriteError):
    """The folder of a picture is full, read-only, not allowed or gone: the next picture would fail there too."""


class CheckpointError(CTSRError):
    """A weights file is missing, is damaged or is of no family this library knows."""


class TileMemoryError(CTSRError):
    """Memory runs out even with the smallest tile."""


def first_line(error: Exception) -> str:
    """The beginning of an error's text, for a sentence of our own."""
    return str(error).strip().split("\n")[0][:200] or type(error).__name__
