"""From files to what is read back: 16 bits, MONOCHROME1, masks, several labels, patients, keys."""

import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import webdataset
from PIL import Image

from essa_dist.data.pixels import read_stored
from essa_dist.data.shards import PackedImages, open_packed
from essa_dist.errors import DataError
from essa_dist.packing.guards import read_findings
from essa_dist.packing.pack import PackConfig, pack

ImageFolder = Callable[..., Path]


def packed(src: Path, tmp_path: Path, **settings: object) -> PackedImages:
    fields = {"src": str(src), "out": str(tmp_path / "out"), "report": False}
    return open_packed(
        pack(PackConfig.model_validate(fields | settings))["out"], prefer=("train", "unlabelled")
    )


def stored(images: PackedImages, i: int) -> np.ndarray:
    index = images.index
    return read_stored(
        images.read(i), bits=int(index.bits[i]), size=(int(index.height[i]), int(index.width[i]))
    )


def table(folder: Path, *lines: str) -> Path:
    (folder / "list.csv").write_text("\n".join(lines) + "\n")
    return folder / "list.csv"


def reasons(tmp_path: Path) -> str:
    return (tmp_path / "out" / "quarantine.csv").read_text()


def members(tmp_path: Path, split: str = "train") -> dict[str, bytes]:
    with tarfile.open(tmp_path / "out" / f"{split}-000000.tar") as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}


