"""Labelled runs in the planner: whose words they are, heads counted, images of an epoch, validation beside the step."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from essa_dist import pack
from essa_dist.adapters import inject_adapter
from essa_dist.backbones.build import build_architecture
from essa_dist.cli.planned import planned
from essa_dist.config import RunConfig
from essa_dist.errors import UsageError
from essa_dist.finetune import FinetuneConfig
from essa_dist.finetune.head import make_head
from essa_dist.planning.answer import answer
from essa_dist.planning.config import PlanConfig
from essa_dist.planning.fake import Seen, see_step
from essa_dist.planning.finetuning import Finetuning
from essa_dist.planning.forecast import before
from essa_dist.planning.layouts import Layout
from essa_dist.planning.memory import VALIDATION, Memory
from essa_dist.planning.plan import plan, read_run, read_words
from essa_dist.planning.sizes import Load
from essa_dist.planning.speed import Work
from essa_dist.planning.subject import subject_of

ROOT = Path(__file__).resolve().parents[2]
SMALL = ("backbone.name=test_vit", "data.image_size=48", "batch_size=12")
LOAD, SINGLE = Load(500, 0), Layout("single", 1)
HEADS = (
    ("task=multiclass", "head.pooling=cls+mean"),
    ("task=binary",),
    ("task=ordinal",),
    ("task=multilabel", "mixing.mixup=0.2"),
    ("task=segmentation", "decoder=setr_pup"),
    ("task=segmentation", "decoder=dpt"),
)


def run_of(*words: str) -> FinetuneConfig:
    run = read_run([*SMALL, *words])
    assert isinstance(run, FinetuneConfig)
    return run


@cache
def seen(*words: str) -> Seen:
    return see_step(run_of(*words), gpu=True, classes=classes_of(words))


def classes_of(words: tuple[str, ...]) -> int:
    return 2 if "task=binary" in words else 7


@pytest.mark.parametrize("words", HEADS)
def test_trained_tensors_of_every_head_are_counted_exactly(words: tuple[str, ...]) -> None:
    run, sets = run_of(*words), seen(*words).sets
    backbone = build_architecture(run.backbone)
    head = make_head(backbone, Finetuning(run, classes_of(words)).task, run)
    inject_adapter(backbone, run.adapter, seed=0)
    assert sets.head_parameters == sum(p.numel() for p in head.parameters())
    assert sets.trunk_parameters == sum(p.numel() for p in backbone.parameters() if p.requires_grad)
    assert sets.teacher == []


def test_an_adapter_keeps_less_than_full_training_and_a_frozen_trunk_nothing() -> None:
    def kept(adapter: str) -> float:
        terms = Memory(seen(*HEADS[0], "validation.batch_size=1", adapter), 1).peak(LOAD, SINGLE).terms
        return terms.get("activations 1 x 48 px", 0.0)

    apla, full = kept("adapter=apla"), kept("adapter=full")
    assert kept("adapter=frozen") < 0.1 * full
    assert 0 < apla < 0.75 * full


def test_the_arithmetic_of_a_frozen_trunk_is_its_forward_pass() -> None:
    run = seen(*HEADS[0], "adapter=frozen")
    backbone = build_architecture(run_of(*HEADS[0]).backbone)
    width, depth, tokens, patch = backbone.embed_dim, len(backbone.vit.blocks), 1 + 3 * 3, 16
    hidden = backbone.vit.blocks[0].mlp.fc1.out_features
    products = depth * tokens * (4 * width**2 + 2 * width * hidden) + 9 * width * 3 * patch**2
    attention = depth * 2 * tokens**2 * width
    expected = 2 * (
        products + attention + 3 * 2 * width * 7
    )  # the head: forward, and gradient of its weights
    assert Work(run, 1).flops_at(Load(1, 0)) == pytest.approx(expected, rel=0.02)


def test_validation_may_take_more_than_a_step_and_costs_it_nothing() -> None:
    words = (*HEADS[5], "adapter=frozen")
    large, none = (
        (*words, "validation.batch_size=5000"),
        (*words, "validation.every=null", "test.enabled=false"),
    )
    terms = [Memory(seen(*w), 1).peak(LOAD, SINGLE).terms for w in (large, none)]
    assert max(terms[0], key=terms[0].__getitem__) == VALIDATION
    assert VALIDATION not in terms[1]
    assert Work(seen(*large), 1).flops_at(LOAD) == Work(seen(*none), 1).flops_at(LOAD)


def test_whose_words_they_are_is_known_by_their_keys_and_not_by_a_name(tmp_path: Path) -> None:
    recipe, named = ROOT / "configs/finetune.yaml", tmp_path / "finetune_before.yaml"
    named.write_text("adapter: lora\n")
    heir = tmp_path / "heir.yaml"
    heir.write_text(f"base: {recipe}\nseed: 3\n")
    assert isinstance(read_run([str(recipe)]), FinetuneConfig)
    assert isinstance(read_run([str(heir)]), FinetuneConfig)
    assert isinstance(read_run(["head.dropout=0.1"]), FinetuneConfig)
    assert isinstance(read_run([str(named)]), RunConfig)
    assert isinstance(read_run(["adapter=lora"], "finetune"), FinetuneConfig)
    with pytest.raises(UsageError, match="did you mean adapter"):
        read_run(["adaptor=lora"])
    with pytest.raises(UsageError, match="words of essa finetune"):
        read_words([str(recipe)])


def test_a_head_that_nobody_has_told_is_asked_for() -> None:
    with pytest.raises(UsageError, match=r"say task=binary\|.* and classes=N"):
        subject_of(run_of("validation={}"))
    with pytest.raises(UsageError, match="task=segmentation and classes=N"):
        subject_of(run_of("task=segmentation"))
    with pytest.raises(UsageError, match="binary needs 2 classes"):
        subject_of(run_of("task=binary"), 3)
    with pytest.raises(UsageError, match="not a multiple of the patch size"):
        see_step(run_of("task=multiclass", "data.image_size=50"), gpu=True, classes=3)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("labelled")
    for split, name, count in (("train", "a", 8), ("train", "b", 4), ("train", "c", 4), ("val", "a", 2)):
        (folder := root / "images" / split / name).mkdir(parents=True)
        for i in range(count):
            pixels = np.random.default_rng(i).integers(0, 255, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{i}.png")
    pack(str(root / "images"), out=str(root / "packed"), report=False)
    return str(root / "packed")


def test_images_and_classes_are_those_of_a_set_that_is_here(packed: str) -> None:
    def of(*words: str) -> Finetuning:
        return Finetuning(run_of("task=auto", *words))

    here = of(f"data.train={packed}")
    assert here.facts()["task"] == "multiclass of 3 classes"
    assert here.samples(None) == 16
    assert of(f"data.train={packed}:train", "data.fraction=0.5").samples(None) == 8
    assert of(f"data.train={packed}", "data.shots=2").samples(None) == 6


def test_told_images_are_taken_by_share_or_by_class() -> None:
    def of(*words: str) -> int | None:
        return Finetuning(run_of("task=multiclass", *words), 7).samples(1000)

    assert of() == 1000
    assert of("data.fraction=0.25") == 250
    assert of("data.shots=5") == 35


def test_a_plan_of_a_labelled_run_says_what_is_learnt_and_how_long_it_takes() -> None:
    words = (*SMALL, "task=segmentation", "decoder=dpt", "duration=3ep")
    result = plan(PlanConfig(run=words, classes=4, devices="h100", images=120))
    (row,) = result["rows"]
    assert result["steps"] == 30
    assert row["fits"]
    assert row["hours"][0] > 0
    assert "test_vit + apla: segmentation of 4 classes by dpt, " in planned(result)


def test_a_labelled_run_that_will_not_fit_is_warned_as_others_are() -> None:
    run = run_of("task=multiclass", "batch_size=4096", "adapter=full")
    question = {
        "config": json.loads(json.dumps(run.model_dump(mode="json"))),
        "classes": 3,
        "layout": "single",
        "ranks": 1,
        "name": "NVIDIA L4",
        "memory": 0.9 * 2**30,
    }
    assert "accumulate=" in before(answer(question))
