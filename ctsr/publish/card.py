"""The README.md of a folder for the hub: metadata that the hub reads, what the model is, and how to call it."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from ..pipeline import CTSRPipeline

TAGS = ("super-resolution", "image-upscaling", "one-step-diffusion", "ctsr")
LICENSES = {"apache-2.0", "mit", "cc-by-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "openrail", "openrail++"}
"""Identifiers that the hub knows, of those that models of this kind have."""

BODY = """# {name}

{about}
## Use

```python
from ctsr import CTSRPipeline

pipe = CTSRPipeline.from_pretrained("{repo}")
pipe(picture, t=0.3).images[0].save("large.png")  # t: 0 = most realistic, 1 = most faithful
```

Without naming the class, with ctsr installed: `DiffusionPipeline.from_pretrained("{repo}", custom_pipeline="{repo}",
trust_remote_code=True)`. As blocks: `ModularPipeline.from_pretrained("{repo}", trust_remote_code=True)`.

`{name}.safetensors` is all of it as one file, for ComfyUI's `models/ctsr` and `ctsr upscale --model`.
`tiny/` holds the same pipeline with tiny random weights, for tests: `CTSRPipeline.from_pretrained` loads it, too.
"""


def model_card(pipeline: CTSRPipeline, name: str, repo: str, licence: str, about: str) -> str:
    """The text of README.md.

    Args:
        pipeline: what the folder holds.
        name: of the model, and of the single file.
        repo: where it will lie on the hub, user/name.
        licence: an identifier such as apache-2.0, or a name.
        about: the model in Markdown; by default what the checkpoint tells of itself.
    """
    library: Any = import_module("huggingface_hub")
    known = {"license": licence} if licence in LICENSES else {"license": "other", "license_name": licence}
    data = library.ModelCardData(
        library_name="diffusers", pipeline_tag="image-to-image", tags=[*TAGS, pipeline.family.name], **known
    )
    facts: Mapping[str, str] = pipeline.config["about"] or {"family": pipeline.family.name}
    rows = "".join(f"- {key}: {value}\n" for key, value in facts.items())
    return f"---\n{data.to_yaml()}\n---\n\n{BODY.format(name=name, repo=repo, about=about or rows)}"
