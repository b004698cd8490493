"""The stream's promises: WebDataset's samples, the crops and masks of any other loader, and never an end."""

import io
import itertools
import json
import tarfile
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import torch
from PIL import Image

from essa_dist.data.augment import make_crops
from essa_dist.data.batch import Batch
from essa_dist.data.loader import DataConfig
from essa_dist.data.masks import MaskConfig, draw_masks
from essa_dist.data.pixels import Bounds, show
from essa_dist.data.plan import sample_seed
from essa_dist.data.stream import Encoded, StreamConfig, draw, open_stream, read_tar
from essa_dist.data.stream_loader import StreamLoader
from essa_dist.data.views import CropConfig, draw_window
from essa_dist.errors import UsageError

CROPS = CropConfig(policy="medical", global_size=16, local_size=8, n_local=2)
COUNTS = (2, 11, 5)


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(
        buffer, "PNG"
    )
    return buffer.getvalue()


def write(path: Path, files: list[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Uneven tars ``0.tar``, ``1.tar``, ``2.tar``; key ``1-07`` is the eighth sample of the second."""
    for tar, count in enumerate(COUNTS):
        members = [
            (f"{tar}-{i:02}.{kind}", png(100 * tar + i) if kind == "png" else b"0")
            for i in range(count)
            for kind in ("png", "cls")
        ]
        write(tmp_path / f"s/{tar}.tar", members)
    return tmp_path / "s"


def loader(
    src: Path, shuffle: int = 3, window: tuple[float, float] | None = None, **settings: object
) -> StreamLoader:
    names = DataConfig.model_fields
    config = {name: value for name, value in settings.items() if name in names}
    rest = {name: value for name, value in settings.items() if name not in names}
    stream = open_stream(str(src), StreamConfig(shuffle=shuffle), window)
    arguments = {"seed": 1, "global_batch": 4, "patch_size": 4, **rest}
    return StreamLoader(stream, DataConfig(**{"crops": CROPS, "workers": 0, **config}), **arguments)


def same(one: Batch, two: Batch) -> bool:
    tensors = ("global_crops", "local_crops", "masks")
    return (one.keys, one.step) == (two.keys, two.step) and all(
        torch.equal(getattr(one, name), getattr(two, name)) for name in tensors
    )


def test_the_samples_of_a_tar_are_those_that_webdataset_reads(folder: Path) -> None:
    webdataset = pytest.importorskip("webdataset", reason="webdataset is not installed")
    for tar in folder.iterdir():
        expected = [
            (one["__key__"], one["png"]) for one in webdataset.WebDataset(str(tar), shardshuffle=False)
        ]
        assert [(one.key, one.image) for one in read_tar(str(tar), StreamConfig())] == expected


def test_every_sample_is_drawn_and_tars_are_drawn_alike(folder: Path) -> None:
    stream = open_stream(str(folder), StreamConfig(shuffle=5))
    drawn = [one.key for one in itertools.islice(draw(stream, 0, pytest.fail), 4000)]
    assert len(set(drawn)) == sum(COUNTS)
    tars = sum(COUNTS) / len(COUNTS)  # samples that a drawn tar gives on average
    for tar, count in enumerate(COUNTS):
        share = sum(key.startswith(f"{tar}-") for key in drawn) / len(drawn)
        assert share == pytest.approx(count / len(COUNTS) / tars, abs=0.06)


def test_a_buffer_mixes_tars_and_a_buffer_of_one_does_not(folder: Path) -> None:
    def changes(shuffle: int) -> int:
        stream = open_stream(str(folder), StreamConfig(shuffle=shuffle))
        tars = [one.key[0] for one in itertools.islice(draw(stream, 0, pytest.fail), 300)]
        return sum(one != two for one, two in itertools.pairwise(tars))

    assert changes(50) > 2 * changes(1)


def test_crops_and_masks_are_those_of_position_and_step(folder: Path) -> None:
    images = {
        one.key: one.image
        for tar in folder.iterdir()
        for one in read_tar(str(tar), StreamConfig())
        if isinstance(one, Encoded)
    }
    for batch in loader(folder, rank=1, world_size=2).batches(5, 8):
        for place, key in enumerate(batch.keys):
            with Image.open(io.BytesIO(images[key])) as image:
                pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
            globals_, locals_ = make_crops(pixels, CROPS, sample_seed(1, 4 * batch.step + 2 + place))
            assert torch.equal(batch.global_crops[:, place], globals_)
            assert torch.equal(batch.local_crops[:, place], locals_)
        masks = draw_masks(MaskConfig(), seed=1, step=batch.step, crops=8, select=[2, 3, 6, 7], grid=(4, 4))
        assert np.array_equal(batch.masks.numpy().reshape(4, 16), masks)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_run_is_as_long_as_asked_and_repeats_itself(folder: Path, workers: int) -> None:
    one, two = (list(loader(folder, workers=workers).batches(2, 9)) for _ in range(2))
    assert [batch.step for batch in one] == list(range(2, 9))
    assert all(same(a, b) for a, b in zip(one, two, strict=True))


def test_seed_rank_and_first_step_draw_anew(folder: Path) -> None:
    def keys(start: int = 0, **settings: int) -> tuple[str, ...]:
        batches = loader(folder, **settings).batches(start, start + 3)
        return tuple(key for batch in batches for key in batch.keys)

    draws = [keys(), keys(start=3), keys(seed=2), keys(rank=1, world_size=2)]
    assert len({draw_[:6] for draw_ in draws}) == len(draws)


def test_a_loader_can_be_asked_again_even_if_it_was_left_in_the_middle(folder: Path) -> None:
    crops = loader(folder, workers=1)
    first = crops.batches(0, 5)
    next(first)
    second = crops.batches(2, 5)
    begun = next(second)
    del first
    assert [begun.step, *(batch.step for batch in second)] == [2, 3, 4]


def test_fewer_tars_than_workers_still_make_every_step(folder: Path) -> None:
    for tar in ("0", "1"):
        (folder / f"{tar}.tar").unlink()
    ranks = [list(loader(folder, workers=2, rank=rank, world_size=2).batches(0, 6)) for rank in range(2)]
    assert [[len(batch.keys) for batch in rank] for rank in ranks] == [[2] * 6] * 2


@pytest.mark.parametrize("window", [None, (0.0, 500.0)])
def test_sixteen_bits_are_shown_through_the_window_of_the_json_or_the_settings(
    tmp_path: Path, window: tuple[float, float] | None
) -> None:
    deep = np.random.default_rng(0).integers(0, 4096, (20, 24), dtype=np.uint16)
    about = json.dumps({"slope": 2.0, "intercept": -1000.0, "window": [-200.0, 1000.0]}).encode()
    folder = write(tmp_path / "s/a.tar", [("a.png", imagecodecs.png_encode(deep)), ("a.json", about)]).parent
    (batch,) = loader(folder, window=window).batches(0, 1)
    low, high = ((real + 1000) / 2 for real in window or (-200, 1000))
    shown = np.clip((deep.astype(np.float64) - low) / (high - low) * 255, 0, 255).round().astype(np.uint8)
    image = torch.from_numpy(shown).expand(3, -1, -1)
    assert torch.equal(batch.global_crops[:, 0], make_crops(image, CROPS, sample_seed(1, 0))[0])


@pytest.mark.parametrize("bits", [8, 16])
def test_the_window_of_the_settings_counts_also_where_no_json_tells_of_real_values(
    tmp_path: Path, bits: int
) -> None:
    values = np.random.default_rng(0).integers(0, 2**bits, (20, 24)).astype(f"uint{bits}")
    image = imagecodecs.png_encode(values)
    folder = write(tmp_path / "deep" / "0.tar", [(f"{i}.png", image) for i in range(4)]).parent
    window = (10.0, 200.0)
    (batch,) = loader(folder, window=window).batches(0, 1)
    shown = show(values, Bounds(*window))
    rgb = torch.from_numpy(np.repeat(shown[:, :, None], 3, axis=2)).permute(2, 0, 1)
    assert torch.equal(batch.global_crops[:, 0], make_crops(rgb, CROPS, sample_seed(1, 0))[0])


def test_sixteen_bits_without_a_window_are_shown_between_percentiles_and_jittered_where_asked(
    tmp_path: Path,
) -> None:
    deep = np.random.default_rng(0).integers(300, 4096, (20, 24), dtype=np.uint16)
    folder = write(tmp_path / "s/a.tar", [("a.png", imagecodecs.png_encode(deep))]).parent
    from essa_dist.data.pixels import Bounds, show

    plain = Bounds(*np.percentile(deep, (0.5, 99.5)))
    for jitter, bounds in ((0.0, plain), (0.3, draw_window(plain, 0.3, sample_seed(1, 0)))):
        (batch,) = loader(folder, window_jitter=jitter).batches(0, 1)
        image = torch.from_numpy(show(deep, bounds)).expand(3, -1, -1)
        assert torch.equal(batch.global_crops[:, 0], make_crops(image, CROPS, sample_seed(1, 0))[0])


def test_what_a_stream_can_not_do_is_said(folder: Path) -> None:
    with pytest.raises(UsageError, match="essa pack index"):
        loader(folder, decoder="dali")
    with pytest.raises(UsageError, match="no multiple of the patch size"):
        loader(folder, patch_size=5)
    with pytest.raises(UsageError, match="evenly"):
        loader(folder, world_size=3)
