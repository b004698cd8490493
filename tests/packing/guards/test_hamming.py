"""The search for close hashes is exact: it finds the pairs that comparing all with all finds, each once."""

from itertools import combinations

import numpy as np
import pytest

from essa_dist.packing.guards import hamming


def hashes(count: int, seed: int = 0) -> np.ndarray:
    """Some in families a few bits apart, some with most bits in common with all others, some twice."""
    random = np.random.default_rng(seed)
    found = random.integers(0, 2**64, count, dtype=np.uint64)
    for i in range(0, count, 3):
        flips = random.choice(64, random.integers(0, 14), replace=False)
        found[i] = found[i // 2] ^ np.uint64(sum(1 << int(bit) for bit in flips))
    found[count // 2 :: 5] |= np.uint64(0xFFFFFFFF00FF0000)
    return found


def oracle(values: np.ndarray, distance: int) -> list[tuple[int, int]]:
    pairs = combinations(range(len(values)), 2)
    return [(a, b) for a, b in pairs if (int(values[a]) ^ int(values[b])).bit_count() <= distance]


def found(values: np.ndarray, distance: int) -> list[tuple[int, int]]:
    return sorted(
        (int(a), int(b))
        for block in hamming.close_pairs(values, distance)
        for a, b in zip(*block, strict=True)
    )


@pytest.mark.parametrize("by_parts", [True, False])
@pytest.mark.parametrize("distance", [0, 1, 5, 8, 11])
def test_it_finds_what_comparing_all_with_all_finds(
    distance: int, by_parts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hamming, "WORTH_IT", 0 if by_parts else 10**9)
    values = hashes(230)
    expected = oracle(values, distance)
    assert len(expected) > 3
    assert found(values, distance) == expected


@pytest.mark.parametrize("by_parts", [True, False])
def test_blocks_however_small_lose_and_repeat_nothing(
    by_parts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hamming, "WORTH_IT", 0 if by_parts else 10**9)
    values = np.concatenate([hashes(150, seed=1), np.full(40, 7, np.uint64)])
    expected = oracle(values, 8)
    for block in (1, 7, 100):
        monkeypatch.setattr(hamming, "BLOCK", block)
        assert found(values, 8) == expected


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_or_no_hashes_are_no_trouble(count: int) -> None:
    assert found(np.zeros(count, np.uint64), 8) == oracle(np.zeros(count, np.uint64), 8)


def test_of_unlike_hashes_only_a_few_in_a_thousand_are_compared() -> None:
    values = np.random.default_rng(2).integers(0, 2**64, 4000, dtype=np.uint64)
    buckets = [hamming._bucket(values, i) for i in range(hamming.PARTS)]
    masks = [[m for bits in range(radius + 1) for m in hamming._masks(bits)] for radius in (2, 1, 1, 1)]
    compared = sum(hamming._comparisons(b, m) for b, ms in zip(buckets, masks, strict=True) for m in ms)
    assert compared < 0.005 * len(values) ** 2 / 2
