"""What TensorBoard reads of a sweep: by its own reader, and by the HParams plug-in's own table."""

from pathlib import Path
from typing import Any

import pytest
from tensorboard import context
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams import api_pb2, backend_context, list_session_groups

from essa_dist.tuning.record import MEMORY, Sweep
from essa_dist.tuning.report.hparams import write_hparams
from tests.tuning.report.trials import KNN, drawn, trial


def rows(folder: Path) -> dict[str, Any]:
    """The HParams table, as the page of TensorBoard asks for it: session group by trial."""
    events = EventMultiplexer().AddRunsFromDirectory(str(folder))
    events.Reload()
    provider = MultiplexerDataProvider(events, str(folder))
    backend = backend_context.Context(TBContext(data_provider=provider, logdir=str(folder)))
    request = api_pb2.ListSessionGroupsRequest(
        start_index=0, slice_size=100, allowed_statuses=[0, 1, 2, 3], aggregation_type=api_pb2.AGGREGATION_AVG
    )
    handler = list_session_groups.Handler(
        request_context=context.RequestContext(), backend_context=backend, experiment_id="", request=request
    )
    return {group.name: group for group in handler.run().session_groups}


@pytest.fixture
def made() -> Sweep:
    made = drawn(4, kinds=("apla",))
    made.trials[0].params["adapter.rank"], made.trials[1].params["adapter.rank"] = 8, "full"
    one = made.trials[1]
    one.best = {**one.curve[1]}  # its last look was worse
    made.trials[2].status, made.trials[3].status = "out_of_memory", "running"
    return Sweep(**{**vars(made), "trials": (*made.trials, trial(4, status="waiting"))})


def test_the_table_shows_settings_and_best_values_of_every_trial_that_was_started(
    made: Sweep, tmp_path: Path
) -> None:
    table = rows(write_hparams(made, tmp_path))
    assert set(table) == {"t0000", "t0001", "t0002", "t0003"}
    for one in made.trials[:4]:
        group = table[one.name]
        assert group.hparams["adapter.kind"].string_value == one.params["adapter.kind"]
        assert group.hparams["optim.lr"].number_value == one.params["optim.lr"]
        assert group.hparams["adapter.rank"].string_value == str(
            one.params["adapter.rank"]
        )  # "full" is one of them
        shown = {metric.name.tag: metric.value for metric in group.metric_values}
        assert shown == pytest.approx(
            {f"best/{name}": one.best[name] for name in one.best if name not in ("step", "seconds")}
        )
    status = {name: group.sessions[0].status for name, group in table.items()}
    assert status["t0000"] == api_pb2.STATUS_SUCCESS
    assert status["t0002"] == api_pb2.STATUS_FAILURE
    assert status["t0003"] == api_pb2.STATUS_RUNNING


def test_curves_are_there_once_however_often_it_is_written(made: Sweep, tmp_path: Path) -> None:
    for _ in range(3):
        folder = write_hparams(made, tmp_path)
    assert len(list((folder / "t0000").iterdir())) == 1
    assert len([file for file in folder.iterdir() if file.is_file()]) == 1
    reader = EventAccumulator(str(folder / "t0000"))
    reader.Reload()
    curve = [(event.step, event.value) for event in reader.Scalars(KNN)]
    assert [step for step, _ in curve] == [10, 20, 30]
    assert [value for _, value in curve] == pytest.approx([look[KNN] for look in made.trials[0].curve])
    assert len(reader.Scalars(f"best/{MEMORY}")) == 1


def test_truth_values_are_not_numbers(tmp_path: Path) -> None:
    on = trial(0, 0.5, params={"ema": True, "seed": 3})
    table = rows(write_hparams(Sweep("s", drawn(1).objectives, ("ema", "seed"), (), (on,)), tmp_path))
    assert table["t0000"].hparams["ema"].WhichOneof("kind") == "bool_value"
    assert table["t0000"].hparams["seed"].number_value == 3
