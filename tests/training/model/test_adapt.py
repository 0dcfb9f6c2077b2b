"""Which parameters learn: by name, once each, at the right rate, in the right dtype."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from ctsr import CTSRPipeline
from ctsr.families import get_family
from training.model.adapt import SD21_ADAPT, Adapt, adapt, finish
from training.model.lora import unet_targets, vae_targets
from training.model.one_step import OneStep
from training.stages import fidelity, osediff

pytest.importorskip("peft")


def learning(module: nn.Module) -> set[str]:
    return {name for name, p in module.named_parameters() if p.requires_grad}


def names(module: nn.Module, *prefixes: str) -> set[str]:
    return {name for name, _ in module.named_parameters() if name.startswith(prefixes)}


def lora_names(targets: dict[str, list[str]]) -> set[str]:
    return {f"{module}.lora_{ab}.{group}.weight" for group, rows in targets.items() for module in rows for ab in "AB"}


def time_names(vae: nn.Module) -> set[str]:
    return {name for name, _ in vae.named_parameters() if "time_" in name}


def check_groups(model: OneStep, groups: list[dict]) -> None:
    """Each learning parameter is in one group, once, and nothing else is."""
    ids = [id(p) for group in groups for p in group["params"]]
    assert len(ids) == len(set(ids))
    assert set(ids) == {id(p) for p in model.parameters() if p.requires_grad}
    assert all(group["params"] for group in groups)
    assert [len(list(group["params"])) for group in groups] == [len(list(group["params"])) for group in groups]


@pytest.mark.parametrize(
    ("what", "unet", "vae"),
    [
        (Adapt(), ("",), ("encoder", "decoder", "time_")),
        (osediff.MINI.adapt, ("",), ()),
        (Adapt(unet="frozen", encoder="frozen", time_layers=False), (), ("decoder",)),
        (Adapt(decoder=False), ("",), ("encoder", "time_")),
        (Adapt(unet="frozen", encoder="frozen", decoder=False), (), ("time_",)),
        (Adapt(unet="frozen", encoder="frozen", decoder=False, time_layers=False), (), ()),
    ],
)
def test_what_learns_of_the_mini(
    make_mini: Callable[..., CTSRPipeline], what: Adapt, unet: tuple[str, ...], vae: tuple[str, ...]
) -> None:
    model = OneStep(make_mini())
    groups = adapt(model, what)
    projections = time_names(model.vae) if what.time_layers else set()
    expected = names(model.vae, *vae) | projections if vae else set()
    assert learning(model.unet) == (names(model.unet, *unet) if unet else set())
    assert learning(model.vae) == expected - (set() if what.time_layers else time_names(model.vae))
    check_groups(model, groups)


def test_the_minis_autoencoder_learns_more_slowly_and_its_chain_slowest(make_mini: Callable[..., CTSRPipeline]) -> None:
    model = OneStep(make_mini())
    unet, blocks, chain = adapt(model, Adapt(autoencoder_factor=0.5))
    by_id = {id(p): name for name, p in model.vae.named_parameters()}
    assert "factor" not in unet
    assert (blocks["factor"], chain["factor"]) == (0.5, pytest.approx(0.05))
    assert {by_id[id(p)].split(".")[1] for p in chain["params"]} == {"conv_in", "down", "conv_out", "up_4", "up_2"}


@pytest.mark.parametrize(
    ("what", "time"),
    [(SD21_ADAPT, False), (replace(SD21_ADAPT, time_layers=True), True), (fidelity.SD21.adapt, False)],
)
def test_what_learns_of_stable_diffusion(make_sd: Callable[..., CTSRPipeline], what: Adapt, time: bool) -> None:
    model = OneStep(make_sd("osediff"))
    targets, encoder = unet_targets(model.unet), vae_targets(model.vae)
    groups = adapt(model, what)
    base = {"conv_in.base_layer.weight", "conv_in.base_layer.bias"}
    assert learning(model.unet) == lora_names(targets) | base
    assert learning(model.vae) == lora_names(encoder) | (time_names(model.vae) if time else set())
    assert not [name for name in learning(model.vae) if "decoder" in name]
    check_groups(model, groups)


def test_lora_of_the_unet_alone_and_of_the_encoder_alone(make_sd: Callable[..., CTSRPipeline]) -> None:
    for unet, encoder in (("lora", "frozen"), ("frozen", "lora")):
        model = OneStep(make_sd("osediff"))
        groups = adapt(model, replace(SD21_ADAPT, unet=unet, encoder=encoder))
        assert bool(learning(model.unet)) == (unet == "lora")
        assert bool(learning(model.vae)) == (encoder == "lora")
        check_groups(model, groups)


def test_the_frozen_base_is_in_the_dtype_asked_for_and_what_learns_in_fp32(
    make_sd: Callable[..., CTSRPipeline],
) -> None:
    half, full = torch.bfloat16, torch.float32
    # Noise at tau = 999 is amplified too much for a UNet in bf16.
    cases = [("bf16", "tadsr", (half, half)), ("fp32", "tadsr", (full, full)), ("bf16", "osediff", (full, half))]
    for dtype, family, expected in cases:
        model = OneStep(make_sd("osediff"))
        model.family = get_family(family)
        adapt(model, replace(SD21_ADAPT, base_dtype=dtype, time_layers=True))
        for module, wanted in zip((model.unet, model.vae), expected, strict=True):
            assert {p.dtype for p in module.parameters() if not p.requires_grad} == {wanted}
            assert {p.dtype for p in module.parameters() if p.requires_grad} == {torch.float32}


def test_rank_and_alpha_are_those_asked_for(make_sd: Callable[..., CTSRPipeline]) -> None:
    model = OneStep(make_sd("osediff"))
    adapt(model, replace(SD21_ADAPT, rank=2, alpha=6))
    layer = model.unet.conv_in
    assert layer.lora_A["default_encoder"].weight.shape[0] == 2
    assert layer.scaling["default_encoder"] == 3


def test_nothing_changes_before_the_first_step(make_sd: Callable[..., CTSRPipeline]) -> None:
    lr = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    plain, adapted = OneStep(make_sd("osediff")), OneStep(make_sd("osediff"))
    adapt(adapted, replace(SD21_ADAPT, base_dtype="fp32", checkpointing=False))
    with torch.no_grad():
        torch.testing.assert_close(adapted.decode(adapted(lr).z0), plain.decode(plain(lr).z0))


def gradients(pipeline: CTSRPipeline, checkpointing: bool) -> tuple[dict[str, Tensor], int]:
    """Gradients of all that learns, and how often resnets of the UNet, the encoder and the decoder ran."""
    model = OneStep(pipeline)
    torch.manual_seed(0)
    adapt(model, replace(SD21_ADAPT, base_dtype="fp32", time_layers=True, checkpointing=checkpointing))
    runs: list[int] = []
    for part in (model.unet, model.vae.encoder, model.vae.decoder):
        block = part.up_blocks[0] if hasattr(part, "up_blocks") else part.down_blocks[0]
        block.resnets[0].register_forward_pre_hook(lambda *_: runs.append(1))
    lr = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    z = model.predict(model.encode(torch.nn.functional.interpolate(lr, scale_factor=4.0), 500), 999)
    model.decode(z).square().mean().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}, len(runs)


def test_checkpointing_gives_equal_gradients(make_sd: Callable[..., CTSRPipeline]) -> None:
    (plain, once), (again, twice) = (gradients(make_sd("osediff"), on) for on in (False, True))
    assert (once, twice) == (3, 6)
    assert plain.keys() == again.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(again[name], gradient, rtol=1e-4, atol=1e-6)
    assert max(float(gradient.abs().max()) for gradient in plain.values()) > 0


@pytest.mark.parametrize("keep_lora", [False, True])
def test_at_the_end_all_is_fp32_and_nothing_of_lora_is_rounded_away(
    make_sd: Callable[..., CTSRPipeline], keep_lora: bool
) -> None:
    model, what = OneStep(make_sd("osediff")), replace(SD21_ADAPT, keep_lora=keep_lora)
    adapt(model, what)
    layer = model.unet.conv_out
    base = layer.base_layer.weight.detach().clone().float()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.fill_(1e-5)  # far below what bf16 resolves
        b, a = (layer.get_submodule(f"lora_{ab}.default_decoder").weight for ab in "BA")
        delta = 2 * torch.einsum("or,rihw->oihw", b[..., 0, 0], a)
    finish(model, what)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert bool([name for name, _ in model.named_parameters() if ".lora_" in name]) == keep_lora
    if not keep_lora:
        torch.testing.assert_close(model.unet.conv_out.weight.detach() - base, delta, rtol=0, atol=1e-7)
        assert delta.abs().max() > 1e-5
