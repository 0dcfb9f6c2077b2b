"""How a pipeline runs changes nothing of what it computes."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from ctsr import CTSRPipeline


def run(pipeline: CTSRPipeline, side: int, tile: int) -> Tensor:
    """The result for a picture of its own for every side."""
    x = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(side))
    return pipeline(x, t=0.5, tile=tile, output_type="pt").images


def compile_and_count(pipeline: CTSRPipeline) -> list[GraphModule]:
    """Compiles by a backend that notes what it is given; `fullgraph` makes a network that falls apart an error."""
    graphs: list[GraphModule] = []

    def backend(graph: GraphModule, _: object) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    pipeline.compile(backend=backend, fullgraph=True, dynamic=False)
    return graphs


def test_compiled_networks_of_stable_diffusion_serve_pictures_of_every_size(tiny_sd):
    pipeline = copy.deepcopy(tiny_sd)
    cases = [(16, 0), (48, 128), (56, 128)]
    expected = [run(pipeline, *case) for case in cases]
    graphs = compile_and_count(pipeline)
    counts: list[int] = []
    for case, wanted in zip(cases, expected, strict=True):
        assert torch.allclose(run(pipeline, *case), wanted, atol=1e-5)
        counts.append(len(graphs))
    assert counts == [3, 4, 4]  # all three networks untiled; a tile of the UNet; nothing for another size


def test_compiled_ctsr_mini_whose_decoder_has_no_layers():
    pipeline = CTSRPipeline.mini(torch.float32)
    expected = run(pipeline, 16, 0)
    graphs = compile_and_count(pipeline)
    assert torch.allclose(run(pipeline, 16, 0), expected, atol=1e-5)
    assert len(graphs) == 2


def test_compiled_mini(tiny_mini):
    pipeline = copy.deepcopy(tiny_mini)
    expected = run(pipeline, 16, 0)
    graphs = compile_and_count(pipeline)
    assert torch.allclose(run(pipeline, 16, 0), expected, atol=1e-5)
    assert len(graphs) == 3
    run(pipeline, 16, 0)
    assert len(graphs) == 3
