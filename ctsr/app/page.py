"""One HTML file to look at pictures: a slider between any two, zoom for all at once, sentences beside; no network."""

import base64
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template

from PIL import Image
from torch import Tensor

from ..assess.maps import heat
from ..assess.report import Finding
from ..images.picture import Picture
from ..images.tensors import as_pil
from ..whole_file import whole_file

TEMPLATE = Path(__file__).with_name("page.html")


@dataclass(frozen=True)
class Shown:
    """A picture of the page: its name, and an image file in memory."""

    name: str
    png: bytes
    width: int
    height: int

    def as_json(self) -> dict[str, str | int]:
        """What the page's script reads."""
        return {"name": self.name, "width": self.width, "height": self.height, "source": data_address(self.png, "png")}


def data_address(file: bytes, form: str) -> str:
    """An image file, of a format such as "png", as an address that holds it."""
    return f"data:image/{form};base64,{base64.b64encode(file).decode()}"


def shown(name: str, image: Image.Image, icc_profile: bytes | None = None) -> Shown:
    """A picture as PNG, without any metadata but its colour profile."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", icc_profile=icc_profile)
    return Shown(name, buffer.getvalue(), *image.size)


def show_picture(name: str, picture: Picture) -> Shown:
    """A picture that was read from a file, alpha included, in 8 bits."""
    image = as_pil(picture.rgb.clamp(0, 1))
    if picture.alpha is not None:
        image.putalpha(as_pil(picture.alpha.expand(-1, 3, -1, -1)).getchannel(0))
    return shown(name, image, None if picture.grey else picture.icc_profile)


def show_map(name: str, values: Tensor) -> Shown:
    """A map [1, 1, h, w] in [0, 1] in colours from dark to bright."""
    return shown(name, as_pil(heat(values)))


def about(findings: Sequence[Finding], rows: Iterable[tuple[str, str]]) -> str:
    """HTML of what stands beside the pictures: findings, then numbers."""
    items: list[str] = []
    for finding in findings:
        box = "" if finding.box is None else f' data-box="{json.dumps(finding.box)}"'
        items.append(f"<li{box}>{escape(finding.text)}</li>")
    listed = f"<ul>{''.join(items)}</ul>" if items else "<p>Nothing to report.</p>"
    table = "".join(f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in rows)
    return f"<h2>Findings</h2>{listed}<h2>Numbers</h2><table>{table}</table>"


def page(title: str, pictures: Sequence[Shown], beside: str = "") -> str:
    """The whole file.

    Args:
        title: plain text.
        pictures: the first two are shown at first.
        beside: HTML, see `about`.
    """
    data = json.dumps([picture.as_json() for picture in pictures]).replace("<", "\\u003c")
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(title=escape(title), pictures=data, about=beside)


def write_page(path: Path, text: str) -> None:
    """The file, there whole or not at all."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")
