"""OSEDiff's, TADSR's and PiSA-SR's own checkpoints: dictionaries of LoRA for Stable Diffusion 2.1-base, as pickles.

Papers: OSEDiff (arXiv 2406.08177), TADSR (2508.16557), PiSA-SR (2412.03017). The layouts are facts about the files; no
code is taken. What a file does not say: alpha is peft's default, 8, so that the share of rank 4 is 2.

| entry | osediff.pkl | tadsr.pkl | pisa_sr.pkl |
|-------|-------------|-----------|-------------|
| `unet_lora_{encoder,decoder,others}_modules[_pix, _sem]`: names | 3 | 3 | 3 of each |
| `rank_unet`, or `lora_rank_unet_{pix,sem}` | 1 | 1 | 2 |
| `state_dict_unet`: LoRA, in the first two the retrained `conv_in` | yes | yes | yes |
| `vae_lora_encoder_modules`, `rank_vae`, `state_dict_vae`: the encoder's LoRA | yes | yes | no |
| `state_dict_vae_time`: the encoder's time layers | no | yes | no |
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from torch import Tensor

from ..checkpoints.inspect import Contents
from ..errors import CheckpointError, first_line
from ..models.lora import Pair, Pairs

ALPHA = 8.0
_PARTS = ("encoder", "decoder", "others")
_LORA_KEY = re.compile(r"(.+)\.lora_([AB])\.(\w+)\.weight")
_CONV_IN_KEY = re.compile(r"conv_in\.(?:base_layer\.)?(weight|bias)")
RAIL = "Stable Diffusion 2.1-base: CreativeML Open RAIL++-M"


@dataclass(frozen=True)
class Method:
    """What a file of a method does not say itself.

    Attributes:
        family: name in `families.FAMILIES`.
        prompt: what the method's own script builds for a picture in which its tagger finds nothing.
        licence: of the weights, and of what they were made from.
        color_fix: the script's default.
    """

    family: str
    prompt: str
    licence: str
    color_fix: str = "adain"


OSEDIFF = Method("osediff", ", ,", f"OSEDiff: Apache-2.0; {RAIL}")
TADSR = Method("tadsr", ", ,", f"TADSR: Pi-Lab License, non-commercial use only; {RAIL}")
PISA = Method("pisa", "", f"PiSA-SR: Apache-2.0; {RAIL}")


@dataclass(frozen=True)
class Adapters:
    """LoRA of one network by the names of its adapters, all of one rank."""

    pairs: Mapping[str, Pairs]
    rank: int

    @property
    def scaling(self) -> float:
        """alpha / rank."""
        return ALPHA / self.rank

    @property
    def merged(self) -> dict[str, Pair]:
        """All pairs by module: no module has two adapters."""
        return {module: pair for pairs in self.pairs.values() for module, pair in pairs.items()}

    @property
    def counts(self) -> str:
        """How many modules each adapter has."""
        return f"{' + '.join(str(len(pairs)) for pairs in self.pairs.values())} modules, rank {self.rank}"


@dataclass(frozen=True)
class Published:
    """What a published checkpoint adds to Stable Diffusion 2.1-base.

    Attributes:
        method: whose it is.
        unet: LoRA of the UNet.
        variant: PiSA-SR's second LoRA of the UNet, "sem".
        conv_in: the retrained weight and bias; empty for none.
        vae: LoRA of the autoencoder's encoder.
        time_layers: of the autoencoder's encoder, by their names in its state dict; empty for none.
    """

    method: Method
    unet: Adapters
    variant: Adapters | None = None
    conv_in: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    vae: Adapters | None = None
    time_layers: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])

    @property
    def trained(self) -> int:
        """Numbers that the method trained."""
        loras = [x for x in (self.unet, self.variant, self.vae) if x is not None]
        pairs = [tensor for lora in loras for pair in lora.merged.values() for tensor in pair]
        return sum(x.numel() for x in (*pairs, *self.conv_in.values(), *self.time_layers.values()))

    def facts(self) -> Iterator[tuple[str, str]]:
        """Counts for a person to compare with the papers'."""
        yield "UNet LoRA", self.unet.counts
        if self.variant is not None:
            yield "second UNet LoRA", self.variant.counts
        if self.vae is not None:
            yield "encoder LoRA", self.vae.counts
        if self.time_layers:
            yield "time layers", f"{len(self.time_layers)} tensors"
        yield "trained", f"{self.trained:,} parameters"


def parsed(contents: Contents, parse: Callable[[Mapping[str, Any]], Published]) -> Published:
    """What `parse` makes of the entries; raises CheckpointError for those that do not belong together."""
    try:
        return parse(contents.data)
    except (ValueError, TypeError, RuntimeError) as error:
        reason = f"is damaged or of an unknown version: {first_line(error)}"
        raise CheckpointError(f"{contents.path} {reason}; fetch it again.") from error


def osediff_of(data: Mapping[str, Any], method: Method = OSEDIFF) -> Published:
    """The 8 entries."""
    pairs, rest = _split_state(data, "state_dict_unet")
    names = {f"default_{part}": _names_in(data, f"unet_lora_{part}_modules") for part in _PARTS}
    vae_pairs, unknown = _split_state(data, "state_dict_vae")
    vae_names = {"default_encoder": _names_in(data, "vae_lora_encoder_modules")}
    conv_in = _conv_in_of(rest)
    if unknown or set(conv_in) != {"weight", "bias"}:
        raise ValueError(f"{next(iter(unknown), 'conv_in of state_dict_unet')} is unknown or incomplete")
    return Published(
        method,
        unet=adapters(pairs, names, _rank_in(data, "rank_unet")),
        conv_in=conv_in,
        vae=adapters(vae_pairs, vae_names, _rank_in(data, "rank_vae")),
    )


