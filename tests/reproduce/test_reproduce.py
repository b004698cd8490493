import json
import shlex
import shutil
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from essa_dist.cli.command import main
from essa_dist.config import RunConfig
from essa_dist.errors import UsageError
from essa_dist.finetune import FinetuneConfig
from essa_dist.packing.lock import lock
from essa_dist.reproduce import ReproduceConfig, reproduce
from essa_dist.reproduce.cells import Claim, Figure, Sizes
from essa_dist.reproduce.claims import claim_words, judge_claim, judge_figure
from essa_dist.reproduce.estimate import Work, speed, work_of
from essa_dist.reproduce.grids import GRIDS
from essa_dist.reproduce.grids.medpeft import LORA
from essa_dist.reproduce.plan import deciding, make_plan
from essa_dist.reproduce.running import Processes
from essa_dist.settings import load
from essa_dist.verbs import VERBS, config_class, sort_words, verb_of


def config(tmp_path: Path, grid: str = "small", **given: Any) -> ReproduceConfig:
    return ReproduceConfig(grid=grid, data_root=str(tmp_path), out=str(tmp_path / "out"), **given)


def ran(command: Sequence[str]) -> Any:
    """The settings that a command of a plan means."""
    name, words = verb_of(list(command))
    source, values, overrides = sort_words(VERBS[name], words)
    return load(config_class(VERBS[name]), source, overrides, values=values)


# What the grids are


def test_every_cell_of_every_grid_has_a_name_of_its_own_and_a_start_that_is_there(tmp_path: Path) -> None:
    counts = {}
    for name, grid in GRIDS.items():
        cells = grid.cells(config(tmp_path, name), (3, 5))
        names = {cell.name for cell in cells}
        assert len(names) == len(cells)
        assert {cell.start for cell in cells} <= names | {""}
        counts[name] = len(cells)
    # For each seed: 3 models x 9 x LoRA, full; essa: 5 SSA once and 6 starts x 5; small: 5 SSA, 7 shares x 6 starts x 6.
    assert counts == {
        "medpeft": 2 * 3 * 9 * 2,
        "essa": 6 * (5 + 2 * 30),
        "small": 2 * (3 * 5 + 7 * 6 * 6),
    }


def test_a_cell_of_medpeft_is_its_script(tmp_path: Path) -> None:
    plan = make_plan(GRIDS["medpeft"], config(tmp_path, "medpeft", only="chexpert/cxr_mae/f10/lora/*"))
    found = ran(shlex.split(plan.cells[0].command)[1:])
    assert isinstance(found, FinetuneConfig)
    # blr 5e-3 x 64 / 256, 100 epochs, rank 8
    assert (found.optim.lr, found.duration, found.adapter.rank) == (5e-3 / 4, "100ep", 8)
    assert (found.adapter.alpha, found.adapter.dropout, found.adapter.targets) == (32, 0.1, ("q", "v"))
    assert (found.optim.kind, found.optim.layer_decay, found.optim.weight_decay) == ("adamw", 0.65, 0.05)
    assert (found.data.train, found.data.augment.policy) == (
        f"{tmp_path}/chexpert:train_10",
        "medpeft_adamw",
    )
    head = found.head
    assert (head.pooling, head.fc_norm, head.trunk_norm, head.init_std) == ("mean", True, False, 2e-5)


def test_full_fine_tuning_of_the_one_released_cell_is_the_released_script(tmp_path: Path) -> None:
    only = "nih/mrm/f1/full/*,nih/cxr_mae/f1/full/*"
    plan = make_plan(GRIDS["medpeft"], config(tmp_path, "medpeft", only=only))
    mrm, cxr_mae = (ran(shlex.split(one.command)[1:]) for one in plan.cells)
    assert (mrm.optim.kind, mrm.optim.lr, mrm.duration) == ("sgd", 1e-2, "200ep")
    assert (cxr_mae.optim.kind, cxr_mae.optim.lr, cxr_mae.duration) == ("adamw", 5e-4 / 4, "400ep")
    assert (mrm.adapter.kind, cxr_mae.adapter.kind) == ("full", "full")


