"""Pictures of features: of the run's own images and both its models, or a reason why not."""

import shutil
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from essa_dist.data.loader import CropLoader, DataConfig
from essa_dist.errors import UsageError
from essa_dist.export.models import load_model
from essa_dist.report import ReportConfig, report
from essa_dist.report.looks import frozen_model, look_at_images
from essa_dist.report.record import read_record
from essa_dist.report.steps import seen_step


@pytest.fixture
def run(adapted_run: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    shutil.copytree(adapted_run, tmp_path / "run")
    return tmp_path / "run"


def change_config(run: Path, section: str, **values: object) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    config[section] |= values
    (run / "config.yaml").write_text(yaml.safe_dump(config))


def test_a_whole_run_gives_every_picture_and_the_banner(run: Path) -> None:
    made = report(ReportConfig(run=str(run), n_images=2))
    names = [Path(path).name for path in made["pictures"]]
    assert {"patch_features.png", "attention.png", "crops.png", "bars.png", "losses.png"} <= set(names)
    assert names[-1] == "before_after.png"
    assert Image.open(run / "report" / "before_after.png").size == (1200, 420)


def test_both_models_look_at_the_same_unseen_images_one_per_class(run: Path) -> None:
    looks = look_at_images(read_record(run), base=None, images=None, count=3)
    assert "split test" in looks.source
    assert len(set(looks.shown.names)) == 3
    assert looks.before.patches.shape == looks.after.patches.shape
    assert not torch.equal(looks.before.patches, looks.after.patches)


def test_before_is_the_backbone_that_the_run_started_from(run: Path) -> None:
    record = read_record(run)
    before, after = frozen_model(record).state_dict(), load_model(str(run)).state_dict()
    file = load_model(record.config["backbone"]["weights"]).state_dict()
    assert all(torch.equal(before[name], file[name]) for name in before)
    assert {name.split(".", 3)[-1] for name in before if not torch.equal(before[name], after[name])} == {
        "attn.proj.weight",
        "attn.proj.bias",
    }


def test_given_images_and_base_are_used(run: Path) -> None:
    packed = Path(yaml.safe_load((run / "config.yaml").read_text())["data"]["train"].rpartition(":")[0])
    looks = look_at_images(read_record(run), base=str(run), images=f"{packed}:unlabelled", count=2)
    assert "split unlabelled" in looks.source
    torch.testing.assert_close(looks.before.patches, looks.after.patches)


def test_the_batch_of_any_step_is_the_one_that_was_trained_on(run: Path) -> None:
    record = read_record(run)
    data = DataConfig.model_validate(record.config["data"] | {"workers": 0})
    loader = CropLoader(
        data.open(),
        data,
        seed=record.config["seed"],
        global_batch=record.config["batch_size"],
        patch_size=load_model(str(run)).patch_size,
    )
    (trained_on,) = loader.batches(1, 2)
    seen = seen_step(record.config, 2, first=1, count=2)
    assert seen.batch.keys == trained_on.keys[1:3]
    assert torch.equal(seen.batch.global_crops, trained_on.global_crops[:, 1:3])
    assert torch.equal(seen.batch.local_crops, trained_on.local_crops[:, 1:3])
    assert torch.equal(seen.batch.masks, trained_on.masks[:, 1:3])
    assert [seen.images.keys[i] for i in seen.indices] == list(seen.batch.keys)


def test_images_that_are_gone_are_named_with_the_way_out(run: Path) -> None:
    change_config(run, "data", train="nowhere:unlabelled")
    made = report(ReportConfig(run=str(run)))
    assert sum("nowhere" in gap for gap in made["missing"]) == 2  # features and crops


def test_an_untrained_backbone_that_was_not_kept_is_not_replaced_by_another(run: Path) -> None:
    change_config(run, "backbone", weights="random")
    with pytest.raises(UsageError, match=r"backbone\.weights=random.*base="):
        look_at_images(read_record(run), base=None, images=None, count=1)


def test_without_a_checkpoint_it_says_so_and_offers_no_picture_of_an_earlier_report(run: Path) -> None:
    (run / "report").mkdir()
    (run / "report" / "before_after.png").write_bytes(b"earlier")
    shutil.rmtree(run / "checkpoints")
    made = report(ReportConfig(run=str(run)))
    assert any("no complete checkpoint" in gap for gap in made["missing"])
    assert not [path for path in made["pictures"] if Path(path).name in ("before_after.png", "attention.png")]
