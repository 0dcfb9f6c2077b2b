"""Prior and regulariser: one UNet with adapters, or two UNets."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ctsr import CTSRPipeline
from training.losses.score_networks import ScoreNetworks, adapters_off, open_score_networks

pytest.importorskip("peft")

from training.model.adapt import SD21_ADAPT, Adapt
from training.model.lora import lora_parameters


def noisy() -> tuple[Tensor, Tensor]:
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([20, 700])


def trained_names(scores: ScoreNetworks) -> set[str]:
    return {name for name, p in scores.network.named_parameters() if p.requires_grad}


def change(scores: ScoreNetworks) -> None:
    with torch.no_grad():
        for parameter in scores.network.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05)


@pytest.mark.parametrize("lora", [None, "mid", "all"])
def test_they_start_equal_and_only_the_regulariser_moves(make_sd: Callable[..., CTSRPipeline], lora) -> None:
    scores = open_score_networks(make_sd("osediff"), lora)
    z, tau = noisy()
    with torch.no_grad():
        before = scores.prior(z, tau)
        assert torch.equal(scores.regulariser(z, tau), before)
        change(scores)
        assert torch.equal(scores.prior(z, tau), before)
        assert (scores.regulariser(z, tau) - before).abs().max() > 1e-3


@pytest.mark.parametrize(("lora", "parts"), [("mid", {"mid"}), ("all", {"encoder", "decoder", "mid"})])
def test_which_adapters_learn(make_sd: Callable[..., CTSRPipeline], lora, parts: set[str]) -> None:
    scores = open_score_networks(make_sd("osediff"), lora, Adapt(rank=2, alpha=4))
    names = trained_names(scores)
    assert all(".lora_A." in name or ".lora_B." in name for name in names)
    found = {
        "mid" if "mid_block" in name else "decoder" if name.startswith(("up_blocks", "conv_out")) else "encoder"
        for name in names
    }
    assert found == parts
    assert scores.groups is not None
    (group,) = scores.groups
    assert {id(p) for p in group["params"]} == {id(p) for p in lora_parameters(scores.network)}
    assert {id(p) for p in group["params"]} == {id(p) for p in scores.network.parameters() if p.requires_grad}
    assert len(list(group["params"])) == len(list(group["params"])) == len(names)
    z, tau = noisy()
    scores.regulariser(z, tau).square().mean().backward()
    b = [p for name, p in scores.network.named_parameters() if ".lora_B." in name]
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in b)


def test_without_lora_the_regulariser_is_a_whole_copy(make_prior: Callable[..., CTSRPipeline]) -> None:
    base = make_prior()
    scores = open_score_networks(base)
    assert scores.groups is None
    assert scores.network is not base.unet
    assert trained_names(scores) == {name for name, _ in base.unet.named_parameters()}
    assert not any(p.requires_grad for p in base.unet.parameters())


def test_the_frozen_base_is_in_the_dtype_asked_for_and_the_regulariser_recomputes(
    make_sd: Callable[..., CTSRPipeline],
) -> None:
    z, tau = noisy()
    grown: list[Tensor] = []
    for what in (Adapt(), SD21_ADAPT):
        torch.manual_seed(0)  # of LoRA
        scores = open_score_networks(make_sd("osediff"), "all", what)
        dtypes = {p.requires_grad: p.dtype for p in scores.network.parameters()}
        assert dtypes == {True: torch.float32, False: {"fp32": torch.float32, "bf16": torch.bfloat16}[what.base_dtype]}
        calls: list[int] = []
        scores.network.mid_block.resnets[1].register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        change(scores)
        with torch.autocast("cpu", torch.bfloat16):
            scores.regulariser(z, tau).square().mean().backward()
        assert len(calls) == (2 if what.checkpointing else 1)
        grown.append(
            next(p.grad for name, p in scores.network.named_parameters() if "mid" in name and "lora_B" in name)
        )
    assert torch.nn.functional.cosine_similarity(*(g.flatten() for g in grown), dim=0) > 0.95


def test_the_prior_never_has_a_gradient_and_leaves_the_adapters_on(make_sd: Callable[..., CTSRPipeline]) -> None:
    scores = open_score_networks(make_sd("osediff"), "all")
    names = trained_names(scores)
    assert not scores.prior(*noisy()).requires_grad
    assert trained_names(scores) == names
    assert scores.regulariser(*noisy()).requires_grad


def test_the_adapters_come_back_after_an_error(make_sd: Callable[..., CTSRPipeline]) -> None:
    scores = open_score_networks(make_sd("osediff"), "all")
    change(scores)
    z, tau = noisy()
    with torch.no_grad():
        before = scores.regulariser(z, tau)
        with pytest.raises(RuntimeError, match="out of memory"), adapters_off(scores.network):
            raise RuntimeError("out of memory")
        assert torch.equal(scores.regulariser(z, tau), before)


def test_another_prompt_reaches_the_prior(make_sd: Callable[..., CTSRPipeline]) -> None:
    for lora in (None, "all"):
        scores = open_score_networks(make_sd("osediff"), lora)
        z, tau = noisy()
        other = torch.randn(1, 4, 16, generator=torch.Generator().manual_seed(5))
        with torch.no_grad():
            assert (scores.prior(z, tau, other) - scores.prior(z, tau)).abs().max() > 1e-3
