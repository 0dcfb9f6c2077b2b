"""Files as OSEDiff, TADSR, PiSA-SR and Stable Diffusion 2.x have them: keys, shapes and quirks, with random weights.

Written from the layouts alone, so that what reads them is tested against something of its own. Every size is the given
networks'.
"""

import copy
import json
import re
import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor, nn

from ctsr import CTSRPipeline, PromptEmbeddings, TimeAwareAutoencoderKL

TINY_UNET: Mapping[str, Any] = {
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (32, 64),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "attention_head_dim": (1, 1),  # heads; diffusers' old name for them
    "cross_attention_dim": 16,
    "use_linear_projection": True,
}
TINY_VAE: Mapping[str, Any] = {
    "block_out_channels": (32, 32, 64, 64),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 1,
    "latent_channels": 4,
}
UNET_PATTERNS = (
    *("to_k", "to_q", "to_v", "to_out.0", "conv", "conv1", "conv2", "conv_in", "conv_shortcut", "conv_out"),
    *("proj_out", "proj_in", "ff.net.2", "ff.net.0.proj"),
)
VAE_PATTERNS = ("conv1", "conv2", "conv_in", "conv_shortcut", "conv", "conv_out", "to_k", "to_q", "to_v", "to_out.0")
STRENGTH = 0.3
"""Of an adapter beside the weight that it changes."""

Names = dict[str, list[str]]
State = dict[str, Tensor]


def weights_of(model: nn.Module) -> list[str]:
    """Names of the weights of convolutions and linear layers, in the model's order."""
    return [name for name, _ in model.named_parameters() if not ("bias" in name or "norm" in name)]


def unet_names(unet: nn.Module) -> Names:
    """Modules of OSEDiff's three groups."""
    groups: Names = {"encoder": [], "decoder": [], "others": []}
    for name in weights_of(unet):
        if any(pattern in name for pattern in UNET_PATTERNS):
            down, up = ("down_blocks" in name or "conv_in" in name), ("up_blocks" in name or "conv_out" in name)
            groups["encoder" if down else "decoder" if up else "others"].append(name.removesuffix(".weight"))
    return groups


def vae_names(vae: nn.Module) -> list[str]:
    """Modules of the encoder's adapter; some twice, once for each pattern that they match."""
    names = [
        name for name in weights_of(vae) for pattern in VAE_PATTERNS if pattern in name and name.startswith("encoder")
    ]
    return [name.removesuffix(".weight") for name in [*names, "quant_conv.weight"]]


class Draws:
    """Random tensors, the same for the same seed."""

    def __init__(self, seed: int):
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(shape, generator=self.generator) * scale


def lora_state(model: nn.Module, adapter: str, names: Sequence[str], rank: int, draw: Draws) -> State:
    """A and B of one adapter, by peft's keys, each as strong beside the module's weight."""
    state: State = {}
    for name in dict.fromkeys(names):
        weight = model.get_submodule(name).weight
        out, inner = weight.shape[0], tuple(weight.shape[1:])
        size = (STRENGTH / 2 / rank**0.5 * float(weight.detach().std())) ** 0.5
        state[f"{name}.lora_A.{adapter}.weight"] = draw(rank, *inner, scale=size)
        state[f"{name}.lora_B.{adapter}.weight"] = draw(out, rank, *(1 for _ in inner[1:]), scale=size)
    return state


def osediff(unet: nn.Module, vae: nn.Module, rank: int = 4, seed: int = 0) -> dict[str, Any]:
    """The dictionary of osediff.pkl."""
    draw, groups, conv_in = Draws(seed), unet_names(unet), unet.get_submodule("conv_in")
    state = {
        key: x
        for part, names in groups.items()
        for key, x in lora_state(unet, f"default_{part}", names, rank, draw).items()
    }
    for name, x in conv_in.named_parameters():
        state[f"conv_in.base_layer.{name}"] = x.detach() + draw(*x.shape, scale=0.02)
    return {
        "vae_lora_encoder_modules": vae_names(vae),
        **{f"unet_lora_{part}_modules": names for part, names in groups.items()},
        "rank_unet": rank,
        "rank_vae": rank,
        "state_dict_unet": state,
        "state_dict_vae": lora_state(vae, "default_encoder", vae_names(vae), rank, draw),
    }


def time_layers(vae: Any, seed: int) -> State:
    """TADSR's 24 tensors at two resnets a level: an embedding, and scale and shift of every resnet of the encoder."""
    draw, first = Draws(seed), vae.encoder.conv_in.weight.shape[0]
    sizes = {"time_embedding.linear_1": (256, max(128, first)), "time_embedding.linear_2": (256, 256)}
    for name, module in vae.encoder.named_modules():
        if name.endswith("conv2"):
            sizes[name.removesuffix("conv2") + "time_emb_proj"] = (2 * module.weight.shape[0], 256)
    weights = {f"encoder.{name}.weight": draw(*size, scale=size[1] ** -0.5) for name, size in sizes.items()}
    return weights | {f"encoder.{name}.bias": draw(size[0], scale=0.1) for name, size in sizes.items()}


