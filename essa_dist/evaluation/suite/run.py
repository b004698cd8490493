"""Run the cells of a suite that are not there yet, and put all of them into one table."""

import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from essa_dist.data.labelled.labels import labels_of
from essa_dist.data.labelled.subset import choose_subset
from essa_dist.data.shards import PackedImages, open_packed
from essa_dist.distributed.collectives import barrier, rank
from essa_dist.errors import UsageError
from essa_dist.evaluation.classes import common_classes, warn_of_overlap
from essa_dist.evaluation.features import check_image_size
from essa_dist.evaluation.probe import FeatureConfig, find_device
from essa_dist.evaluation.protocols import PROTOCOLS, Task, check_fit
from essa_dist.evaluation.ranks import everywhere, join
from essa_dist.evaluation.samples import Samples, are_same, with_targets
from essa_dist.evaluation.suite.cells import Cell, Done, cells, from_tensors, reference, settings, to_tensors
from essa_dist.evaluation.suite.config import SuiteConfig
from essa_dist.evaluation.suite.features import Models, features, made_from
from essa_dist.evaluation.suite.store import Store
from essa_dist.evaluation.suite.table import table_of, write_table

log = logging.getLogger(__name__)


class Opened(NamedTuple):
    """One data set of the suite."""

    bank: PackedImages
    test: PackedImages
    classes: tuple[str, ...]
    overlap: int
    config: FeatureConfig


def run_suite(config: SuiteConfig) -> dict[str, Any]:
    """Do the cells that are missing in ``out``, and write table.json, table.csv and table.md there.

    Returns the table: see :func:`essa_dist.evaluation.suite.table.table_of`, with ``cells`` and ``new_cells``, how many
    there are and were done now, and ``files``. Under a launcher the ranks share the work, and all must call this.
    Raises, before anything is extracted, UsageError for settings that don't fit the models or the images and
    WeightsError for a model that can't be loaded; later what ``evaluate`` raises. What is finished stays finished.
    """
    device = find_device(config.device)
    join(device)
    suite = _Suite(config, device)
    todo = list(cells(config))
    done = []
    new = 0
    for cell in todo:
        found, is_new = suite.do(cell)
        done.append((cell, found))
        new += is_new
        if is_new:
            log.info("%d of %d cells: %s", len(done), len(todo), cell)
    table = table_of(config, done)
    files = write_table(table, Path(config.out)) if rank() == 0 else []
    barrier()
    return table | {"cells": len(todo), "new_cells": new, "files": [str(file) for file in files]}


class _Suite:
    """Everything that cells have in common; refuses at once what can't be done."""

    def __init__(self, config: SuiteConfig, device: torch.device) -> None:
        self.config, self.device = config, device
        self.data = {name: _open(config, name) for name in config.data}
        self.models = Models()
        for ref in dict.fromkeys(reference(config, cell) for cell in cells(config)):
            size = self.models.identity(ref).image_size
            for opened in self.data.values():
                check_image_size(opened.config.image_size or size, self.models.load(ref))
        self.features = Store(Path(config.features or Path(config.out) / "features"))
        self.cells = Store(Path(config.out) / "cells")
        self._held: tuple[Any, tuple[Samples, Samples]] | None = None

    def do(self, cell: Cell) -> tuple[Done, bool]:
        """A cell's result, and whether it was not there before."""
        opened, ref = self.data[cell.data], reference(self.config, cell)
        identity = self.models.identity(ref)
        key = settings(self.config, cell) | {
            "ordered": self.config.data[cell.data].ordered,
            "bank": made_from(identity, opened.bank, opened.config),
            "test": made_from(identity, opened.test, opened.config),
        }
        name = f"{cell.data}-{cell.model}-{cell.protocol}"
        kept = self.cells.read(name, key)
        if everywhere(kept is not None):
            assert kept is not None
            return from_tensors(*kept), False
        begin = time.perf_counter()
        bank, test = self._samples(cell, ref)
        task = Task(bank, test, opened.classes, self.config, cell.seed)
        readings = PROTOCOLS[cell.protocol].run(task)
        if self.config.data[cell.data].ordered:
            readings = [replace(reading, ordered=True) for reading in readings]
        facts = {
            "n_bank": len(bank.features),
            "n_test": len(test.features),
            "classes": list(opened.classes),
            "image_size": opened.config.image_size or identity.image_size,
            "overlap": opened.overlap,
            "seconds": round(time.perf_counter() - begin, 3),
        }
        found = Done(readings, facts, None if test.patients is None else test.patients.cpu())
        if rank() == 0:
            self.cells.write(name, key, *to_tensors(found))
        return found, True

    def _samples(self, cell: Cell, ref: str) -> tuple[Samples, Samples]:
        """Bank (the fraction of it that is learnt) and test set of a cell, on the device."""
        opened = self.data[cell.data]
        place = (cell.data, ref)
        if self._held is None or self._held[0] != place:
            self._held = None
            sets = [
                features(
                    self.models,
                    ref,
                    images,
                    opened.config,
                    store=self.features,
                    name=f"{cell.data}-{images.split}-{cell.model}",
                    device=self.device,
                )
                for images in (opened.bank, opened.test)
            ]
            bank, test = with_targets((sets[0], sets[1]), opened.bank, opened.test, opened.classes)
            self._held = place, (bank.to(self.device), test.to(self.device))
        bank, test = self._held[1]
        if cell.fraction == 1:
            return bank, test
        rows = choose_subset(opened.bank, labels_of(opened.bank), fraction=cell.fraction, seed=cell.seed)
        return bank.take(torch.from_numpy(rows).to(self.device)), test


def _open(config: SuiteConfig, name: str) -> Opened:
    """Raises UsageError with the name of the data set."""
    data = config.data[name]
    wanted = data.window or config.window
    window = None if wanted == "header" else wanted
    try:
        bank = open_packed(data.bank, prefer=("train",), window=window, cache=config.cache)
        test = open_packed(data.test, prefer=("test", "val"), window=window, cache=config.cache)
        classes = common_classes(bank, test)
        smallest = round(min(config.fractions) * len(bank))
        for protocol in config.protocols:
            check_fit(protocol, config, n_bank=smallest, is_multilabel=bank.label_matrix is not None)
    except UsageError as error:
        raise UsageError(f"data.{name}: {error}") from error
    is_harmless = set(config.protocols) == {"retrieval"} and are_same(bank, test)
    overlap = warn_of_overlap(bank, test, is_harmless=is_harmless)
    return Opened(bank, test, classes, overlap, config.features_config(data))
