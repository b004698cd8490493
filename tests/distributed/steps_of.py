"""Runs some updates and writes what they gave: losses, and whole tensors. Started by tests, one process a rank.

usage: python steps_of.py FOLDER N '{"NAME": ["key=value", ...], ...}'
Writes FOLDER/NAME.safetensors of each run.
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from essa_dist.data.batch import Batch
from essa_dist.distributed.collectives import leave, rank, world_size
from essa_dist.distributed.environment import make_accelerator
from essa_dist.distributed.strategies import Strategy
from essa_dist.engine.adapt import Adaptation
from essa_dist.engine.build import DTYPES, Training
from essa_dist.engine.config import RunConfig
from essa_dist.engine.optim import step_values
from essa_dist.engine.step import train_step
from essa_dist.settings import load


def whole_tensors(strategy: Strategy) -> dict[str, torch.Tensor]:
    """Every part of every rank, put together; each number exactly once."""
    mine = [(p.name, p.shape, p.start, p.values.detach().cpu().clone()) for p in strategy.parts()]
    every: list[list[tuple[str, torch.Size, int, torch.Tensor]]] = [mine]
    if world_size() > 1:
        every = [[] for _ in range(world_size())]
        dist.all_gather_object(every, mine)
    flat: dict[str, torch.Tensor] = {}
    shapes: dict[str, torch.Size] = {}
    covered: dict[str, int] = {}
    for name, shape, start, values in (part for parts in every for part in parts):
        whole = flat.setdefault(name, torch.full((shape.numel(),), torch.nan, dtype=torch.float32))
        whole[start : start + values.numel()] = values
        shapes[name], covered[name] = shape, covered.get(name, 0) + values.numel()
    wrong = [name for name in flat if covered[name] != shapes[name].numel()]
    assert not wrong, f"parts do not cover whole tensors once: {wrong[:3]}"
    assert set(strategy.shapes()) <= set(flat), "parts lack tensors that a checkpoint must hold"
    return {name: tensor.view(shapes[name]) for name, tensor in flat.items()}


def refill(strategy: Strategy, tensors: dict[str, torch.Tensor]) -> None:
    """What a restore does."""
    for name, tensor in tensors.items():
        strategy.fill(name, tensor)
    strategy.filled()


def one_step(training: Training, config: RunConfig, batch: Batch, step: int) -> dict[str, float]:
    backbone = training.objective.backbone
    ready = batch.to(
        training.accelerator.device, mean=backbone.mean, std=backbone.std, dtype=DTYPES[config.precision]
    )
    values = step_values(
        step,
        total=training.total_steps,
        steps_per_epoch=training.steps_per_epoch,
        optim=config.optim,
        schedule=config.schedule,
    )
    return train_step(
        training.strategy,
        ready,
        values,
        accumulate=config.accumulate,
        loss_scale=training.loss_scale,
        diagnose=False,
    )


def run(overrides: list[str], n_steps: int, result: Path) -> None:
    config = load(RunConfig, None, overrides)
    training = Adaptation(config).build(make_accelerator(cpu=True))
    strategy = training.strategy
    tensors = {"first": whole_tensors(strategy)}
    losses: dict[str, list[float]] = {}
    for step, batch in enumerate(training.loader.batches(0, n_steps)):
        if step == n_steps // 2:  # through whole tensors and back, as a checkpoint does
            refill(strategy, whole_tensors(strategy))
        for name, value in one_step(training, config, batch, step).items():
            losses.setdefault(name, []).append(value)
    tensors["last"] = whole_tensors(strategy)
    if rank() == 0:
        flat = {f"{when}:{name}": t for when, group in tensors.items() for name, t in group.items()}
        flat |= {f"loss:{name}": torch.tensor(values, dtype=torch.float64) for name, values in losses.items()}
        save_file(
            flat,
            result,
            metadata={
                "strategy": strategy.name,
                "ranks": str(world_size()),
                "loss_scale": str(training.loss_scale.scale),
            },
        )


def main(folder: str, n_steps: str, runs: str) -> None:
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    for name, overrides in json.loads(runs).items():
        run(overrides, int(n_steps), Path(folder) / f"{name}.safetensors")
    leave()


if __name__ == "__main__":
    main(*sys.argv[1:])