def test_lora_has_a_rank_for_each_of_the_18_cells() -> None:
    assert len(LORA) == 18
    assert {cell.rank for (_, _, fraction), cell in LORA.items() if fraction == 0.01} == {4}
    assert {cell.rank for (_, _, fraction), cell in LORA.items() if fraction == 1} == {32}


def test_essas_released_first_step_is_a_cell_of_its_grid(tmp_path: Path, repository: Path) -> None:
    plan = make_plan(GRIDS["essa"], config(tmp_path, "essa", only="isic2019/ssa-apla/s0"))
    found = ran(shlex.split(plan.cells[0].command)[1:])
    recipe = load(RunConfig, repository / "configs/paper/essa_isic2019_vitb_apla.yaml")
    differing = {name for name in RunConfig.model_fields if getattr(found, name) != getattr(recipe, name)}
    assert differing == {"out", "data"}
    assert found.data.model_copy(update={"train": ""}) == recipe.data
    assert plan.cells[0].work.steps == 23_700  # 300 epochs of 79


def test_a_supervised_cell_brings_the_run_it_starts_from(tmp_path: Path) -> None:
    plan = make_plan(GRIDS["essa"], config(tmp_path, "essa", only="ddsm/ssa-lora/sa-vpt/*"))
    first, second = plan.cells
    assert (first.cell.name, second.cell.name) == ("ddsm/ssa-lora/s0", "ddsm/ssa-lora/sa-vpt/s0")
    assert f"model={first.run}" in second.words
    assert second.status == "data"


# Running


RESULT = {
    "task": "multiclass",
    "target_metric": "balanced_accuracy",
    "trainable_parameters": 7,
    "img_per_s": 10.0,
    "test": {"values": {"balanced_accuracy": 0.75}, "intervals": {"balanced_accuracy": [0.5, 0.875]}, "n": 9},
}


