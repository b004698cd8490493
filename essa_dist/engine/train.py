"""The loop of every run that trains."""

import json
import logging
import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any, NoReturn

import torch
from accelerate import Accelerator

from essa_dist import runfolder
from essa_dist.backbones.weights import file_sha256
from essa_dist.data.batch import TrainingBatch
from essa_dist.data.ledger import Ledger
from essa_dist.data.manifest import MANIFEST_FILE
from essa_dist.data.prefetch import prefetch
from essa_dist.data.shards import PackedImages
from essa_dist.data.stream import TarStream
from essa_dist.distributed.collectives import any_rank
from essa_dist.distributed.environment import make_accelerator
from essa_dist.distributed.first_cause import compare_by, is_broken_collective
from essa_dist.distributed.messages import Channel
from essa_dist.distributed.restart import join_anew
from essa_dist.engine.build import Training
from essa_dist.engine.config import JobConfig
from essa_dist.engine.job import Job
from essa_dist.engine.recording.look import Look
from essa_dist.engine.recording.observer import Observer
from essa_dist.engine.recording.record import check_out, run_folder, versions
from essa_dist.engine.recording.trackers import check_trackers
from essa_dist.engine.saving import restore
from essa_dist.engine.saving.saver import Saver
from essa_dist.engine.saving.storage import preflight
from essa_dist.engine.schedules import in_steps
from essa_dist.engine.step import NotFiniteError, train_step
from essa_dist.engine.watching.exchange import own_connection
from essa_dist.engine.watching.heartbeat import Place
from essa_dist.engine.watching.signals import NoBatch, StopSignals
from essa_dist.engine.watching.skips import SkipRecord, budget, cause
from essa_dist.engine.watching.suspects import SampleWatch, blame, findings, in_words
from essa_dist.engine.watching.watchdog import Watchdog, collective_timeout
from essa_dist.engine.words import announce, summary
from essa_dist.errors import DivergedError, Preempted, UsageError
from essa_dist.objectives import StepValues
from essa_dist.progress import Progress

log = logging.getLogger(__name__)


def run_job(job: Job[Any], signals: StopSignals) -> dict[str, Any]:
    """Train to the end and return a summary of the run (see ``words.summary``). Raises what ``adapt`` lists."""
    config = job.config
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            "device=cuda, but there is no GPU that torch can use: say device=auto, or ask essa doctor"
        )
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    torch.set_flush_denormal(True)  # denormals make CPU steps several times slower near convergence
    cpu = config.device == "cpu" or not torch.cuda.is_available()
    join_anew("gloo" if cpu else "nccl", collective_timeout(config.guard))
    accelerator = make_accelerator(cpu=cpu, timeout=collective_timeout(config.guard))
    compare_by(own_connection())
    rank, ranks = accelerator.process_index, accelerator.num_processes
    watchdog = Watchdog(config.guard, Path(config.out), rank=rank, world_size=ranks, store=own_connection())
    with watchdog:
        return _start(job, accelerator, watchdog, signals)


def _start(
    job: Job[Any], accelerator: Accelerator, watchdog: Watchdog, signals: StopSignals
) -> dict[str, Any]:
    config = job.config
    channel = Channel()
    restored = channel.together(lambda: _check(config))  # before minutes of loading
    training = job.build(accelerator, restored=restored)
    if config.resume:
        channel.together(lambda: restore.check_data(Path(config.out), identity(training.images)))
    look = job.open_look(training)
    with ExitStack() as held:
        # Only now: what can't be built leaves no folder behind.
        channel.together(lambda: str(held.enter_context(run_folder(config))))
        return Run(job, training, watchdog, look, channel).train(signals)


def _check(config: JobConfig) -> bool:
    """Whether the run goes on from a checkpoint; an error where it can't begin at all."""
    check_out(config)
    check_trackers(config.track)
    return config.resume and bool(runfolder.committed_checkpoints(Path(config.out)))