def test_16_bit_files_come_back_exactly_and_are_shown_in_their_percentiles(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    pixels = {name: rng.integers(0, 9000, (19, 27), dtype=np.uint16) for name in ("a", "b")}
    Image.fromarray(pixels["a"]).save(tmp_path / "in" / "a.png")
    Image.fromarray(pixels["b"]).save(tmp_path / "in" / "b.tif")
    images = packed(tmp_path / "in", tmp_path)
    for i, key in enumerate(images.keys):
        np.testing.assert_array_equal(stored(images, i), pixels[key])
        low, high = np.percentile(pixels[key], (0.5, 99.5), method="inverted_cdf")
        expected = np.clip((pixels[key].astype(float) - low) / (high - low) * 255, 0, 255)
        assert np.abs(images.decode(i)[0].numpy() - expected).max() <= 0.51
    assert images.manifest.bits == {"16": 2}


def test_dicom_of_both_directions_comes_back_with_its_real_values(tmp_path: Path) -> None:
    pydicom = pytest.importorskip("pydicom")
    real = np.add.outer(np.arange(24), 2 * np.arange(31)).astype(np.uint16) * 20
    (tmp_path / "in").mkdir()
    for name, turned in (("plain", False), ("turned", True)):
        data = pydicom.Dataset()
        data.Rows, data.Columns, data.SamplesPerPixel, data.PixelRepresentation = 24, 31, 1, 0
        data.PhotometricInterpretation = "MONOCHROME1" if turned else "MONOCHROME2"
        data.BitsAllocated, data.BitsStored, data.HighBit = 16, 12, 11
        data.RescaleSlope, data.RescaleIntercept, data.WindowCenter, data.WindowWidth = 2, -1024, 176, 1000
        data.SOPClassUID, data.SOPInstanceUID = pydicom.uid.CTImageStorage, "1.2.3"
        data.PatientID, data.Modality = "Miller", "CT"
        data.PixelData = real.tobytes()
        data.file_meta = pydicom.dataset.FileMetaDataset()
        data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        data.save_as(tmp_path / "in" / f"{name}.dcm", enforce_file_format=True)
    images = packed(tmp_path / "in", tmp_path)
    shown = {}
    for i, key in enumerate(images.keys):
        values = stored(images, i) * float(images.index.slope[i]) + float(images.index.intercept[i])
        np.testing.assert_array_equal(values, real * 2.0 - 1024)
        shown[key] = images.decode(i)[0].numpy().astype(int)
    assert np.abs(shown["plain"] + shown["turned"] - 255).max() <= 1
    assert shown["plain"][0, 0] < shown["plain"][-1, -1]
    said = json.loads(members(tmp_path, "unlabelled")["plain.json"])
    assert said["about"]["modality"] == "CT"
    assert said["window"] == pytest.approx([-324, 676], abs=2)
    assert b"Miller" not in b"".join(path.read_bytes() for path in (tmp_path / "out").iterdir())
    assert images.manifest.patients == {"unlabelled": 1}


def masked(image_folder: ImageFolder, **masks: np.ndarray) -> Path:
    """A table of images x/0.png ... of 40 x 32 pixels, and their masks."""
    folder = image_folder({"x": len(masks)})
    for name, mask in masks.items():
        Image.fromarray(mask).save(folder / f"{name}.png")
    return table(folder, "path,mask", *(f"x/{i}.png,{name}.png" for i, name in enumerate(masks)))


def test_masks_are_class_numbers_of_the_size_of_the_stored_image(
    image_folder: ImageFolder, tmp_path: Path
) -> None:
    cell = np.zeros((32, 40), np.uint8)
    cell[8:24, 10:30] = 1
    listing = masked(image_folder, drawn=cell * 255, numbered=cell, colour=np.dstack([cell * 255] * 3))
    images = packed(listing, tmp_path, image_size=16)
    oracle = np.asarray(Image.fromarray(cell).resize((20, 16), Image.Resampling.NEAREST))
    assert images.manifest.mask_classes == ("background", "foreground")
    for i in range(3):
        np.testing.assert_array_equal(images.mask(i).numpy(), oracle)
        assert tuple(images.decode(i).shape[1:]) == oracle.shape
    assert {name for name in members(tmp_path, "unlabelled") if name.startswith("x/0.")} == {
        "x/0.png",
        "x/0.mask.png",
    }


def test_masks_that_mean_something_else_are_left_out_with_their_reason(
    image_folder: ImageFolder, tmp_path: Path
) -> None:
    cell = np.zeros((32, 40), np.uint8)
    cell[8:24, 10:30] = 1
    red = np.dstack([cell * 255, cell, cell])
    listing = masked(image_folder, fine=cell, small=cell[::2, ::2], three=cell * 3, red=red)
    images = packed(listing, tmp_path)
    assert list(images.keys) == ["x/0"]
    found = reasons(tmp_path)
    assert "its mask has 20x16 pixels, the image 40x32" in found
    assert "its mask has the value 3: class numbers go from 0 to 1" in found
    assert "its mask is in colour" in found


def test_several_labels_come_back_as_flags_and_webdataset_reads_them(
    image_folder: ImageFolder, tmp_path: Path
) -> None:
    folder = image_folder({"x": 3})
    listing = table(
        folder,
        "path,split,patient,Mass,Edema",
        "x/0.png,train,ann,1,0",
        "x/1.png,train,ann,1,1",
        "x/2.png,train,bob,0,",
    )
    images = packed(listing, tmp_path)
    order = {name: i for i, name in enumerate(images.classes)}
    flags = {
        key: [int(images.label_matrix[i, order[name]]) for name in ("Mass", "Edema")]
        for i, key in enumerate(images.keys)
    }
    assert flags == {"x/0": [1, 0], "x/1": [1, 1], "x/2": [0, -1]}
    assert images.manifest.counts == {"train": {"Mass": 2, "Edema": 1}}
    assert images.manifest.patients == {"train": 2}
    patients = dict(zip(images.keys, images.patients.tolist(), strict=True))
    assert patients["x/0"] == patients["x/1"] != patients["x/2"]
    read = webdataset.WebDataset(str(tmp_path / "out" / "train-000000.tar"), shardshuffle=False).decode("pil")
    assert {one["__key__"]: one["json"]["labels"][order["Edema"]] for one in read} == {
        "x/0": 0,
        "x/1": 1,
        "x/2": -1,
    }


def test_a_patient_in_two_splits_is_refused_before_anything_is_packed(
    image_folder: ImageFolder, tmp_path: Path
) -> None:
    listing = table(image_folder({"x": 2}), "path,split,patient", "x/0.png,train,ann", "x/1.png,test,ann")
    with pytest.raises(DataError, match=r"1 patients are in more than one split, e.g. that of x/\d \(test\)"):
        packed(listing, tmp_path)
    assert not (tmp_path / ".out.partial").exists()
    assert len(packed(listing, tmp_path, guards={"patients": "report"})) == 1


def test_hashed_keys_tell_nothing_of_the_path_and_depend_on_the_seed(
    image_folder: ImageFolder, tmp_path: Path
) -> None:
    folder = image_folder({"miller": 3})
    (folder / "miller" / "bad.png").write_text("no image")
    keys = [
        set(packed(folder, tmp_path, out=str(tmp_path / f"{seed}"), keys="hash", seed=seed).keys)
        for seed in (1, 2)
    ]
    assert not keys[0] & keys[1]
    assert all(len(key) == 20 for key in keys[0])
    without_class = [path for path in (tmp_path / "1").iterdir() if path.name not in ("manifest.json",)]
    assert all(b"miller" not in path.read_bytes() for path in without_class)


def test_dropped_duplicates_leave_no_trace_in_tars_index_and_statistics(
    image_folder: ImageFolder, tmp_path: Path
) -> None:
    folder = image_folder({"train": 8, "test": 3})
    fresh = packed(folder, tmp_path, out=str(tmp_path / "fresh"), name="set", shard_bytes=20_000)
    (folder / "train" / "copy.png").write_bytes((folder / "test" / "1.png").read_bytes())
    dropping = {"guards": {"exact": "drop"}, "name": "set", "shard_bytes": 20_000}
    images = packed(folder, tmp_path, **dropping)
    for path in sorted((tmp_path / "fresh").glob("*.tar")):
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()
    assert (tmp_path / "out" / "index.arrow").read_bytes() == (
        tmp_path / "fresh" / "index.arrow"
    ).read_bytes()
    assert images.manifest.mean == fresh.manifest.mean
    assert "train/copy.png,duplicate of an image in another split" in reasons(tmp_path)
    assert json.loads((tmp_path / "out" / "findings.json").read_text())["dropped"] == {"train": 1}


def test_a_long_key_and_many_members_stay_inside_the_size_of_a_tar(
    image_folder: ImageFolder, tmp_path: Path
) -> None:
    folder = image_folder({"y" * 90: 12})
    images = packed(folder, tmp_path, shard_bytes=20_480, keys="path")
    assert len(images) == 12
    assert max(shard.bytes for shard in images.manifest.shards) <= 20_480
    for i, key in enumerate(images.keys):
        assert images.read(i) == (folder / f"{key}.png").read_bytes()


def test_the_stored_png_of_16_bits_is_read_by_another_decoder(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    pixels = np.random.default_rng(0).integers(0, 65536, (15, 22, 3), dtype=np.uint16)
    (tmp_path / "in" / "a.png").write_bytes(imagecodecs.png_encode(pixels))
    images = packed(tmp_path / "in", tmp_path, image_size=8)
    assert stored(images, 0).shape == (8, 12, 3)
    assert stored(images, 0).dtype == np.uint16


def test_a_file_listed_in_a_fraction_of_the_training_set_is_no_copy_but_in_the_test_set_it_is(
    image_folder: ImageFolder, tmp_path: Path
) -> None:
    image_folder({"": 3})
    rows = ["0,train", "0,train_10", "0,train_1", "0,test", "1,train", "1,train_10", "2,val"]
    lines = [f"images/{row.split(',')[0]}.png,{row},{i}" for i, row in enumerate(rows)]
    listing = table(tmp_path, "path,patient,split,key", *lines)
    settings = {"guards": {"patients": "report"}}
    images = packed(listing, tmp_path, **settings)
    found = read_findings(images.folder)
    assert found is not None
    assert (found.exact.across, found.exact.inside) == (3, 0)  # with test: train, train_10, train_1
    assert found.patients_across.count == 1
