"""OFTSR's networks and its four recipes, for two steps on tiny models."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ctsr import CTSRPipeline
from training.data.datasets import Data
from training.data.pairs import Pairs
from training.engine.run import Run
from training.model.lora import unet_targets
from training.model.one_step import OneStep
from training.research import oftsr
from training.research.oftsr import DistilRecipe, FlowModel, SampledFlow, TeacherRecipe
from training.stages.stage import train

SIZES = ("mini", "sd21")


@pytest.fixture
def data(photos: Path) -> Data:
    return Data(photos, pairs=Pairs(crop=64))


@pytest.fixture
def start(tmp_path: Path, make_mini: Callable[..., CTSRPipeline], make_sd: Callable[..., CTSRPipeline]):
    """`start("mini" | "sd21")`: the file of a one-step model."""

    def save(size: str) -> str:
        path = tmp_path / f"{size}.safetensors"
        (make_mini() if size == "mini" else make_sd("osediff")).save_single_file(path, torch.float32)
        return str(path)

    return save


@pytest.fixture
def recipes(data: Data, make_run: Callable[..., Run], tmp_path: Path, start: Callable[[str], str]):
    """`recipes("mini" | "sd21")`: teacher and student, each for two steps."""

    def both(size: str) -> tuple[TeacherRecipe, DistilRecipe]:
        if size == "sd21":
            pytest.importorskip("peft")
        teacher, student = (oftsr.RECIPES[f"{size}-{stage}"][1] for stage in ("teacher", "distil"))
        quick = {"data": data, "peak_rate": 1e-2}  # the recipes' rates would be too little to see in two steps
        flow = make_run(tmp_path / "flow", warm_up=0)
        return (
            replace(teacher, run=flow, start=start(size), sampled_steps=2, **quick),
            replace(
                student,
                run=make_run(tmp_path / "oftsr", warm_up=0),
                start=str(flow.out / "model.safetensors"),
                **quick,
            ),
        )

    return both


def load(run: Run) -> CTSRPipeline:
    return CTSRPipeline.from_single_file(run.out / "model.safetensors", torch.float32)


def in_base_dtype(pipeline: CTSRPipeline, size: str) -> CTSRPipeline:
    """The UNet rounded as the frozen base of LoRA is."""
    if size == "sd21":
        pipeline.unet.to(torch.bfloat16).float()
    return pipeline


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_the_flow_starts_from_what_the_one_step_model_knew(start: Callable[[str], str]) -> None:
    """Without noise and at the same timestep, x_0 + v is the z0 of the residual model."""
    before = OneStep(CTSRPipeline.from_single_file(start("mini"), torch.float32))
    flow = FlowModel(oftsr.open_flow(start("mini"), Pairs()), 0)
    z = random(1, 4, 8, 8)
    assert torch.allclose(z + flow.velocity(z)(z, torch.ones(1)), before.x0(z, 999), atol=1e-5)


def test_the_flow_sees_its_time_in_thousandths(start: Callable[[str], str]) -> None:
    flow, z = FlowModel(oftsr.open_flow(start("mini"), Pairs()), 0), random(2, 4, 8, 8)
    v = flow.velocity(z)(z, torch.tensor([0.0, 0.5]))
    rows = torch.cat([flow.predict(torch.cat([z, z], 1)[i : i + 1], step) for i, step in enumerate((0, 499.5))])
    assert torch.allclose(v, rows, rtol=1e-3, atol=1e-4)


def test_the_endpoints_at_validation_are_the_pipelines(start: Callable[[str], str]) -> None:
    pipeline = oftsr.open_flow(start("mini"), Pairs())
    picture = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    ends = FlowModel(pipeline, 3)(picture * 2 - 1)
    encoded = pipeline.encode(picture, 32, 32)
    same = pipeline.endpoints(encoded.latents, generator=torch.Generator().manual_seed(3))
    assert torch.allclose(ends.z0, same.z0, atol=1e-4)
    assert torch.allclose(ends.delta, same.delta, atol=1e-4)


def test_the_teacher_samples_in_steps_and_its_mean_is_one_step_from_the_start(start: Callable[[str], str]) -> None:
    pipeline, lr = oftsr.open_flow(start("mini"), Pairs()), random(1, 3, 8, 8).clamp(-1, 1)
    sampled = [SampledFlow(pipeline, 0, steps)(lr) for steps in (1, 2)]
    student = FlowModel(pipeline, 0)(lr)
    means = [ends.z0 + ends.delta for ends in (*sampled, student)]
    assert torch.allclose(means[0], means[1], atol=1e-5)
    assert torch.allclose(means[0], means[2], atol=1e-5)
    assert not torch.allclose(sampled[0].z0, sampled[1].z0, atol=1e-3)


@pytest.mark.parametrize("size", SIZES)
def test_only_the_student_moves_and_the_teacher_stays_what_it_was(size: str, recipes: Callable[..., tuple]) -> None:
    teacher, recipe = recipes(size)
    pipeline = oftsr.open_flow(teacher.start, teacher.data.pairs)
    model = FlowModel(pipeline, 0)
    groups, teacher_unet = oftsr.student_groups(model, recipe.adapt)
    loss = oftsr.DistilLoss(model, recipe, teacher_unet)
    x, t = random(1, 4, 8, 8), torch.tensor([0.5])
    batch = {"index": torch.arange(1), "lr": random(1, 3, 16, 16)}
    learning = [parameter for group in groups for parameter in group["params"]]

    def velocities() -> tuple[Tensor, Tensor]:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            return loss.teacher(x)(x, t), model.velocity(x)(x, t)

    before = velocities()
    out: dict[str, Tensor] = {}
    for _ in range(2):  # the first moves B alone, whose A has no gradient while B is zero
        with torch.autocast("cpu", torch.bfloat16):
            out = loss(batch)
        out["loss"].backward()
        for parameter in learning:
            parameter.data += 0.05 * parameter.grad.sign()
            parameter.grad = None
    after = velocities()
    assert set(out) == {"loss", "distil", "align", "boundary"}
    assert torch.equal(before[0], before[1])  # the student starts as the teacher
    assert torch.equal(before[0], after[0])
    assert not torch.allclose(before[1], after[1], rtol=0.1)
    assert {id(p) for p in loss.parameters() if p.requires_grad} == {id(p) for p in learning}


@pytest.mark.parametrize("size", SIZES)
def test_teacher_and_student_learn_the_unet_alone_and_the_students_file_upscales(
    size: str,
    recipes: Callable[..., tuple[TeacherRecipe, DistilRecipe]],
    moved: Callable[[CTSRPipeline, CTSRPipeline, str], set[str]],
) -> None:
    teacher, student = recipes(size)
    train(oftsr.build, teacher)
    first, flow = in_base_dtype(oftsr.open_flow(teacher.start, teacher.data.pairs), size), load(teacher.run)
    everything = {name for name in first.unet.state_dict() if not name.startswith("time_embedding.")}
    targets = {f"{name}.weight" for group in unet_targets(first.unet).values() for name in group}
    learned = moved(first, flow, "unet")
    assert everything <= learned if size == "mini" else learned == targets | {"conv_in.bias"}
    assert moved(first, flow, "vae") == set()
    assert flow.unet.conv_in.weight[:, 4:].abs().sum() > 0  # the condition is seen by now
    train(oftsr.build, student)
    trained = load(student.run)
    learned = moved(in_base_dtype(flow, size), trained, "unet")
    assert everything <= learned if size == "mini" else learned == targets
    assert moved(flow, trained, "vae") == set()
    assert (trained.family.name, trained.family.encoder_timesteps) == ("oftsr", (None,))
    check_upscales(trained)


def check_upscales(pipeline: CTSRPipeline) -> None:
    """At both ends, from a seed."""

    def upscale(t: float, seed: int) -> np.ndarray:
        generator = torch.Generator().manual_seed(seed)
        return np.asarray(pipeline(Image.new("RGB", (20, 12), "teal"), t=t, generator=generator).images[0])

    assert upscale(0.0, 0).shape == (48, 80, 3)
    assert np.array_equal(upscale(0.0, 0), upscale(0.0, 0))
    assert not np.array_equal(upscale(0.0, 0), upscale(0.0, 1))
    assert not np.array_equal(upscale(0.0, 0), upscale(1.0, 0))


def test_a_student_needs_a_teacher(recipes: Callable[..., tuple[TeacherRecipe, DistilRecipe]]) -> None:
    teacher, student = recipes("mini")
    with pytest.raises(ValueError, match="give the file of the teacher"):
        train(oftsr.build, replace(student, start=teacher.start))


def test_the_recipes_are_the_papers() -> None:
    for size in SIZES:
        recipe = oftsr.RECIPES[f"{size}-distil"][1]
        assert isinstance(recipe, DistilRecipe)
        assert (recipe.dt, recipe.between, recipe.solver) == (0.05, (0.01, 0.99), "midpoint")
        assert (recipe.align_weight, recipe.boundary_weight) == (0.01, 0.1)


def test_the_built_in_model_is_a_start() -> None:
    """Whose UNet is told the encoder's timestep, which a flow's is not."""
    pipeline = oftsr.open_flow("mini", Pairs())
    assert pipeline.family.name == "oftsr"
    ends = FlowModel(pipeline, 0)(random(1, 3, 8, 8).clamp(-1, 1))
    assert ends.z0.shape == ends.delta.shape
    assert ends.z0.isfinite().all()
