"""CTSRReport: what a result changed of its picture."""

from __future__ import annotations

import torch
from comfy_api.latest import io
from torch import Tensor

from .checks import split_image
from .inputs import schema
from .progress import working


class CTSRReport(io.ComfyNode):
    """What a result changed of its picture, as maps and text."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CTSRReport",
            display_name="Fidelity Report (CTSR)",
            search_aliases=["compare", "quality", "invented detail", "hallucination", "seams", "fidelity"],
            description="Says what a result of any upscaler invented, lost, shifted or tinted, with maps. The map of "
            "what was added can be the mask of Tradeoff t: faithful where most was invented.",
            inputs=[
                io.Image.Input("image", tooltip="The picture that went in."),
                io.Image.Input("result", tooltip="What an upscaler made of it; of a batch, one for each picture."),
                io.Image.Input(
                    "faithful",
                    optional=True,
                    tooltip="The result at t = 1, against which additions are measured. Without it: bicubic enlarging.",
                ),
            ],
            outputs=[
                io.Mask.Output(display_name="added", tooltip="Detail that was added, from 0 to 1; for Tradeoff t."),
                io.Mask.Output(display_name="departs", tooltip="Where the result departs from its picture, 0 to 1."),
                io.Image.Output(display_name="maps", tooltip="Both maps in colours, one after the other."),
                io.String.Output(display_name="report", tooltip="Findings and numbers, one line each."),
            ],
        )

    @classmethod
    def execute(cls, image: Tensor, result: Tensor, faithful: Tensor | None = None) -> io.NodeOutput:
        from ..ctsr.assess.maps import departure_mask, heat
        from ..ctsr.assess.report import lines, report

        pairs = pictures(image, result, faithful)
        with working(len(pairs)) as work:
            reports = [report(*each) for each in pairs]
            texts = ["\n".join(lines(found)) for found in reports]
            findings = sum(len(found.findings) for found in reports)
            work.result = texts[0] if len(texts) == 1 else f"{findings} findings in {len(texts)} pictures"
        size = (result.shape[1], result.shape[2])
        added = torch.cat([found.added_map for found in reports])
        departs = torch.cat([departure_mask(found, size) for found in reports])
        maps = torch.cat([heat(x) for pair in zip(added.split(1), departs.split(1), strict=True) for x in pair])
        return io.NodeOutput(added[:, 0], departs[:, 0], maps.movedim(1, -1), "\n\n".join(texts))


def pictures(image: Tensor, result: Tensor, faithful: Tensor | None) -> list[tuple[Tensor, Tensor, Tensor | None]]:
    """Input, result and faithful result of each picture, [1, 3, h, w] on the CPU.

    Raises:
        ValueError: batches of different lengths.
    """
    before, after = split_image(image)[0].cpu(), split_image(result)[0].cpu()
    if len(before) != len(after):
        raise ValueError(f"result holds {len(after)} pictures and image {len(before)}: connect one for each.")
    other = [None] * len(after) if faithful is None else list(split_image(faithful)[0].cpu().split(1))
    if len(other) != len(after):
        raise ValueError(f"faithful holds {len(other)} pictures and result {len(after)}: connect one for each.")
    return list(zip(before.split(1), after.split(1), other, strict=True))
