"""LoadCTSR: a checkpoint as a model and a VAE."""

from comfy_api.latest import io

from . import host
from .checkpoints import BUILT_IN, choices, find, fingerprint
from .inputs import Model, schema


class LoadCTSR(io.ComfyNode):
    """A checkpoint as a model and a VAE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LoadCTSR",
            display_name="Load CTSR",
            search_aliases=["load checkpoint", "super resolution model", "upscale model"],
            description="Loads a super-resolution checkpoint: a built-in one, or one in models/ctsr.",
            inputs=[
                io.Combo.Input(
                    "checkpoint",
                    options=choices(),
                    default=BUILT_IN,
                    tooltip="ctsr-mini for ×4, ctsr-lowlight for dark pictures at their own size, or a file or folder "
                    "of models/ctsr.",
                ),
                io.Combo.Input(
                    "precision",
                    options=host.PRECISIONS,
                    default="auto",
                    tooltip="Number format of weights and arithmetic: auto is what the host thinks best for the "
                    "device, fp32 is exact, bf16 takes half the memory, fp16 is for GPUs.",
                ),
                io.Combo.Input(
                    "attention",
                    options=host.ATTENTIONS,
                    default="auto",
                    tooltip="auto is xformers where it is installed and the GPU can use it, else sdpa (torch's own). "
                    "The built-in ones have no attention.",
                ),
            ],
            outputs=[
                Model.Output(
                    display_name="model", tooltip="For Time-Aware Encode, One-Step SR UNet and Upscale & Restore."
                ),
                io.Vae.Output(display_name="vae", tooltip="For Tiled VAE Decode, CTSR Sweep and the host's VAE nodes."),
            ],
        )

    @classmethod
    def validate_inputs(cls, checkpoint: str | None = None) -> bool | str:
        """Takes the host's place, which knows one system's separators; None is a linked value, seen by `execute`."""
        try:
            find(checkpoint or BUILT_IN)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, checkpoint: str | None, precision: str, attention: str) -> str:
        return fingerprint(checkpoint or BUILT_IN)

    @classmethod
    def execute(cls, checkpoint: str, precision: str, attention: str) -> io.NodeOutput:
        model = host.open_model(checkpoint, precision, attention)
        return io.NodeOutput(model, model.vae)
