"""Slices of a NIfTI volume lie as radiologists look at them, and keep the volume's values."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from essa_dist.data.pixels import Bounds, show
from essa_dist.packing.frame import Frame
from essa_dist.packing.readers import ReadConfig, nifti, read_frames

nib = pytest.importorskip("nibabel")
SHAPE = (5, 7, 9)  # right, front, head


def read(path: Path, **settings: Any) -> list[Frame]:
    return list(read_frames(path, ReadConfig.model_validate({"nifti": {"skip_empty": 0, **settings}})))


def real(frame: Frame) -> NDArray[np.float64]:
    return frame.slope * frame.pixels.astype(np.float64) + frame.intercept


def noise(dtype: str = "int16", low: int = -900, high: int = 3000, shape: Any = SHAPE) -> NDArray[Any]:
    return np.random.default_rng(3).integers(low, high, shape).astype(dtype)


def write(path: Path, values: NDArray[Any], codes: str = "RAS", slope: float = 1, inter: float = 0) -> Path:
    """``values`` [R, A, S, ...] written in the voxel order ``codes``, e.g. LPI, at 0.5 x 1.5 x 2.5 mm."""
    image = nib.Nifti1Image(values, np.diag([0.5, 1.5, 2.5, 1.0]))
    source, target = (nib.orientations.axcodes2ornt(code) for code in ("RAS", codes))
    image = image.as_reoriented(nib.orientations.ornt_transform(source, target))
    image.header.set_slope_inter(slope, inter)
    nib.save(image, path)
    return path


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR", "SLA"])
@pytest.mark.parametrize("suffix", ["nii", "nii.gz"])
def test_planes_lie_as_radiologists_look_at_them_however_they_are_stored(
    tmp_path: Path, codes: str, suffix: str
) -> None:
    volume = noise()
    path = write(tmp_path / f"a.{suffix}", volume, codes)
    for axis, length in (("axial", 9), ("coronal", 7), ("sagittal", 5)):
        frames = read(path, axis=axis)
        assert len(frames) == length
        for i, frame in enumerate(frames):
            for row, column in np.ndindex(frame.pixels.shape):
                # The slow obvious way: where the pixel of this row and column lies in the patient.
                right, front, head = {
                    "axial": (4 - column, 6 - row, i),
                    "coronal": (4 - column, i, 8 - row),
                    "sagittal": (i, 6 - column, 8 - row),
                }[axis]
                assert real(frame)[row, column] == volume[right, front, head]


def test_spacing_is_that_of_the_rows_and_columns(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii", noise(), "SLA")
    spacings = {
        axis: tuple(
            read(path, axis=axis)[0].about[f"{name}_mm"] for name in ("spacing_y", "spacing_x", "slice")
        )
        for axis in ("axial", "coronal", "sagittal")
    }
    assert spacings == {"axial": (1.5, 0.5, 2.5), "coronal": (2.5, 0.5, 1.5), "sagittal": (2.5, 1.5, 0.5)}


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16"])
@pytest.mark.parametrize("slope", [1.0, 0.3, -2.0])
def test_integers_and_their_scale_are_exact(tmp_path: Path, dtype: str, slope: float) -> None:
    info = np.iinfo(dtype)
    volume = noise(dtype, info.min, info.max + 1)
    path = tmp_path / "a.nii"
    image = nib.Nifti1Image(volume, np.eye(4))
    image.header.set_data_dtype(dtype)
    nib.save(image, path)
    raw = bytearray(path.read_bytes())
    raw[112:120] = np.array([slope, -20], "<f4").tobytes()  # scl_slope and scl_inter
    path.write_bytes(raw)
    expected = nib.load(path).get_fdata()
    frames = read(path)
    assert frames[0].pixels.dtype == ("uint8" if dtype.endswith("int8") else "uint16")
    assert frames[0].slope * slope > 0 if slope > 0 else frames[0].slope > 0
    for i, frame in enumerate(frames):
        np.testing.assert_allclose(real(frame), expected[::-1, ::-1, i].T, atol=1e-4)


def test_whole_numbers_in_a_float_type_are_exact(tmp_path: Path) -> None:
    volume = noise("float32")
    for i, frame in enumerate(read(write(tmp_path / "a.nii", volume))):
        assert frame.slope == 1
        np.testing.assert_array_equal(real(frame), volume[::-1, ::-1, i].T)


def test_floats_are_within_the_stated_error_and_nan_is_black(tmp_path: Path) -> None:
    volume = np.random.default_rng(0).normal(0, 40, SHAPE).astype(np.float32)
    volume[2, 3, 4] = np.nan
    span = np.nanmax(volume) - np.nanmin(volume)
    frames = read(write(tmp_path / "a.nii", volume))
    for i, frame in enumerate(frames):
        expected = volume[::-1, ::-1, i].T
        known = np.isfinite(expected)
        assert np.abs(real(frame) - expected)[known].max() <= span / 131_070 * 1.001
        assert (frame.pixels[~known] == 0).all()
    assert len({(frame.slope, frame.intercept, frame.window) for frame in frames}) == 1


def test_a_wide_integer_type_is_exact_where_its_values_fit(tmp_path: Path) -> None:
    volume = noise("int32", 1_000_000, 1_060_000)
    path = write(tmp_path / "a.nii", volume)
    frames = read(path)
    for i, frame in enumerate(frames):
        np.testing.assert_array_equal(real(frame), volume[::-1, ::-1, i].T)


def test_times_follow_each_other_and_steps_leave_slices_out(tmp_path: Path) -> None:
    volume = noise(shape=(*SHAPE, 2))
    path = write(tmp_path / "a.nii", volume)
    frames = read(path, every=4)
    assert [frame.part for frame in frames] == [f"t{t:04d}_z{z:04d}" for t in (0, 1) for z in (0, 4, 8)]
    np.testing.assert_array_equal(real(frames[4]), volume[::-1, ::-1, 4, 1].T)


def test_a_single_slice_is_a_picture(tmp_path: Path) -> None:
    plane = noise(shape=SHAPE[:2])
    (frame,) = read(write(tmp_path / "a.nii", plane[..., None]))
    np.testing.assert_array_equal(real(frame), plane[::-1, ::-1].T)


def test_slices_without_foreground_are_left_out(tmp_path: Path) -> None:
    volume = noise("int16", -1010, -990, (20, 20, 6))
    volume[5:15, 5:15, 2] = 40
    volume[:2, :1, 4] = 40  # 2 of 400 voxels
    path = write(tmp_path / "a.nii", volume)
    assert [frame.about["slice"] for frame in read(path, skip_empty=0.01)] == [2]
    assert [frame.about["slice"] for frame in read(path, skip_empty=0.004)] == [2, 4]
    assert len(read(path, skip_empty=0)) == 6


def test_the_window_comes_from_setting_header_or_volume(tmp_path: Path) -> None:
    volume = noise("int16", 0, 1000, (30, 30, 30))
    path = write(tmp_path / "a.nii", volume, slope=2, inter=-50)
    scaled = nib.load(path).get_fdata()
    assert read(path, window=(-160, 240))[0].window == (-160, 240)
    assert read(path, window="full")[0].window == (scaled.min(), scaled.max())
    expected = np.percentile(scaled, (0.5, 99.5), method="inverted_cdf")
    np.testing.assert_allclose(read(path)[0].window, expected, atol=2)
    image = nib.load(path)
    image.header["cal_min"], image.header["cal_max"] = 100, 300
    nib.save(image, tmp_path / "b.nii")
    assert read(tmp_path / "b.nii")[0].window == (100, 300)
    (low, high), again = read(path)[0].window or (0, 0), read(tmp_path / "b.nii", window="percentile")
    assert again[0].window == pytest.approx((low, high), abs=0.1)  # nibabel chose another scale


def test_the_window_shows_black_and_white_where_it_says(tmp_path: Path) -> None:
    volume = noise()
    frame = read(write(tmp_path / "a.nii", volume), window=(-160, 240))[3]
    assert frame.window is not None
    low, high = ((real_ - frame.intercept) / frame.slope for real_ in frame.window)
    expected = np.clip((volume[::-1, ::-1, 3].T + 160) / 400, 0, 1) * 255
    assert np.abs(show(frame.pixels, Bounds(low, high)) - expected).max() <= 1


def test_both_versions_and_byte_orders_are_read(tmp_path: Path) -> None:
    volume = noise()
    for kind, order in ((nib.Nifti1Image, ">"), (nib.Nifti2Image, "<"), (nib.Nifti2Image, ">")):
        header = kind.header_class(endianness=order)
        header.set_data_dtype(np.int16)
        nib.save(kind(volume, np.eye(4), header), tmp_path / "a.nii")
        np.testing.assert_array_equal(real(read(tmp_path / "a.nii")[1]), volume[::-1, ::-1, 1].T)


def test_what_is_no_grey_volume_is_refused_with_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rgb = np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(nib.Nifti1Image(rgb, np.eye(4)), tmp_path / "rgb.nii")
    nib.save(nib.Nifti1Image(np.zeros((*SHAPE, 1, 3), np.uint8), np.eye(4)), tmp_path / "five.nii")
    nib.save(nib.Nifti1Pair(noise(), np.eye(4)), tmp_path / "pair.hdr")
    for name, reason in (
        ("rgb.nii", "voxels of type"),
        ("five.nii", "5 dimensions"),
        ("pair.hdr", "in another file"),
    ):
        with pytest.raises(ValueError, match=reason):
            read(tmp_path / name)
    write(tmp_path / "big.nii.gz", noise())
    monkeypatch.setattr(nifti, "MAX_BYTES", 500)
    with pytest.raises(ValueError, match="630 bytes when unzipped, more than 500"):
        read(tmp_path / "big.nii.gz")


def test_a_cut_volume_is_refused(tmp_path: Path) -> None:
    for suffix in ("nii", "nii.gz"):
        path = write(tmp_path / f"a.{suffix}", noise())
        path.write_bytes(path.read_bytes()[:-60])
        with pytest.raises(ValueError, match=r"\w"):
            read(path)


def test_texts_of_the_header_are_flagged_and_not_kept(tmp_path: Path) -> None:
    image = nib.Nifti1Image(noise(), np.eye(4))
    image.header["descrip"] = b"Jane Doe"
    image.header.extensions.append(nib.nifti1.Nifti1Extension(6, b"Jane Doe"))
    nib.save(image, tmp_path / "a.nii")
    frame = read(tmp_path / "a.nii")[0]
    assert frame.flags == ("NIfTI descrip filled in", "NIfTI header extension (comment)")
    assert "Jane" not in str(frame.about)
