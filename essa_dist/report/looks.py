"""The sections that need the models: the same images, seen by the frozen and by the adapted one."""

import logging
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from essa_dist import runfolder
from essa_dist.backbones import Backbone
from essa_dist.data import PackedImages, open_packed
from essa_dist.data.shards import place_of
from essa_dist.errors import UsageError
from essa_dist.export.models import base_model, load_model
from essa_dist.report.banner import BANNER, draw_banner
from essa_dist.report.features import Look, Matrix, joint_colours, look
from essa_dist.report.pictures import draw_attention, draw_patch_colours
from essa_dist.report.record import Record
from essa_dist.report.samples import Shown, as_input, shown_images
from essa_dist.report.section import Missing, Picture, Section
from essa_dist.report.tables import headline

log = logging.getLogger(__name__)

FEATURES = "What the patch features show"


class Looks(NamedTuple):
    """Both models' view of the same images."""

    shown: Shown
    before: Look
    after: Look
    source: str
    """Where the images come from, for a caption."""


def look_at_images(record: Record, base: str | None, images: str | None, count: int) -> Looks:
    """Run both models on the same images; one after the other, so that only one is in memory.

    Raises UsageError, DataError or WeightsError where the run lacks the images or either model.
    """
    if not runfolder.committed_checkpoints(record.run):
        raise UsageError(
            f"run={record.run} has no complete checkpoint: let it reach its first one with resume=true"
        )
    packed = open_packed(images, prefer=("test", "val")) if images else _images_of(record)
    shown = shown_images(packed, count)
    before = _look(load_model(base) if base else frozen_model(record), shown)
    after = _look(load_model(str(record.run)), shown)
    return Looks(shown, before, after, f"split {packed.split} of {packed.manifest.name}")


def frozen_model(record: Record) -> Backbone:
    """The run's backbone as it was before adaptation. Raises UsageError where it can't be had again."""
    if _section(record, "backbone").get("weights") == "random":
        raise UsageError(
            "backbone.weights=random: the untrained backbone wasn't kept, give the model to compare as base="
        )
    return base_model(record.run)


def _images_of(record: Record) -> PackedImages:
    """The data set that the run was trained on, in the split farthest from training that it has."""
    ref = str(_section(record, "data").get("train", ""))
    train = open_packed(ref, prefer=("unlabelled", "train"))
    return open_packed(place_of(ref), prefer=("test", "val", train.split))


def _section(record: Record, name: str) -> Mapping[str, Any]:
    value = record.config.get(name)
    if not isinstance(value, dict):
        raise UsageError(
            f"{record.run / runfolder.CONFIG} has no section {name!r}: give base= and images= instead"
        )
    return value


def _look(backbone: Backbone, shown: Shown) -> Look:
    return look(backbone.eval(), as_input(shown.images, backbone))


def look_sections(looks: Looks, record: Record, out: Path) -> list[Section]:
    """Patch colours and attention, and the banner, which is written beside the page but not shown on it."""
    colours = joint_colours(looks.before.patches, looks.after.patches)
    pairs = headline(record.pairs)
    if pairs:
        draw_banner(pairs, looks.shown, *colours, out / BANNER)
    return [_colour_section(looks, *colours, out), _attention_section(looks, out)]


def _colour_section(looks: Looks, before: Matrix, after: Matrix, out: Path) -> Section:
    path = out / "patch_features.png"
    draw_patch_colours(looks.shown, before, after, path)
    names = ", ".join(looks.shown.names)
    picture = Picture(
        path,
        alt=f"Images of {names}, with their patch features as colours before and after adaptation.",
        caption=f"Images: {looks.source}, not chosen by hand. Patches of like colour have like features.",
    )
    text = (
        "The features of all patches of all images shown, reduced to three principal components that are drawn as red, "
        "green and blue: one analysis per model. The components of the adapted model are put in the order and sign that "
        "correlate best with those of the frozen model, so that the colours of both rows can be compared."
    )
    return Section(FEATURES, text, pictures=(picture,))


def _attention_section(looks: Looks, out: Path) -> Section:
    title = "Where the class token looks"
    before, after = looks.before.attention, looks.after.attention
    if before is None or after is None:
        gap = Missing(
            "the last block of this model has no plain softmax attention with a fused qkv layer to draw."
        )
        return Section(title, missing=(gap,))
    path = out / "attention.png"
    draw_attention(looks.shown, before, after, path)
    shares = [f"{100 * float(part.sum(dim=-1).mean()):.1f} %" for part in (before, after)]
    picture = Picture(
        path,
        alt=f"Attention maps of the class token on images of {', '.join(looks.shown.names)}, before and after adaptation.",
        caption="Last block, mean over the heads; brighter is more. The two maps of an image share one colour scale, "
        f"which ends at the 95th percentile. The patches get {shares[0]} of the attention before and {shares[1]} after; "
        "the rest goes to the class token itself. Small bright spots on empty ground are patches that a transformer uses "
        "as memory, not objects.",
    )
    return Section(title, pictures=(picture,))


def missing_looks(reason: Exception, record: Record) -> list[Section]:
    """What stands in their place when the images or a model can't be had."""
    text = " ".join(str(reason).split())
    log.warning("no pictures of features: %s", text)
    gap = Missing(
        f"patch features and attention maps. {text}.", f"essa report run={shlex.quote(str(record.run))}"
    )
    return [Section(FEATURES, missing=(gap,))]
