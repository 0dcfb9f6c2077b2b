"""`ctsr app`: a page on this machine to drop a picture, drag t and see it change at once, paint, compare, report, save.

Both ends of the dial are decoded once and lie over each other in the browser; its opacity is t. That is a blend of
pictures, where the model blends latents: the page says "preview" until the decode at the chosen t has arrived.

Nothing leaves the machine: the server listens on the loopback address, telemetry is off, the fonts are the system's,
and what is uploaded or written lies in a temporary folder that is gone with the process.
"""

import importlib
import io
import os
import re
import signal
import tempfile
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from ..assess.auto_t import Choice
from ..assess.report import lines, report
from ..errors import CTSRError
from ..families import Endpoints
from ..images.painted import read_painted
from ..images.picture import Picture
from ..images.read import read_picture
from ..images.tensors import as_pil, check_size, resize
from ..images.write import write_picture
from ..runtime.memory import check_room
from .lazy_pipeline import LazyPipeline
from .options import Options
from .page import data_address
from .run import EXPECTED, describe_error
from .sizes import Size
from .upscale import enlarged_alpha, start_noise

LOOPBACK = "127.0.0.1"
LARGEST_PREVIEW = 2**21
"""Pixels; larger results are shown as JPEG."""
BRUSH_SIDE = 256
"""Pixels of the map that is painted."""
KEPT = 3600
"""Seconds that the latents of a page that was left are kept."""
HERE = Path(__file__).parent


@dataclass(frozen=True)
class Restored:
    """A picture whose endpoints are there.

    Attributes:
        picture: the input.
        name: of its file.
        ends: of the dial.
        size: height and width of the result.
        faithful: the result at t = 1, [1, 3, H, W] on the CPU.
        realistic: at t = 0.
    """

    picture: Picture
    name: str
    ends: Endpoints
    size: tuple[int, int]
    faithful: Tensor
    realistic: Tensor


class Studio:
    """What the page does, without the page.

    Args:
        model: whose pipeline runs, one picture at a time.
        folder: where results are written.
    """

    def __init__(self, model: LazyPipeline, folder: Path):
        self.model, self.folder, self.lock = model, folder, threading.Lock()

    def restore(self, file: str | Path, scale: float) -> Restored:
        """Reads a picture, runs the networks, decodes both ends.

        Raises:
            CTSRError, ValueError: what cannot be read, made or held, in one sentence.
        """
        picture = read_picture(file)
        size = Size(scale).of(picture.height, picture.width)
        check_size(*size)
        check_room(*size, self.model.device)
        with self.lock:
            pipe = self.model.pipeline
            encoded = pipe.encode(picture.rgb, *size)
            ends = pipe.endpoints(encoded.latents, generator=start_noise())
            realistic, faithful = (self.decode(ends, t, size, picture.rgb) for t in (0.0, 1.0))
        return Restored(picture, Path(file).name, ends, size, faithful, realistic)

    def decode(self, ends: Endpoints, t: float | Tensor, size: tuple[int, int], rgb: Tensor) -> Tensor:
        """The result at t, [1, 3, H, W] on the CPU."""
        pipe = self.model.pipeline
        fix = self.model.color_fix(Options())
        return pipe.decode(pipe.blend(ends, t), size, rgb, fix).cpu()

    def result(self, restored: Restored, t: float, painted: str) -> Tensor:
        """At t, and at 1 where the page was painted.

        Args:
            restored: the picture.
            t: in [0, 1].
            painted: a PNG as a data address whose alpha is what was painted, or "".
        """
        with self.lock:
            pipe = self.model.pipeline
            dial: float | Tensor = t
            if painted:
                dial = pipe.map_over(t + (1 - t) * read_painted(painted), restored.ends, restored.size)
            return self.decode(restored.ends, dial, restored.size, restored.picture.rgb)

    def automatic(self, restored: Restored) -> tuple[Choice, Tensor]:
        """Automatic t with its reasons, and the result at it, [1, 3, H, W] on the CPU."""
        rgb, ends, size = restored.picture.rgb, restored.ends, restored.size
        with self.lock:
            pipe = self.model.pipeline
            choice = pipe.choose_t(rgb, ends, size)
            dial = choice.t if choice.t_map is None else pipe.map_over(choice.t_map, ends, size)
            return choice, self.decode(ends, dial, size, rgb)

    def report(self, restored: Restored, result: Tensor) -> str:
        """What a result changed of its picture, as text."""
        return "\n".join(lines(report(restored.picture.rgb, result, restored.faithful)))

    def save(self, restored: Restored, result: Tensor, t: float | Literal["auto"]) -> str:
        """Writes a PNG with the original's metadata and our settings; the file."""
        target = Path(tempfile.mkdtemp(dir=self.folder)) / f"{Path(restored.name).stem}-ctsr.png"
        alpha = enlarged_alpha(restored.picture, *restored.size)
        write_picture(target, result, restored.picture, alpha, self.model.settings(Options(t=t)))
        return str(target)


