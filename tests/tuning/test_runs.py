"""What is refused before a sweep starts, and that the spaces of the repository are allowed."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from essa_dist.errors import UsageError
from essa_dist.settings import load
from essa_dist.tuning.config import TuneConfig
from essa_dist.tuning.runs import check_runs, preview, run_config, share, trials_of

CANARY = ["data.train=none", "canary.data=none:val", "canary.every=2"]


def config(repository: Path, space: dict[str, Any], *words: str, **more: Any) -> TuneConfig:
    base = str(repository / "configs/small/ssa.yaml")
    told = {"base": base, "out": "o", "space": space, "settings": [*CANARY, *words]}
    return load(TuneConfig, told | more)


def test_a_draw_that_a_run_refuses_is_named_before_the_start(repository: Path) -> None:
    space: dict[str, Any] = {
        "adapter.kind": {"choices": ["apla", "bitfit"]},
        "adapter.rank": {"choices": [4]},
    }
    said = r"the space allows adapter\.kind=bitfit adapter\.rank=4, which a run doesn't: .*adapter\.rank"
    with pytest.raises(UsageError, match=said):
        check_runs(config(repository, space))
    space["adapter.rank"]["when"] = {"adapter.kind": ["apla"]}
    check_runs(config(repository, space))


def test_a_misspelt_setting_of_the_space_is_refused_with_the_right_one(repository: Path) -> None:
    with pytest.raises(UsageError, match=r"optim\.lrr.*did you mean optim\.lr"):
        check_runs(config(repository, {"optim.lrr": {"choices": [1e-3]}}))


def test_a_base_without_a_canary_is_refused_and_the_setting_named(repository: Path) -> None:
    told = config(repository, {"optim.lr": {"choices": [1e-3]}}, settings=["data.train=none"])
    with pytest.raises(UsageError, match=r"^a trial of essa adapt .* canary\.data=PACKED:val canary\.every="):
        check_runs(told)


@pytest.mark.parametrize("word", ["resume=true", "overwrite=true"])
def test_going_on_and_overwriting_belong_to_the_sweep(repository: Path, word: str) -> None:
    with pytest.raises(UsageError, match="belong to the sweep"):
        check_runs(config(repository, {"optim.lr": {"choices": [1e-3]}}, word))


def test_an_error_of_the_base_is_told_as_the_bases_own(repository: Path) -> None:
    with pytest.raises(UsageError, match=r"^batch_size"):
        check_runs(config(repository, {"optim.lr": {"choices": [1e-3]}}, "batch_size=0"))


LR = {"low": 1e-4, "high": 1e-2, "log": True}


@pytest.mark.parametrize(
    ("space", "more", "said"),
    [
        ({"optim.lr": LR}, {"search": {"kind": "grid"}}, "search.kind=random only"),
        (
            {"optim.lr": LR},
            {"scheduler": {"mutate": ["optim.clip"]}},
            "optim.clip, which is not in the space",
        ),
        (
            {"adapter.rank": {"choices": [2, 4]}},
            {"scheduler": {"mutate": ["adapter.rank"]}},
            "adapter.rank, which would change what a checkpoint holds",
        ),
        (
            {"seed": {"choices": [1, 2]}, "optim.lr": LR | {"when": {"seed": [1]}}},
            {},
            "optim.lr, which would change",
        ),
    ],
)
def test_a_population_that_can_not_be_is_refused(
    repository: Path, space: dict[str, Any], more: dict[str, Any], said: str
) -> None:
    scheduler = {"kind": "pbt"} | more.pop("scheduler", {})
    with pytest.raises(UsageError, match=said):
        config(repository, space, scheduler=scheduler, **more)


def test_a_population_saves_where_it_looks(repository: Path) -> None:
    told = config(repository, {"optim.lr": LR}, scheduler={"kind": "pbt"})
    checkpoint = run_config(told, {"optim.lr": 1e-3}).checkpoint
    assert (checkpoint.every, checkpoint.keep) == (2, 2)
    alone = run_config(config(repository, {"optim.lr": LR}), {"optim.lr": 1e-3})
    assert alone.checkpoint.every == 60


@pytest.mark.parametrize("value", [1.2345678901234567e-07, 1e-05, 0.1 + 0.2, 1e22, 3.0])
def test_a_drawn_number_arrives_in_the_run_to_the_bit(repository: Path, value: float) -> None:
    told = config(repository, {"optim.lr": {"choices": [1e-3]}})
    assert run_config(told, {"optim.lr": value}).optim.lr == value


def test_a_drawn_kind_text_or_switch_arrives_in_the_run(repository: Path) -> None:
    drawn: dict[str, Any] = {
        "adapter.rank": "full",
        "backbone.checkpoint_activations": True,
        "adapter.kind": "apla",
    }
    made = run_config(config(repository, {"optim.lr": LR}), drawn)
    assert made.adapter.model_dump()["rank"] == "full"
    assert made.backbone.checkpoint_activations is True


SPACES = sorted((Path(__file__).parents[2] / "tune/spaces").glob("*.yaml"))


def test_there_are_spaces() -> None:
    assert SPACES


@pytest.mark.parametrize("file", SPACES, ids=lambda file: file.stem)
def test_each_space_of_the_repository_draws_settings_that_a_run_allows(repository: Path, file: Path) -> None:
    finetunes = yaml.safe_load(file.read_text()).get("verb") == "finetune"
    base = repository / ("configs/finetune.yaml" if finetunes else "configs/small/ssa.yaml")
    words = ["data.train=none", "model=none"] if finetunes else CANARY
    told = load(TuneConfig, file, values={"base": str(base), "out": "o", "settings": words})
    check_runs(told)
    assert trials_of(told) >= len(list(preview(told, 5)))


def test_trials_share_what_their_runs_can_share(repository: Path, tmp_path: Path) -> None:
    told = config(repository, {"optim.lr": LR})

    def shared(*words: str, env: dict[str, str] | None = None) -> tuple[str, ...]:
        run = run_config(told.model_copy(update={"settings": (*told.settings, *words)}), {})
        return share(told, run, env or {})

    assert shared() == ("data.decoded", "shared_trunk")
    assert shared("data.decoder=dali") == ("shared_trunk",)
    assert shared("shard_frozen=true") == ("data.decoded",)
    for stage, expected in ((2, ("data.decoded", "shared_trunk")), (3, ("data.decoded",))):
        file = tmp_path / f"{stage}.json"
        file.write_text(json.dumps({"zero_optimization": {"stage": stage}}))
        assert shared(env={"ACCELERATE_DEEPSPEED_CONFIG_FILE": str(file)}) == expected
    drawn = config(repository, {"data.decoder": {"choices": ["dali", "torchvision"]}})
    assert share(drawn, run_config(drawn, {}), {}) == ("shared_trunk",)
