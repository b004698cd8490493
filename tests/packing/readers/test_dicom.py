"""What is shown of a DICOM file is what pydicom, or the standard's formula, shows; and its real values are kept."""

import itertools
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from essa_dist.data.pixels import Bounds, show
from essa_dist.packing.frame import Frame
from essa_dist.packing.readers import ReadConfig, dicom, read_frames
from essa_dist.packing.readers.dicom import patient_of

pydicom = pytest.importorskip("pydicom")
EVERYTHING = ("CT", "MR", "CR", "US", "NM", "OT", "SEG", "RTDOSE", "")


def read(path: Path, **settings: Any) -> list[Frame]:
    return list(read_frames(path, ReadConfig.model_validate({"dicom": settings})))


def shown(frame: Frame) -> NDArray[np.uint8]:
    """As at run time: the window of real values goes to stored ones, and these through it."""
    assert frame.window is not None
    low, high = sorted((real - frame.intercept) / frame.slope for real in frame.window)
    return show(frame.pixels, Bounds(low, high))


def real(frame: Frame) -> NDArray[np.float64]:
    return frame.slope * frame.pixels.astype(np.float64) + frame.intercept


def oracle(ds: Any, number: int) -> NDArray[np.float64] | None:
    """pydicom's picture of a frame on the scale 0..255, MONOCHROME1 turned; None without a window."""
    from pydicom.pixels import apply_modality_lut, apply_windowing

    values = ds.pixel_array if int(ds.get("NumberOfFrames") or 1) == 1 else ds.pixel_array[number]
    ends = (0, 2**ds.BitsStored - 1) if ds.PixelRepresentation == 0 else None
    ends = ends or (-(2 ** (ds.BitsStored - 1)), 2 ** (ds.BitsStored - 1) - 1)
    slope, intercept = float(ds.get("RescaleSlope") or 1), float(ds.get("RescaleIntercept") or 0)
    if "WindowWidth" not in ds:
        return None
    windowed = apply_windowing(apply_modality_lut(values, ds), ds)
    black, white = (slope * end + intercept for end in ends)
    grey = 255 * (windowed - black) / (white - black)
    return 255 - grey if ds.PhotometricInterpretation == "MONOCHROME1" else grey


@pytest.mark.filterwarnings("ignore")
def test_real_files_look_as_pydicom_shows_them(samples: list[Path]) -> None:
    compared = []
    for path in samples:
        ds = pydicom.dcmread(path, force=True)
        if not str(ds.get("PhotometricInterpretation", "")).startswith("MONOCHROME"):
            continue
        try:
            frames = read(path)
        except ValueError:
            continue
        with_window = "WindowWidth" in ds and "TransferSyntaxUID" in ds.file_meta
        for number, frame in enumerate(frames if with_window else []):
            expected = oracle(ds, number)
            assert expected is not None
            assert np.abs(shown(frame) - expected).max() <= 1, path.name
            compared.append(ds.PhotometricInterpretation)
    assert compared.count("MONOCHROME1") >= 3
    assert compared.count("MONOCHROME2") >= 20


@pytest.mark.filterwarnings("ignore")
def test_real_files_keep_the_rescaled_values_of_pydicom(samples: list[Path]) -> None:
    from pydicom.pixels import apply_rescale

    compared = 0
    for path in samples:
        ds = pydicom.dcmread(path, force=True)
        if str(ds.get("PhotometricInterpretation", "")).startswith("MONO") and "RescaleSlope" in ds:
            frames = read(path)
            values = ds.pixel_array.reshape((len(frames), ds.Rows, ds.Columns))
            measured = values != (int(ds.PixelPaddingValue) if "PixelPaddingValue" in ds else None)
            for frame, one, keep in zip(frames, apply_rescale(values, ds), measured, strict=True):
                np.testing.assert_allclose(real(frame)[keep], one[keep], rtol=0, atol=1e-6)
                compared += 1
    assert compared >= 9


