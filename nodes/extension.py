"""The list of the nodes."""

from comfy_api.latest import ComfyExtension, io

from .auto_t import CTSRAutoT
from .decode import TiledVAEDecode
from .dial import CTSRDial
from .encode import TimeAwareEncode
from .load import LoadCTSR
from .report import CTSRReport
from .sweep import CTSRSweep
from .tradeoff import TradeoffT
from .unet import OneStepSRUNet
from .upscale import CTSRUpscale
from .video import CTSRUpscaleVideo


class CTSRExtension(ComfyExtension):
    """Five nodes of a graph, one for beginners, one for videos, four to compare and choose."""

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
            CTSRAutoT,
            CTSRDial,
            CTSRReport,
        ]
