"""A second variant of a network: what low-rank pairs add to its layers while they are applied.

PiSA-SR (arXiv 2412.03017) runs one UNet as "pix" and as "full", which is "pix" with a second LoRA. The UNet's own
weights are "pix"; this component holds the second LoRA and adds scaling * B(A(x)) to the layers' outputs. No weight is
ever changed, so that going back to "pix" is exact, and nothing but 8 MB (in fp16) is held twice. Needs no peft. Our own
code. Licence: Apache-2.0.
"""

from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config  # pyright: ignore[reportUnknownVariableType]
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from .building import settle
from .lora import Pair, Pairs


class LoraVariant(ModelMixin, ConfigMixin):
    """Low-rank pairs by the names of a network's layers, zero until loaded.

    State keys are LAYER.lora_A and LAYER.lora_B, the shapes those of `lora.Pair`.

    Args:
        variant: the name under which the pairs are applied; under any other the network stays as it is.
        rank: width of the bottleneck.
        scaling: alpha / rank.
        shapes: of the weight of each layer, [out, in] or [out, in, k, k], by the layer's full name.
    """

    config_name = "config.json"

    @register_to_config
    def __init__(self, variant: str, rank: int, scaling: float, shapes: dict[str, list[int]]):
        super().__init__()
        for name, (out, *rest) in shapes.items():
            holder = node(self, name)
            holder.lora_A = nn.Parameter(torch.zeros(rank, *rest))
            holder.lora_B = nn.Parameter(torch.zeros(out, rank, *(1 for _ in rest[1:])))

    @classmethod
    def from_pairs(cls, variant: str, pairs: Pairs, scaling: float) -> "LoraVariant":
        """The component that holds a copy of `pairs`, which are of one rank."""
        (rank,) = {len(pair.a) for pair in pairs.values()}
        shapes = {name: list(pair.weight_shape) for name, pair in pairs.items()}
        model = cls(variant=variant, rank=rank, scaling=scaling, shapes=shapes)
        with torch.no_grad():
            for name, own in model.pairs().items():
                own.a.copy_(pairs[name].a)
                own.b.copy_(pairs[name].b)
        return model

    def pairs(self) -> dict[str, Pair]:
        """A and B by the names of the layers."""
        layers = {name: self.get_submodule(name) for name in cast(Mapping[str, Any], self.config["shapes"])}
        return {name: Pair(cast(Tensor, x.lora_A), cast(Tensor, x.lora_B)) for name, x in layers.items()}

    @contextmanager
    def applied(self, network: nn.Module, variant: str | None, device: torch.device) -> Generator[None, None, None]:
        """`network` computes as this variant inside, if `variant` is its name, and afterwards as before.

        Args:
            network: has all the layers; with or without adapters of peft on them.
            variant: name of the variant to run.
            device: where the network computes.

        Raises:
            ValueError: the network lacks a layer.
        """
        if variant != self.config["variant"]:
            yield
            return
        layers = cast("dict[str, nn.Module]", dict(cast(Any, network).named_modules()))
        if missing := [name for name in self.pairs() if name not in layers]:
            raise ValueError(f"This variant is of another network: {missing[0]} is not in it.")
        settle(self)
        hooks = {name: self._hook(pair, device) for name, pair in self.pairs().items()}
        with ExitStack() as handles:
            for name, hook in hooks.items():
                handles.callback(layers[name].register_forward_hook(hook).remove)
            yield

    def _hook(self, pair: Pair, device: torch.device) -> Callable[..., Tensor]:
        """A forward hook that adds the pair's share."""
        here = Pair(*(x.detach().to(device) for x in pair))
        return partial(_add_share, pair=here, scaling=float(self.config["scaling"]))


def node(root: nn.Module, name: str) -> nn.Module:
    """The module of that dotted name inside `root`, made where it is missing."""
    for part in name.split("."):
        child = dict(root.named_children()).get(part, nn.Module())
        root.add_module(part, child)
        root = child
    return root


def _add_share(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, pair: Pair, scaling: float) -> Tensor:
    """output + scaling * B(A(x)), A with the layer's own stride and padding; [B, ..., in] or [B, in, h, w]."""
    x = inputs[0].to(output)
    a, b = (factor.to(output) for factor in pair)
    if a.ndim == 2:
        return output + scaling * F.linear(F.linear(x, a), b)
    base = cast(nn.Conv2d, getattr(layer, "base_layer", layer))
    inner = F.conv2d(x, a, stride=base.stride, padding=base.padding, dilation=base.dilation)
    return output + scaling * F.conv2d(inner, b)
