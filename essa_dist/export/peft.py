"""A LoRA folder of Hugging Face PEFT, which plain PEFT puts over a plain timm ViT. What it holds: ``peft_form``.

APLA is not registered as a PEFT method of its own: ``register_peft_method`` (PEFT 0.21) takes only the names of its own
enumeration of types. So APLA is written as the LoRA that it equals, and ``adapters.peft_folder`` reads that back as APLA.
"""

import json
from pathlib import Path

import timm
import yaml
from safetensors.torch import save_file

from essa_dist.adapters.peft_folder import SETTINGS, TRUNK
from essa_dist.adapters.peft_folder import WEIGHTS as ANY_WEIGHTS
from essa_dist.backbones import Backbone, BackboneConfig, build_backbone
from essa_dist.backbones.weights import parameters_sha256
from essa_dist.errors import UsageError
from essa_dist.export.attach import attach
from essa_dist.export.interface import Reader, Subject
from essa_dist.export.models import base_model
from essa_dist.export.peft_form import find_changes, folder_of
from essa_dist.export.saved import find_run
from essa_dist.export.timm import reader, timm_config
from essa_dist.runfolder import is_run

LIBRARY, READER = "peft", "plain PEFT over plain timm"
WEIGHTS, RUN_CONFIG = ANY_WEIGHTS[0], "run_config.yaml"
FILES: tuple[str, ...] = (WEIGHTS, SETTINGS)
TOLERANCE = 1e-5
PLAIN = True
WHOLE = False
RESIZING = "timm's own resizing of position embeddings"

USAGE = """\
The folder holds what was trained, not the model. It needs the base weights: {source}.

```python
import timm
from peft import PeftModel
base = timm.create_model("{architecture}", num_classes=0, {weights}{arguments})
model = PeftModel.from_pretrained(base, ".").eval()
features = model(images)
```

`features` is [B, {width}], the class token after the final norm; `model.get_base_model().forward_features(images)` has all
tokens, patches from index {prefix} on. `model.merge_and_unload()` gives a plain timm model.
"""


def write(folder: Path, subject: Subject) -> None:
    """Raises UsageError for a model that is no run, and for an adapter whose changes the form can't hold."""
    run = find_run(Path(subject.ref.removeprefix("student:")).expanduser())
    if not is_run(run):
        raise UsageError(
            f"format=peft writes what a run trained, and {subject.ref} is not a run folder: use format=timm"
        )
    base = base_model(run)
    adapted, _ = attach(base, subject.ref)
    write_adapter(folder, base, adapted, subject.backbone)


def write_adapter(folder: Path, base: Backbone, adapted: Backbone, merged: Backbone) -> None:
    """Write what leads from ``base`` to ``merged``, the model that ``adapted`` becomes when its adapter is merged.

    Raises UsageError if nothing or nearly everything changed, or tensors that have no place in a LoRA folder.
    """
    changes = find_changes(base.vit, adapted.vit, merged.vit)
    if changes.elsewhere:
        names = ", ".join(changes.elsewhere[:4]) + (", ..." if len(changes.elsewhere) > 4 else "")
        raise UsageError(f"format=peft has no place for {names}, which the adapter changed: use format=timm")
    if not (changes.layers or changes.modules or changes.biases):
        raise UsageError("format=peft writes what an adapter changed, and nothing was: use format=timm")
    config, tensors = folder_of(changes, base.vit, merged.vit)
    if sum(t.numel() for t in tensors.values()) >= sum(p.numel() for p in base.vit.parameters()):
        raise UsageError("format=peft would be larger than the model, so much was changed: use format=timm")
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt", TRUNK: parameters_sha256(base)})
    config.save_pretrained(str(folder))
    settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    settings["target_modules"].sort()  # PEFT writes a set, in another order each time
    (folder / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def load(folder: Path) -> list[Reader]:
    """By PEFT over a timm model with the base weights that the run's own settings, copied into the folder, name."""
    from peft import PeftModel

    run = yaml.safe_load((folder / RUN_CONFIG).read_text(encoding="utf-8"))
    base = build_backbone(BackboneConfig(**run["backbone"]), seed=run["seed"])
    settings = timm_config(base)
    vit = timm.create_model(settings["architecture"], num_classes=0, **settings["model_args"])
    vit.load_state_dict(base.vit.state_dict())
    return [reader(PeftModel.from_pretrained(vit, str(folder), torch_device="cpu").eval().get_base_model())]


def usage(subject: Subject) -> str:
    """With the call that gives the base model, and the hash of its weights where they are a file."""
    backbone = subject.backbone
    settings = timm_config(backbone)
    source, weights = backbone.weights_source, 'checkpoint_path="BASE.safetensors"'
    if backbone.weights_sha256:
        source += f", the file with sha256 `{backbone.weights_sha256}`"
    elif source.startswith("timm hub"):
        weights = "pretrained=True"
    return USAGE.format(
        source=source,
        weights=weights,
        architecture=settings["architecture"],
        arguments="".join(f", {name}={value!r}" for name, value in settings["model_args"].items()),
        width=settings["num_features"],
        prefix=backbone.num_prefix_tokens,
    )
