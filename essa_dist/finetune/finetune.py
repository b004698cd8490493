"""Supervised adaptation: what it trains, on what, by which schedules; judged at the end. The loop is the engine's."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from essa_dist.backbones.weights import parameters_sha256
from essa_dist.data.batch import check_channels
from essa_dist.data.labelled.batch import LabelledBatch
from essa_dist.data.labelled.evaluation import evaluation_batches
from essa_dist.data.labelled.loader import LabelledLoader
from essa_dist.data.labelled.mixing import Mixer
from essa_dist.data.workers import count_workers
from essa_dist.distributed.messages import Channel
from essa_dist.engine.build import DTYPES, Training, Trunk, assemble
from essa_dist.engine.fast import make_ready
from essa_dist.engine.job import Job
from essa_dist.engine.saving import restore
from essa_dist.engine.shared_trunk import share_trunk
from essa_dist.engine.train import Run, run_job
from essa_dist.engine.watching.signals import stop_signals
from essa_dist.errors import Preempted, UsageError
from essa_dist.evaluation.features import check_image_size
from essa_dist.finetune.config import FinetuneConfig
from essa_dist.finetune.head import make_head, predictor
from essa_dist.finetune.judging import Interrupted, Judged, judge, save_judged, told
from essa_dist.finetune.objective import Supervised
from essa_dist.finetune.schedules import values_at, warn_of_durations
from essa_dist.finetune.sets import LabelledSet, Role, open_sets
from essa_dist.finetune.start import put_adapter, start_model
from essa_dist.finetune.validation import Validation
from essa_dist.objectives import StepValues
from essa_dist.planning.forecast import Forecast
from essa_dist.runfolder import EVALUATION, result_checkpoint
from essa_dist.settings import Config
from essa_dist.tasks import Task

log = logging.getLogger(__name__)


def finetune(config: FinetuneConfig) -> dict[str, Any]:
    """Train for a labelled task, keep the checkpoint that is best on validation, judge it once on the test images.

    Returns the summary of the run (``engine.words.summary``) with ``task``, ``target_metric``, ``best_step``, the
    scores of the test images as ``test`` and the file of their predictions. Raises what ``adapt`` raises.
    """
    with stop_signals() as signals, Forecast(config):
        return run_job(Finetuning(config), signals)


class Finetuning(Job[FinetuneConfig]):
    """Trains adapter and head by a task's loss, and looks at the validation images."""

    settings: Config
    task: Task
    sets: dict[Role, LabelledSet]
    mixer: Mixer

    def build(self, accelerator: Accelerator, *, restored: bool = False) -> Training:
        """See :class:`Job`; raises UsageError, DataError or WeightsError with the way out."""
        config = self.config
        torch.manual_seed(config.seed)  # heads start equal on every process
        self.settings, self.task, train, self.sets = open_sets(config)
        self.mixer = Mixer(
            config.mixing,
            task=self.task.kind,
            n_classes=len(self.task.classes),
            seed=config.seed,
            rank=accelerator.process_index,
        )
        check_channels(config.backbone.in_chans)
        backbone = start_model(config)
        check_image_size(config.data.image_size, backbone)
        trunk = Trunk(parameters_sha256(backbone), sum(p.numel() for p in backbone.parameters()))
        dtype = DTYPES[config.precision]
        shared = share_trunk(config.shared_trunk, backbone, trunk.sha256, dtype, accelerator.device)
        adapter = put_adapter(backbone, config)
        objective = Supervised(
            backbone, make_head(backbone, self.task, config), self.task, compute_dtype=dtype
        )
        make_ready(objective, config.engine, dtype, accelerator.device)
        objective.to(accelerator.device).train()
        loader = LabelledLoader(
            train.images,
            train.labels,
            config.data,
            chosen=train.chosen,
            seed=config.seed,
            global_batch=config.batch_size,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
        )
        training = assemble(
            objective,
            adapter,
            trunk,
            loader,
            train.images,
            config,
            accelerator,
            samples=len(train.chosen),
            shared=shared,
        )
        # Images of different sizes are different numbers of calls, and sharded models need as many on every rank.
        if config.data.evaluation == "native" and training.strategy.sharded and accelerator.num_processes > 1:
            raise UsageError(
                f"data.evaluation=native does not go with {training.strategy.name}, which spreads the model over ranks: "
                "use launch/ddp.yaml or zero2.yaml, or data.evaluation=whole"
            )
        if accelerator.is_main_process:
            warn_of_durations(config, training)
        return training

    def values(self, step: int, training: Training) -> StepValues:
        """See :class:`Job`."""
        return values_at(step, self.config, training)

    def to_device(self, batch: LabelledBatch, training: Training) -> LabelledBatch:
        """Normalised, on the device, and mixed."""
        return self.mixer(super().to_device(batch, training))

    def open_look(self, training: Training) -> Validation | None:
        """Validation, where there are images for it."""
        if "val" not in self.sets:
            return None
        channel = Channel()

        def measure() -> dict[str, float]:
            judged = self.judge("val", training, channel)
            found: dict[str, float] = told(judged, lambda j: j.scores(self.task, resamples=0), channel)[
                "values"
            ]
            return found

        identity = {"images": self.sets["val"].images.manifest.name, "split": self.sets["val"].images.split}
        return Validation(
            self.config.validation,
            measure,
            metric=self.task.target_metric,
            higher_is_better=self.task.higher_is_better,
            identity=identity | {"n": len(self.sets["val"].chosen), "metric": self.task.target_metric},
        )

    def judge(self, role: Role, training: Training, channel: Channel) -> Judged | None:
        """Predict a set on all ranks; what is known of it on rank 0. Raises Interrupted on all ranks after a signal."""
        data, accelerator = self.config.data, training.accelerator
        chosen = self.sets[role]
        batches = evaluation_batches(
            chosen.images,
            chosen.labels,
            chosen.chosen,
            image_size=data.image_size,
            batch_size=1 if data.evaluation == "native" else self.config.validation.batch_size,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
            how=data.evaluation,
            share=data.evaluation_share,
            threads=count_workers(data.workers),
        )

        def watched() -> Iterator[LabelledBatch]:
            for batch in batches:
                if self.interrupted():
                    raise Interrupted
                yield batch
                self.moved()

        def ready(batch: LabelledBatch) -> LabelledBatch:
            on_device: LabelledBatch = super(Finetuning, self).to_device(batch, training)
            return on_device

        return judge(predictor(self.config, training), watched(), ready, self.task, channel)

    def state(self) -> dict[str, Any]:
        """What a model of this run must know of its labels."""
        return {
            "task": self.settings.model_dump(mode="json"),
            "classes": list(self.task.classes),
            "image_size": self.config.data.image_size,
        }

    def finish(self, run: Run) -> dict[str, Any]:
        """Judge the result once on the test images. Raises Preempted after a signal."""
        training, channel = run.training, run.channel
        found: dict[str, Any] = {"task": self.task.kind, "target_metric": self.task.target_metric}
        if isinstance(run.look, Validation):
            if run.look.pending:  # which of the checkpoints is the best is not known yet
                raise Preempted(_STOPPED.format("last validation", "makes it up"))
            found["val"] = {self.task.target_metric: run.look.best}
        best = Path(channel.together(lambda: str(result_checkpoint(run.folder))))
        state = restore.load(best, training.strategy, channel, trunk_sha256=training.trunk.sha256)
        found["best_step"] = state["step"]
        if "test" not in self.sets:
            return found
        try:
            run.watchdog.at("evaluating")
            judged = self.judge("test", training, channel)
        except Interrupted:
            raise Preempted(_STOPPED.format("prediction of the test images", "repeats it")) from None
        test, resamples = self.sets["test"], self.config.test.resamples
        patients = None if test.images.patients is None else test.images.patients[test.chosen]
        found["test"] = told(
            judged, lambda j: j.scores(self.task, resamples=resamples, patients=patients), channel
        )

        def write() -> str:
            assert judged is not None
            return str(save_judged(run.folder / EVALUATION, judged, found, test.images, self.task.classes))

        return found | {"predictions": channel.together(write)}


_STOPPED = "stopped by a signal during the {}; training is done, resume=true {}"
