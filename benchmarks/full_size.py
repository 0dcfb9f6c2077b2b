"""Published checkpoints at the full size of Stable Diffusion 2.1-base, with random weights: convert, load, compare.

    python -m benchmarks.full_size WORK [osediff|tadsr|pisa|file ...]

Makes the base once (5.2 GB in WORK), then for each method its exact-format file, the file that `ctsr convert` makes of
both, and the ends of the dial by that file and by peft's adapters put on the base. `file` converts once more with the
base as a single file. Prints counts, seconds, sizes, the largest relative errors and the peak of resident memory.
"""

import hashlib
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from ctsr.convert.convert import Options, convert
from ctsr.load import load_pipeline
from ctsr.models.building import unfilled
from tests.checkpoints import WRITERS, direct_ends, save_folder, save_single_file
from tests.conftest import vocabulary, write_tokenizer
from training.model.sd21 import SD21_UNET, SD21_VAE

X = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
SINGLE = "v2-1_512-ema-pruned.safetensors"
TEXT: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
}


def say(name: str, value: object) -> None:
    """One line."""
    print(f"{name:<28}{value}", flush=True)


def timed(name: str, work: Callable[[], Any]) -> Any:
    """What `work` returns; says how long it took."""
    start = time.perf_counter()
    result = work()
    say(f"{name} [s]", f"{time.perf_counter() - start:.1f}")
    return result


@torch.no_grad()
def draw_(model: nn.Module, seed: int) -> Any:
    """Random weights that halves can hold, so that both kinds of base are the same numbers."""
    generator = torch.Generator().manual_seed(seed)
    for x in model.parameters():
        if x.ndim > 1:
            x.normal_(std=x[0].numel() ** -0.5, generator=generator)
        else:
            x.copy_((x == 1).float())
        x.copy_(x.half())
    return model.eval()


def sd_networks() -> tuple[UNet2DConditionModel, AutoencoderKL]:
    """UNet and autoencoder, drawn."""
    unet, vae = (unfilled(c, **shape) for c, shape in ((UNet2DConditionModel, SD21_UNET), (AutoencoderKL, SD21_VAE)))
    for model in (unet, vae):
        for name, x in model.named_parameters():
            x.data.fill_(float("norm" in name and name.endswith("weight")))
    return draw_(unet, 1), draw_(vae, 2)


def make_base(work: Path) -> Path:
    """The base as a folder, and beside it as a single file of halves."""
    import transformers

    folder = work / "stable-diffusion-2-1-base"
    if folder.is_dir():
        return folder
    words = vocabulary()
    shape = transformers.CLIPTextConfig(vocab_size=len(words), max_position_embeddings=77, hidden_act="gelu", **TEXT)
    encoder = draw_(transformers.CLIPTextModel(shape), 3)
    unet, vae = sd_networks()
    save_single_file(work / SINGLE, unet.half(), vae.half(), encoder.half())
    save_folder(folder, unet.float(), vae.float(), None)
    encoder.float().save_pretrained(folder / "text_encoder")
    write_tokenizer(folder / "tokenizer", words)
    return folder


def errors(found: list[Tensor], expected: list[Tensor]) -> str:
    """Largest relative error of each end."""
    return ", ".join(f"{float((a - b).abs().max() / b.abs().max()):.1e}" for a, b in zip(found, expected, strict=True))


@torch.no_grad()
def ends_of(path: Path) -> list[Tensor]:
    """Both ends of the dial by a converted file, fp32."""
    pipeline = timed("load", lambda: load_pipeline(path, torch.float32))
    found = timed("run", lambda: pipeline.endpoints(pipeline.encode(X, *X.shape[2:]).latents))
    return [found.z0, pipeline.blend(found, 1.0)]


def embeds_of(path: Path) -> Tensor:
    """The prompt in a converted file."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return file.get_tensor("prompt_embeddings.embeds")


def compare(name: str, work: Path, base: Path) -> None:
    """One method."""
    checkpoint = work / f"{name}.pkl"
    data = WRITERS[name](*sd_networks())
    torch.save(data, checkpoint)
    say("checkpoint", f"{name}, {checkpoint.stat().st_size / 2**20:.2f} MiB, {len(data)} entries")
    expected: list[Tensor] = []
    for kind, options in (
        ("fp32", Options(dtype=torch.float32)),
        ("fp32, LoRA apart", Options(dtype=torch.float32, keep_lora=True)),
        ("fp16", Options()),
    ):
        out = work / "out.safetensors"
        told = say if kind == "fp32" else lambda name, value: None
        timed(
            f"convert to {kind}",
            lambda out=out, options=options, told=told: convert(checkpoint, base, out, options, told),
        )
        if not expected:
            expected = direct_ends(name, data, *sd_networks(), embeds_of(out), X)
        say(f"errors, {kind}", errors(ends_of(out), expected))


def compare_bases(work: Path, base: Path) -> None:
    """A conversion with either kind of base gives the same tensors."""
    torch.save(WRITERS["osediff"](*sd_networks()), work / "osediff.pkl")
    digests: list[str] = []
    out = work / "out.safetensors"
    for kind in (base, work / SINGLE):
        options = (work / "osediff.pkl", kind, out, Options(), lambda *_: None)
        timed(f"convert, {kind.name}", lambda options=options: convert(*options))
        content = out.read_bytes()
        digests.append(hashlib.sha256(content[8 + int.from_bytes(content[:8], "little") :]).hexdigest()[:16])
    say("tensors", f"{' and '.join(digests)}: {'equal' if len(set(digests)) == 1 else 'DIFFERENT'}")


def main(
    work: Annotated[Path, typer.Argument(metavar="WORK", help="A folder with 15 GB of room.")],
    methods: Annotated[list[str] | None, typer.Argument(metavar="METHOD")] = None,
) -> None:
    """See the module's docstring."""
    work.mkdir(parents=True, exist_ok=True)
    base = timed("base", lambda: make_base(work))
    for name in methods or [*WRITERS, "file"]:
        print(flush=True)
        compare_bases(work, base) if name == "file" else compare(name, work, base)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        say("peak of the process", f"{peak / 2**30:.1f} GiB")


if __name__ == "__main__":
    typer.run(main)
