"""The cure mends the one known failure of ``import torchvision`` and never touches a healthy one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]

HEALTHY = """
import torchvision.extension
state = "healthy"
"""
# Fails like torchvision beside a CPU torch: a submodule asks for an operator that its library should have defined.
BROKEN = """
import torchvision.extension
import torchvision.registrations
state = "mended"
"""
REGISTRATIONS = """
import torch
@torch.library.register_fake("torchvision::nms")
def nms(dets, scores, iou_threshold): ...
@torch.library.register_fake("torchvision::qnms")
def qnms(dets, scores, iou_threshold): ...
"""
OTHERWISE_BROKEN = """
raise RuntimeError("operator torchvision::roi_align does not exist")
"""


def fake_torchvision(folder: Path, source: str) -> Path:
    package = folder / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text(source)
    (package / "extension.py").write_text("")
    (package / "registrations.py").write_text(REGISTRATIONS)
    return folder


def run(code: str, *folders: Path) -> str:
    path = os.pathsep.join(map(str, [*folders, REPOSITORY]))
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.stdout.strip() if done.returncode == 0 else done.stderr.strip().splitlines()[-1]


CURE = "from essa_dist import _torchvision; _torchvision.cure();"
TELL = "import torchvision; print(torchvision.state, _torchvision.was_needed())"


def test_a_healthy_torchvision_is_left_alone(tmp_path: Path) -> None:
    fake = fake_torchvision(tmp_path, HEALTHY)
    told = run(f"{CURE} {TELL}; import sys; print('torch' in sys.modules)", fake)
    assert told.split() == ["healthy", "False", "False"]


def test_the_known_failure_is_mended(tmp_path: Path) -> None:
    assert run(f"{CURE} {TELL}", fake_torchvision(tmp_path, BROKEN)) == "mended True"


def test_without_the_cure_the_same_package_fails(tmp_path: Path) -> None:
    error = run("import torchvision", fake_torchvision(tmp_path, BROKEN))
    assert error == "RuntimeError: operator torchvision::nms does not exist"


def test_another_failure_stays_a_failure(tmp_path: Path) -> None:
    error = run(f"{CURE} {TELL}", fake_torchvision(tmp_path, OTHERWISE_BROKEN))
    assert error == "RuntimeError: operator torchvision::roi_align does not exist"


def test_a_failed_import_before_the_cure_does_no_harm(tmp_path: Path) -> None:
    early = "import contextlib\nwith contextlib.suppress(RuntimeError): import torchvision\n"
    assert run(f"{early}{CURE} {TELL}", fake_torchvision(tmp_path, BROKEN)) == "mended True"


def test_declared_schemas_outlive_a_garbage_collection(tmp_path: Path) -> None:
    look = "import gc, torch; gc.collect(); print(torch.ops.torchvision.nms.default._schema)"
    told = run(f"{CURE} import torchvision; {look}", fake_torchvision(tmp_path, BROKEN))
    assert told == "torchvision::nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def test_looking_torchvision_up_without_importing_it_keeps_the_cure(tmp_path: Path) -> None:
    look = "import importlib.util; importlib.util.find_spec('torchvision');"
    assert run(f"{CURE} {look} {TELL}", fake_torchvision(tmp_path, BROKEN)) == "mended True"


def test_calling_twice_installs_one_finder() -> None:
    count = "import sys; print(sum(isinstance(f, _torchvision._Finder) for f in sys.meta_path))"
    assert run(f"{CURE} _torchvision.cure(); {count}") == "1"


@pytest.mark.parametrize("module", ["torchvision.transforms.v2", "timm", "peft"])
def test_the_installed_packages_import_after_essa_dist(module: str) -> None:
    assert run(f"import essa_dist, {module}; print('fine')") == "fine"
