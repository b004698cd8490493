"""How fast `essa pack` is: images a second and CPU seconds an image, by kind of file and number of worker processes.

python benchmarks/pack_speed.py [--images 1500] [--out RESULT.json]

JPEG of 224 px, kept as they are and reduced to 112; CT slices of 512 px, 16 bits, as DICOM without compression, kept and
reduced to 256. The pictures are made here, all different. Guards are on, the report is off.
"""

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from essa_dist.bench.machine import cpu_seconds, machine
from essa_dist.bench.synthetic import clouds
from essa_dist.packing.pack import PackConfig, pack

CASES = {"jpeg kept": ("jpeg", {}), "jpeg to 112": ("jpeg", {"image_size": 112}),
         "ct kept": ("ct", {}), "ct to 256": ("ct", {"image_size": 256})}  # fmt: skip


def make(kind: str, folder: Path, n: int) -> None:
    """Write ``n`` files: windows of one large picture, with noise of their own."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    large = clouds(2048, seed=1)
    for i in range(n):
        side = 224 if kind == "jpeg" else 512
        top, left = rng.integers(0, 2048 - side, 2)
        values = large[top : top + side, left : left + side]
        if kind == "jpeg":
            pixels = np.stack([values, 1 - values, values**2], axis=2) * 255 + rng.normal(
                0, 4, (side, side, 3)
            )
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{i:05d}.jpg", quality=90)
        else:
            stored = (values * 2500 + rng.normal(0, 12, (side, side))).clip(0, 4095).astype(np.uint16)
            write_ct(folder / f"{i:05d}.dcm", stored, patient=f"P{i // 40}")


def write_ct(path: Path, stored: np.ndarray, patient: str) -> None:
    """A CT slice as a scanner stores it: rescaled to Hounsfield units, with a window."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = CTImageStorage, ExplicitVRLittleEndian
    meta.MediaStorageSOPInstanceUID = generate_uid()
    ds = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    ds.Modality, ds.PatientID, ds.PhotometricInterpretation = "CT", patient, "MONOCHROME2"
    ds.Rows, ds.Columns = stored.shape
    ds.SamplesPerPixel, ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 1, 16, 12, 11, 0
    ds.RescaleSlope, ds.RescaleIntercept, ds.WindowCenter, ds.WindowWidth = 1, -1024, 40, 400
    ds.PixelData = stored.tobytes()
    ds.save_as(path, enforce_file_format=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--images", type=int, default=1500)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("jpeg", "ct"):
            make(kind, Path(folder) / kind, given.images)
        for name, (kind, settings) in CASES.items():
            for workers in given.workers:
                out = Path(folder) / "out"
                begin, cpu = time.perf_counter(), cpu_seconds()
                made = pack(
                    PackConfig(
                        src=str(Path(folder) / kind), out=str(out), workers=workers, report=False, **settings
                    )
                )
                seconds, cpu = time.perf_counter() - begin, cpu_seconds() - cpu
                rows.append(
                    {
                        "case": name,
                        "workers": workers,
                        "img_per_s": round(made["samples"] / seconds, 1),
                        "cpu_ms_per_img": round(1000 * cpu / made["samples"], 2),
                        "megabytes_out": round(made["bytes"] / 1e6, 1),
                    }
                )
                print(json.dumps(rows[-1]), flush=True)
                shutil.rmtree(out)
    if given.out:
        result = {"images": given.images, "machine": machine(torch.device("cpu")), "rows": rows}
        given.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
