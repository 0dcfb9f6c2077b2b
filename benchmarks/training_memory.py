"""Peak GPU memory of one step of `training.stages.stage1 sd21`, predicted without a GPU.

    python -m benchmarks.training_memory

The step is the recipe's own: student, both teachers, losses, backward, clipping, AdamW, average of the weights. It runs
on fake tensors, shapes without numbers, while torch's MemTracker adds up every storage as long as it lives. Fake
tensors cannot be on a GPU where torch has no CUDA, so they are on the CPU; its autocast leaves the norms in bf16, which
CUDA's does not and `norms_as_on_cuda` puts right. Not counted: the CUDA context (about half a GB), workspaces of cuDNN,
and what the allocator loses to fragments. LPIPS is its layers' shapes, written here.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import patch

import torch
import torch.nn.functional as F
import tyro
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker

from ctsr import CTSRPipeline, PromptEmbeddings, TimeAwareAutoencoderKL, get_family
from training.engine.sources import Sample
from training.engine.turn import Turn
from training.losses.dual_teacher import noised
from training.losses.realism import RealismTerms
from training.model.adapt import Group, adapt
from training.model.one_step import OneStep
from training.model.sd21 import SD21_UNET, SD21_VAE
from training.stages.stage1 import SD21, DualTeacher, Student, View
from training.stages.teachers import Faithful, frozen, plain_latents

GOAL = 20.4e9
"""Bytes; 85 % of a card of 24 GB."""
VGG16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
TIMESTEP = 500  # any: the shapes are the same


class VggShapes(nn.Module):
    """LPIPS with VGG16 without its numbers: the layers of its five blocks, unit-length features, 1x1 weights."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, *(block[-1] for block in VGG16))
        self.blocks = nn.ModuleList(self.block(width, block) for width, block in zip(widths, VGG16, strict=False))
        self.weights = nn.ModuleList(nn.Conv2d(block[-1], 1, 1, bias=False) for block in VGG16)
        self.requires_grad_(False)

    @staticmethod
    def block(width: int, widths: Sequence[int]) -> nn.Sequential:
        """Convolutions with ReLU, up to the tap."""
        layers: list[nn.Module] = []
        for after in widths:
            layers += [nn.Conv2d(width, after, 3, padding=1), nn.ReLU(inplace=True)]
            width = after
        return nn.Sequential(*layers)

    def features(self, x: Tensor) -> list[Tensor]:
        """At the five taps, [B, C, h, w]; the powers in fp32, as CUDA's autocast has them."""
        out: list[Tensor] = []
        for index, block in enumerate(self.blocks):
            x = block(F.max_pool2d(x, 2) if index else x)
            out.append(x / (x.float().square().sum(1, keepdim=True).sqrt() + 1e-10))
        return out

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Mean distance of [B, 3, H, W] pictures."""
        pairs = zip(self.weights, self.features(x), self.features(y), strict=True)
        return torch.stack([weight((a - b).square()).mean() for weight, a, b in pairs]).sum()


class Teachers(DualTeacher):
    """The recipe's, at a timestep that is no tensor, since a fake one cannot be checked."""

    def view(self, student: OneStep, z: Tensor, batch: Sample) -> View:
        truth = plain_latents(self.vae, batch["sharp"])
        timestep = cast(Tensor, TIMESTEP)
        noisy = noised(z, truth, torch.randn_like(z), timestep)
        with torch.no_grad():
            return View(z, truth, noisy, timestep, student.x0(noisy[0], timestep))


class Totals(MemTracker):
    """MemTracker without figures for each module, which take most of its time and allow no frozen parameter."""

    def _pre_fw_hook(self, module: nn.Module, inputs: Any) -> None: ...

    def _post_fw_hook(self, module: nn.Module, inputs: Any, outputs: Any) -> None: ...

    def _pre_bw_hook(self, module: nn.Module, args: Any) -> None: ...

    def _post_bw_hook(self, module: nn.Module, args: Any) -> None: ...


@contextmanager
def norms_as_on_cuda() -> Iterator[None]:
    """Group and layer norms take and give fp32 under autocast, which on a CPU they do not."""

    def widened(norm: Any) -> Any:
        def call(x: Tensor, *args: Any) -> Tensor:
            wide = [a.float() if isinstance(a, Tensor) else a for a in args]
            return norm(x.float(), *wide)

        return call

    with patch.multiple(F, group_norm=widened(F.group_norm), layer_norm=widened(F.layer_norm)):
        yield


def sd21() -> CTSRPipeline:
    """What `OneStep` takes of a pipeline of SD 2.1 size; the pipeline's own class looks at addresses."""
    parts = {"unet": UNet2DConditionModel(**SD21_UNET), "vae": TimeAwareAutoencoderKL(**SD21_VAE)}
    return cast(
        CTSRPipeline, SimpleNamespace(**parts, prompt_embeddings=PromptEmbeddings(), family=get_family("osediff"))
    )


