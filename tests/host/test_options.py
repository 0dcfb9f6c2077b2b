"""Options that the host was started with, in hosts that have them."""

import numpy as np
import pytest

from ctsr import CTSRPipeline
from tests.comfyui import ComfyServer, require_host
from tests.host.conftest import PROBE
from tests.host.graphs import MINI, fill, five, one, saved

OPTION = "--fp16-intermediates"


def test_what_travels_between_nodes_has_the_number_format_that_the_host_asks_for(
    server: ComfyServer, tmp_path, tiny_mini: CTSRPipeline, tiny_sd: CTSRPipeline
):
    host = require_host()
    if OPTION not in (host.path / "comfy" / "cli_args.py").read_text(encoding="utf-8"):
        pytest.skip(f"this host has no {OPTION}")
    graph, single = five(checkpoint=MINI), one(checkpoint=MINI)
    full = [*saved(server, graph, ["dial", 0], ["decode", 0]), *saved(server, single, ["upscale", 0])]
    half_server = ComfyServer(host, tmp_path / "base", extra_nodes=[PROBE], options=[OPTION])
    fill(half_server, tiny_mini, tiny_sd)
    with half_server:
        half = [*saved(half_server, graph, ["dial", 0], ["decode", 0]), *saved(half_server, single, ["upscale", 0])]
    for wide, narrow in zip(full, half, strict=True):
        assert (wide.dtype, narrow.dtype) == (np.float32, np.float16)
        np.testing.assert_allclose(narrow.astype(np.float32), wide, atol=4e-3, rtol=4e-3)
