"""LoRA: low-rank pairs as plain tensors, and adapters on a model by peft.

Pairs are folded into weights without peft. Adapters are added in named groups that act together, described for a file,
merged; peft is imported only where there are adapters: everything else runs without it.
"""

import re
import warnings
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, NamedTuple, TypedDict, cast

import torch
from diffusers.utils.peft_utils import recurse_remove_peft_layers  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor, nn

from ..precision import in_fp32


class Pair(NamedTuple):
    """A low-rank change of one weight, scaling * B A.

    Attributes:
        a: [rank, in] of a linear layer, [rank, in, k, k] of a convolution.
        b: [out, rank], [out, rank, 1, 1].
    """

    a: Tensor
    b: Tensor

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Of the weight that it changes."""
        return (self.b.shape[0], *self.a.shape[1:])


Pairs = Mapping[str, Pair]
"""By the full name of the module whose weight they change."""


def check_pairs(model: nn.Module, pairs: Pairs) -> None:
    """Raises ValueError for a pair that fits no weight of `model`: the sentence's end, without a full stop."""
    known = _modules_of(model)
    for name, pair in pairs.items():
        weight: object = getattr(known.get(name), "weight", None)
        if not isinstance(weight, Tensor):
            raise ValueError(f"it changes {name}, which a {type(model).__name__} of this base does not have")
        if tuple(weight.shape) != pair.weight_shape:
            raise ValueError(f"it changes {name} of {list(pair.weight_shape)}, but the base's is {list(weight.shape)}")


@torch.no_grad()
def fold_pairs(model: nn.Module, pairs: Pairs, scaling: float) -> None:
    """W += scaling * B A for every pair, computed in fp32, in place.

    Args:
        model: plain, without adapters; each of its weights keeps its dtype.
        pairs: of `model`'s own linear layers and convolutions.
        scaling: alpha / rank.

    Raises:
        ValueError: a pair that fits no weight; nothing is changed then.
    """
    check_pairs(model, pairs)
    known = _modules_of(model)
    for name, (a, b) in pairs.items():
        weight = cast(Tensor, known[name].weight)
        change = b.float().flatten(1) @ a.float().flatten(1)
        weight.copy_(weight.float() + scaling * change.reshape(weight.shape))


def add_pairs(model: nn.Module, adapters: Mapping[str, Pairs], alpha: float) -> None:
    """As `add_lora`, with these pairs as the adapters' weights; all of one rank.

    Raises:
        ImportError: peft is not installed.
        ValueError: a pair that fits no weight.
    """
    (rank,) = {len(pair.a) for pairs in adapters.values() for pair in pairs.values()}
    for pairs in adapters.values():
        check_pairs(model, pairs)
    add_lora(model, {name: list(pairs) for name, pairs in adapters.items()}, rank, alpha)
    state = {
        f"{module}.lora_{side}.{adapter}.weight": tensor
        for adapter, pairs in adapters.items()
        for module, pair in pairs.items()
        for side, tensor in zip("AB", pair, strict=True)
    }
    model.load_state_dict(state, strict=False)


class LoraSpec(TypedDict):
    """What is needed to build the adapters of a model again; their weights are in its state dict.

    Attributes:
        rank: width of the bottleneck.
        alpha: the adapters' share is alpha / rank.
        adapters: full names of the modules that carry each adapter.
    """

    rank: int
    alpha: float
    adapters: dict[str, list[str]]