def test_every_real_file_gives_frames_or_one_line_and_nothing_on_the_screen(
    samples: list[Path], capfd: pytest.CaptureFixture[str]
) -> None:
    decoded, refused = 0, {}
    with warnings.catch_warnings(record=True) as spilled:
        for path in samples:
            try:
                decoded += len(read(path, modalities=EVERYTHING, frames="middle")) == 1
            except ValueError as error:
                refused[path.name] = str(error)
    assert decoded >= len(samples) - 3
    assert set(refused) <= {"JPEG2000-embedded-sequence-delimiter.dcm", "MR_truncated.dcm", "badVR.dcm"}
    assert all(0 < len(reason) <= 300 and "\n" not in reason for reason in refused.values())
    assert not spilled
    assert capfd.readouterr() == ("", "")


TWINS = {
    "MR_small.dcm": "RLE bigendian expb implicit jp2klossless jpeg_ls_lossless padded",
    "SC_rgb_small_odd.dcm": "big_endian",
}


@pytest.mark.parametrize(
    ("plain", "other"), [(plain, other) for plain, all_ in TWINS.items() for other in all_.split()]
)
def test_encodings_of_one_picture_give_the_same_frame(shipped: Path, plain: str, other: str) -> None:
    (expected,) = read(shipped / plain)
    (found,) = read(shipped / plain.replace(".dcm", f"_{other}.dcm"))
    np.testing.assert_array_equal(found.pixels, expected.pixels)
    assert (found.slope, found.intercept, found.window) == (
        expected.slope,
        expected.intercept,
        expected.window,
    )


@pytest.mark.parametrize("other", ["RLE", "big_endian", "jpeg_2k_lossless", "jpeg_ls_lossless"])
def test_encodings_of_a_multi_frame_file_give_the_same_frames(samples: list[Path], other: str) -> None:
    files = {path.name: path for path in samples}
    expected, found = read(files["emri_small.dcm"]), read(files[f"emri_small_{other}.dcm"])
    assert [frame.part for frame in found] == [f"f{number:04d}" for number in range(1, 11)]
    for one, other_one in zip(expected, found, strict=True):
        np.testing.assert_array_equal(one.pixels, other_one.pixels)


@pytest.mark.filterwarnings("ignore")
def test_lossless_jpeg_gives_the_pixels_of_another_decoder(samples: list[Path]) -> None:
    pytest.importorskip("gdcm")
    names = ("JPEG-LL.dcm", "JPGLosslessP14SV1_1s_1f_8b.dcm", "bad_sequence.dcm", "SC_rgb_jpeg_gdcm.dcm")
    for path in [path for path in samples if path.name in names]:
        ds = pydicom.dcmread(path)
        ds.pixel_array_options(decoding_plugin="gdcm")
        np.testing.assert_allclose(real(read(path)[0]), ds.pixel_array * 1.0 + _intercept(ds))


def _intercept(ds: Any) -> float:
    return float(ds.get("RescaleIntercept") or 0)


def test_jpeg_of_twelve_bits_is_read(make_dicom: Any) -> None:
    imagecodecs = pytest.importorskip("imagecodecs")
    smooth = np.add.outer(np.arange(24) * 90, np.arange(40) * 40).astype(np.uint16)
    stream = imagecodecs.jpeg8_encode(smooth, level=98, bitspersample=12)
    pixels = pydicom.encaps.encapsulate([stream])
    (frame,) = read(make_dicom(smooth, syntax="1.2.840.10008.1.2.4.51", pixels=pixels, BitsStored=12))
    assert np.abs(real(frame) - smooth).max() < 40
    assert frame.lossy


