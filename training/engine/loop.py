"""The training loop: steps of turns, averaged weights, checkpoints, learning rates, logs.

A stage is a row of turns. In each step every turn gets the batch, gives its loss, and its own optimizer moves its own
parameters; what a turn returns besides scalars joins the batch of the turns after it (a generator's pictures, say, for
the discriminator that follows). All trained networks run inside the forward of a turn's module and nowhere else, so
under DDP the gradients of each of them are synchronised.
"""

import logging
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
from accelerate import Accelerator
from accelerate.utils import tqdm
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from ctsr.precision import choose_dtype
from training.engine.checkpoint import State, back_up, fetch_backup, trained_state
from training.engine.processes import agree, checksum
from training.engine.run import Run, own_device
from training.engine.sigterm import stop_on_sigterm
from training.engine.sources import Sample, Source
from training.engine.turn import Turn

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Report:
    """Figures on held-back photographs, and pictures [N, 3, H, W] in [-1, 1] to look at."""

    figures: Mapping[str, float]
    pictures: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])


def learning_rate(step: int, run: Run, peak: float, floor: float = 0.02) -> float:
    """Linear warm-up, then constant, or half a cosine down to `floor` of the peak."""
    if step < run.warm_up:
        return peak * (step + 1) / run.warm_up
    if run.schedule == "constant":
        return peak
    progress = (step - run.warm_up) / max(1, run.steps - run.warm_up)
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))


