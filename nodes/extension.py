"""The list of the nodes."""

from comfy_api.latest import ComfyExtension, io

from .decode import TiledVAEDecode
from .encode import TimeAwareEncode
from .load import LoadCTSR
from .sweep import CTSRSweep
from .tradeoff import TradeoffT
from .unet import OneStepSRUNet
from .upscale import CTSRUpscale
from .video import CTSRUpscaleVideo


class CTSRExtension(ComfyExtension):
    """Five nodes of a graph, one for beginners, one for videos, one to compare."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [
            LoadCTSR,
            TimeAwareEncode,
            OneStepSRUNet,
            TradeoffT,
            TiledVAEDecode,
            CTSRUpscale,
            CTSRUpscaleVideo,
            CTSRSweep,
        ]
