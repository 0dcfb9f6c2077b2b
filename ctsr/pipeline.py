"""The pipeline: encode -> endpoints -> blend -> decode.

One-step, time-aware super-resolution with a dial from realism (t = 0) to fidelity (t = 1); see `families` for the
formulas and their sources. `__call__` runs the four public steps; the ComfyUI nodes use the unscaled forms of encode
and decode, because a LATENT there holds z / s. The dial stands after the UNet, so a second t on the same picture costs
a decode only.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Generic, Literal, TypeVar, Union, cast, overload

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.utils.outputs import BaseOutput
from PIL import Image
from torch import Tensor, nn
from typing_extensions import Unpack  # in typing from Python 3.11

from . import families
from .arguments import CallOptions, check_dials, check_inputs
from .assess.auto_t import Choice, choose_t
from .assess.noise import noise_level
from .assess.places import MARGIN, Place, check_places
from .families import Dial, Endpoints
from .images.color_fix import ColorFix, apply_color_fix, check_color_fix
from .images.inputs import Maps, Pictures, as_maps, as_tensors, profiles_of
from .images.tensors import (
    DEFAULT_SCALE,
    OutputType,
    as_output,
    as_pil,
    map_to_latents,
    pad,
    resize,
)
from .models.autoencoder_kl_time_aware import TimeAwareAutoencoderKL
from .models.autoencoder_mini import TimeAwareAutoencoderMini
from .models.autoencoder_mini2 import TimeAwareAutoencoderMini2
from .models.lora_variant import LoraVariant
from .models.prompt_embeddings import PromptEmbeddings
from .models.unet_mini import TimeConditionedUNetMini
from .models.unet_mini2 import TimeConditionedUNetMini2
from .runtime.noise import Noise, noise_sources
from .runtime.planning import PlannedPipeline
from .runtime.prompts import PromptMixin
from .runtime.step_end import TENSOR_INPUTS, StepEnd, step_end_of
from .runtime.user_lora import UserLoraMixin
from .tiling import networks, tiled
from .tiling.tiled import Progress as Progress
from .tiling.tiled import Tiling

logger = logging.getLogger(__name__)


# diffusers' `from_pipe` takes components of exactly these classes, and its older releases read no other form of them.
# ruff: noqa: UP007
Autoencoder = Union[TimeAwareAutoencoderMini, TimeAwareAutoencoderMini2, TimeAwareAutoencoderKL, AutoencoderKL, None]
UNet = Union[TimeConditionedUNetMini, TimeConditionedUNetMini2, UNet2DConditionModel, None]

Images = list[Image.Image] | np.ndarray[Any, Any] | Tensor
Chooser = Callable[[Endpoints], float | Tensor]
"""Gives t, or a map of it [h, w], once the endpoints are there."""
ImagesT_co = TypeVar("ImagesT_co", bound=Images, covariant=True)


@dataclass
class CTSRPipelineOutput(BaseOutput, Generic[ImagesT_co]):
    """What a call gives.

    Attributes:
        images: PIL pictures, [B, 3, H, W] or [B, H, W, 3] in [0, 1], or scaled latents [B, C, h, w].
        choices: with t="auto", what was chosen for each picture and why.
    """

    images: ImagesT_co
    choices: list[Choice] | None = None


@dataclass(frozen=True)
class Encoded:
    """A picture as the UNet sees it, and what `decode` needs to give the right picture back.

    Attributes:
        latents: scaled latents z_L [B, C, h, w], one for each encoder timestep of the family.
        size: height and width of the result in pixels; the latents may cover a padded border more.
        reference: the low-resolution picture [B, 3, h, w] in [0, 1] that colours are taken from.
    """

    latents: tuple[Tensor, ...]
    size: tuple[int, int]
    reference: Tensor


class CTSRPipeline(PlannedPipeline, UserLoraMixin, PromptMixin):
    """One-step super-resolution with a dial.

    Args:
        vae: `TimeAwareAutoencoderMini2` or `TimeAwareAutoencoderMini`, `TimeAwareAutoencoderKL`, or a stock
            `AutoencoderKL` for families whose encoder knows no timestep; None for a pipeline that encodes prompts and
            nothing else.
        unet: `TimeConditionedUNetMini2`, `TimeConditionedUNetMini` or a stock `UNet2DConditionModel`; or None.
        prompt_embeddings: baked prompt embeddings, for UNets with cross-attention.
        family: name in `families.FAMILIES`.
        parameterization: overrides the family's.
        encoder_timesteps: overrides the family's tau_e, one for each encode.
        color_fix: what `__call__` does when it is not told: "none", "wavelet", "adain" or "lab".
        unet_variant: what makes the UNet its other variant, for families with two (PiSA-SR).
        time_aware_unet: the UNet is told the encoder's timestep instead of the family's own.
        about: what a person should know of a converted checkpoint, by name: source, licence and the like.
        dial_timesteps: tau at even steps of t from 0 to 1, of families with a dial of their own: see `at`.
        task: what it was trained to do: "sr", or a restoration such as "lowlight", "deblur" or "dejpeg".
        default_scale: side of the result / side of the picture where a call gives neither scale nor size.
        text_encoder, tokenizer: transformers' CLIPTextModel and CLIPTokenizer, for `prompt`; none are needed without.
    """

    _optional_components = ["prompt_embeddings", "unet_variant", "text_encoder", "tokenizer"]  # noqa: RUF012  # diffusers' own way to say it
    # Small; and hooks ask for parameters, of which the first has none, and the second is read from inside the UNet.
    _exclude_from_cpu_offload = ["prompt_embeddings", "unet_variant"]  # noqa: RUF012
    model_cpu_offload_seq = "text_encoder->unet->vae"
    _callback_tensor_inputs = TENSOR_INPUTS
    num_timesteps = 1

    unet_variant: LoraVariant | None

    def __init__(
        self,
        vae: Autoencoder,
        unet: UNet,
        prompt_embeddings: PromptEmbeddings | None = None,
        family: str = "ctsr",
        parameterization: str | None = None,
        encoder_timesteps: list[int] | None = None,
        color_fix: str = "wavelet",
        unet_variant: LoraVariant | None = None,
        about: dict[str, str] | None = None,
        time_aware_unet: bool = False,
        text_encoder: nn.Module | None = None,
        tokenizer: object | None = None,
        dial_timesteps: list[int] | None = None,
        task: str = "sr",
        default_scale: float = DEFAULT_SCALE,
    ):
        super().__init__()
        base: Any = self  # diffusers leaves the arguments of these two without types
        base.register_modules(
            vae=vae,
            unet=unet,
            prompt_embeddings=prompt_embeddings,
            unet_variant=unet_variant,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
        )
        base.register_to_config(
            family=family,
            parameterization=parameterization,
            encoder_timesteps=encoder_timesteps,
            dial_timesteps=dial_timesteps,
            color_fix=color_fix,
            about=about,
            time_aware_unet=time_aware_unet,
            task=task,
            default_scale=default_scale,
        )
        if self.family.variants and unet_variant is None:
            raise ValueError(f"Family {family!r} runs its UNet in two variants: pass unet_variant.")

    # --- the four steps -------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(
        self, image: Tensor, height: int, width: int, timestep: int | None = None, **tiling: Unpack[Tiling]
    ) -> Encoded:
        """Enlarges a picture bicubically and encodes it.

        Args:
            image: [B, 3, h, w] fp32 in [0, 1], any size from 1x1.
            height: pixels of the result.
            width: pixels of the result.
            timestep: tau_e in 0..999 instead of the checkpoint's own; in place of two it leaves TADSR without a dial.
            tiling: `tile`, `tile_overlap` and `callback`, see `Tiling`.
        """
        latents = self.encode_unscaled(image, height, width, timestep, **tiling)
        return Encoded(tuple(z.mul_(self.scaling_factor) for z in latents), (height, width), image)

    @torch.no_grad()
    def encode_unscaled(
        self, image: Tensor, height: int, width: int, timestep: int | None = None, **tiling: Unpack[Tiling]
    ) -> list[Tensor]:
        """As `encode`, but E(x) itself, without the factor s: what hosts pass on as a latent. One tensor a tau_e."""
        enlarged = pad(resize(image.float(), height, width), self.pad_multiple)
        enlarged.mul_(2).sub_(1)
        pictures, device = enlarged.chunk(len(enlarged)), self._bring_in(self.vae)
        latents: list[Tensor] = []
        for step in self._encoder_timesteps(timestep):
            encoder = networks.encoder(self.vae, None if step is None else torch.as_tensor(step, device=device))
            each = [tiled.run(encoder, x, device, self.free_memory, **tiling) for x in pictures]
            latents.append(_as_batch(each))
        return latents

    @torch.no_grad()
    def endpoints(
        self,
        latents: Sequence[Tensor],
        timestep: int | None = None,
        prompt_embeds: Tensor | None = None,
        generator: torch.Generator | None = None,
        **tiling: Unpack[Tiling],
    ) -> Endpoints:
        """Runs the UNet over `Encoded.latents`: the ends of the dial and the curvature between them.

        Args:
            latents: scaled latents [B, C, h, w], one for each encoder timestep.
            timestep: what `encode` was given.
            prompt_embeds: [1 | B, tokens, dim] instead of the baked ones.
            generator: source of the start noise of families that need one.
            tiling: as for `encode`.
        """
        family = replace(self.family, encoder_timesteps=self._encoder_timesteps(timestep))
        pictures, device = len(latents[0]), self._bring_in(self.unet)
        embeds = self._prompt(prompt_embeds, pictures)
        prompts = [None] * pictures if embeds is None else embeds.chunk(pictures)
        inputs = family.unet_inputs(latents, generator)
        outputs: list[Tensor] = []
        for given in inputs:
            step = torch.as_tensor(given.timestep, device=device)
            unets = [networks.unet(self.unet, self.vae_scale_factor, step, prompt) for prompt in prompts]
            with self._as_variant(given.variant):
                pairs = zip(unets, given.sample.chunk(pictures), strict=True)
                each = [tiled.run(unet, z, device, self.free_memory, **tiling) for unet, z in pairs]
            outputs.append(_as_batch(each))
        return family.endpoints(inputs, outputs)

    @staticmethod
    def blend(endpoints: Endpoints, t: Dial) -> Tensor:
        """z(t), see `families.blend`: t = 0 most realistic, 1 most faithful; a number, one a picture, or a map."""
        return families.blend(endpoints, t)

    def map_over(self, t_map: Maps, endpoints: Endpoints, size: tuple[int, int]) -> Tensor:
        """A map of t as `blend` takes it, [1, 1, h, w] over the latents.

        Args:
            t_map: one map over the result, of any size and kind that a call takes, such as [h, w] in [0, 1].
            endpoints: whose latents it is for.
            size: height and width of the result.
        """
        cells = (endpoints.z0.shape[-2], endpoints.z0.shape[-1])
        return map_to_latents(as_maps(t_map, 1)[0], size, cells, self.vae_scale_factor).to(endpoints.z0.device)

    @torch.no_grad()
    def decode(
        self,
        latents: Tensor,
        size: tuple[int, int] | None = None,
        reference: Tensor | None = None,
        color_fix: ColorFix = "none",
        **tiling: Unpack[Tiling],
    ) -> Tensor:
        """Picture of scaled latents.

        Args:
            latents: [B, C, h, w].
            size: height and width to crop to; all of it by default.
            reference: picture of any size [B, 3, h, w] in [0, 1] that the colour fix takes colours from.
            color_fix: "none", "wavelet", "adain" or "lab"; needs `reference`.
            tiling: as for `encode`.

        Returns:
            [B, 3, H, W] fp32 in [0, 1].
        """
        return self.decode_unscaled(latents.float() / self.scaling_factor, size, reference, color_fix, **tiling)

    @torch.no_grad()
    def decode_unscaled(
        self,
        latents: Tensor,
        size: tuple[int, int] | None = None,
        reference: Tensor | None = None,
        color_fix: ColorFix = "none",
        **tiling: Unpack[Tiling],
    ) -> Tensor:
        """As `decode`, of z / s."""
        check_color_fix(color_fix)
        if color_fix != "none" and reference is None:
            raise ValueError(f"color_fix={color_fix!r} needs a reference picture: pass `reference`, or use 'none'.")
        decoder, device = networks.decoder(self.vae), self._bring_in(self.vae)
        each = [tiled.run(decoder, z, device, self.free_memory, **tiling) for z in latents.chunk(len(latents))]
        picture = _as_batch(each)
        picture = picture.add_(1).div_(2)
        if size is not None:
            picture = picture[..., : size[0], : size[1]]
        if color_fix != "none" and reference is not None:
            height, width = picture.shape[-2:]
            picture = apply_color_fix(color_fix, picture, resize(reference.float(), height, width).to(picture.device))
        return picture.clamp_(0, 1)

    # --- all of it ------------------------------------------------------------------------------------------------

    @overload
    def __call__(
        self,
        image: Pictures,
        t: Dial | Literal["auto"] | None = None,
        scale: float | None = None,
        height: int | None = None,
        width: int | None = None,
        *,
        output_type: Literal["pil"] = "pil",
        return_dict: Literal[True] = True,
        **options: Unpack[CallOptions],
    ) -> CTSRPipelineOutput[list[Image.Image]]: ...

    @overload
    def __call__(
        self,
        image: Pictures,
        t: Dial | Literal["auto"] | None = None,
        scale: float | None = None,
        height: int | None = None,
        width: int | None = None,
        *,
        output_type: Literal["pt", "latent"],
        return_dict: Literal[True] = True,
        **options: Unpack[CallOptions],
    ) -> CTSRPipelineOutput[Tensor]: ...

    @overload
    def __call__(
        self,
        image: Pictures,
        t: Dial | Literal["auto"] | None = None,
        scale: float | None = None,
        height: int | None = None,
        width: int | None = None,
        *,
        output_type: Literal["np"],
        return_dict: Literal[True] = True,
        **options: Unpack[CallOptions],
    ) -> CTSRPipelineOutput[np.ndarray[Any, Any]]: ...

    @overload
    def __call__(
        self,
        image: Pictures,
        t: Dial | Literal["auto"] | None = None,
        scale: float | None = None,
        height: int | None = None,
        width: int | None = None,
        *,
        output_type: OutputType = "pil",
        return_dict: bool = True,
        **options: Unpack[CallOptions],
    ) -> CTSRPipelineOutput[Images] | tuple[Images]: ...

    @torch.no_grad()
    def __call__(
        self,
        image: Pictures,
        t: Dial | Literal["auto"] | None = None,
        scale: float | None = None,
        height: int | None = None,
        width: int | None = None,
        timestep: int | None = None,
        t_map: Maps | None = None,
        tile: int = 0,
        tile_overlap: int | None = None,
        color_fix: ColorFix | None = None,
        prompt_embeds: Tensor | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        output_type: OutputType = "pil",
        return_dict: bool = True,
        callback: Progress | None = None,
        prompt: str | Sequence[str] | None = None,
        num_images_per_prompt: int = 1,
        callback_on_step_end: StepEnd | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = TENSOR_INPUTS,
    ) -> CTSRPipelineOutput[Images] | tuple[Images]:
        """Upscales one picture or several, one at a time.

        Args:
            image: a PIL picture of 8 or 16 bits a channel (turned upright by its EXIF orientation, alpha dropped with a
                warning, its RGB profile handed on in `info["icc_profile"]`); an array [h, w, 3] or [B, h, w, 3] or a
                tensor [3, h, w] or [B, 3, h, w], uint8, uint16, or float in [0, 1]; or a list of these.
            t: the dial, 0 = most realistic, 1 = most faithful; one number, or one a picture; 0.5 by default. "auto"
                chooses it for every place from what the picture shows, and raises it where the result would depart from
                the input; `choices` of the output says why.
            scale: output side / input side, by default the checkpoint's own, 4 for ctsr-mini; the result has exactly
                round(scale * h) x round(scale * w) pixels.
            height, width: pixels of the result instead of `scale`; of one alone, the other follows by the picture's
                proportions.
            timestep: tau of the time-aware encoder instead of the checkpoint's own.
            t_map: a map of t over the picture instead of `t`, of any size; one for all, or one a picture (a list or
                batch): a grey picture (black is t = 0, white is t = 1), or an array or tensor [h, w] of bools, uint8,
                uint16, or numbers in [0, 1].
            tile: side of a tile in output pixels; 0 takes that of `enable_tiling`, else chooses by picture size and
                total memory, and does not tile when the picture fits. UNets with attention are tiled beyond 768x768,
                networks that are tiled exactly beyond 1024x1024 on a CPU.
            tile_overlap: output pixels that blended tiles share (128 by default, never more than half a tile), in
                practice those of Stable Diffusion's UNet; ctsr-mini and SD's autoencoder work out their own margins.
            color_fix: "none", "wavelet", "adain" or "lab"; the checkpoint's own by default.
            prompt_embeds: [1, tokens, dim] instead of the baked ones, or [B, tokens, dim], one a picture.
            generator: for families that start from noise; every picture starts from its present state. Or a list, one a
                result.
            output_type: "pil", "pt" ([B, 3, H, W]), "np" ([B, H, W, 3]), or "latent" (scaled, blended).
            return_dict: `CTSRPipelineOutput`, else a tuple.
            callback: called as `callback(stage, done, total)` after every tile, and on a CPU inside large ones with a
                fraction `done`; raise in it to cancel.
            prompt: a text instead of the baked prompt, or one a picture; needs a text encoder.
            num_images_per_prompt: results a picture, one after the other, each from further noise; families that start
                from none give the same.
            callback_on_step_end: called as `callback(pipeline, step, timestep, {"latents": z(t)})` before every decode,
                as in other pipelines, with step 0 of `num_timesteps` 1; returned "latents" are decoded instead.
            callback_on_step_end_tensor_inputs: what it is given: "latents".

        Raises:
            ValueError: an argument is out of range; the message names it and says what to do.
            TileMemoryError: memory ran out with the smallest tiles.
        """
        pictures = [batch[i : i + 1] for batch in as_tensors(image) for i in range(len(batch))]
        asked = (scale, height, width, timestep, tile, tile_overlap, color_fix, output_type)
        sizes = check_inputs(pictures, *asked, self.default_scale)
        dials = check_dials(t, t_map, len(pictures))
        noise = noise_sources(generator, len(pictures), num_images_per_prompt)
        self._check_conditions(timestep, noise)
        prompts = self._prompts(prompt, prompt_embeds, len(pictures))
        step_end = step_end_of(callback_on_step_end, callback_on_step_end_tensor_inputs, self)
        tiling: Tiling = {"tile": tile or self.default_tile, "tile_overlap": tile_overlap, "callback": callback}
        more = {"timestep": timestep, "color_fix": color_fix, "decode": output_type != "latent", "step_end": step_end}
        sweep = partial(self.sweep, **more, **tiling)
        results: list[Tensor | Image.Image] = []
        choices: list[Choice] = []
        each = zip(pictures, sizes, dials, prompts, noise, profiles_of(image), strict=True)
        for picture, size, dial, embeds, sources, profile in each:
            for source in sources:
                chosen = [dial if dial is not None else self._chooser(picture, size, choices)]
                (result,) = sweep(picture, size, chosen, prompt_embeds=embeds, generator=source)
                results.append(as_pil(result, profile) if output_type == "pil" else result)
        images = as_output(results, output_type)
        self.maybe_free_model_hooks()
        return CTSRPipelineOutput(images, choices or None) if return_dict else (images,)

    @torch.no_grad()
    def sweep(
        self,
        image: Tensor,
        size: tuple[int, int],
        dials: Sequence[float | Tensor | Chooser],
        *,
        timestep: int | None = None,
        prompt_embeds: Tensor | None = None,
        generator: torch.Generator | None = None,
        color_fix: ColorFix | None = None,
        decode: bool = True,
        step_end: Callable[[int, Tensor], Tensor] | None = None,
        **tiling: Unpack[Tiling],
    ) -> Iterator[Tensor]:
        """One picture at several t, in their order: the four steps, of which the first two are done once.

        Args:
            image: [1, 3, h, w] in [0, 1].
            size: height and width of the result.
            dials: at least one t in [0, 1], or map of it [h, w] of any size, or what chooses one by the endpoints.
            timestep, prompt_embeds, generator, color_fix: as for `__call__`.
            decode: False gives the blended latents instead.
            step_end: given the UNet's timestep and the blended latents, returns those to decode.
            tiling: as for `encode`.

        Yields:
            [1, 3, *size] in [0, 1], or scaled latents [1, C, H/f, W/f].
        """
        fix = cast(ColorFix, self.config["color_fix"]) if color_fix is None else color_fix
        # 1. Enlarge and encode: z_L [1, C, H/f, W/f], H and W padded, f of the autoencoder
        encoded = self.encode(image, *size, timestep, **tiling)
        # 2. One UNet pass (two in some families): z0, delta, kappa [1, C, H/f, W/f]
        ends = self.endpoints(encoded.latents, timestep, prompt_embeds, generator, **tiling)
        del encoded  # with the endpoints a gigabyte at 8K
        for number, dial in enumerate(dials, start=1):
            # 3. Dial: z(t) [1, C, H/f, W/f]
            dial = dial(ends) if callable(dial) else dial
            dial = self.map_over(dial, ends, size) if isinstance(dial, Tensor) else dial
            z = self.blend(ends, dial)
            z = z if step_end is None else step_end(self.family.timesteps[0], z)
            if number == len(dials):
                ends = Endpoints(z)  # the others are not needed any more: free them before the last decode
            # 4. Decode, crop, colours: [1, 3, H, W] in [0, 1]
            yield self.decode_unscaled(z.float() / self.scaling_factor, size, image, fix, **tiling) if decode else z

    @torch.no_grad()
    def choose_t(self, image: Tensor, endpoints: Endpoints, size: tuple[int, int]) -> Choice:
        """Automatic t for a picture: a map of t, its mean, and why; higher where the realistic end leaves the input.

        Args:
            image: the input, [1, 3, h, w] in [0, 1].
            endpoints: of its result.
            size: height and width of the result.
        """
        image = image.float()
        choice = choose_t(image)
        if endpoints.delta is None:
            return Choice(1.0, ("this model has no dial: every t gives the same",))

        delta, kappa, f = endpoints.delta, endpoints.kappa, self.vae_scale_factor

        def both_ends(place: Place) -> tuple[Tensor, Tensor]:
            top, left, side = place
            above, before = min(top, MARGIN), min(left, MARGIN)
            area = (..., slice(top - above, top + side + MARGIN), slice(left - before, left + side + MARGIN))
            part = Endpoints(endpoints.z0[area], delta[area], None if kappa is None else kappa[area])
            inside = (..., slice(f * above, f * (above + side)), slice(f * before, f * (before + side)))
            realistic, faithful = (self.decode(self.blend(part, t))[inside] for t in (0.0, 1.0))
            return realistic, faithful

        return check_places(image, choice, noise_level(image), delta, f, size, both_ends)

    def _chooser(self, image: Tensor, size: tuple[int, int], choices: list[Choice]) -> Chooser:
        """What `sweep` asks for an automatic t of a result of that size; the choice is added to `choices`."""

        def choose(endpoints: Endpoints) -> float | Tensor:
            choice = self.choose_t(image, endpoints, size)
            choices.append(choice)
            logger.info("%s", "; ".join(choice.reasons))
            return choice.t if choice.t_map is None else choice.t_map

        return choose

    def _check_conditions(self, timestep: int | None, noise: list[list[Noise]]) -> None:
        """Raises ValueError with the remedy for what does not fit the checkpoint, before any network runs."""
        self._encoder_timesteps(timestep)
        if self.family.needs_seed and noise[0][0] is None:
            raise ValueError("This checkpoint starts from noise: pass generator=torch.Generator().manual_seed(seed).")

    def free_memory(self) -> None:
        """Called when memory has run out, before the next try with smaller tiles: a host that keeps other models on the
        device replaces it by a function that evicts them."""

    # --- inside ---------------------------------------------------------------------------------------------------

    def _as_variant(self, variant: str | None) -> AbstractContextManager[None]:
        """Inside, the UNet computes as this variant of it."""
        if self.unet_variant is None:
            return nullcontext()
        return self.unet_variant.applied(self.unet, variant, self._device_of(self.unet))

    def _encoder_timesteps(self, timestep: int | None) -> tuple[int | None, ...]:
        """tau_e of each encode; one that is set makes a dial between two a single pass without a dial."""
        own = self.family.encoder_timesteps
        if timestep is None:
            return own
        if len(own) != 1 and self.family.unet_timesteps is not None:
            raise ValueError(f"timestep cannot be set for this checkpoint: its dial runs between tau = {own}.")
        if isinstance(self.vae, AutoencoderKL) and not isinstance(self.vae, TimeAwareAutoencoderKL):
            raise ValueError("timestep cannot be set for this checkpoint: its encoder knows none; leave it None.")
        return (timestep,)


def _as_batch(pictures: list[Tensor]) -> Tensor:
    """[1, C, H, W] each as one tensor; a single one is not copied."""
    return torch.cat(pictures) if len(pictures) > 1 else pictures[0]
