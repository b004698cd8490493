"""The model card of an export: what the weights are, where they come from and what was measured with them."""

import json
import logging
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import OmegaConf

from essa_dist.runfolder import CONFIG, EVALUATION, SUMMARY, committed_checkpoints

logger = logging.getLogger(__name__)

UNKNOWN = "unknown"

HEADER = """\
---
library_name: timm
license: {licence_tag}
tags:
- feature-extraction
- self-supervised
- medical
---
# {architecture}, adapted to {data} by self-supervision

A vision transformer with {parameters:,} parameters. Its adapter (`{adapter}`) was trained for {step} steps on images
without labels and is merged into these weights ({branch} branch), so plain timm loads them.

## Load

In this folder:

```python
import timm
model = timm.create_model("local-dir:.", pretrained=True).eval()
features = model(images)
```

A timm that does not know `local-dir:` takes this in place of the second line:

```python
model = timm.create_model({plain_call}).eval()
```

`features` is [B, {num_features}], the class token after the final norm. `images` is [B, 3, {size}, {size}]: the whole image resized
(bicubic), scaled to 0..1 and normalised with mean {mean} and standard deviation {std}. So does
`timm.data.create_transform(**timm.data.resolve_model_data_config(model))`.

Plain timm's features differ from the run's own by {max_difference:.1e} at {size} px and by {max_difference_resized:.1e} at
{resized_to} px, relative to the largest feature. Sizes other than {size} px must be multiples of the patch size; timm then
resizes the position embeddings by its own rule.
"""

LIMITS = """\
## Use and limits

Meant as a frozen feature extractor, or as a start for supervised training, on images like those of the adaptation.
It is not a medical device and was not validated for diagnosis. The figures above hold for the test set, the
preprocessing and the image size they name. Adaptation can cost a model some of what it knew about other images.
"""


class Record(NamedTuple):
    """What a run folder says about itself; every part may be empty."""

    config: dict[str, Any]
    state: dict[str, Any]  # state.json of the newest complete checkpoint
    summary: dict[str, Any]
    evaluations: dict[str, dict[str, Any]]  # by file name


def read_record(run: Path) -> Record:
    """Read the record of ``run``; a part that is absent or can't be read is empty, and the card says unknown."""
    checkpoints = committed_checkpoints(run)
    config = OmegaConf.to_container(OmegaConf.load(run / CONFIG))
    return Record(
        config={str(name): value for name, value in config.items()} if isinstance(config, dict) else {},
        state=_read_json(checkpoints[-1] / "state.json") if checkpoints else {},
        summary=_read_json(run / SUMMARY),
        evaluations={path.stem: _read_json(path) for path in sorted((run / EVALUATION).glob("*.json"))},
    )


def model_card(record: Record, settings: dict[str, Any], result: dict[str, Any]) -> str:
    """Markdown. ``settings`` is the export's ``config.json``; ``result`` is what ``export`` returns."""
    sections = [
        _header(record, settings, result),
        _origin(record),
        _evaluations(record.evaluations),
        _summary(record.summary),
        LIMITS,
        _training(record.config),
    ]
    return "\n".join(section for section in sections if section)


def _header(record: Record, settings: dict[str, Any], result: dict[str, Any]) -> str:
    arguments = "".join(f", {name}={value!r}" for name, value in settings["model_args"].items())
    images = settings["pretrained_cfg"]
    return HEADER.format(
        **{key: UNKNOWN if value is None else value for key, value in result.items()},
        licence_tag="apache-2.0" if "Apache-2.0" in _licence(record.state) else "other",
        data=_data_name(record.config),
        adapter=_section(record.config, "adapter").get("kind", UNKNOWN),
        num_features=settings["num_features"],
        plain_call=f'"{settings["architecture"]}", num_classes=0, checkpoint_path="model.safetensors"{arguments}',
        size=images["input_size"][1],
        mean=images["mean"],
        std=images["std"],
    )


def _origin(record: Record) -> str:
    state = record.state
    versions = state.get("versions") or {}
    rows = {
        "base weights": f"{state.get('weights_source') or UNKNOWN}, sha256 `{state.get('weights_sha256') or UNKNOWN}`",
        "licence of the base weights": _licence(state),
        "frozen trunk": f"sha256 `{state.get('trunk_sha256') or UNKNOWN}`",
        "images": f"{_data_name(record.config)}, manifest sha256 `{state.get('data_manifest_sha256') or UNKNOWN}`",
        "steps": state.get("step", UNKNOWN),
        "seed": record.config.get("seed", UNKNOWN),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()) or UNKNOWN,
    }
    return "## Origin\n\n" + _table(["", ""], [[name, value] for name, value in rows.items()])


def _evaluations(evaluations: dict[str, dict[str, Any]]) -> str:
    rows = [
        [
            name,
            found["protocol"],
            f"{found['image_size']} px, crop {found['crop']:g}",
            f"{found['balanced_accuracy']:.3f} ({found['interval'][0]:.3f} to {found['interval'][1]:.3f})",
            f"{found['accuracy']:.3f}",
            f"{found['n_bank']} / {found['n_test']}",
        ]
        for name, found in evaluations.items()
        if {"protocol", "image_size", "crop", "balanced_accuracy", "interval", "accuracy", "n_test"}
        <= found.keys()
    ]
    columns = ["evaluation", "protocol", "input", "balanced accuracy (95 %)", "accuracy", "bank / test"]
    return "## Measured on labelled images\n\n" + _table(columns, rows) if rows else ""


def _summary(summary: dict[str, Any]) -> str:
    rows = [[name, f"{value:g}"] for name, value in summary.items() if isinstance(value, int | float)]
    return "## Summary of the run\n\n" + _table(["figure", "value"], rows) if rows else ""


def _training(config: dict[str, Any]) -> str:
    shown = {name: config[name] for name in ("backbone", "adapter", "objective") if name in config}
    return f"## Configuration\n\nWhole in `run_config.yaml`.\n\n```yaml\n{OmegaConf.to_yaml(shown)}```\n"


def _licence(state: dict[str, Any]) -> str:
    """Known only for weights that the project ships; nothing is guessed about a file of the user's."""
    source = str(state.get("weights_source") or UNKNOWN)
    if source.startswith("embedded:"):
        return "Apache-2.0 upstream (timm)"
    return "none, untrained" if source == "random" else f"see its source ({source})"


def _data_name(config: dict[str, Any]) -> str:
    return Path(str(_section(config, "data").get("train", f"{UNKNOWN} images"))).name


def _section(config: dict[str, Any], name: str) -> dict[str, Any]:
    found = config.get(name)
    return found if isinstance(found, dict) else {}


def _table(columns: list[str], rows: list[list[Any]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(
        "| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |\n" for line in lines
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        logger.warning("%s can't be read (%s): the model card goes without it", path, error)
        return {}
    return found if isinstance(found, dict) else {}
