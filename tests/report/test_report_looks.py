"""Pictures of features: of the run's own images and both its models, or a reason why not."""

import shutil
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from essa_dist.data import open_packed
from essa_dist.errors import UsageError
from essa_dist.export.models import load_model
from essa_dist.report import ReportConfig, report
from essa_dist.report.crops import first_batch
from essa_dist.report.looks import frozen_model, look_at_images
from essa_dist.report.record import read_record


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


def test_crops_are_those_of_the_first_step(run: Path) -> None:
    config = read_record(run).config
    again = first_batch(config)
    assert again.global_crops.dtype == torch.uint8
    assert again.global_crops.shape == (2, 4, 3, 48, 48)
    assert set(again.keys) <= set(open_packed(config["data"]["train"]).keys)
    # A larger batch begins with the same crops: what is shown is what was trained on.
    assert torch.equal(first_batch(config | {"batch_size": 2}).global_crops, again.global_crops[:, :2])


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