def tadsr(unet: nn.Module, vae: nn.Module, rank: int = 4, seed: int = 0) -> dict[str, Any]:
    """The dictionary of tadsr.pkl."""
    return {"state_dict_vae_time": time_layers(vae, seed + 1), **osediff(unet, vae, rank, seed)}


def pisa(unet: nn.Module, vae: nn.Module, rank: int = 4, seed: int = 0) -> dict[str, Any]:
    """The dictionary of pisa_sr.pkl; the autoencoder is the base's own."""
    draw, groups = Draws(seed), unet_names(unet)
    data: dict[str, Any] = {}
    state: State = {}
    for kind in ("pix", "sem"):
        for part, names in groups.items():
            data[f"unet_lora_{part}_modules_{kind}"] = names
            state |= lora_state(unet, f"default_{part}_{kind}", names, rank, draw)
        data[f"lora_rank_unet_{kind}"] = rank
    return {**data, "state_dict_unet": state}


WRITERS = {"osediff": osediff, "tadsr": tadsr, "pisa": pisa}

# ---------------------------------------------------------------------------------------------- what they are loaded to


def add_adapters(network: nn.Module, names: Mapping[str, Sequence[str]], state: Mapping[str, Tensor], rank: int) -> Any:
    """`network` with the adapters of a file, as the methods' own scripts put them on: peft's default alpha, then every
    tensor by its name."""
    import peft

    for adapter, modules in names.items():
        config = peft.LoraConfig(r=rank, init_lora_weights="gaussian", target_modules=list(dict.fromkeys(modules)))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config`")
            peft.inject_adapter_in_model(config, network, adapter)
    own = network.state_dict()
    for key, x in state.items():
        own[key].copy_(x)
    return activate(network, list(names))


def activate(network: nn.Module, adapters: list[str]) -> nn.Module:
    """`network` with these adapters acting and no others."""
    for layer in network.modules():
        if hasattr(layer, "set_adapter") and hasattr(layer, "lora_A"):
            layer.set_adapter(adapters)
    return network


@torch.no_grad()
def direct_ends(
    name: str, data: Mapping[str, Any], unet: nn.Module, vae: AutoencoderKL, embeds: Tensor, x: Tensor
) -> list[Tensor]:
    """The dial's ends [B, C, h, w] of a method's dictionary put on the base, which it changes, by peft.

    Args:
        name: key of `WRITERS`.
        data: what it wrote.
        unet, vae: the base.
        embeds: prompt [1, tokens, width].
        x: picture [B, 3, H, W] in [0, 1], sides multiples of what the UNet takes.
    """
    parts, prompt = ("encoder", "decoder", "others"), PromptEmbeddings.from_embeds(embeds)
    if name == "pisa":
        (z,) = CTSRPipeline(vae, unet, prompt, family="osediff").encode(x, *x.shape[2:]).latents
        kinds = {kind: [f"default_{part}_{kind}" for part in parts] for kind in ("sem", "pix")}
        lists = {f"default_{p}_{kind}": data[f"unet_lora_{p}_modules_{kind}"] for kind in kinds for p in parts}
        add_adapters(unet, lists, data["state_dict_unet"], data["lora_rank_unet_pix"])
        pairs = (kinds["pix"] + kinds["sem"], kinds["pix"])
        return [z - activate(unet, adapters)(z, 1, encoder_hidden_states=embeds).sample for adapters in pairs]
    if name == "tadsr":
        vae = TimeAwareAutoencoderKL.from_autoencoder_kl(vae)
        vae.load_state_dict(data["state_dict_vae_time"], strict=False)
    lists = {f"default_{part}": data[f"unet_lora_{part}_modules"] for part in parts}
    add_adapters(unet, lists, data["state_dict_unet"], data["rank_unet"])
    encoder = {"default_encoder": data["vae_lora_encoder_modules"]}
    add_adapters(vae, encoder, data["state_dict_vae"], data["rank_vae"])
    pipeline = CTSRPipeline(vae, unet, prompt, family=name)
    ends = pipeline.endpoints(pipeline.encode(x, *x.shape[2:]).latents)
    return [ends.z0, pipeline.blend(ends, 1.0)]


# ---------------------------------------------------------------------------------------------------------------- base


def save_folder(folder: Path, unet: UNet2DConditionModel, vae: AutoencoderKL, text: Path | None) -> Path:
    """A Stable Diffusion folder; `text` holds tokenizer/ and text_encoder/."""
    for name, model in (("unet", unet), ("vae", vae)):  # safetensors 0.4 refuses channels-last
        copy.deepcopy(model).to(memory_format=torch.contiguous_format).save_pretrained(folder / name)
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps({"prediction_type": "epsilon"}))
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    if text is not None:
        shutil.copytree(text, folder, dirs_exist_ok=True)
    return folder


RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
UNET_ENDS = {
    "conv_in.": "input_blocks.0.0.",
    "time_embedding.linear_1.": "time_embed.0.",
    "time_embedding.linear_2.": "time_embed.2.",
    "conv_norm_out.": "out.0.",
    "conv_out.": "out.2.",
    "mid_block.resnets.0.": "middle_block.0.",
    "mid_block.attentions.0.": "middle_block.1.",
    "mid_block.resnets.1.": "middle_block.2.",
}


def original_unet_name(name: str, layers: int, attends: Mapping[int, bool]) -> str:
    """A name of diffusers' UNet in the original repository; `attends`: which of the blocks up have attention."""
    if ".resnets." in name:
        for new, old in RESNET.items():
            name = re.sub(rf"(resnets\.\d+)\.{new}\.", rf"\1.{old}.", name)
    for new, old in UNET_ENDS.items():
        if name.startswith(new):
            return old + name.removeprefix(new)
    side, block, kind, index, rest = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)", name).groups()
    first = int(block) * (layers + 1)
    place = {"resnets": ".0.", "attentions": ".1."}
    if side == "down":
        if kind == "downsamplers":
            return f"input_blocks.{first + layers + 1}.0.op.{rest.removeprefix('conv.')}"
        return f"input_blocks.{first + 1 + int(index)}{place[kind]}{rest}"
    if kind == "upsamplers":
        return f"output_blocks.{first + layers}.{2 if attends[int(block)] else 1}.{rest}"
    return f"output_blocks.{first + int(index)}{place[kind]}{rest}"


def original_vae_name(name: str, levels: int) -> str:
    """A name of diffusers' autoencoder in the original repository."""
    name = re.sub(r"down_blocks\.(\d+)\.resnets\.(\d+)", r"down.\1.block.\2", name)
    name = re.sub(r"up_blocks\.(\d+)", lambda match: f"up.{levels - 1 - int(match[1])}", name)
    name = re.sub(r"up\.(\d+)\.resnets\.(\d+)", r"up.\1.block.\2", name)
    name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up\.(\d+)\.upsamplers\.0", r"up.\1.upsample", name)
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda match: f"mid.block_{int(match[1]) + 1}", name)
    attention = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
    for new, old in attention.items():
        name = name.replace(f"mid_block.attentions.0.{new}.", f"mid.attn_1.{old}.")
    return name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")


def original_text_state(encoder: nn.Module, seed: int = 0) -> State:
    """transformers' CLIP as OpenCLIP has it, with the last layer that Stable Diffusion 2.x does not use."""
    state = {key.removeprefix("text_model."): x for key, x in encoder.state_dict().items()}
    plain = {"embeddings.token_embedding.weight": "token_embedding.weight", "final_layer_norm.": "ln_final."}
    parts = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
    parts["self_attn.out_proj"] = "attn.out_proj"
    found: State = {"positional_embedding": state["embeddings.position_embedding.weight"]}
    for key, x in state.items():
        for new, old in plain.items():
            if key.startswith(new):
                found[key.replace(new, old)] = x
        if match := re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", key):
            if match[2] in parts:
                found[f"transformer.resblocks.{match[1]}.{parts[match[2]]}.{match[3]}"] = x
            elif match[2] == "self_attn.q_proj":
                three = [state[key.replace("q_proj", f"{side}_proj")] for side in "qkv"]
                found[f"transformer.resblocks.{match[1]}.attn.in_proj_{match[3]}"] = torch.cat(three)
    layers = 1 + max(int(key.split(".")[2]) for key in found if key.startswith("transformer."))
    draw, first = Draws(seed), "transformer.resblocks.0."
    extra = {key.replace(".0.", f".{layers}.", 1): draw(*x.shape) for key, x in found.items() if key.startswith(first)}
    width = found["positional_embedding"].shape[1]
    return {**found, **extra, "text_projection": draw(width, width), "logit_scale": torch.tensor(1.0)}


def single_file_state(unet: UNet2DConditionModel, vae: AutoencoderKL, encoder: nn.Module) -> State:
    """All tensors of a single file of Stable Diffusion 2.x."""
    layers, levels = unet.config["layers_per_block"], len(vae.config["block_out_channels"])
    attends = {i: "CrossAttn" in kind for i, kind in enumerate(unet.config["up_block_types"])}
    state: State = {}
    for key, x in unet.state_dict().items():
        state["model.diffusion_model." + original_unet_name(key, layers, attends)] = x
    for key, x in vae.state_dict().items():
        name = original_vae_name(key, levels)
        is_convolution = "attn_1" in name and name.endswith("weight") and "norm" not in name
        state["first_stage_model." + name] = x[..., None, None] if is_convolution else x
    for key, x in original_text_state(encoder).items():
        state["cond_stage_model.model." + key] = x
    return {key: x.clone().contiguous() for key, x in state.items()}


def save_single_file(path: Path, unet: UNet2DConditionModel, vae: AutoencoderKL, encoder: nn.Module) -> Path:
    """A single file of Stable Diffusion 2.x."""
    save_file(single_file_state(unet, vae, encoder), path)
    return path
