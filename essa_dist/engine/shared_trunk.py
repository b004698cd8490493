"""Frozen weights that a machine holds in memory once: for the ranks of a run, and for the trials of a sweep.

The trunk is written to a file in the precision it is computed in. Each process maps that file, and its frozen parameters
become views of the map, so that their pages are those of the file, once for all processes. The map is private
(``MAP_PRIVATE``): who writes into a view gets a copy of that page of his own, and neither file nor others see it.

The file is never believed. A process has read its pretrained weights before, and compares them with the file bit by bit,
which takes less time than the hash of the trunk does; a file that differs is written anew. So what is computed is the same
with and without.
"""

import json
import logging
import math
import os
import struct
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from essa_dist.data.remote.keeping import locked
from essa_dist.disk import flush

log = logging.getLogger(__name__)

ALIGNED = 64
"""Bytes: where torch's own tensors begin. Libraries of matrix products may add up in another order elsewhere."""
_NAMES = {torch.float32: ("F32", "fp32"), torch.bfloat16: ("BF16", "bf16"), torch.float16: ("F16", "fp16")}
"""Of dtypes: that of safetensors, and ours."""
_INTEGERS = {2: torch.int16, 4: torch.int32}


class SharedTrunk:
    """A trunk's parameters, as they are now, and their twins in the map."""

    def __init__(
        self, path: Path, parameters: Mapping[str, nn.Parameter], mapped: Mapping[str, Tensor]
    ) -> None:
        self.path = path
        # Known by themselves: adapters give them other names, and what is replaced is to be freed.
        self._twins = WeakTensorKeyDictionary({p: mapped[name] for name, p in parameters.items()})

    def put_into(self, module: nn.Module) -> int:
        """Make every parameter whose bits are those of its twin a view of the map; returns how many bytes that frees.

        To be called when nothing writes into frozen tensors any more, as DDP and DeepSpeed do when they wrap a module.
        Trained tensors stay, being fp32 copies or about to be changed.
        """
        shared = 0
        for parameter in module.parameters():
            twin = self._twins.get(parameter)
            if twin is not None and not parameter.requires_grad and same_bits(parameter, twin):
                parameter.data = twin
                shared += twin.nbytes
        self._twins.clear()
        return shared


def share_trunk(
    folder: str, trunk: nn.Module, sha256: str, dtype: torch.dtype, device: torch.device
) -> SharedTrunk | None:
    """Map the file of ``trunk``, whose hash is ``sha256``, in ``dtype``; write it where it is not there or differs.

    ``trunk``: on the CPU, whole, before an adapter is put into it. One process writes while others wait for it. None
    where there is nothing to share: no ``folder``; a ``device`` with memory of its own, for the copy in the host's is freed
    when the weights are on the device; and, with a warning, a folder that can't be used.
    """
    if not folder:
        return None
    if device.type != "cpu":
        log.info("shared_trunk: weights are on %s, and none stay in the host's memory to be shared", device)
        return None
    file = Path(folder).expanduser() / f"trunk-{sha256[:32]}-{_NAMES[dtype][1]}.safetensors"
    parameters = dict(trunk.named_parameters())
    try:
        mapped = read_same(file, parameters, dtype) or _written(file, parameters, dtype)
    except OSError as error:
        once = os.environ.get("LOCAL_RANK") in (None, "", "0")
        log.log(
            logging.WARNING if once else logging.DEBUG,
            "shared_trunk=%s: %s; each process keeps its own weights, so name a folder that can be written",
            folder,
            error.strerror or error,
        )
        return None
    return SharedTrunk(file, parameters, mapped)


def _written(file: Path, parameters: Mapping[str, nn.Parameter], dtype: torch.dtype) -> dict[str, Tensor]:
    """What :func:`read_same` finds once the file has been written, by this process or one that came before."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with locked(file.parent / ".lock"):
        if found := read_same(file, parameters, dtype):
            return found
        if file.exists():
            log.warning("shared_trunk: %s is damaged or holds other weights, and is written anew", file)
        for left in file.parent.glob(f".{file.name}.*"):  # by a process that was killed while it wrote
            left.unlink()
        write(file, parameters, dtype)
    if found := read_same(file, parameters, dtype):
        return found
    raise OSError(f"{file.name} does not hold what was written")


def read_same(
    file: Path, parameters: Mapping[str, nn.Parameter], dtype: torch.dtype
) -> dict[str, Tensor] | None:
    """The tensors of ``file`` as views of one private map, by name; None unless they are ``parameters`` bit by bit."""
    if not file.is_file():
        return None
    try:
        with safe_open(file, framework="pt") as opened:
            held = set(opened.keys())
            mapped = {name: opened.get_tensor(name) for name in parameters if name in held}
    except SafetensorError:  # of a truncated file too: its header says how long it is
        return None
    for name, parameter in parameters.items():
        if name not in mapped or not same_bits(parameter.detach().to(dtype), mapped[name]):
            return None
    return mapped


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two floating-point tensors are alike in shape, dtype and every bit, those of NaN and -0 too."""
    if one.shape != other.shape or one.dtype != other.dtype or one.device != other.device:
        return False
    bits = [t.detach().contiguous().view(_INTEGERS[t.itemsize]) for t in (one, other)]
    return torch.equal(*bits)


def write(file: Path, parameters: Mapping[str, nn.Parameter], dtype: torch.dtype) -> None:
    """Write ``parameters`` in ``dtype``, in the format of safetensors, whole or not at all. Raises OSError."""
    beside = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with beside.open("xb") as out:
            out.write(header({name: p.shape for name, p in parameters.items()}, dtype))
            for parameter in parameters.values():
                bits = parameter.detach().to(dtype).contiguous().view(-1).view(torch.uint8)
                out.write(memoryview(bits.numpy()))  # type: ignore[arg-type]
                out.write(bytes(-bits.numel() % ALIGNED))
        flush(beside)
        beside.replace(file)
    finally:
        beside.unlink(missing_ok=True)


def header(shapes: Mapping[str, torch.Size], dtype: torch.dtype) -> bytes:
    """What stands before the tensors: every one begins at a multiple of 64 bytes of the file, with padding in between."""
    entries: dict[str, object] = {}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        entries[name] = {"dtype": _NAMES[dtype][0], "shape": list(shape), "data_offsets": [begin, end]}
        if gap := -end % ALIGNED:  # the format has no holes
            entries[f"padding.{end}"] = {"dtype": "U8", "shape": [gap], "data_offsets": [end, end + gap]}
            end += gap
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNED)
    return struct.pack("<Q", len(text)) + text
