"""The protocols: features of a bank and a test set, to readings at each of the protocol's settings.

To add one: its function here or in a file of its own, its settings in ``ProtocolConfig``, an entry in ``PROTOCOLS``.
"""

from collections.abc import Callable
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field

from essa_dist.errors import UsageError
from essa_dist.evaluation.fewshot import fewshot_predictions
from essa_dist.evaluation.knn import nearest_neighbours, votes
from essa_dist.evaluation.linear import linear_probabilities
from essa_dist.evaluation.linear_sgd import LEARNING_RATES, WEIGHT_DECAYS, linear_sgd
from essa_dist.evaluation.readings import Classified, Drawn, Ranked, Reading
from essa_dist.evaluation.retrieval import retrieval_scores
from essa_dist.evaluation.samples import Samples
from essa_dist.settings import Config
from essa_dist.settings.words import OneOrMore

Protocol = Literal["knn", "linear", "linear_sgd", "fewshot", "retrieval"]
Count = Annotated[int, Field(ge=1)]


class ProtocolConfig(Config):
    """What the protocols are asked for."""

    k: OneOrMore[Count] = (20,)
    """k-NN: neighbours that vote; of several, as 10,20,100,200, the first is the one that is quoted."""
    temperature: OneOrMore[Annotated[float, Field(gt=0)]] = (0.07,)
    """k-NN: a neighbour of cosine similarity s votes with weight exp(s / temperature); several, as 0.07,0.1, with each k."""
    learning_rates: OneOrMore[Annotated[float, Field(gt=0)]] = LEARNING_RATES
    """linear_sgd: rates tried, all at once; the best on held-out patients of the bank is fitted anew to all of it."""
    weight_decays: OneOrMore[Annotated[float, Field(ge=0)]] = WEIGHT_DECAYS
    """linear_sgd: tried with each learning rate."""
    steps: int = Field(default=1000, ge=1)
    """linear_sgd: updates of 256 images each."""
    shots: OneOrMore[Count] = (5, 1, 10)
    """fewshot: images of each class that are learnt; the first is the one that is quoted."""
    draws: int = Field(default=20, ge=1)
    """fewshot: how often they are drawn."""
    at: OneOrMore[Count] = (1, 5, 10)
    """retrieval: ranks k of recall@k and precision@k."""


class Task(NamedTuple):
    """What a protocol works on."""

    bank: Samples
    test: Samples
    classes: tuple[str, ...]
    config: ProtocolConfig
    seed: int


def knn(task: Task) -> list[Reading]:
    """Every k with every temperature, from one pass over the similarities."""
    bank, test, classes, config, _ = task
    neighbours = nearest_neighbours(bank.features, test.features, k=max(config.k), spread=True)
    return [
        Classified(
            {"k": k, "temperature": temperature},
            classes,
            votes(neighbours, bank.targets, num_classes=len(classes), k=k, temperature=temperature).cpu(),
            test.targets.cpu(),
        )
        for k in config.k
        for temperature in config.temperature
    ]


def linear(task: Task) -> list[Reading]:
    """Logistic regression, its penalty cross-validated in the bank; one for each class where an image has several."""
    bank, test, classes, _, seed = task
    probabilities, strength = linear_probabilities(bank, test.features, num_classes=len(classes), seed=seed)
    return [Classified({"C": strength}, classes, probabilities, test.targets.cpu())]


def sgd(task: Task) -> list[Reading]:
    bank, test, classes, config, seed = task
    head = linear_sgd(
        bank,
        test.features,
        num_classes=len(classes),
        learning_rates=config.learning_rates,
        weight_decays=config.weight_decays,
        steps=config.steps,
        seed=seed,
    )
    setting = {"learning_rate": head.learning_rate, "weight_decay": head.weight_decay}
    return [Classified(setting, classes, head.probabilities.cpu(), test.targets.cpu())]


def fewshot(task: Task) -> list[Reading]:
    """Every number of shots with both methods; the first reading is the nearest class mean."""
    bank, test, classes, config, seed = task
    return [
        Drawn(
            {"shots": shots, "method": method, "draws": config.draws}, classes, predicted, test.targets.cpu()
        )
        for shots in config.shots
        for method, predicted in fewshot_predictions(
            bank, test.features, shots=shots, draws=config.draws, seed=seed
        ).items()
    ]


def retrieval(task: Task) -> list[Reading]:
    values = retrieval_scores(task.bank, task.test, task.config.at, spread=True)
    rows = [row.cpu() for row in values.values()]
    return [Ranked({}, tuple(values), torch.stack(rows), task.test.targets.cpu())]


class Entry(NamedTuple):
    run: Callable[[Task], list[Reading]]
    settings: tuple[str, ...]
    """The keys of ``ProtocolConfig`` that change its readings."""
    is_random: bool
    """Whether its readings depend on the seed."""


PROTOCOLS: dict[str, Entry] = {
    "knn": Entry(knn, ("k", "temperature"), is_random=False),
    "linear": Entry(linear, (), is_random=True),
    "linear_sgd": Entry(sgd, ("learning_rates", "weight_decays", "steps"), is_random=True),
    "fewshot": Entry(fewshot, ("shots", "draws"), is_random=True),
    "retrieval": Entry(retrieval, ("at",), is_random=False),
}


def check_fit(protocol: str, config: ProtocolConfig, *, n_bank: int, is_multilabel: bool) -> None:
    """``UsageError`` for what would otherwise fail only after minutes of extraction."""
    if protocol == "knn" and max(config.k) > n_bank:
        raise UsageError(f"k={max(config.k)} is outside 1..{n_bank} (the bank): lower k or enlarge the bank")
    if protocol == "fewshot" and is_multilabel:
        raise UsageError(
            "protocol=fewshot draws images of each class, and here an image may have several: choose knn, linear, "
            "linear_sgd or retrieval"
        )