def address_of(picture: Tensor) -> str:
    """A picture [1, 3, h, w] as a data address: PNG, or JPEG for a large one."""
    image, buffer = as_pil(picture.clamp(0, 1)), io.BytesIO()
    form = "PNG" if image.width * image.height <= LARGEST_PREVIEW else "JPEG"
    image.save(buffer, form, quality=92, compress_level=1)
    return data_address(buffer.getvalue(), form.lower())


def view_of(restored: Restored, exact: Tensor | None) -> str:
    """HTML of the pictures over each other, the slider and the zoom; what it calls is in gui.js."""
    height, width = restored.size
    layers = {
        "realistic": restored.realistic,
        "faithful": restored.faithful,
        "painted": restored.faithful,
        "exact": exact,
        "input": resize(restored.picture.rgb, height, width).clamp_(0, 1),
    }
    images = "".join(
        f'<img class="ctsr-{name}" alt="{name}" draggable="false" src="{address_of(layer)}">'
        for name, layer in layers.items()
        if layer is not None
    )
    paint = "ctsr.paint(event)"
    rows = max(1, round(BRUSH_SIDE * height / width))
    canvas = (
        f'<canvas width="{BRUSH_SIDE}" height="{rows}" onpointerdown="{paint}" onpointermove="{paint}" '
        'onpointerup="ctsr.again()"></canvas>'
    )
    zooms = "".join(
        f"<button onclick=\"ctsr.set('zoom', '{value}')\">{name}</button>"
        for name, value in (("fit", "100%"), ("1:1", f"{width}px"), ("3:1", f"{3 * width}px"))
    )
    slide = "ctsr.set('cut', this.value + '%')"
    bar = f'<input type="range" min="0" max="100" value="0" aria-label="compare with the input" oninput="{slide}">'
    name = escape(f"{restored.name}: {width}x{height}")
    return (
        f'<div class="ctsr-bar"><span>{name}</span>{zooms}<span>input</span>{bar}<output></output></div>'
        f'<div class="ctsr-stage"><div class="ctsr-plane">{images}{canvas}</div></div>'
    )


class Answers:
    """What the page's events do; expected errors become its message."""

    def __init__(self, studio: Studio, gr: Any):
        self.studio, self.gr = studio, gr

    @contextmanager
    def told(self) -> Generator[None, None, None]:
        """Expected errors inside are the page's message."""
        try:
            yield
        except EXPECTED as error:
            raise self.gr.Error(message(error, self.studio.folder), print_exception=False) from None

    def upscale(self, file: str | None, scale: float) -> tuple[Any, ...]:
        """Both ends, automatic t and its picture."""
        with self.told():
            if file is None:
                raise ValueError("Drop a picture first.")
            restored = self.studio.restore(file, scale)
            choice, result = self.studio.automatic(restored)
            reasons, saved = "\n".join(choice.reasons), self.studio.save(restored, result, "auto")
            return restored, "auto", choice.t, reasons, view_of(restored, result), saved, ""

    def turn(self, restored: Restored | None, t: float, painted: str) -> tuple[Any, ...]:
        """The exact picture at another t."""
        with self.told():
            result = self.studio.result(present(restored), t, painted)
            return t, address_of(result), self.studio.save(present(restored), result, t)

    def assess(self, restored: Restored | None, shown: float | Literal["auto"], painted: str) -> str:
        """The report of the shown picture: at a t of the slider, or at automatic t's."""
        with self.told():
            there = present(restored)
            if shown == "auto":
                return self.studio.report(there, self.studio.automatic(there)[1])
            return self.studio.report(there, self.studio.result(there, shown, painted))


def present(restored: Restored | None) -> Restored:
    """The picture; raises ValueError before there is one."""
    if restored is None:
        raise ValueError("Drop a picture first.")
    return restored