@pytest.mark.parametrize(
    ("kind", "bits", "slope", "photometric"),
    [
        case
        for case in itertools.product(
            ("int16", "uint16", "int8", "uint8"), (7, 8, 12, 16), (1.0, -2.5), ("MONOCHROME1", "MONOCHROME2")
        )
        if case[1] <= 8 * np.dtype(case[0]).itemsize
    ],
)
def test_stored_values_grow_with_brightness_and_keep_the_real_ones(
    make_dicom: Any, kind: str, bits: int, slope: float, photometric: str
) -> None:
    dtype = np.dtype(kind)
    low = -(2 ** (bits - 1)) if dtype.kind == "i" else 0
    raw = np.linspace(low, low + 2**bits - 1, 35).round().astype(dtype).reshape(5, 7)
    path = make_dicom(
        raw,
        BitsStored=bits,
        PhotometricInterpretation=photometric,
        RescaleSlope=slope,
        RescaleIntercept=-30,
        WindowCenter=40,
        WindowWidth=400,
    )
    (frame,) = read(path)
    expected = slope * raw.astype(np.float64) - 30
    np.testing.assert_allclose(real(frame), expected, atol=1e-6)
    darkens = photometric == "MONOCHROME1"
    assert (frame.slope < 0) == darkens
    assert (np.diff(frame.pixels.ravel().astype(int)) < 0).all() == (darkens != (slope < 0))
    ends = np.clip((expected - (40 - 0.5)) / (400 - 1) + 0.5, 0, 1) * 255
    assert np.abs(shown(frame) - (255 - ends if darkens else ends)).max() <= 1


def test_a_file_whose_values_need_more_than_its_bits_is_still_exact(make_dicom: Any) -> None:
    imagecodecs = pytest.importorskip("imagecodecs")
    raw = np.array([[0, 7, 4096], [65535, 255, 9]], np.uint16)
    stream = pydicom.encaps.encapsulate([imagecodecs.jpeg2k_encode(raw, codecformat="J2K", level=0)])
    path = make_dicom(
        raw,
        BitsStored=12,
        PhotometricInterpretation="MONOCHROME1",
        syntax="1.2.840.10008.1.2.4.90",
        pixels=stream,
    )
    np.testing.assert_array_equal(real(read(path)[0]), raw)


@pytest.mark.parametrize(
    ("function", "ends"),
    [
        ("LINEAR", (100.0, 299.0)),
        ("LINEAR_EXACT", (100.0, 300.0)),
        ("SIGMOID", (100.0, 300.0)),
        ("", (100.0, 299.0)),
    ],
)
def test_each_window_function_has_its_ends(
    make_dicom: Any, ramp: NDArray[np.int16], function: str, ends: tuple[float, float]
) -> None:
    (frame,) = read(make_dicom(ramp, WindowCenter=200, WindowWidth=200, VOILUTFunction=function))
    assert frame.window == pytest.approx(ends)


def test_the_line_for_a_sigmoid_has_its_slope_at_the_centre(make_dicom: Any) -> None:
    raw = np.arange(150, 251, dtype=np.int16)[None].repeat(2, axis=0)
    path = make_dicom(raw, WindowCenter=200, WindowWidth=200, VOILUTFunction="SIGMOID")
    exact = 255 / (1 + np.exp(-4 * (raw - 200.0) / 200))
    assert np.abs(shown(read(path)[0]) - exact).max() < 0.04 * 255


def test_the_window_is_chosen_by_number_and_the_first_where_there_are_fewer(
    make_dicom: Any, ramp: NDArray[np.int16]
) -> None:
    path = make_dicom(ramp, WindowCenter=[40, 600], WindowWidth=[81, 1001])
    windows = [read(path, window_number=number)[0].window for number in (1, 2, 3)]
    assert windows == [(-0.5, 79.5), (99.5, 1099.5), (-0.5, 79.5)]


def test_the_setting_replaces_the_window_of_the_header(make_dicom: Any, ramp: NDArray[np.int16]) -> None:
    path = make_dicom(ramp, WindowCenter=40, WindowWidth=80, RescaleSlope=2, RescaleIntercept=-5)
    assert read(path, window=(-160, 240))[0].window == (-160, 240)
    assert read(path, window="full")[0].window == (2 * -900 - 5, 2 * int(ramp.max()) - 5)
    low, high = np.percentile(2.0 * ramp - 5, (0.5, 99.5), method="inverted_cdf")
    assert read(path, window="percentile")[0].window == (low, high)


def test_without_a_window_eight_bits_are_shown_whole_and_more_by_percentiles(make_dicom: Any) -> None:
    shallow = np.arange(30, 65, dtype=np.uint8).reshape(5, 7)
    assert read(make_dicom(shallow, BitsStored=7))[0].window == (0, 127)
    deep = np.arange(35, dtype=np.uint16).reshape(5, 7) * 100
    assert read(make_dicom(deep))[0].window == (0, 3400)


