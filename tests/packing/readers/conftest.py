"""DICOM files made on the fly, and the real ones that pydicom ships."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

MakeDicom = Callable[..., Path]


@pytest.fixture
def make_dicom(tmp_path: Path) -> MakeDicom:
    """``make_dicom(values, WindowWidth=80, ...)`` writes [H, W], [F, H, W] or [H, W, 3] and returns the path."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import UID, CTImageStorage, ExplicitVRBigEndian, ExplicitVRLittleEndian, generate_uid

    def make(
        values: NDArray[Any],
        name: str = "made.dcm",
        *,
        frames: int = 0,
        syntax: str = ExplicitVRLittleEndian,
        pixels: bytes | None = None,
        **elements: Any,
    ) -> Path:
        ds = Dataset()
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = UID(syntax)
        ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = CTImageStorage
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = generate_uid()
        colour = values.ndim - (frames > 0) == 3
        ds.Modality = "CT"
        ds.SamplesPerPixel = 3 if colour else 1
        ds.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
        if colour:
            ds.PlanarConfiguration = 0
        if frames:
            ds.NumberOfFrames = frames
        ds.Rows, ds.Columns = values.shape[1:3] if frames else values.shape[:2]
        ds.BitsAllocated = ds.BitsStored = 8 * values.dtype.itemsize
        ds.PixelRepresentation = int(values.dtype.kind == "i")
        for keyword, value in elements.items():
            setattr(ds, keyword, value)
        ds.HighBit = ds.BitsStored - 1
        big = syntax == ExplicitVRBigEndian
        raw = values.astype(values.dtype.newbyteorder(">" if big else "<")).tobytes()
        ds.PixelData = pixels if pixels is not None else raw + b"\0" * (len(raw) % 2)
        ds["PixelData"].VR = "OB" if ds.BitsAllocated == 8 or pixels is not None else "OW"
        path = tmp_path / name
        ds.save_as(path, enforce_file_format=True)
        return path

    return make


@pytest.fixture(scope="session")
def shipped() -> Path:
    """The folder of test files inside the pydicom package."""
    import pydicom

    return Path(pydicom.__file__).parent / "data" / "test_files"


@pytest.fixture(scope="session")
def samples(shared: Path) -> list[Path]:
    """The real DICOM files beside the repository."""
    return sorted((shared / "data" / "dicom_samples").glob("pydicom_*/*.dcm"))


@pytest.fixture
def ramp() -> NDArray[np.int16]:
    """[5, 7], signed: -900 to 3100 in steps of different size."""
    return (np.arange(35) ** 2 * 3.4602 - 900).astype(np.int16).reshape(5, 7)