def build(studio: Studio) -> Any:
    """The page. Needs gradio."""
    gr = open_gradio()
    page, answers = gr.Blocks(title="CTSR", analytics_enabled=False, delete_cache=(600, KEPT)), Answers(studio, gr)
    shared = {"concurrency_limit": 1, "concurrency_id": "model"}
    with page:
        state, dial = gr.State(None, time_to_live=KEPT), gr.State("auto", time_to_live=KEPT)
        painted, exact = gr.Textbox(visible=False), gr.Textbox(visible=False)
        with gr.Row():
            with gr.Column(scale=1, min_width=320):
                file = gr.File(label="picture", type="filepath", elem_id="ctsr-file")
                scale = gr.Number(studio.model.default_scale, label="scale", minimum=0.1, maximum=16)
                start = gr.Button("Upscale", variant="primary", elem_id="ctsr-start")
                t = gr.Slider(0, 1, 0.5, step=0.01, label="t: 0 realistic, 1 faithful", elem_id="ctsr-t")
                reasons = gr.Textbox(label="automatic t", lines=3, interactive=False, elem_id="ctsr-reasons")
                clear = gr.Button("Clear what was painted (paint on the picture: faithful there)")
                save = gr.DownloadButton("Save PNG", elem_id="ctsr-save")
                ask = gr.Button("Report", elem_id="ctsr-ask")
                findings = gr.Textbox(label="report", lines=8, interactive=False, elem_id="ctsr-report")
            with gr.Column(scale=3):
                view = gr.HTML(elem_id="ctsr-view")
                again = gr.Button("decode", elem_id="ctsr-again")  # hidden: pressed by the brush
        shown = start.click(answers.upscale, [file, scale], [state, dial, t, reasons, view, save, findings], **shared)
        shown.then(None, t, None, js="t => { ctsr.clear(false); ctsr.dial(t); ctsr.exact(); }")
        t.input(None, t, None, js="t => ctsr.dial(t)")
        for moved in (t.release, again.click):
            turned = moved(
                answers.turn, [state, t, painted], [dial, exact, save], js="(s, t, p) => [s, t, ctsr.mask()]", **shared
            )
            turned.then(None, exact, None, js="x => ctsr.exact(x)")
        clear.click(None, None, None, js="() => ctsr.clear(true)")
        ask.click(answers.assess, [state, dial, painted], findings, js="(s, t, p) => [s, t, ctsr.mask()]", **shared)
    return page


def message(error: Exception, folder: Path) -> str:
    """One sentence, in which a file of `folder`, where each upload has a folder of its own, has its name alone."""
    text = str(error) if isinstance(error, CTSRError | ValueError) else describe_error(error, Path("the picture"))
    return re.sub(rf"{re.escape(str(folder))}[/\\](\w+[/\\])?", "", text)


def open_gradio() -> Any:
    """The library, silent; raises CTSRError where it is missing."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        return importlib.import_module("gradio")
    except ImportError as error:
        raise CTSRError(f'`ctsr app` needs gradio ({error}): pip install "ctsr[app]".') from error


def launch(studio: Studio, port: int) -> Any:
    """The running page, on the loopback address alone; its `close` ends it."""
    os.environ["GRADIO_TEMP_DIR"] = str(studio.folder)
    gr = open_gradio()
    page = build(studio)
    page.launch(
        server_name=LOOPBACK,
        server_port=port,
        share=False,
        quiet=True,
        prevent_thread_lock=True,
        allowed_paths=[],
        css=(HERE / "gui.css").read_text(encoding="utf-8"),
        head=f"<script>{(HERE / 'gui.js').read_text(encoding='utf-8')}</script>",
        theme=gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
        footer_links=[],
        ssr_mode=False,
    )
    return page


def serve(model: LazyPipeline, port: int, begun: Callable[[], None]) -> None:
    """Shows the page until it is interrupted or told to end; nothing that it wrote stays.

    Args:
        model: is loaded at the first picture.
        port: of 127.0.0.1.
        begun: is called when the page can be opened.
    """
    ended = threading.Event()

    def end(*_: object) -> None:
        ended.set()

    signal.signal(signal.SIGTERM, end)
    with tempfile.TemporaryDirectory(prefix="ctsr-app-", ignore_cleanup_errors=True) as folder:
        page = launch(Studio(model, Path(folder)), port)
        begun()
        try:
            ended.wait()
        finally:
            page.close(verbose=False)