def twin(module: nn.Module) -> nn.Module:
    """A copy that shares the frozen weights and has its own adapters."""
    shared = {id(p): p for p in module.parameters() if not p.requires_grad}
    return copy.deepcopy(module, shared).requires_grad_(False)


def teachers_of(student: OneStep, shared: bool) -> tuple[OneStep, OneStep, nn.Module]:
    """T_r, T_f and the plain autoencoder: networks of their own, or adapters on the student's base."""
    if not shared:
        return frozen(sd21(), SD21.adapt), frozen(sd21(), SD21.adapt), frozen(sd21(), SD21.adapt).vae
    one, two = (copy.copy(student) for _ in range(2))
    for teacher in (one, two):
        teacher._modules = {**student._modules, "unet": twin(student.unet)}
    return one, two, twin(student.vae)


def build(shared: bool, through: bool) -> tuple[Student, Sequence[Group]]:
    """The student's loss on the meta device, and the optimizer's groups."""
    with torch.device("meta"):
        model = OneStep(sd21())
        groups = adapt(model, SD21.adapt)
        realistic, faithful, vae = teachers_of(model, shared)
        if not through:
            for teacher in (realistic, faithful):
                teacher.x0 = torch.no_grad()(teacher.x0)
        teachers = Teachers(SD21.distillation, realistic, Faithful(faithful, vae), vae, seed=0)
        weights = replace(SD21.reconstruction, features="none")
        student = Student(model, teachers, weights, RealismTerms(SD21.realism, seed=0))
        student.perceptual = VggShapes()
    return student, groups


def to_cpu(module: nn.Module) -> dict[int, nn.Parameter]:
    """Meta parameters and buffers as fake ones on the CPU, in place; shared ones stay shared. By id of the old."""
    new: dict[int, nn.Parameter] = {}
    old: list[nn.Parameter] = []  # alive, so that no id comes twice
    for part in module.modules():
        for name, p in part._parameters.items():
            if p is not None:
                if id(p) not in new:
                    old.append(p)
                    new[id(p)] = nn.Parameter(torch.empty_like(p, device="cpu"), requires_grad=p.requires_grad)
                part._parameters[name] = new[id(p)]
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = torch.empty_like(buffer, device="cpu")
    return new


def optimizer_of(groups: Sequence[Group]) -> torch.optim.AdamW:
    """AdamW after its first step."""
    optimizer = torch.optim.AdamW(groups, fused=True)
    for group in groups:
        for p in group["params"]:
            moments = {name: torch.zeros_like(p) for name in ("exp_avg", "exp_avg_sq")}
            optimizer.state[p] = {"step": torch.zeros(()), **moments}
    return optimizer


def peak(side: int, batch: int, shared: bool, through: bool) -> Mapping[str, int]:
    """Bytes by category at the peak of a step."""
    student, groups = build(shared, through)
    with FakeTensorMode(allow_non_fake_inputs=True):
        new = to_cpu(student)
        groups = [{**group, "params": [new[id(p)] for p in group["params"]]} for group in groups]
        parameters = Turn("student", student, 0.0, groups).parameters
        optimizer, ema = optimizer_of(groups), EMAModel(parameters)
        pictures = {"lr": torch.empty(batch, 3, side // 4, side // 4), "sharp": torch.empty(batch, 3, side, side)}
        tracker = Totals()
        tracker.track_external(student, optimizer, *ema.shadow_params, *pictures.values())
        with tracker, norms_as_on_cuda():
            with torch.autocast("cpu", torch.bfloat16):
                loss = student(pictures)["loss"]
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            ema.step(parameters)
        snapshot = tracker.get_tracker_snapshot("peak")[torch.device("cpu")]
        return {str(getattr(kind, "value", kind)): size for kind, size in snapshot.items()}


def main(side: int = 512, batch: int = 1) -> None:
    """Prints the peaks.

    Args:
        side: of the pictures, pixels.
        batch: pictures.
    """
    for shared in (False, True):
        for through in (True, False):
            sizes = peak(side, batch, shared, through)
            weights = "adapters on one base" if shared else "networks of their own"
            print(f"\nteachers: {weights}; B_k's gradient through them: {'yes' if through else 'no'}")
            for kind, size in sizes.items():
                print(f"  {kind:<10} {size / 2**30:5.2f} GiB")
            total = sizes["Total"]
            print(f"  {total / 1e9:.2f} GB of {GOAL / 1e9:.1f}: {'fits' if total <= GOAL else 'does not fit'}")


if __name__ == "__main__":
    tyro.cli(main)
