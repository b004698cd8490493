"""The images that come along: small, disjoint, balanced, and honest about where they come from."""

import importlib.util
from collections import Counter
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from essa_dist.data.manifest import read_manifest
from essa_dist.data.shards import PackedImages, open_packed

PER_CLASS = {"unlabelled": 200, "train": 50, "test": 100}


@pytest.fixture(scope="module")
def assets(repository: Path) -> Path:
    return repository / "assets"


@pytest.fixture(scope="module")
def splits(assets: Path) -> dict[str, PackedImages]:
    return {split: open_packed(f"{assets / 'blood_cells'}:{split}") for split in PER_CLASS}


@pytest.fixture
def maker(assets: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_blood_cells", assets / "make_blood_cells.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_all_files_together_stay_below_8_mebibytes(assets: Path) -> None:
    assert sum(path.stat().st_size for path in (assets / "blood_cells").rglob("*")) <= 8 * 2**20


def test_every_class_has_the_same_number_of_images_and_unlabelled_none(
    splits: dict[str, PackedImages],
) -> None:
    assert splits["unlabelled"].labels is None
    assert len(splits["unlabelled"]) == 8 * 200
    for split in ("train", "test"):
        assert np.bincount(splits[split].labels).tolist() == [PER_CLASS[split]] * 8


def test_keys_of_unlabelled_images_do_not_name_a_class(splits: dict[str, PackedImages]) -> None:
    assert all(key.startswith("cell_") for key in splits["unlabelled"].keys)


def test_no_image_is_in_two_splits_not_even_nearly(splits: dict[str, PackedImages]) -> None:
    assert (
        len({image for images in splits.values() for image in map(images.read, range(len(images)))}) == 2800
    )
    thumbnails = {
        split: np.stack([small(images, i) for i in range(len(images))]) for split, images in splits.items()
    }
    for one, two in (("unlabelled", "train"), ("unlabelled", "test"), ("train", "test")):
        a, b = thumbnails[one], thumbnails[two]
        square = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T
        assert np.sqrt(square.min() / a.shape[1]) > 10, (one, two)


def small(images: PackedImages, i: int) -> np.ndarray:
    image = Image.fromarray(images.decode(i).permute(1, 2, 0).numpy()).convert("L")
    return np.asarray(image.resize((32, 32), Image.Resampling.BOX), dtype=np.float64).reshape(-1)


def test_all_images_decode_at_224_pixels(splits: dict[str, PackedImages]) -> None:
    for images in splits.values():
        assert {tuple(images.decode(i).shape) for i in range(0, len(images), 40)} == {(3, 224, 224)}


def test_licence_and_attribution_are_in_manifest_and_readme(assets: Path) -> None:
    manifest = read_manifest(assets / "blood_cells")
    readme = (assets / "blood_cells" / "README.md").read_text(encoding="utf-8")
    assert manifest.licence == "CC BY 4.0"
    assert "CC BY 4.0" in readme
    assert "Acevedo" in manifest.attribution
    assert "Acevedo" in readme
    assert "10.17632/snkd93bnjr" in manifest.source
    assert "10.17632/snkd93bnjr" in readme
    assert "Apache License 2.0" in (assets / "weights" / "README.md").read_text(encoding="utf-8")


def test_the_script_draws_disjoint_balanced_splits_and_skips_look_alikes(
    maker: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maker, "PER_CLASS", {"unlabelled": 3, "train": 1, "test": 2})
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(7):
            pixels = np.kron(
                rng.integers(0, 256, (7, 7, 3), dtype=np.uint8), np.ones((8, 8, 1), dtype=np.uint8)
            )
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
        Image.fromarray(pixels ^ 1).save(tmp_path / name / "like_6.png")
    chosen = maker.choose(tmp_path)
    assert chosen == maker.choose(tmp_path)
    assert Counter((label, split) for _, label, split in chosen) == {
        (label, split): count for label in "ab" for split, count in maker.PER_CLASS.items()
    }
    names = [(path.parent.name, path.stem.removeprefix("like_")) for path, _, _ in chosen]
    assert len(set(names)) == len(names) == 12


def test_the_images_are_those_that_the_script_makes(
    maker: ModuleType, shared: Path, splits: dict[str, PackedImages]
) -> None:
    source = shared / "data" / "pbc_blood"
    if not source.is_dir():
        pytest.skip("../shared/data/pbc_blood is not here")
    chosen = maker.choose(source)
    for split in ("train", "test"):
        images = splits[split]
        expected = {f"{label}/{path.stem}": path for path, label, of in chosen if of == split}
        assert set(images.keys) == set(expected)
        for i in range(0, len(images), 100):
            with Image.open(expected[images.keys[i]]) as original:
                error = (
                    np.asarray(original.convert("RGB"), dtype=float)
                    - images.decode(i).permute(1, 2, 0).numpy()
                )
            assert np.sqrt(np.square(error).mean()) < 8  # grey levels: the same picture, compressed
