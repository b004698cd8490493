"""k-NN and linear probes of this project against scikit-learn's, on the same features and threads, in turns.

    python benchmarks/probes.py [--bank 20000 --test 5000 --channels 384 --device auto] [--out FILE.json]

Features are overlapping clouds of 8 classes (k-NN finds 57 %, a linear probe 82 %). k-NN: k 10, 20, 100, 200 at temperatures
0.07 and 0.1, in one pass here; of scikit-learn one search for the 200 neighbours, whose votes are then counted for each
setting (its best way), and eight fits as a user would write them. Linear: 40 heads at once for so many steps; against
scikit-learn's SGDClassifier, one fit of as many epochs for each learning rate, and against one LogisticRegression.
Times are medians of the turns, ratios those of each turn's two times.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import sklearn
import torch
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.neighbors import KNeighborsClassifier
from threadpoolctl import threadpool_limits

from essa_dist.evaluation.knn import nearest_neighbours, votes
from essa_dist.evaluation.linear_sgd import BATCH, apply_heads, fit_heads
from essa_dist.evaluation.samples import Samples

KS, TEMPERATURES, CLASSES = (10, 20, 100, 200), (0.07, 0.1), 8
RATES = tuple(np.logspace(-4, -1, 40).tolist())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in (
        ("bank", 20_000),
        ("test", 5_000),
        ("channels", 384),
        ("steps", 400),
        ("turns", 3),
        ("threads", 1),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    bank, test = clouds(asked.bank, asked.channels, seed=0), clouds(asked.test, asked.channels, seed=1)
    with threadpool_limits(asked.threads):
        found = {
            "knn": knn(bank, test, asked.device, asked.turns),
            "linear": linear(bank, test, asked.device, asked.steps, asked.turns),
        }
    found["about"] = about(asked)
    text = json.dumps(found, indent=1)
    print(text)
    if asked.out:
        asked.out.write_text(text + "\n")


def clouds(n: int, channels: int, seed: int) -> Samples:
    centres = torch.randn(CLASSES, channels, generator=torch.Generator().manual_seed(9))
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (n,), generator=random)
    return Samples(0.13 * centres[labels] + torch.randn(n, channels, generator=random), labels)


def knn(bank: Samples, test: Samples, device: str, turns: int) -> dict[str, object]:
    def ours() -> list[np.ndarray]:
        on_device = bank.to(torch.device(device))
        neighbours = nearest_neighbours(on_device.features, test.features.to(device), k=max(KS))
        found = [
            votes(neighbours, on_device.targets, num_classes=CLASSES, k=k, temperature=t)
            for k in KS
            for t in TEMPERATURES
        ]
        return [probabilities.argmax(dim=1).cpu().numpy() for probabilities in found]

    def one_search() -> list[np.ndarray]:
        search = KNeighborsClassifier(max(KS), metric="cosine", algorithm="brute")
        search.fit(bank.features.numpy(), bank.targets.numpy())
        distance, member = search.kneighbors(test.features.numpy())
        labels = np.eye(CLASSES)[bank.targets.numpy()[member]]
        return [
            (np.exp((1 - distance[:, :k]) / t)[:, :, None] * labels[:, :k]).sum(axis=1).argmax(axis=1)
            for k in KS
            for t in TEMPERATURES
        ]

    def eight_fits() -> list[np.ndarray]:
        found = []
        for k in KS:
            for t in TEMPERATURES:
                judge = KNeighborsClassifier(k, metric="cosine", weights=lambda d, t=t: np.exp((1 - d) / t))
                judge.fit(bank.features.numpy(), bank.targets.numpy())
                found.append(judge.predict(test.features.numpy()))
        return found

    times, predicted = in_turns(
        {"ours": ours, "sklearn_one_search": one_search, "sklearn_eight_fits": eight_fits}, turns
    )
    truth = test.targets.numpy()
    shares = {name: [float((one == truth).mean()) for one in each] for name, each in predicted.items()}
    return times | {
        "accuracy_k20_t007": {name: share[2] for name, share in shares.items()},
        "largest_difference_points": 100
        * max(
            abs(a - b)
            for name in ("sklearn_one_search", "sklearn_eight_fits")
            for a, b in zip(shares["ours"], shares[name], strict=True)
        ),
    }


def linear(bank: Samples, test: Samples, device: str, steps: int, turns: int) -> dict[str, object]:
    grid = [(rate, 0.0) for rate in RATES]
    epochs = max(1, round(steps * BATCH / len(bank.features)))

    def ours() -> list[np.ndarray]:
        heads = fit_heads(bank.to(torch.device(device)), grid, num_classes=CLASSES, steps=steps)
        return list(apply_heads(heads, test.features.to(device)).argmax(dim=-1).cpu().numpy())

    def forty_fits() -> list[np.ndarray]:
        return [
            SGDClassifier(
                loss="log_loss", alpha=0, learning_rate="constant", eta0=rate, max_iter=epochs, tol=None
            )
            .fit(bank.features.numpy(), bank.targets.numpy())
            .predict(test.features.numpy())
            for rate in RATES
        ]

    def one_logistic() -> list[np.ndarray]:
        judge = LogisticRegression(C=0.01, max_iter=1000)
        return [judge.fit(bank.features.numpy(), bank.targets.numpy()).predict(test.features.numpy())]

    times, predicted = in_turns(
        {
            "ours_40_rates": ours,
            "sklearn_40_sgd_fits": forty_fits,
            "sklearn_one_logistic_regression": one_logistic,
        },
        turns,
    )
    truth = test.targets.numpy()
    best = {name: max(float((one == truth).mean()) for one in each) for name, each in predicted.items()}
    return times | {"steps": steps, "epochs": epochs, "best_accuracy": best}


def in_turns(
    ways: dict[str, Callable[[], list[np.ndarray]]], turns: int
) -> tuple[dict[str, object], dict[str, list[np.ndarray]]]:
    """Median seconds of each way, and how many times as long as the first the others took."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    found = {}
    for _ in range(turns):
        for name, way in ways.items():
            begin = time.perf_counter()
            found[name] = way()
            seconds[name].append(time.perf_counter() - begin)
    first = next(iter(ways))
    ratios = {
        name: [b / a for a, b in zip(seconds[first], seconds[name], strict=True)]
        for name in ways
        if name != first
    }
    return {
        "seconds": {name: round(statistics.median(each), 3) for name, each in seconds.items()},
        "ratio_to_ours": {name: round(statistics.median(each), 2) for name, each in ratios.items()},
        "ratio_range": {name: [round(min(each), 2), round(max(each), 2)] for name, each in ratios.items()},
    }, found


def about(asked: argparse.Namespace) -> dict[str, object]:
    return {
        "bank": asked.bank,
        "test": asked.test,
        "channels": asked.channels,
        "classes": CLASSES,
        "turns": asked.turns,
        "threads": asked.threads,
        "device": torch.cuda.get_device_name()
        if asked.device.startswith("cuda")
        else f"CPU ({platform.machine()})",
        "cores": os.cpu_count(),
        "versions": {"torch": torch.__version__, "scikit-learn": sklearn.__version__},
    }


if __name__ == "__main__":
    main()
