"""Self-supervised adaptation: the loop."""

import json
import logging
import time
from collections.abc import Generator, Iterator
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from essa_dist import runfolder
from essa_dist.backbones.weights import file_sha256
from essa_dist.data.batch import Batch
from essa_dist.data.ledger import Ledger
from essa_dist.data.manifest import MANIFEST_FILE
from essa_dist.data.prefetch import prefetch
from essa_dist.data.shards import PackedImages
from essa_dist.data.stream import TarStream
from essa_dist.distributed.collectives import any_rank, barrier
from essa_dist.engine import checkpoint
from essa_dist.engine.build import DTYPES, Training, build, standardize_heads
from essa_dist.engine.config import RunConfig
from essa_dist.engine.guard import CollapseWatch, NoBatch, StopSignals
from essa_dist.engine.optim import step_values
from essa_dist.engine.record import Metrics, check_out, run_folder, versions
from essa_dist.engine.schedules import StepValues, in_steps
from essa_dist.engine.step import NotFiniteError, train_step
from essa_dist.engine.words import announce, summary
from essa_dist.errors import DivergedError, Preempted, UsageError
from essa_dist.progress import Progress

log = logging.getLogger(__name__)


def adapt(config: RunConfig) -> dict[str, Any]:
    """Adapt a backbone to unlabelled images and return a summary of the run (see ``words.summary``).

    Raises UsageError, DataError, WeightsError before the first step; DivergedError when a loss is not finite;
    Preempted after a signal, when the checkpoint is on disk.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            "device=cuda, but there is no GPU that torch can use: say device=auto, or ask essa doctor"
        )
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    torch.set_flush_denormal(True)  # denormals make CPU steps several times slower near convergence
    accelerator = Accelerator(cpu=config.device == "cpu" or not torch.cuda.is_available())
    is_main = accelerator.is_main_process
    if is_main:
        check_out(config)  # before minutes of loading
    training = build(config, accelerator)
    if is_main and config.resume:
        checkpoint.check_data(Path(config.out), identity(training.images))
    # Only now: what can't be built leaves no folder behind.
    with run_folder(config) if is_main else nullcontext():
        barrier()
        return Run(config, training).train()


class Run:
    """One run between its start, or its restored checkpoint, and its end."""

    def __init__(self, config: RunConfig, training: Training) -> None:
        self.config, self.training = config, training
        self.folder = Path(config.out)
        self.main = training.accelerator.is_main_process
        self.data = identity(training.images)  # now: the set may be packed anew under a running job
        self.step = self._restore()
        self.device = training.accelerator.device
        self.save_every = max(1, in_steps(config.checkpoint.every, training.steps_per_epoch))
        self.watch = CollapseWatch(config.guard, prototypes=config.objective.head.prototypes)
        self.last: dict[str, float] = {}
        self.saved = 0  # step of the newest checkpoint of this process

    def _restore(self) -> int:
        t = self.training
        found = runfolder.committed_checkpoints(self.folder) if self.config.resume else []
        if not found:
            standardize_heads(t, self.config)
            return 0
        state = checkpoint.restore(found[-1], t.objective, t.optimizer)
        checkpoint.check_trunk(found[-1], state, t.trunk_sha256)
        t.scaler.load_state_dict(state["scaler"])
        log.info("resumed from %s", found[-1])
        return int(state["step"])

    def train(self) -> dict[str, Any]:
        """Run to the end, or to the step at which a signal arrives."""
        t, start, begin = self.training, self.step, time.perf_counter()
        announce(t, self.config)
        with (
            StopSignals() as signals,
            Metrics(self.folder, start_step=start, enabled=self.main) as metrics,
            Progress(t.total_steps, self.config.batch_size, start=start) as progress,
            Ledger(
                self.folder,
                start_step=start,
                rank=t.accelerator.process_index,
                world_size=t.accelerator.num_processes,
                enabled=self.config.ledger,
            ) as ledger,
        ):
            batches = prefetch(t.loader.batches(start, t.total_steps), self._to_device, self.device)
            try:
                for batch, waited in _timed(batches, signals):
                    logged = self._one_step(batch)
                    self.step += 1
                    ledger.write(self.step, batch.keys, batch.bad)
                    progress.update(self.step, self.last, data_wait=waited)
                    if logged:
                        metrics.write(self._row() | progress.window())
                    stop = any_rank(signals.received is not None, self.device)
                    if stop or self.step % self.save_every == 0 or self.step == t.total_steps:
                        self._save()
                    if stop and self.step < t.total_steps:
                        raise self._preempted(signals)
            except NoBatch:
                # This rank is between two updates, others may be in the next one: nothing waits for them.
                if self.main and self.step not in (start, self.saved):
                    self._write_checkpoint()
                raise self._preempted(signals) from None
        seconds, images = time.perf_counter() - begin, (self.step - start) * self.config.batch_size
        return {"out": str(self.folder), "step": self.step, "loss": self.last.get("total")} | summary(
            t, runfolder.checkpoint_folder(self.folder, self.step), seconds=seconds, images=images
        )

    def _to_device(self, batch: Batch) -> Batch:
        backbone = self.training.objective.backbone
        dtype = DTYPES[self.config.precision]
        return batch.to(self.device, mean=backbone.mean, std=backbone.std, dtype=dtype)

    def _one_step(self, batch: Batch) -> bool:
        """Update once on a batch that is on the device; whether this step is one that is logged."""
        t, c = self.training, self.config
        # Dropout and stochastic depth draw from a state that only seed, step and rank decide: resume is exact.
        torch.manual_seed(((c.seed * 1_000_003) + self.step) * 4099 + t.accelerator.process_index)
        logged = (self.step + 1) % c.log_every == 0 or self.step + 1 == t.total_steps
        values = self._values(self.step)
        try:
            self.last = train_step(
                t.model,
                t.objective.branches,
                t.optimizer,
                batch,
                values,
                t.accelerator,
                config=c.optim,
                accumulate=c.accumulate,
                scaler=t.scaler,
                diagnose=logged,
            )
        except NotFiniteError as error:
            raise self._post_mortem(batch, error) from error
        if logged:
            self._check_collapse(batch)
        return logged

    def _values(self, step: int) -> StepValues:
        """The schedules at ``step``, from 0."""
        t = self.training
        return step_values(
            step,
            total=t.total_steps,
            steps_per_epoch=t.steps_per_epoch,
            optim=self.config.optim,
            schedule=self.config.schedule,
        )

    def _check_collapse(self, batch: Batch) -> None:
        rows = 2 * batch.global_crops.shape[1] // self.config.accumulate
        self.watch.check(
            self.step + 1,
            rankme=self.last["rankme"],
            max_rank=min(rows, self.training.objective.backbone.embed_dim),
            prototype_entropy=self.last["prototype_entropy"],
            teacher_entropy=self.last["teacher_entropy"],
        )

    def _row(self) -> dict[str, float]:
        """This step's row of metrics.jsonl: losses and schedules, a function of the run alone."""
        values = self._values(self.step - 1)  # those that the last update used
        schedule = {
            key: getattr(values, key)
            for key in ("lr", "head_lr", "weight_decay", "head_weight_decay", "ema_momentum", "teacher_temp")
        }
        losses = {("loss" if key == "total" else key): value for key, value in self.last.items()}
        return {"step": self.step, "epoch": self.step / self.training.steps_per_epoch} | losses | schedule

    def _save(self) -> None:
        if self.main:
            self._write_checkpoint()
        barrier()

    def _write_checkpoint(self) -> None:
        folder = runfolder.checkpoint_folder(self.folder, self.step)
        checkpoint.save(folder, self.training.objective, self.training.optimizer, self._state())
        checkpoint.prune(self.folder, self.config.checkpoint.keep)
        self.saved = self.step

    def _preempted(self, signals: StopSignals) -> Preempted:
        return Preempted(
            f"stopped by {signals.received or 'a signal'} after step {self.step} of {self.training.total_steps}; "
            f"go on with resume=true"
        )

    def _state(self) -> dict[str, Any]:
        t = self.training
        return {
            "step": self.step,
            "total_steps": t.total_steps,
            "epoch": self.step / t.steps_per_epoch,
            "samples_seen": self.step * self.config.batch_size,
            "trunk_sha256": t.trunk_sha256,
            "weights_source": t.objective.backbone.weights_source,
            "weights_sha256": t.objective.backbone.weights_sha256,
            **self.data,
            "backbone": t.objective.backbone.name,
            "adapter": self.config.adapter.model_dump(),
            "scaler": t.scaler.state_dict(),
            "versions": versions(),
        }

    def _post_mortem(self, batch: Batch, error: NotFiniteError) -> DivergedError:
        """Keep the samples and the state before the update that was not made."""
        folder = self.folder / "diverged" / f"step_{self.step + 1:08d}"
        if self.main:
            checkpoint.save(folder, self.training.objective, self.training.optimizer, self._state())
            record = {
                "step": self.step + 1,
                "keys": batch.keys,
                "values": {k: repr(v) for k, v in error.report.items()},
            }
            (folder / "samples.json").write_text(json.dumps(record, indent=1))
        return DivergedError(
            f"step {self.step + 1}: not finite ({error}); nothing was updated. The {len(batch.keys)} sample keys and the "
            f"state before it are in {folder}; lower optim.lr, raise schedule.warmup or use precision=bf16"
        )


def identity(images: PackedImages | TarStream) -> dict[str, str | None]:
    """Tells data sets apart in checkpoints. None: tars without a manifest, which nothing tells apart."""
    if isinstance(images, TarStream):
        return {"data_manifest_sha256": None, "data_split": None}
    return {"data_manifest_sha256": file_sha256(images.folder / MANIFEST_FILE), "data_split": images.split}


def _timed(batches: Generator[Batch, None, None], signals: StopSignals) -> Iterator[tuple[Batch, float]]:
    """Each batch, ready on the device, with the seconds that the loop waited for it; ends the workers, however the loop ends.

    A step ends with a look at its loss, so the device is idle while the loop waits: the wait is all time lost to data.
    """
    with closing(batches):
        while True:
            begin = time.perf_counter()
            with signals.waiting():
                batch = next(batches, None)
            if batch is None:
                return
            yield batch, time.perf_counter() - begin
