"""The sections of a run of `essa finetune`: how it learnt, how it did on the test images, and where it erred."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from essa_dist import runfolder
from essa_dist.report.curves import SPEED, Panel
from essa_dist.report.finetuned_errors import confusion_section, errors_section, finetune_command
from essa_dist.report.record import Record
from essa_dist.report.section import Details, Missing, Section, Table
from essa_dist.report.sections import curves_section

log = logging.getLogger(__name__)

PER_CLASS = ("n", "sensitivity", "specificity", "auroc", "auprc", "f1", "dice", "iou", "hd95")
"""Columns of the table of classes, where a task has them."""
IN_PIXELS = frozenset({"hd95"})


def is_finetuned(record: Record) -> bool:
    return "task" in record.config


def finetuned_title(record: Record) -> str:
    return f"Fine-tuning report: {record.run.resolve().name}"


def finetuned_sentence(record: Record) -> str:
    """The target metric on the test images, in one sentence."""
    found = read_test(record)
    steps = record.metrics[-1]["step"] if record.metrics else "?"
    if not found:
        return f"Trained for {steps} steps; no test images have been judged."
    test, metric = found["test"], found["target_metric"]
    chosen = f"chosen by {metric} on validation" if "val" in found else "the last checkpoint"
    shown = _value(test, metric)
    return (
        f"{metric} {shown} on {test['n']} test images (task {found['task']}, {len(found['classes'])} classes), with the "
        f"state after step {found['best_step']} of {steps}, {chosen}."
    )


def finetuned_sections(record: Record, out: Path, count: int) -> list[Section]:
    """All of the page; what the run lacks is named with the command that makes it."""
    found = read_test(record)
    return [
        _test_section(record, found),
        *([confusion_section(found, out)] if found and found["test"].get("confusion") else []),
        errors_section(record, found, out, count),
        *_curve_sections(record, found, out),
        _setup_section(record, found),
    ]


def read_test(record: Record) -> dict[str, Any]:
    """``evaluation/test.json``; empty where there is none or it is not what `essa finetune` writes."""
    path = record.run / runfolder.EVALUATION / "test.json"
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    needed = {"task", "target_metric", "best_step", "test", "classes"}
    return found if isinstance(found, dict) and needed <= found.keys() else {}


def _value(test: Mapping[str, Any], metric: str) -> str:
    value, bounds = test["values"].get(metric), test["intervals"].get(metric)
    if value is None:
        return "could not be measured"
    return f"{value:.3f}" + (f" [{bounds[0]:.3f}, {bounds[1]:.3f}]" if bounds else "")


def _test_section(record: Record, found: Mapping[str, Any]) -> Section:
    title = "On the test images"
    if not found:
        gap = Missing(
            "scores of test images: the data had none (data.test, or a split test), or the run has not come to its end.",
            finetune_command(record),
        )
        return Section(title, missing=(gap,))
    test, target = found["test"], found["target_metric"]
    rows = [
        (
            name + (" (target)" if name == target else ""),
            _value({**test, "intervals": {}}, name),
            _interval(test, name),
        )
        for name in sorted(test["values"], key=lambda name: (name != target,))
    ]
    where = f"{test['n']} images of {found.get('images')}, split {found.get('split')}"
    table = Table(f"All metrics of {where}", ("metric", "value", "95 % interval"), tuple(rows))
    text = "Intervals are 95 % percentile bootstrap intervals over patients where they are known, else over images."
    if test.get("left_out"):
        text += f" Averages over classes are without {', '.join(test['left_out'])}, which no test image or every one shows."
    return Section(title, text, tables=(table, *_classes(test["per_class"])))


def _interval(test: Mapping[str, Any], name: str) -> str:
    bounds = test["intervals"].get(name)
    return f"{bounds[0]:.3f} to {bounds[1]:.3f}" if bounds else ""


def _classes(classes: Mapping[str, Mapping[str, float]]) -> list[Table]:
    measured = [name for name in PER_CLASS if any(name in values for values in classes.values())]
    if not measured:
        return []
    head = [f"{name} (px)" if name in IN_PIXELS else name for name in measured]
    rows = [(name, *(_cell(values.get(key), key) for key in measured)) for name, values in classes.items()]
    return [Table("Each class against all others", ("class", *head), tuple(rows))]


def _cell(value: float | None, key: str) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if key == "n" else f"{value:.1f}" if key in IN_PIXELS else f"{value:.3f}"


def _curve_sections(record: Record, found: Mapping[str, Any], out: Path) -> list[Section]:
    recorded = {key for row in record.metrics for key in row}
    target = found.get("target_metric") or next(
        (key[4:-5] for key in sorted(recorded) if key.startswith("val_") and key.endswith("_best")),
        "accuracy",
    )
    learning = (
        Panel("Loss", "", {"loss": ("training", 1), "val_loss": ("validation", 1)}),
        Panel(
            f"Validation: {target}",
            "",
            {f"val_{target}": ("now", 1), f"val_{target}_best": ("best so far", 1)},
        ),
        Panel("Learning rate", "", {"lr": ("adapter", 1), "head_lr": ("head", 1)}),
        Panel("Gradient norm before clipping", "", {"grad_norm": ("norm", 1)}),
    )
    caption = "The training loss is that of augmented (and mixed, smoothed) images, so it may lie above validation's."
    return [
        curves_section(
            record, "Learning", learning, out, caption, smoothed=True, command=finetune_command(record)
        ),
        curves_section(
            record,
            "Speed",
            SPEED,
            out,
            "Images per second over all processes.",
            command=finetune_command(record),
        ),
    ]


def _setup_section(record: Record, found: Mapping[str, Any]) -> Section:
    config = record.config
    names = ("model", "keep_adapter", "adapter", "task", "head", "decoder", "duration", "batch_size", "seed")
    facts = [(name, _plain(config[name])) for name in names if config.get(name)]
    table = Table("The run", ("setting", "value"), tuple(facts))
    text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
    return Section("The run", tables=(table,), details=(Details("Resolved configuration", text),))


def _plain(value: Any) -> str:
    if not isinstance(value, dict):
        return str(value)
    rest = ", ".join(f"{key}={each}" for key, each in value.items() if key != "kind" and each is not None)
    return ": ".join(part for part in (value.get("kind", ""), rest) if part)