def test_a_voi_lut_gives_the_range_in_which_it_changes(make_dicom: Any, ramp: NDArray[np.int16]) -> None:
    table = [0] * 50 + list(range(256)) + [255] * 20

    def window(data: list[int]) -> Frame:
        item = pydicom.Dataset()
        item.LUTDescriptor = [len(data), 100, 16]
        item.LUTData = np.array(data, "<u2").tobytes()
        item["LUTDescriptor"].VR, item["LUTData"].VR = "SS", "OW"
        return read(make_dicom(ramp, VOILUTSequence=[item], WindowCenter=5, WindowWidth=9))[0]

    assert window(table).window == (150, 405)
    assert window(table).slope > 0
    assert window(table[::-1]).window == (120, 375)
    assert window(table[::-1]).slope < 0, "what the table makes dark must be dark"


def test_a_modality_lut_gives_the_real_values(samples: list[Path]) -> None:
    from pydicom.pixels import apply_modality_lut

    path = next(path for path in samples if path.name == "mlut_18.dcm")
    ds = pydicom.dcmread(path)
    np.testing.assert_array_equal(real(read(path)[0]), apply_modality_lut(ds.pixel_array, ds))


def test_frames_of_an_enhanced_file_have_their_own_rescale_and_window(make_dicom: Any) -> None:
    def group(slope: float, centre: float) -> Any:
        one, values, voi = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
        values.RescaleSlope, values.RescaleIntercept = slope, -7
        voi.WindowCenter, voi.WindowWidth = centre, 11
        one.PixelValueTransformationSequence, one.FrameVOILUTSequence = [values], [voi]
        return one

    shared = pydicom.Dataset()
    spacing = pydicom.Dataset()
    spacing.PixelSpacing, spacing.SliceThickness = [0.5, 0.25], 3
    shared.PixelMeasuresSequence = [spacing]
    raw = np.arange(70, dtype=np.uint16).reshape(2, 5, 7)
    path = make_dicom(
        raw,
        frames=2,
        PerFrameFunctionalGroupsSequence=[group(2, 20), group(3, 50)],
        SharedFunctionalGroupsSequence=[shared],
    )
    first, second = read(path)
    np.testing.assert_array_equal(real(first), raw[0] * 2.0 - 7)
    np.testing.assert_array_equal(real(second), raw[1] * 3.0 - 7)
    assert (first.window, second.window) == ((14.5, 24.5), (44.5, 54.5))
    assert second.about["spacing_y_mm"], second.about["spacing_x_mm"] == (0.5, 0.25)
    assert (second.about["slice_mm"], second.about["frame"]) == (3, 2)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_and_counts_for_no_window(make_dicom: Any, photometric: str) -> None:
    raw = np.arange(100, 135, dtype=np.int16).reshape(5, 7)
    raw[0] = [-2000, -1999, -2000, -1999, -2000, -1999, -2000]
    path = make_dicom(raw, PhotometricInterpretation=photometric)
    edited = pydicom.dcmread(path)
    for keyword, value in (("PixelPaddingValue", -2000), ("PixelPaddingRangeLimit", -1999)):
        edited.add_new(keyword, "US", value % 65536)  # as some devices write it for signed pixels
    edited.save_as(path)
    (frame,) = read(path, window="full")
    assert frame.window == (107, 134)
    assert (shown(frame)[0] == 0).all()
    np.testing.assert_array_equal(real(frame)[1:], raw[1:])


def test_thirty_two_bits_are_quantised_and_their_real_values_known(make_dicom: Any) -> None:
    raw = np.array([[5, 70_000, 4_000_000_000], [2_000_000_000, 17, 123_456_789]], np.uint32)
    (frame,) = read(make_dicom(raw))
    assert frame.pixels.dtype == np.uint16
    assert np.abs(real(frame) - raw).max() <= (4_000_000_000 - 5) / 131_070 + 1e-3


