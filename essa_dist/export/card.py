"""The model card of an export: what the weights are, where they come from and what was measured with them."""

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from essa_dist.export.interface import Format, Subject
from essa_dist.export.record import Record

UNKNOWN = "unknown"
TAG = "essa-dist"
"""By this tag in a card a folder is known as an export, which may be replaced."""

HEADER = """\
---
library_name: {library}
license: {licence_tag}
tags:
- feature-extraction
- self-supervised
- medical
- {tag}
---
# {title}

A vision transformer with {parameters:,} parameters. {adaptation}

## Load

{usage}
`images` is [B, {channels}, {size}, {size}]: the whole image resized (bicubic), scaled to 0..1 and normalised with
mean {mean} and standard deviation {std}.
{rule}
Loaded so, class and patch tokens differ from those of {origin} by {max_difference:.1e} at {size} px, relative to the
largest feature; {tolerance:g} is allowed. {other_sizes}
"""
MERGED = """Its adapter (`{adapter}`) was trained for {step} steps on images
without labels and is merged into the weights ({branch} branch), so this is a plain ViT."""
ALONE = """Its adapter (`{adapter}`) was trained for {step} steps on images
without labels ({branch} branch). This folder holds what was trained, and {reader} puts it over the base weights."""
UNMERGED = """Its adapter (`{adapter}`) was trained for {step} steps on images
without labels ({branch} branch). It can't be merged into the weights of a plain ViT, so its modules are part of this model."""
BASE = "No adaptation: these are the weights of `{ref}` in this format."

LIMITS = """\
## Use and limits

Meant as a frozen feature extractor, or as a start for supervised training{where}.
It is not a medical device and was not validated for diagnosis. The figures above hold for the test set, the
preprocessing and the image size they name.{cost}
"""
WHERE = ", on images like those of the adaptation"
COST = " Adaptation can cost a model some of what it knew about other images."


def model_card(form: Format, record: Record, subject: Subject, result: dict[str, Any]) -> str:
    """Markdown. ``result`` is what ``export`` returns, ``record`` is empty for a model that is no run."""
    sections = [
        _header(form, record, subject, result),
        _files(result),
        _origin(record, subject, result),
        _evaluations(record.evaluations),
        _summary(record.summary),
        LIMITS.format(where=WHERE, cost=COST) if result["adapter"] else LIMITS.format(where="", cost=""),
        _training(record.config),
    ]
    return "\n".join(section for section in sections if section)


def _header(form: Format, record: Record, subject: Subject, result: dict[str, Any]) -> str:
    known = {key: UNKNOWN if value is None else value for key, value in result.items()}
    architecture = result["architecture"]
    adapted = result["adapter"] is not None
    story = BASE if not adapted else UNMERGED if not result["merged"] else MERGED if form.WHOLE else ALONE
    rule = result["channel_rule"]
    return HEADER.format(
        **known,
        library=form.LIBRARY,
        licence_tag="apache-2.0" if "Apache-2.0" in _licence(_source(record, subject)) else "other",
        tag=TAG,
        title=f"{architecture}, adapted to {_data_name(record)} by self-supervision"
        if adapted
        else architecture,
        adaptation=story.format(**known, reader=form.READER, ref=Path(subject.ref).name),
        usage=form.usage(subject),
        size=subject.image_size,
        mean=list(subject.backbone.mean),
        std=list(subject.backbone.std),
        rule=f"Input channels: {rule}\n" if rule else "",
        origin="the run" if adapted else "the model that it was made of",
        other_sizes=_other_sizes(form, subject, result),
    )


def _other_sizes(form: Format, subject: Subject, result: dict[str, Any]) -> str:
    if not form.RESIZING:
        return "No other size is taken."
    return (
        f"At {result['resized_to']} px, where {form.RESIZING} enters, they differ by"
        f" {result['max_difference_resized']:.1e}.\n"
        f"Other sizes must be multiples of the patch size {subject.backbone.patch_size}."
    )


def _files(result: dict[str, Any]) -> str:
    rows = [[f"`{name}`", f"{size:,}"] for name, size in result["files"].items()]
    text = "## Files\n\n" + _table(["file", "bytes"], rows)
    if result["adapter_bytes"] is not None:
        text += (
            f"\nWhat the adapter trains, with its buffers, is {result['adapter_bytes']:,} bytes in fp32 (one branch);"
            f" the whole model is {result['model_bytes']:,}.\n"
        )
    return text


def _origin(record: Record, subject: Subject, result: dict[str, Any]) -> str:
    state = record.state
    versions = state.get("versions") or {}
    source = _source(record, subject)
    rows = {
        "base weights": f"{source}, sha256 `{result['base_weights_sha256'] or UNKNOWN}`",
        "licence of the base weights": _licence(source),
    }
    if result["adapter"] is not None:
        rows |= {
            "frozen trunk": f"sha256 `{state.get('trunk_sha256') or UNKNOWN}`",
            "images": f"{_data_name(record)}, manifest sha256 `{state.get('data_manifest_sha256') or UNKNOWN}`",
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
    if not shown:
        return ""
    return f"## Configuration\n\nWhole in `run_config.yaml`.\n\n```yaml\n{OmegaConf.to_yaml(shown)}```\n"


def _source(record: Record, subject: Subject) -> str:
    """Where the base weights came from; a run's record decides, since its own file may have moved."""
    own = subject.backbone.weights_source if not record.config else None
    return str(record.state.get("weights_source") or own or UNKNOWN)


def _licence(source: str) -> str:
    """Known only for weights that the project ships; nothing is guessed about a file of the user's."""
    if source.startswith("embedded:"):
        return "Apache-2.0 upstream (timm)"
    return "none, untrained" if source == "random" else f"see its source ({source})"


def _data_name(record: Record) -> str:
    return Path(str(record.section("data").get("train", f"{UNKNOWN} images"))).name


def _table(columns: list[str], rows: list[list[Any]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(
        "| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |\n" for line in lines
    )