@pytest.fixture
def started(tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that a grid has started; in place of a process each ends at once, `ssa-full` with an error."""
    (tmp_path / "out/data/blood").mkdir(parents=True)
    shutil.copy(repository / "assets/blood_cells/manifest.json", tmp_path / "out/data/blood")
    commands: list[list[str]] = []

    def run(self: Processes, words: Sequence[str], log_file: Path) -> tuple[int, dict[str, Any]]:
        commands.append(list(words))
        Path(next(word for word in words if word.startswith("out=")).partition("=")[2]).mkdir(
            parents=True, exist_ok=True
        )
        if "adapter=full" in words and words[0] == "adapt":
            return 1, {"error": "it broke"}
        return 0, RESULT | {"seconds": 1}

    monkeypatch.setattr(Processes, "run", run)
    return commands


CELL = "blood/ssa-apla/f1/sa-lora/*"
CELLS = f"{CELL},blood/ssa-full/f1/sa-lora/*"


def test_a_failed_cell_is_recorded_and_the_grid_goes_on(tmp_path: Path, started: list[list[str]]) -> None:
    found = reproduce(config(tmp_path, only=CELLS, seeds=(0,)))
    assert [words[0] for words in started] == ["adapt", "adapt", "finetune"]
    assert found["failed"] == {
        "blood/ssa-full/s0": "it broke",
        "blood/ssa-full/f1/sa-lora/s0": "blood/ssa-full/s0, which it starts from, failed",
    }
    assert found["exit_code"] == 1
    assert (
        json.loads((tmp_path / "out/cells/blood/ssa-full/s0.failed.json").read_text())["reason"] == "it broke"
    )


def test_only_what_is_missing_is_run_again(tmp_path: Path, started: list[list[str]]) -> None:
    reproduce(config(tmp_path, only=CELL, seeds=(0,)))
    assert len(started) == 2
    again = reproduce(config(tmp_path, only=CELL, seeds=(0, 1)))
    assert [words[0] for words in started[2:]] == ["adapt", "finetune"]
    assert all("seed=1" in words for words in started[2:])
    assert again["plan"]["counts"] == {"missing": 2, "done": 2}


def test_other_settings_are_another_result_and_so_is_all_that_starts_from_it(
    tmp_path: Path, started: list[list[str]]
) -> None:
    reproduce(config(tmp_path, only=CELL, seeds=(0,)))
    reproduce(config(tmp_path, only=CELL, seeds=(0,), settings=("threads=2",)))
    assert len(started) == 2  # which decides no result
    reproduce(config(tmp_path, only=CELL, seeds=(0,), settings=("optim.clip=0.5",)))
    assert len(started) == 4
    assert all("overwrite=true" in words for words in started[2:])


def test_a_result_is_known_by_what_differs_from_the_defaults(tmp_path: Path) -> None:
    def key(*words: str) -> dict[str, Any]:
        return deciding(load(FinetuneConfig, None, (f"out={tmp_path}", *words)))

    assert key() == {"data": {}}  # so a setting that is added later, with a default, changes no key
    assert key("optim.lr=1e-4", "data.train=X", "model=Y", "threads=3") == key()
    told = [
        key(*words)
        for words in (
            ("adapter=lora",),
            ("adapter=explora",),
            ("adapter={kind: lora, rank: 3}",),
            ("adapter={kind: explora, rank: 3}",),
            ("adapter={kind: apla, rank: 3}",),
            ("adapter=apla+bitfit",),
            ("optim.lr=2e-4",),
            ("optim.head_lr=2e-4",),
            ("task.kind=multiclass",),
            ("data.fraction=0.5",),
        )
    ]
    assert len({json.dumps(one, sort_keys=True) for one in told}) == len(told)


def test_a_cell_that_was_broken_off_goes_on(tmp_path: Path, started: list[list[str]]) -> None:
    reproduce(config(tmp_path, only=CELL, seeds=(0,)))
    (tmp_path / "out/cells/blood/ssa-apla/s0.json").unlink()
    reproduce(config(tmp_path, only=CELL, seeds=(0,)))
    assert len(started) == 3
    assert "resume=true" in started[2]


def test_the_table_has_mean_and_deviation_over_seeds(tmp_path: Path, started: list[list[str]]) -> None:
    found = reproduce(config(tmp_path, only=CELL, seeds=(0, 1)))
    (row,) = found["table"]["rows"]
    assert (row["value"], row["std"], row["n_seeds"], row["low"], row["high"]) == (0.75, 0, 2, 0.5, 0.875)
    text = (tmp_path / "out/table.md").read_text()
    assert "75.0 ± 0.0 [50.0, 87.5]" in text
    assert "not run: none of" in text


def test_a_dry_run_prints_commands_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "reproduce",
        "medpeft",
        f"data_root={tmp_path}",
        f"out={tmp_path}/out",
        "only=*/mrm/f1/*",
        "--dry-run",
    ]
    assert main(words) == 0
    told = capsys.readouterr().out
    assert told.count("essa finetune configs") + told.count("essa finetune /") == 6
    assert "essa pack RAW_RSNA" in told
    assert list(tmp_path.iterdir()) == []


def test_two_drivers_do_not_work_in_one_folder(tmp_path: Path, started: list[list[str]]) -> None:
    with (
        closing(lock(tmp_path / "out" / ".lock", "")),
        pytest.raises(UsageError, match="another essa reproduce"),
    ):
        reproduce(config(tmp_path, only=CELL, seeds=(0,)))
    assert started == []
    assert "plan" in reproduce(config(tmp_path, only=CELL, seeds=(0,), dry_run=True))
    reproduce(config(tmp_path, only=CELL, seeds=(0,)))
    assert len(started) == 2


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("", ()),
        ("accumulate=4", ("accumulate=4",)),
        ("precision=bf16, accumulate=4,", ("precision=bf16", "accumulate=4")),
        ("optim.betas=[0.9,0.95],accumulate=4", ("optim.betas=[0.9,0.95]", "accumulate=4")),
        ("adapter={kind: lora,targets: [q,v]},seed=1", ("adapter={kind: lora,targets: [q,v]}", "seed=1")),
        ("data.augment.policy=a,data.fraction=0.1", ("data.augment.policy=a", "data.fraction=0.1")),
    ],
)
def test_a_comma_parts_settings_only_before_a_key(given: str, words: tuple[str, ...], tmp_path: Path) -> None:
    assert config(tmp_path, settings=given).settings == words
    spoken = (f"data_root={tmp_path}", "out=x", f"settings='{given}'")
    assert load(ReproduceConfig, {"grid": "small"}, spoken).settings == words


def test_what_can_not_be_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="only=nope names no cell; their names are like nih/mrm"):
        make_plan(GRIDS["medpeft"], config(tmp_path, "medpeft", only="nope"))
    with pytest.raises(UsageError, match="no folder data_root="):
        reproduce(config(tmp_path / "nowhere"))


# Claims and estimates


def row(
    start: str, adapter: str, value: float, std: float | None = None, data: str = "a", seed: int = 0
) -> dict[str, Any]:
    return {
        "seed": seed,
        "unit": f"{data}/s{seed}",
        "data": data,
        "model": "m",
        "fraction": 1.0,
        "start": start,
        "adapter": adapter,
        "value": value,
        "std": std,
        "n_seeds": 4,
    }


CLAIM = Claim("x beats y", "here", {"start": "x"}, {"start": "y"})


def test_a_claim_is_judged_on_the_pairs_that_were_run() -> None:
    rows = [row("x", "l", 0.75, 0.1), row("y", "l", 0.25, 0.1), row("x", "f", 0.5, 0.2), row("y", "f", 0.625)]
    judged = judge_claim(CLAIM, rows, [*rows, row("x", "v", 0), row("y", "v", 0), row("x", "b", 0)], rows)
    assert (judged["compared"], judged["of"], judged["agree"], judged["holds"]) == (2, 3, 1, False)
    assert (judged["least_difference"], judged["most_difference"]) == (-0.125, 0.5)
    assert judged["mean_difference"] == pytest.approx((0.5 - 0.125) / 2)
    assert "does not hold here, as far as it was run (2 of 3" in claim_words(judged)


def test_a_claim_of_which_nothing_was_run_neither_holds_nor_fails() -> None:
    judged = judge_claim(CLAIM, [row("x", "l", 1)], [row("x", "l", 1), row("y", "l", 1)], [])
    assert (judged["compared"], judged["of"], judged["holds"]) == (0, 1, None)
    assert claim_words(judged) == "not run: none of 1 comparisons"


def test_a_claim_speaks_only_of_the_cells_it_names() -> None:
    within = Claim("", "", {"start": "x"}, {"start": "y"}, within={"data": ("b",)})
    rows = [row(start, "l", value, data=data) for data in "ab" for start, value in (("x", 0.5), ("y", 0.25))]
    assert judge_claim(within, rows, rows, rows)["compared"] == 1


def test_a_papers_number_stands_beside_ours() -> None:
    figure = Figure("80", "there", 80.0, {"start": "x", "adapter": "l"})
    assert judge_figure(figure, [row("x", "l", 0.5)])["here"] == 50
    assert judge_figure(figure, [row("x", "f", 0.5)])["here"] is None


def test_an_estimate_counts_updates_and_passes() -> None:
    given = {"out": "x", "duration": "2ep", "batch_size": 10, "validation": {"every": None}}
    sizes = Sizes(100, 20, 30)
    costs = {
        adapter: work_of(load(FinetuneConfig, given | {"adapter": adapter}), sizes, 100)
        for adapter in ("frozen", "lora", "full")
    }
    assert {(work.steps, work.images) for work in costs.values()} == {(20, 200)}
    # ViT-L/14 at 224 px: 257 tokens; 2, 4 or 6 operations a parameter, and 2 for each of 30 test images
    for adapter, passes in (("frozen", 2), ("lora", 4), ("full", 6)):
        assert costs[adapter].tflop == pytest.approx(304e6 * 257 * (200 * passes + 30 * 2) / 1e12)


def test_measured_cells_replace_the_assumed_speed() -> None:
    assert speed(9.0, 2.0, []) == (9.0, 2.0, 0)
    work = Work(1, 1, 30.0)
    assert speed(9.0, 2.0, [(work, 12.0), (work, 2.1)]) == (3.0, 2.0, 1)
