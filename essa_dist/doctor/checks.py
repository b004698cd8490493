"""The things a run needs, each tried in the smallest way that would fail where the run would."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from essa_dist.doctor.packages import installed

TIMEOUT = timedelta(seconds=60)  # for whatever could hang: another process, a worker, a socket
REINSTALL = "pip install --force-reinstall -c constraints.txt"


class Check(NamedTuple):
    attempt: Callable[[], None]  # raises where the thing doesn't work
    remedy: str
    applies: Callable[[], bool] = lambda: True


def run_checks() -> dict[str, dict[str, Any]]:
    """Try what applies here; each gives ``ok``, ``seconds``, and where it failed ``error`` and ``remedy``."""
    return {name: _run(check) for name, check in CHECKS.items() if check.applies()}


def _run(check: Check) -> dict[str, Any]:
    start = time.perf_counter()
    try:
        check.attempt()
        outcome: dict[str, Any] = {"ok": True}
    except Exception as error:  # whatever is broken, doctor's job is to go on and tell
        first_line = next(iter(str(error).strip().splitlines()), "no message")
        outcome = {"ok": False, "error": f"{type(error).__name__}: {first_line}", "remedy": check.remedy}
    return {**outcome, "seconds": round(time.perf_counter() - start, 2)}


def _bf16_matmul() -> None:
    a, b = torch.full((32, 64), 0.5), torch.ones(64, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        product = a @ b
    _expect(product.dtype == torch.bfloat16 and bool((product == 32).all()), "autocast gave a wrong product")


def _attention() -> None:
    q = torch.randn(1, 2, 5, 8, requires_grad=True)
    torch.autograd.backward(F.scaled_dot_product_attention(q, q, q).sum())
    _expect(q.grad is not None and bool(torch.isfinite(q.grad).all()), "gradients are not finite")


def _cuda() -> None:
    for index in range(torch.cuda.device_count()):
        ones = torch.ones(64, 64, device=f"cuda:{index}", dtype=torch.bfloat16)
        _expect(bool((ones @ ones == 64).all()), f"cuda:{index} gave a wrong product")


def _torchvision_transforms() -> None:
    from torchvision.transforms import v2

    image = torch.arange(3 * 40 * 40, dtype=torch.uint8).reshape(3, 40, 40)
    crop = v2.Compose([v2.RandomResizedCrop(16), v2.ToDtype(torch.float32, scale=True)])(image)
    _expect(tuple(crop.shape) == (3, 16, 16), f"a 16 px crop has the shape {tuple(crop.shape)}")


class _Squares(Dataset[Tensor]):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Tensor:
        return torch.tensor(index * index)


def _data_worker() -> None:
    loader = DataLoader(_Squares(), batch_size=2, num_workers=1, timeout=TIMEOUT.total_seconds())
    _expect(torch.cat(list(loader)).tolist() == [0, 1, 4, 9], "a worker handed over wrong tensors")


def _gloo() -> None:
    import torch.distributed as dist

    if dist.is_initialized():  # started by a launcher: its group is the proof
        return
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group(
            "gloo", init_method=f"file://{folder}/store", rank=0, world_size=1, timeout=TIMEOUT
        )
        try:
            value = torch.ones(2)
            dist.all_reduce(value)
            _expect(value.tolist() == [1, 1], "all_reduce gave a wrong sum")
        finally:
            dist.destroy_process_group()


def _safetensors() -> None:
    from safetensors.torch import load, save

    tensors = {"x": torch.randn(3, 4).bfloat16()}
    _expect(torch.equal(load(save(tensors))["x"], tensors["x"]), "a tensor came back changed")


def _embedded_weights() -> None:
    from safetensors import safe_open

    from essa_dist.backbones.weights import EMBEDDED

    for path in EMBEDDED.values():
        with safe_open(path, framework="pt") as file:
            _expect(len(file.keys()) > 0, f"{path.name} is empty")


def _image_codecs() -> None:
    import imagecodecs
    import numpy as np

    values = np.arange(0, 4096, 4, dtype=np.uint16).reshape(32, 32)
    for name in ("png", "jpegls", "jpeg2k"):
        kept = {"level": 0} if name == "jpeg2k" else {}  # JPEG 2000 without loss
        encoded = getattr(imagecodecs, f"{name}_encode")(values, **kept)
        decoded = getattr(imagecodecs, f"{name}_decode")(encoded)
        _expect(bool(np.array_equal(decoded, values)), f"{name} gave other 16-bit values back")


def _import(module: str) -> Callable[[], None]:
    """A check that imports ``module`` in another process: its native code may crash, and it may talk on stdout."""

    def attempt() -> None:
        code = f"import essa_dist, {module}"
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=TIMEOUT.total_seconds()
        )
        last_line = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        _expect(done.returncode == 0, last_line)

    return attempt


def _expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise RuntimeError(otherwise)


def _is_installed(name: str) -> Callable[[], bool]:
    return lambda: installed(name) is not None  # a missing package is told by its version


CHECKS = {
    "bf16 matrix product": Check(_bf16_matmul, f"{REINSTALL} torch"),
    "attention forward and backward": Check(_attention, f"{REINSTALL} torch"),
    "CUDA matrix product": Check(
        _cuda, "hide the device with CUDA_VISIBLE_DEVICES, or update its driver", torch.cuda.is_available
    ),
    "torchvision transforms": Check(_torchvision_transforms, f"{REINSTALL} torch torchvision"),
    "data worker process": Check(_data_worker, "set data.workers=0, or free /dev/shm"),
    "gloo process group": Check(_gloo, "set GLOO_SOCKET_IFNAME=lo for runs on this machine alone"),
    "safetensors round trip": Check(_safetensors, f"{REINSTALL} safetensors"),
    "embedded weights": Check(_embedded_weights, "install from a clone with pip install -e ."),
    "16-bit image codecs": Check(_image_codecs, f"{REINSTALL} imagecodecs"),
    "DICOM import": Check(
        _import("pydicom.pixels, pylibjpeg, jpeg_ls"), f"{REINSTALL} pydicom pylibjpeg pyjpegls"
    ),
    "DeepSpeed import": Check(
        _import("deepspeed"), f"needed for ZeRO only: {REINSTALL} deepspeed", _is_installed("deepspeed")
    ),
    "DALI import": Check(
        _import("nvidia.dali.fn"),
        f"needed for the DALI decoder only: {REINSTALL} nvidia-dali-cuda130",
        _is_installed("nvidia-dali-cuda130"),
    ),
}