@contextmanager
def averaged(ema: EMAModel, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """The averaged weights in place of the trained ones."""
    ema.store(parameters)
    ema.copy_to(parameters)
    try:
        yield
    finally:
        ema.restore(parameters)


def fit(run: Run, source: Source, turns: Sequence[Turn], validate: Callable[[], Report]) -> bool:
    """Trains from the checkpoint in `run.out`, if any.

    Args:
        run: length and place.
        source: of batches.
        turns: of a step, in order. The weights of the first are averaged.
        validate: called with the averaged weights in place, every `run.validate_every` steps and at the end, by all
            processes together; each gives the figures of all.

    Returns:
        True when all steps are done, with the averaged weights in place; False when SIGTERM stopped it (the checkpoint
        is written).

    Raises:
        ValueError: half-precision weights without autocast, a checkpoint of another recipe, or processes whose trained
            weights differ.
    """
    accelerator = Accelerator(
        mixed_precision=autocast_precision(run, turns),
        gradient_accumulation_steps=run.accumulation,
        log_with="tensorboard",
        project_dir=run.out,
    )
    torch.set_float32_matmul_precision("high")  # TF32, for what computes in fp32 beside autocast
    run.out.mkdir(parents=True, exist_ok=True)
    accelerator.init_trackers("tensorboard")
    loop = Loop(run, source, turns, validate, accelerator)
    with stop_on_sigterm(run.grace_seconds) as stopped:
        finished = loop.run_steps(stopped)
    for tracker in accelerator.trackers:
        tracker.finish()
    return finished


def autocast_precision(run: Run, turns: Sequence[Turn]) -> Literal["no", "bf16"]:
    """What autocast computes in: for `auto` bf16 where the device has it in hardware, or where a frozen base is in it.

    Without the hardware a processor takes ten times as long in bf16 as in fp32.

    Raises:
        ValueError: half-precision weights, and `no` autocast.
    """
    halves = {p.dtype for turn in turns for p in turn.module.parameters()} - {torch.float32}
    if halves and run.precision == "no":
        raise ValueError("A frozen base in bf16 needs autocast: give --run.precision bf16 or --adapt.base-dtype fp32.")
    if run.precision == "auto":
        return "bf16" if halves or choose_dtype("auto", own_device()) == torch.bfloat16 else "no"
    return run.precision


class Loop:
    """One run: the networks on their devices, and the steps."""

    def __init__(
        self,
        run: Run,
        source: Source,
        turns: Sequence[Turn],
        validate: Callable[[], Report],
        accelerator: Accelerator,
    ):
        self.run, self.source, self.turns, self.validate, self.accelerator = run, source, turns, validate, accelerator
        self.optimizers = [accelerator.prepare(turn.optimizer()) for turn in turns]
        self.modules = [cast(nn.Module, accelerator.prepare(turn.module)) for turn in turns]
        self.main = turns[0].parameters
        self.ema = EMAModel(self.main, decay=run.ema)
        self.ema.to(accelerator.device)
        self.state = State(turns, self.optimizers, self.ema)
        self.losses: dict[str, list[float]] = defaultdict(list)

    def run_steps(self, stopped: Callable[[], bool]) -> bool:
        """Takes the steps that are left, until `stopped`; returns whether all are done."""
        run, checkpoint = self.run, self.run.out / "checkpoint.pt"
        if run.backup is not None and self.accelerator.is_main_process:
            fetch_backup(checkpoint, run.backup)
        start = self.state.load(checkpoint)
        trained = (pair for turn in self.turns for pair in trained_state(turn.module).items())
        precision = str(self.accelerator.mixed_precision)
        agree({"the step": str(start), "the weights": checksum(trained), "the precision": precision})
        saved = time.monotonic()
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        batches = self.source.batches(run, start, self.state.latest_shards, rank, world)
        for step in tqdm(range(start, run.steps), initial=start, total=run.steps, desc=run.out.name):
            for _ in range(run.accumulation):
                self.take_turns(step, next(batches))
            self.ema.step(self.main)
            self.log_and_validate(step + 1)
            leave = self.in_any_process(stopped())
            late = time.monotonic() - saved > 60 * run.save_minutes
            if (late or leave or step + 1 == run.steps) and self.accelerator.is_main_process:
                self.state.save(checkpoint, step + 1)
                if run.backup is not None:
                    back_up(checkpoint, run.backup)
                saved = time.monotonic()
            if leave and step + 1 < run.steps:
                return False
        self.ema.copy_to(self.main)
        return True

    def take_turns(self, step: int, batch: Sample) -> None:
        """Gives one batch to every turn."""
        batch = self.source.on_device(batch, self.accelerator.device)
        batch["step"] = torch.tensor(step)
        if "shard" in batch:
            shards = cast(Tensor, self.accelerator.gather(batch.pop("shard")))
            self.state.latest_shards = dict(self.source.note_shards({"shard": shards}))
        with self.accelerator.accumulate(*self.modules):
            for turn, module, optimizer in zip(self.turns, self.modules, self.optimizers, strict=True):
                out = module(batch)
                self.accelerator.backward(out["loss"])
                if self.accelerator.sync_gradients:
                    self.accelerator.clip_grad_norm_(turn.parameters, self.run.max_norm)
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(step, self.run, turn.peak_rate) * group.get("factor", 1.0)
                optimizer.step()
                optimizer.zero_grad()
                batch |= {name: value.detach() for name, value in out.items() if value.ndim}
                for name, value in out.items():
                    if not value.ndim:
                        self.losses[f"{turn.name}/{name}"].append(value.item())

    def log_and_validate(self, step: int) -> None:
        """Logs mean losses and validates the averaged weights, each when it is due after `step` steps."""
        run = self.run
        if step % run.log_every == 0:
            means = {name: math.fsum(row) / len(row) for name, row in self.losses.items()}
            self.accelerator.log(means, step)
            logger.info("step %d %s", step, " ".join(f"{name} {value:.4f}" for name, value in means.items()))
            self.losses.clear()
        if step % run.validate_every and step != run.steps:
            return
        with averaged(self.ema, self.main), torch.no_grad(), self.accelerator.autocast():
            report = self.validate()
        if self.accelerator.is_main_process:
            self.log_report(report, step)

    def log_report(self, report: Report, step: int) -> None:
        """Writes a report to the log and to TensorBoard."""
        self.accelerator.log({f"held back/{name}": value for name, value in report.figures.items()}, step)
        logger.info("step %d held back: %s", step, " ".join(f"{k} {v:.3f}" for k, v in report.figures.items()))
        for name, pictures in report.pictures.items():
            tracker = cast(Any, self.accelerator.get_tracker("tensorboard"))
            shown = (pictures.float().cpu().clamp(-1, 1) + 1) / 2
            tracker.log_images({name: shown.numpy()}, step, dataformats="NCHW")

    def in_any_process(self, stopped: bool) -> bool:
        """Whether any of the processes is `stopped`."""
        if self.accelerator.num_processes == 1:
            return stopped
        flag = torch.tensor(float(stopped), device=self.accelerator.device)
        return bool(cast(Tensor, self.accelerator.reduce(flag, reduction="sum")) > 0)