def tadsr_of(data: Mapping[str, Any]) -> Published:
    """The 9 entries."""
    known = osediff_of(data, TADSR)
    return Published(TADSR, known.unet, None, known.conv_in, known.vae, _tensors_in(data, "state_dict_vae_time"))


def pisa_of(data: Mapping[str, Any]) -> Published:
    """The 9 entries. `conv_in` is not trained, and is not in the file."""
    pairs, rest = _split_state(data, "state_dict_unet")
    kinds: dict[str, Adapters] = {}
    for kind in ("pix", "sem"):
        names = {f"default_{part}_{kind}": _names_in(data, f"unet_lora_{part}_modules_{kind}") for part in _PARTS}
        own = {key: pair for key, pair in pairs.items() if key[0].endswith(f"_{kind}")}
        kinds[kind] = adapters(own, names, _rank_in(data, f"lora_rank_unet_{kind}"))
    if lost := [*rest, *(key[0] for key in pairs if not key[0].endswith(("_pix", "_sem")))]:
        raise ValueError(f"{lost[0]} is unknown")
    return Published(PISA, kinds["pix"], kinds["sem"])


def _tensors_in(data: Mapping[str, Any], entry: str) -> dict[str, Tensor]:
    """A state dict; raises ValueError for anything else in it than finite numbers."""
    state: object = data[entry]
    if not isinstance(state, Mapping):
        raise ValueError(f"{entry} is no state dict")
    tensors: dict[str, Tensor] = {}
    for key, x in cast(Mapping[object, object], state).items():
        if not (isinstance(key, str) and isinstance(x, Tensor) and _is_sound(x)):
            raise ValueError(f"{key} of {entry} is no tensor of finite numbers")
        tensors[key] = x.detach().float()
    return tensors


def _is_sound(x: Tensor) -> bool:
    """Whether `x` holds finite floating numbers, and no more of them than lie in the file."""
    if not x.is_floating_point() or x.numel() * x.element_size() > x.untyped_storage().nbytes():
        return False
    return bool(x.isfinite().all())


def _names_in(data: Mapping[str, Any], entry: str) -> list[str]:
    """Names of modules, each once (OSEDiff lists some twice); raises ValueError."""
    names: object = data[entry]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in cast("list[object]", names)):
        raise ValueError(f"{entry} is no list of names")
    return list(dict.fromkeys(cast("list[str]", names)))


def _rank_in(data: Mapping[str, Any], entry: str) -> int:
    """A rank; raises ValueError."""
    rank: object = data[entry]
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise ValueError(f"{entry} is no positive whole number")
    return rank


def _split_state(data: Mapping[str, Any], entry: str) -> tuple[dict[tuple[str, str], Pair], dict[str, Tensor]]:
    """Pairs by adapter and module, and the tensors that are no LoRA; raises ValueError for half a pair."""
    sides: dict[str, dict[tuple[str, str], Tensor]] = {"A": {}, "B": {}}
    rest: dict[str, Tensor] = {}
    for key, x in _tensors_in(data, entry).items():
        if match := _LORA_KEY.fullmatch(key):
            module, side, adapter = match.groups()
            sides[side][adapter, module] = x
        else:
            rest[key] = x
    if single := sides["A"].keys() ^ sides["B"].keys():
        adapter, module = min(single)
        raise ValueError(f"{entry} holds half of {adapter} of {module}")
    return {key: Pair(a, sides["B"][key]) for key, a in sides["A"].items()}, rest


def _conv_in_of(rest: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weight and bias of the UNet's retrained first layer, as peft or plain diffusers names them; raises ValueError."""
    found: dict[str, Tensor] = {}
    for key, x in rest.items():
        match = _CONV_IN_KEY.fullmatch(key)
        if match is None or match[1] in found:
            raise ValueError(f"{key} of state_dict_unet is unknown")
        found[match[1]] = x
    return found


def adapters(pairs: Mapping[tuple[str, str], Pair], names: Mapping[str, list[str]], rank: int) -> Adapters:
    """The pairs of the listed modules; raises ValueError where lists, tensors and rank disagree."""
    listed = {(adapter, module) for adapter, modules in names.items() for module in modules}
    if wrong := sorted(listed ^ pairs.keys()):
        adapter, module = wrong[0]
        raise ValueError(f"the lists and the weights differ in {adapter} of {module}")
    modules = [module for own in names.values() for module in own]
    if len(modules) != len(set(modules)) or not modules:
        raise ValueError("there are no modules, or some with two adapters")
    for (adapter, module), pair in pairs.items():
        check_shapes(f"{adapter} of {module}", pair, rank)
    return Adapters({adapter: {m: pairs[adapter, m] for m in own} for adapter, own in names.items() if own}, rank)


def check_shapes(name: str, pair: Pair, rank: int) -> None:
    """Raises ValueError for a pair that is no LoRA of this rank of a linear layer or a convolution."""
    a, b = pair
    ends = tuple(1 for _ in a.shape[2:])
    if a.ndim not in (2, 4) or a.shape[0] != rank or tuple(b.shape[1:]) != (rank, *ends):
        raise ValueError(f"{name} has shapes {list(a.shape)} and {list(b.shape)}, which are not of rank {rank}")
