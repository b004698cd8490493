"""What the repository promises about its own files."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

MB = 1_000_000
NAMED_BY_THE_USER = {
    "torch", "timm", "peft", "accelerate", "deepspeed", "webdataset", "nvidia-dali-cuda130", "ray",
}  # fmt: skip
TARGETS = {"demo", "test", "lint", "setup", "clean"}

# A home folder or a mount of somebody's machine.
MACHINE_PATH = re.compile(
    r"(?<![\w.~{}>/-])(?:/(?:home|root|Users|work|mnt|opt|scratch)/\w|[A-Z]:\\\\?Users)"
)
# Where pip gets its packages is the user's own configuration.
REGISTRY = re.compile(
    r"https?://[\w.-]*(?:pypi|pythonhosted|artifactory|nexus|registry|mirror|conda)[\w-]*\.|/simple/?[\"'\s]"
    r"|https?://download\.|--(?:extra-)?index-url[= ]\S|--find-links[= ]\S"
)


@pytest.fixture(scope="module")
def files(repository: Path) -> list[Path]:
    """Every file that git holds or would add."""
    if not (repository / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a git checkout: which files belong to the repository can't be told")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=True).stdout
    return [path for name in names.split("\0") if name and (path := repository / name).is_file()]


@pytest.fixture(scope="module")
def pyproject(repository: Path) -> dict[str, dict[str, object]]:
    return tomllib.loads((repository / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def requirements(pyproject: dict) -> dict[str, Requirement]:
    project = pyproject["project"]
    lines = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    return {canonicalize_name(need.name): need for need in map(Requirement, lines)}


@pytest.fixture(scope="module")
def pins(repository: Path) -> dict[str, str]:
    lines = (repository / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def is_text(path: Path) -> bool:
    return b"\0" not in path.read_bytes()[:8192]


def offending(files: list[Path], pattern: re.Pattern[str]) -> list[str]:
    return [
        f"{path.name}:{number}: {line.strip()[:120]}"
        for path in files
        if is_text(path)
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        if pattern.search(line)
    ]


def test_large_files_live_in_assets(files: list[Path], repository: Path) -> None:
    large = [path for path in files if path.stat().st_size > MB and repository / "assets" not in path.parents]
    assert large == []


def test_assets_stay_small(files: list[Path], repository: Path) -> None:
    assets = [path for path in files if repository / "assets" in path.parents]
    assert sum(path.stat().st_size for path in assets if path.suffix == ".tar") <= 8 * MB
    assert sum(path.stat().st_size for path in assets) <= 21 * MB


def test_no_file_names_a_path_of_somebodys_machine(files: list[Path]) -> None:
    assert offending(files, MACHINE_PATH) == []


def test_no_file_names_a_package_registry(files: list[Path]) -> None:
    assert offending(files, REGISTRY) == []


def test_the_patterns_find_what_they_should() -> None:
    for folder in ("home", "root", "opt"):
        assert MACHINE_PATH.search(f"'/{folder}/ann'"), folder
    for path in ("a/home/b", "https://x.org/home/y", "$HOME/x", "/path/to/work"):
        assert not MACHINE_PATH.search(path), path
    for word in ("mirror", "registry", "conda"):
        assert REGISTRY.search(f"https://{word}.example.org/x"), word
    for option in ("index-url", "find-links"):
        assert REGISTRY.search(f"pip install --{option} x"), option
    for place in ("https://github.com/x", "simple/plain", "https://arxiv.org/abs/1"):
        assert not REGISTRY.search(place), place


def test_the_packages_named_by_the_user_are_required_and_pinned(
    requirements: dict[str, Requirement], pins: dict[str, str]
) -> None:
    assert requirements.keys() >= NAMED_BY_THE_USER
    assert pins.keys() >= NAMED_BY_THE_USER


def test_every_requirement_is_pinned_within_its_range(
    requirements: dict[str, Requirement], pins: dict[str, str]
) -> None:
    assert set(requirements) - set(pins) == set()
    outside = [name for name, need in requirements.items() if not need.specifier.contains(pins[name])]
    assert outside == []


def test_pins_fit_the_cpu_and_the_cuda_build_alike(pins: dict[str, str]) -> None:
    assert [name for name, version in pins.items() if not re.fullmatch(r"\d[\w.]*", version)] == []


def test_the_makefile_has_its_targets(repository: Path) -> None:
    makefile = (repository / "Makefile").read_text()
    assert set(re.findall(r"^(\w+):", makefile, re.MULTILINE)) >= TARGETS
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert phony is not None
    assert set(phony[1].split()) >= TARGETS


def test_the_version_is_the_same_everywhere(repository: Path, pyproject: dict) -> None:
    import essa_dist

    version = pyproject["project"]["version"]
    assert essa_dist.__version__ == version
    assert f"## [{version}]" in (repository / "CHANGELOG.md").read_text()


def test_the_ci_script_is_executable(repository: Path) -> None:
    assert os.access(repository / ".ci" / "run", os.X_OK)


@pytest.mark.parametrize(("required", "summary"), [("0", "1 skipped"), ("1", "1 error")])
def test_a_skip_for_want_of_shared_data_is_an_error_where_they_are_promised(
    tmp_path: Path, repository: Path, required: str, summary: str
) -> None:
    tests = tmp_path / "checkout" / "tests"
    tests.mkdir(parents=True)
    shutil.copy(repository / "tests" / "conftest.py", tests)
    (tests / "test_it.py").write_text("def test_it(shared): ...\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(tests)],
        env={**os.environ, "ESSA_REQUIRE_SHARED": required, "PYTHONPATH": str(repository)},
        cwd=tests,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert summary in done.stdout.splitlines()[-1]
