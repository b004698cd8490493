"""What of the data a resumed run may change, and what it may not: same samples, however and from wherever they come."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from essa_dist import adapt, pack
from essa_dist.errors import UsageError
from essa_dist.report.ledger import LedgerConfig, check_ledger


@pytest.fixture
def first(recipe: list[str], packed: str, tmp_path: Path) -> list[str]:
    """A finished run of 6 updates on a copy of the set, in mid-epoch; overrides that go on with it to 10."""
    shutil.copytree(packed, tmp_path / "set")
    words = [*recipe, f"data.train={tmp_path / 'set'}", "ledger=true", "schedule.warmup=1"]
    adapt(None, *words)
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace("duration: 6", "duration: 10"))  # as if it had been killed
    return [*words, "duration=10", "resume=true"]


@pytest.mark.parametrize(
    "change",
    [
        ["data.decoder=dali"],
        ["data.workers=1", "data.prefetch=3", "data.read_ahead=0"],
        ["data.cache={bytes: 0, concurrency: 2}", "data.bad_sample_quota.count=11"],
    ],
    ids=lambda change: change[0],
)
def test_a_run_goes_on_with_another_decoder_loader_or_cache_and_its_ledger_is_clean(
    first: list[str], tmp_path: Path, change: list[str]
) -> None:
    if "data.decoder=dali" in change:
        pytest.importorskip("nvidia.dali")
    assert adapt(None, *first, *change)["step"] == 10
    found = check_ledger(LedgerConfig(run=str(tmp_path / "run")))
    assert (found["samples"], found["epochs"], len(found["starts"])) == (40, 2, 2)


def test_the_same_set_may_lie_elsewhere_when_a_run_goes_on(first: list[str], tmp_path: Path) -> None:
    (tmp_path / "set").rename(tmp_path / "moved")
    assert adapt(None, *first, f"data.train={tmp_path / 'moved'}")["step"] == 10
    assert check_ledger(LedgerConfig(run=str(tmp_path / "run")))["epochs"] == 2


def test_a_set_packed_anew_in_the_same_place_is_noticed_and_the_run_is_left_as_it_was(
    first: list[str], tmp_path: Path, image_folder: Callable[..., Path]
) -> None:
    recorded = (tmp_path / "run" / "config.yaml").read_text()
    pack(str(image_folder({".": 20})), out=str(tmp_path / "set"), overwrite=True, report=False)
    with pytest.raises(UsageError, match=r"trained on other data .* manifest\.json is another"):
        adapt(None, *first, "log_every=3")
    assert (tmp_path / "run" / "config.yaml").read_text() == recorded


def test_another_split_of_the_same_set_is_noticed(
    recipe: list[str], tmp_path: Path, image_folder: Callable[..., Path]
) -> None:
    out = tmp_path / "splits"
    pack(str(image_folder({"train/a": 8, "val/a": 8})), out=str(out), report=False)
    adapt(None, *recipe, f"data.train={out}:train")
    with pytest.raises(UsageError, match=r"trained on other data .*another split"):
        adapt(None, *recipe, f"data.train={out}:val", "resume=true")


def test_a_set_packed_anew_under_a_running_job_does_not_change_what_its_checkpoints_say(
    first: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from essa_dist.engine.train import Run

    saved = Run._save

    def change_and_save(run: Run) -> None:
        manifest = tmp_path / "set" / "manifest.json"
        manifest.write_text(manifest.read_text() + " ")
        saved(run)

    monkeypatch.setattr(Run, "_save", change_and_save)
    adapt(None, *first)
    said = {
        json.loads(state.read_text())["data_manifest_sha256"]
        for state in (tmp_path / "run" / "checkpoints").glob("*/state.json")
    }
    assert len(said) == 1