class Run:
    """One run between its start, or its restored checkpoint, and its end."""

    def __init__(
        self,
        job: Job[Any],
        training: Training,
        watchdog: Watchdog,
        look: Look | None,
        channel: Channel,
    ) -> None:
        self.job, self.training, self.watchdog, self.look = job, training, watchdog, look
        config: JobConfig = job.config
        self.config = config
        self.channel = channel
        self.folder = Path(config.out)
        self.main = training.accelerator.is_main_process
        self.data = identity(training.images)  # now: the set may be packed anew under a running job
        self.skips = budget(config.guard, {})
        self.step = self._restore()
        self.skipped = SkipRecord(self.folder, start_step=self.step, enabled=self.main)
        self.samples = SampleWatch(training.objective, training.objective.backbone)
        self.device = training.accelerator.device
        self.save_every = in_steps(config.checkpoint.every, training.steps_per_epoch)
        self.last: dict[str, float] = {}
        self.saved = self.step  # of the newest checkpoint
        self.saver = self._saver()

    def _restore(self) -> int:
        t = self.training
        if not self.config.resume:
            return 0
        state = restore.resume(self.folder, t.strategy, self.channel, trunk_sha256=t.trunk.sha256)
        if state is None:
            return 0
        t.loss_scale.load(state.get("loss_scale", {}))
        self.skips = budget(self.config.guard, state)
        if self.look is not None:
            self.look.load(state.get(self.look.name))
        log.info("resumed from %s", state["folder"])
        return int(state["step"])

    def _saver(self) -> Saver:
        strategy, keep = self.training.strategy, self.config.checkpoint.keep
        shapes, best = strategy.shapes(), self.look is not None and self.look.keeps_best
        expected_s = self.channel.together(lambda: preflight(self.folder, shapes, keep=keep, best=best))
        moved = self.watchdog.moved
        return Saver(self.folder, strategy, self.channel, keep=keep, expected_s=expected_s, moved=moved)

    def train(self, signals: StopSignals) -> dict[str, Any]:
        """Run to the end, or to the step at which a signal arrives."""
        t, start, begin = self.training, self.step, time.perf_counter()
        announce(t, self.config)
        signals.remember()
        self.job.attend(self.watchdog.moved, lambda: any_rank(signals.received is not None, self.device))
        with (
            self.saver,
            Observer(self.config, t, self.look, start=start) as self.observer,
            Progress(t.total_steps, self.config.batch_size, start=start) as progress,
            Ledger(
                self.folder,
                start_step=start,
                rank=t.accelerator.process_index,
                world_size=t.accelerator.num_processes,
                enabled=self.config.ledger,
            ) as ledger,
        ):
            if self.observer.wants_checkpoint:
                self._save()
            batches = prefetch(t.loader.batches(start, t.total_steps), self._to_device, self.device)
            for batch, waited in self._until_stopped(batches, signals):
                with self.observer.step(self.step + 1, waited=waited):
                    self._one_step(batch)
                self.step += 1
                ledger.write(self.step, batch.keys, batch.bad)
                progress.update(self.step, self.last, data_wait=waited)
                if self.observer.is_logged(self.step):
                    self.watchdog.at("evaluating" if self.observer.is_look(self.step) else "recording")
                    self.observer.record(self.step, self._row(), progress.window())
                if self._is_save(self.step):
                    self._save()
            enough = self.observer.reason_to_stop()
            if enough and self.look is not None:
                why = (self.look.name, self.step, t.total_steps, enough)
                log.warning("the %s stops the run after step %d of %d: %s", *why)
        seconds, images = time.perf_counter() - begin, (self.step - start) * self.config.batch_size
        more = self.job.finish(self)
        return (
            {"out": str(self.folder), "step": self.step, "loss": self.last.get("total")}
            | summary(t, self._result(), seconds=seconds, images=images)
            | more
        )

    def _result(self) -> Path:
        """The checkpoint that evaluation and export take."""
        newest = runfolder.checkpoint_folder(self.folder, self.step)
        return runfolder.best_checkpoint(self.folder) or newest

    def _is_save(self, step: int) -> bool:
        due = self.save_every > 0 and step % self.save_every == 0
        last = step == self.training.total_steps or self.observer.reason_to_stop() is not None
        return due or last or self.observer.wants_checkpoint

    def _until_stopped(
        self, batches: Generator[Any, None, None], signals: StopSignals
    ) -> Iterator[tuple[Any, float]]:
        """Each batch, ready on the device, with the seconds that the loop waited for it; ends the workers, however it ends.

        A step ends with a look at its loss, so the device is idle while the loop waits: the wait is all time lost to data.
        Ranks begin a step together, when each has its batch or waits for it no longer because it is to stop: else one
        could be left in a collective of a step that others don't make. Raises Preempted when the checkpoint is on disk.
        """
        start = self.step
        with closing(batches):
            # Asked first: a run that the canary has ended, and that is started once more, stays as it is.
            while self.step < self.training.total_steps and not self.observer.reason_to_stop():
                self.watchdog.at("waiting for a batch", self.step + 1)
                begin, batch = time.perf_counter(), None
                with suppress(NoBatch):
                    if signals.received is None:
                        with signals.waiting():
                            batch = next(batches, None)
                waited = time.perf_counter() - begin
                # All ranks stop when one of them has failed to save: that raises its error on all of them.
                if any_rank(signals.received is not None or self.saver.failed, self.device):
                    self._save_and_stop(signals, start)
                if batch is None:
                    return
                yield batch, waited

    def _save_and_stop(self, signals: StopSignals, start: int) -> NoReturn:
        try:
            if self.step > self.saved:
                self._save()
            self.saver.wait()
        except RuntimeError as error:
            # The last word of a rank that has saved and left may be lost with its connection.
            if self.main or not is_broken_collective(error):
                raise
        raise Preempted(
            f"stopped by {signals.received or 'a signal to another rank'} after step {self.step} of "
            f"{self.training.total_steps}{', where it had started' if self.step == start else ''}; go on with resume=true"
        )

    def _to_device(self, batch: TrainingBatch) -> TrainingBatch:
        ready: TrainingBatch = self.job.to_device(batch, self.training)
        return ready

    def _one_step(self, batch: TrainingBatch) -> None:
        """Update once on a batch that is on the device."""
        t, c = self.training, self.config
        # Dropout and stochastic depth draw from a state that only seed, step and rank decide: resume is exact.
        torch.manual_seed(((c.seed * 1_000_003) + self.step) * 4099 + t.accelerator.process_index)
        logged = self.observer.is_logged(self.step + 1)
        try:
            self.last = train_step(
                t.strategy,
                batch,
                self._values(self.step),
                accumulate=c.accumulate,
                loss_scale=t.loss_scale,
                diagnose=logged,
                at=self._at,
            )
        except NotFiniteError as error:
            self._leave_out(batch, error)
            return
        if logged:
            self.job.check(self.step + 1, batch, self.last, t)

    def _at(self, place: Place) -> None:
        self.watchdog.at(place)
        if place == "update":
            self.saver.copied()

    def _values(self, step: int) -> StepValues:
        """The schedules at ``step``, from 0."""
        return self.job.values(step, self.training)

    def _row(self) -> dict[str, float]:
        """This step's row of metrics.jsonl: losses and schedules, a function of the run alone."""
        schedule = self.job.recorded(self._values(self.step - 1))  # those that the last update used
        losses = {("loss" if key == "total" else key): value for key, value in self.last.items()}
        scale = self.training.loss_scale
        more = {"loss_scale": scale.scale} if scale.enabled else {}
        if self.skips.budget:
            more["skipped"] = self.skips.used
        return (
            {"step": self.step, "epoch": self.step / self.training.steps_per_epoch} | losses | schedule | more
        )

    def _save(self) -> None:
        self.watchdog.at("saving")
        self.saver.save(self.step, self._state())
        self.saved = self.step

    def _state(self) -> dict[str, Any]:
        t = self.training
        return {
            "step": self.step,
            "total_steps": t.total_steps,
            "epoch": self.step / t.steps_per_epoch,
            "samples_seen": self.step * self.config.batch_size,
            "trunk_sha256": t.trunk.sha256,
            "weights_source": t.objective.backbone.weights_source,
            "weights_sha256": t.objective.backbone.weights_sha256,
            **self.data,
            "backbone": t.objective.backbone.name,
            "adapter": self.config.adapter.model_dump(),
            "loss_scale": t.loss_scale.state(),
            "skipped": self.skips.used,
            **({} if self.look is None else {self.look.name: self.look.state()}),
            "versions": versions(),
            **self.job.state(),
        }

    def _leave_out(self, batch: TrainingBatch, error: NotFiniteError) -> None:
        """Go on without the update that was not made, and with a record of it; DivergedError on all ranks if it is one too many."""
        step, self.last = self.step + 1, error.report
        self.saver.wait()  # the channel is one thread's at a time
        found = self.channel.gather(findings(error.own, self.samples.not_finite(), batch.keys))
        blamed = self.channel.together(lambda: blame(found))
        why = f"{cause(error.report)} ({in_words(blamed)})"
        if not self.skips.spend(step, why):
            raise self._post_mortem(step, why, blamed) from error
        self.skipped.write(step, blamed)
        if self.main:
            log.warning("step %d: not finite: %s; left out, %s", step, why, self.skips.left())

    def _post_mortem(self, step: int, why: str, blamed: dict[str, Any]) -> DivergedError:
        """Keep the samples to blame and the state before the update that was not made."""
        folder = self.folder / "diverged" / f"step_{step:08d}"
        self.channel.together(lambda: folder.parent.mkdir(exist_ok=True))
        self.saver.save_apart(folder, self._state())
        record = json.dumps({"step": step, "ranks": blamed}, indent=1)
        self.channel.together(lambda: (folder / "samples.json").write_text(record))
        return DivergedError(
            f"step {step}: not finite: {why}; nothing was updated.{self.skips.why()} The sample keys and the state before "
            f"it are in {folder}; lower optim.lr, raise schedule.warmup or use precision=bf16"
        )


def identity(images: PackedImages | TarStream) -> dict[str, str | None]:
    """Tells data sets apart in checkpoints. None: tars without a manifest, which nothing tells apart."""
    if isinstance(images, TarStream):
        return {"data_manifest_sha256": None, "data_split": None}
    return {"data_manifest_sha256": file_sha256(images.folder / MANIFEST_FILE), "data_split": images.split}