def test_colour_is_exact_whatever_its_layout_and_depth(make_dicom: Any) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    np.testing.assert_array_equal(read(make_dicom(rgb))[0].pixels, rgb)
    planes = rgb.transpose(2, 0, 1).tobytes() + b"\0"
    np.testing.assert_array_equal(read(make_dicom(rgb, pixels=planes, PlanarConfiguration=1))[0].pixels, rgb)
    deep = rgb.astype(np.uint16) * 17
    (frame,) = read(make_dicom(deep, BitsStored=13))
    np.testing.assert_array_equal(frame.pixels, deep)
    assert frame.window == (0, 8191)
    (frame,) = read(make_dicom(rgb.astype(np.uint32) * 16843009))  # 0..2^32 - 1
    np.testing.assert_array_equal(frame.pixels, rgb.astype(np.uint16) * 257)


def test_palette_colours_are_those_of_pydicom_in_eight_bits(samples: list[Path]) -> None:
    from pydicom.pixels import apply_color_lut

    files = {path.name: path for path in samples}
    for name in ("OBXXXX1A.dcm", "gdcm-US-ALOKA-16.dcm"):
        ds = pydicom.dcmread(files[name])
        expected = apply_color_lut(ds.pixel_array, ds) / 257
        (frame,) = read(files[name])
        assert np.abs(frame.pixels - expected).max() <= 0.5
    for little, big in (
        ("OBXXXX1A.dcm", "OBXXXX1A_expb.dcm"),
        ("gdcm-US-ALOKA-16.dcm", "gdcm-US-ALOKA-16_big.dcm"),
    ):
        np.testing.assert_array_equal(read(files[little])[0].pixels, read(files[big])[0].pixels)


@pytest.mark.parametrize(
    ("frames", "expected"), [("middle", [15]), (9, [0, 9, 18, 27]), ("all", list(range(30)))]
)
@pytest.mark.parametrize("streamed", [False, True])
def test_frames_are_chosen_in_memory_and_from_the_file(
    shipped: Path, monkeypatch: pytest.MonkeyPatch, frames: Any, expected: list[int], streamed: bool
) -> None:
    if streamed:
        monkeypatch.setattr(dicom, "STREAM_FROM", 1000)
    path = shipped / "examples_ybr_color.dcm"
    every = pydicom.dcmread(path).pixel_array
    found = read(path, frames=frames)
    assert [frame.about["frame"] for frame in found] == [number + 1 for number in expected]
    for frame, number in zip(found, expected, strict=True):
        np.testing.assert_array_equal(frame.pixels, every[number])


