"""The last word of a sweep."""

import json

from essa_dist.cli.results import to_json, to_text
from essa_dist.tuning.report import summary, summary_text
from tests.tuning.report.trials import drawn, sweep, trial


def test_the_best_trials_come_first_with_their_settings_and_why_others_broke() -> None:
    made = drawn(9)
    made.trials[0].status = made.trials[4].status = "out_of_memory"
    made.trials[0].reason = made.trials[4].reason = "8 GiB asked of 4"
    text = summary_text(made, ["best.yaml", "trials.csv"])
    best = [one for one in made.scored() if one.status == "done"]
    assert text.startswith("9 trials: 7 done, 2 out of memory\n")
    assert "t0000, t0004: out of memory: 8 GiB asked of 4" in text
    assert text.endswith("written: best.yaml, trials.csv\n")
    lines = text.splitlines()
    places = [next(i for i, line in enumerate(lines) if one.name in line) for one in best[:5]]
    assert places == sorted(places)
    assert f"{best[0].params['optim.lr']:.4g}" in lines[places[0]]


def test_a_sweep_without_any_score_says_so() -> None:
    broke = sweep([trial(0, status="failed", reason="no GPU")])
    assert summary_text(broke) == "1 trials: 1 failed\nno trial has a score\nt0000: failed: no GPU\n"


def test_the_command_prints_the_summary_and_its_json_has_the_values() -> None:
    made = drawn(3)
    assert to_text("tune", summary(made)) == summary_text(made)
    best = json.loads(to_json(summary(made)))["best"][0]
    assert best["params"] == made.scored()[0].params