def add_lora(
    model: nn.Module, targets: Mapping[str, Sequence[str]], rank: int = 4, alpha: float = 8, seed: int | None = None
) -> None:
    """Adds one adapter a group, in place, and makes every adapter of the model act and train; the rest is frozen.

    A starts normal with a deviation of 1 / rank, B at zero, so the output stays what it was. Adapters are fp32, also
    those of half-precision weights.

    Args:
        model: any; its state dict has peft's names afterwards (`base_layer`, `lora_A.<adapter>`, `lora_B.<adapter>`).
        targets: full names of linear layers and convolutions by adapter name.
        rank: width of the bottleneck.
        alpha: the adapters' share is alpha / rank.
        seed: of A; torch's global generator is left as it was. None draws from the global generator.

    Raises:
        ImportError: peft is not installed.
        ValueError: the model has no module of such a name.
    """
    peft = import_module("peft")
    known = _modules_of(model)
    if missing := [name for names in targets.values() for name in names if name not in known]:
        raise ValueError(f"There is no module {missing[0]!r} to adapt: give full names as named_modules() has them.")
    random: Any = torch.random  # half of its types are unknown to pyright
    with random.fork_rng(devices=(), enabled=seed is not None), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config`")  # several groups are what we want
        if seed is not None:
            torch.default_generator.manual_seed(seed)
        for adapter, names in targets.items():
            exactly = "|".join(re.escape(name) for name in names)  # of a list, peft takes every name's endings too
            config = peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=exactly, init_lora_weights="gaussian")
            peft.inject_adapter_in_model(config, model, adapter)
    for parameter in lora_parameters(model):
        layout = torch.channels_last if parameter.ndim == 4 else torch.preserve_format  # as a pipeline's other weights
        parameter.data = parameter.data.float().to(memory_format=layout)
    # Each injection leaves only its own adapter active: OSEDiff's regulariser silently trained its last group alone.
    for layer in lora_layers(model).values():
        layer.set_adapter(list(cast(Any, model).peft_config))
    if hasattr(model, "_hf_peft_config_loaded"):
        cast(Any, model)._hf_peft_config_loaded = True  # diffusers' own set_adapter and disable_adapters ask for it


def lora_layers(model: nn.Module) -> dict[str, Any]:
    """peft's layers by full name; empty, and without peft, for a model that has none."""
    if not hasattr(model, "peft_config"):
        return {}
    layer_class = import_module("peft.tuners.tuners_utils").BaseTunerLayer
    return {name: module for name, module in _modules_of(model).items() if isinstance(module, layer_class)}


def _modules_of(model: nn.Module) -> dict[str, nn.Module]:
    """All modules inside by full name."""
    return dict(cast(Any, model).named_modules())


def describe_lora(model: nn.Module) -> LoraSpec | None:
    """What `add_lora` needs to build the adapters of `model` again; None for a model without.

    Raises:
        ValueError: adapters that do not act as they would once built again: another kind than plain LoRA, some inactive
            or merged, or of several ranks or alphas.
    """
    adapters: dict[str, list[str]] = {}
    shapes: set[tuple[int, float]] = set()
    for name, layer in lora_layers(model).items():
        own = [key for key in layer.state_dict() if not key.startswith("base_layer.")]
        names = list(layer.lora_A) if hasattr(layer, "lora_A") else []
        if not names or len(own) != 2 * len(names):
            raise ValueError(_unsavable(model, f"{name} is not plain LoRA"))
        if layer.merged or layer.disable_adapters or not set(names) <= set(layer.active_adapters):
            raise ValueError(_unsavable(model, f"not all of them act in {name}"))
        for adapter in names:
            adapters.setdefault(adapter, []).append(name)
            shapes.add((layer.r[adapter], layer.lora_alpha[adapter]))
            if layer.scaling[adapter] != layer.lora_alpha[adapter] / layer.r[adapter]:
                raise ValueError(_unsavable(model, f"{name} is scaled by another number than alpha / rank"))
    if not shapes:
        return None
    if len(shapes) > 1:
        raise ValueError(_unsavable(model, f"they have several ranks and alphas: {sorted(shapes)}"))
    ((rank, alpha),) = shapes
    return {"rank": rank, "alpha": alpha, "adapters": adapters}


def _unsavable(model: nn.Module, reason: str) -> str:
    """The sentence for adapters that a file cannot keep."""
    return (
        f"The adapters of {type(model).__name__} cannot be kept ({reason}): use ctsr.models.lora.merge_lora, then save."
    )


@torch.no_grad()
def merge_lora(model: nn.Module) -> None:
    """Folds the active adapters into the weights, in fp32, and removes all of peft's layers, in place.

    The state dict has the plain names again, and the dtypes are what they were. Nothing happens to a model without
    adapters; what was frozen stays frozen.
    """
    layers = lora_layers(model)
    for layer in layers.values():
        if not layer.disable_adapters:
            with in_fp32(layer):
                layer.merge()
    if layers:
        recurse_remove_peft_layers(model)
        del model.peft_config
    if hasattr(model, "_hf_peft_config_loaded"):
        cast(Any, model)._hf_peft_config_loaded = False


def lora_parameters(model: nn.Module) -> list[nn.Parameter]:
    """A and B of every adapter."""
    return [parameter for name, parameter in model.named_parameters() if ".lora_A." in name or ".lora_B." in name]