@pytest.mark.parametrize("name", ["MR_small.dcm", "MR_small_bigendian.dcm", "MR_small_RLE.dcm"])
def test_a_file_read_frame_by_frame_gives_the_same(
    shipped: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (whole,) = read(shipped / name)
    monkeypatch.setattr(dicom, "STREAM_FROM", 1000)
    (streamed,) = read(shipped / name)
    np.testing.assert_array_equal(streamed.pixels, whole.pixels)


@pytest.mark.parametrize("syntax", ["native", "rle"])
def test_a_large_file_never_lies_in_memory_whole(
    make_dicom: Any, monkeypatch: pytest.MonkeyPatch, syntax: str
) -> None:
    import tracemalloc

    monkeypatch.setattr(dicom, "STREAM_FROM", 1_000_000)
    raw = np.random.default_rng(0).integers(0, 256, (60, 256, 256), dtype=np.uint8)
    literal = b"".join(b"\x7f" + raw[0].tobytes()[i : i + 128] for i in range(0, raw[0].size, 128))
    header = np.array([1, 64, *[0] * 14], "<u4").tobytes()
    stream = pydicom.encaps.encapsulate([header + literal] * 60)
    compressed = {"syntax": "1.2.840.10008.1.2.5", "pixels": stream} if syntax == "rle" else {}
    path = make_dicom(raw, frames=60, **compressed)
    next(read_frames(path, ReadConfig()))  # what is imported doesn't count
    tracemalloc.start()
    count = sum(frame.pixels.shape == (256, 256) for frame in read_frames(path, ReadConfig()))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 60
    assert peak < raw.nbytes / 3


def test_a_large_file_that_is_cut_short_is_refused(make_dicom: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dicom, "STREAM_FROM", 1000)
    path = make_dicom(np.zeros((3, 64, 32), np.uint16), frames=3)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(ValueError, match="10288 bytes of pixels, expected 12288: truncated"):
        next(read_frames(path, ReadConfig()))
    path = make_dicom(np.zeros((3, 64, 32), np.uint16), frames=3, NumberOfFrames=5)
    with pytest.raises(ValueError, match="12288 bytes of pixels, expected 20480: truncated"):
        next(read_frames(path, ReadConfig()))


def test_a_bomb_is_refused_before_its_pixels_are_unpacked(make_dicom: Any) -> None:
    path = make_dicom(np.zeros((4, 4), np.uint8), Rows=60_000, Columns=60_000)
    with pytest.raises(ValueError, match="60000x60000 are more than"):
        read(path)
    imagecodecs = pytest.importorskip("imagecodecs")
    large = np.zeros((600, 700), np.uint8)
    streams = {
        "50": imagecodecs.jpeg8_encode(large),
        "80": imagecodecs.jpegls_encode(large),
        "90": imagecodecs.jpeg2k_encode(large, codecformat="J2K"),
        "91": imagecodecs.jpeg2k_encode(large, codecformat="JP2"),
    }
    for syntax, data in streams.items():
        stream = pydicom.encaps.encapsulate([data])
        lying = make_dicom(np.zeros((4, 6), np.uint8), syntax=f"1.2.840.10008.1.2.4.{syntax}", pixels=stream)
        with pytest.raises(ValueError, match="has 700x600 pixels, the header says 6x4"):
            read(lying)


def test_a_broken_stream_of_rle_is_refused(make_dicom: Any) -> None:
    values = np.arange(16, dtype=np.uint16).reshape(4, 4)
    high, low = bytes([15]) + bytes(16), bytes([15]) + bytes(range(16))  # one literal run each
    good = np.array([2, 64, 82, *[0] * 13], "<u4")

    def path(header: Any, body: bytes = high + b"\0" + low + b"\0") -> Path:
        stream = pydicom.encaps.encapsulate([header.tobytes() + body])
        return make_dicom(values, syntax="1.2.840.10008.1.2.5", pixels=stream)

    np.testing.assert_array_equal(read(path(good))[0].pixels, values)
    for place, number in ((0, 1), (0, 2**31), (1, 3), (1, 90), (2, 2**31)):
        broken = good.copy()
        broken[place] = number
        with pytest.raises(ValueError, match="segments"):
            read(path(broken))
    with pytest.raises(ValueError, match="a segment has 8 pixels, expected 16"):
        read(path(good, high + b"\0" + bytes([7]) + low[1:9]))
    with pytest.raises(ValueError, match="CORRUPT"):
        read(path(good, high + b"\0" + low[:9]))


def test_masks_and_doses_are_left_out_unless_they_are_asked_for(make_dicom: Any) -> None:
    path = make_dicom(np.eye(6, dtype=np.uint8), Modality="SEG")
    with pytest.raises(ValueError, match="modality SEG: left out"):
        read(path)
    assert len(read(path, modalities=("SEG",))) == 1
    with pytest.raises(ValueError, match="modality SEG: left out"):
        read(path, modalities=("CT", "MR"))


def test_files_without_pixels_say_so(shipped: Path) -> None:
    for name in ("rtplan.dcm", "reportsi.dcm"):
        with pytest.raises(ValueError, match="DICOM without pixels"):
            read(shipped / name)
    with pytest.raises(ValueError, match="DICOMDIR"):
        read(shipped / "dicomdirtests" / "DICOMDIR")


def test_a_patient_is_known_by_the_identifier_alone(make_dicom: Any, shipped: Path, tmp_path: Path) -> None:
    values = np.zeros((2, 2), np.uint8)
    assert patient_of(make_dicom(values, PatientID=" P-17 ", PatientName="A^B")) == "P-17"
    assert patient_of(make_dicom(values, PatientName="A^B")) is None
    assert patient_of(shipped / "image_dfl.dcm") is None  # deflated, and empty
    assert patient_of(shipped / "MR_small_bigendian.dcm") == "4MR1"
    other = tmp_path / "other"
    other.write_bytes(b"no DICOM at all" * 30)
    assert patient_of(other) is None
    assert patient_of(tmp_path / "missing") is None
