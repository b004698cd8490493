"""A sweep for TensorBoard: its HParams table and the curves of all trials.

Written from the plug-in's own messages: ``tensorboard.plugins.hparams.api`` needs TensorFlow, and torch's ``hparams``
turns truth values into numbers.
"""

from pathlib import Path

from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import api_pb2, metadata
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo, SessionStartInfo
from torch.utils.tensorboard import SummaryWriter

from essa_dist.tuning.record import Sweep, Trial
from essa_dist.tuning.report.values import BADLY, is_number, number, recorded

FOLDER = "tensorboard"
BEST = "best"
"""``best/NAME`` is an objective at the trial's best look, which the table shows; ``NAME`` its curve."""
_TYPES = {
    "bool_value": api_pb2.DATA_TYPE_BOOL,
    "number_value": api_pb2.DATA_TYPE_FLOAT64,
    "string_value": api_pb2.DATA_TYPE_STRING,
}
_END = {"running": api_pb2.STATUS_RUNNING} | dict.fromkeys(BADLY, api_pb2.STATUS_FAILURE)


def write_hparams(sweep: Sweep, out: Path) -> Path:
    """Write ``out/tensorboard`` and a folder in it for each trial that was started; what lay there before is replaced."""
    folder = out / FOLDER
    names = dict.fromkeys([*sweep.parameters, *(name for trial in sweep.trials for name in trial.params)])
    kinds = {name: _kind(sweep, name) for name in names}
    _replace(folder, [], (metadata.EXPERIMENT_TAG, HParamsPluginData(experiment=_experiment(sweep, kinds))))
    for trial in sweep.trials:
        if trial.status == "waiting":
            continue
        start = SessionStartInfo(group_name=trial.name, start_time_secs=0.0)
        for name, value in trial.params.items():
            as_text = kinds[name] == "string_value"
            setattr(start.hparams[name], kinds[name], number(value) if as_text else value)
        end = SessionEndInfo(
            status=_END.get(trial.status, api_pb2.STATUS_SUCCESS), end_time_secs=trial.seconds
        )
        _replace(
            folder / trial.name,
            _scalars(sweep, trial),
            (metadata.SESSION_START_INFO_TAG, HParamsPluginData(session_start_info=start)),
            (metadata.SESSION_END_INFO_TAG, HParamsPluginData(session_end_info=end)),
        )
    return folder


def _kind(sweep: Sweep, name: str) -> str:
    """The message's field for the values that trials have: a rank that may be a number or ``full`` is words to the table."""
    values = [trial.params[name] for trial in sweep.trials if name in trial.params]
    if values and all(isinstance(value, bool) for value in values):
        return "bool_value"
    return "number_value" if all(is_number(value) for value in values) else "string_value"


def _experiment(sweep: Sweep, kinds: dict[str, str]) -> api_pb2.Experiment:
    hparams = [api_pb2.HParamInfo(name=name, type=_TYPES[kind]) for name, kind in kinds.items()]
    metrics = [
        api_pb2.MetricInfo(name=api_pb2.MetricName(tag=f"{BEST}/{name}"), display_name=name)
        for name in recorded(sweep)
    ]
    return api_pb2.Experiment(hparam_infos=hparams, metric_infos=metrics, description=sweep.base)


def _scalars(sweep: Sweep, trial: Trial) -> list[tuple[str, float, int]]:
    names = recorded(sweep)
    curve = [
        (name, look[name], int(look.get("step", i)))
        for i, look in enumerate(trial.curve)
        for name in names
        if name in look
    ]
    step = int(trial.best.get("step", trial.step))
    return curve + [(f"{BEST}/{name}", trial.best[name], step) for name in names if name in trial.best]


def _replace(
    folder: Path, scalars: list[tuple[str, float, int]], *data: tuple[str, HParamsPluginData]
) -> None:
    """One new event file in place of all older ones of ``folder``, which go last: a reader finds one at any time."""
    old = list(folder.glob("events.out.tfevents.*"))
    with SummaryWriter(str(folder)) as writer:
        for tag, message in data:
            value = Summary.Value(
                tag=tag, tensor=metadata.NULL_TENSOR, metadata=metadata.create_summary_metadata(message)
            )
            writer.file_writer.add_summary(Summary(value=[value]))
        for tag, scalar, step in scalars:
            writer.add_scalar(tag, scalar, step)
    for file in old:
        file.unlink()
