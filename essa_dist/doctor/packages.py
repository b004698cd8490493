"""Installed packages against the project's own requirements."""

import platform
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

import essa_dist

PROJECT = "essa-dist"
REMEDY = "pip install -c constraints.txt -e ."


def requirements() -> list[Requirement]:
    """What the project needs on this machine, without extras; from its folder where it isn't installed."""
    try:
        lines = metadata.requires(PROJECT) or []
    except metadata.PackageNotFoundError:
        pyproject = Path(__file__).resolve().parents[2] / "pyproject.toml"
        lines = tomllib.loads(pyproject.read_text())["project"]["dependencies"]
    wanted = map(Requirement, lines)
    return [need for need in wanted if need.marker is None or need.marker.evaluate({"extra": ""})]


def installed(name: str) -> str | None:
    """The version of a distribution, None where it isn't installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def versions() -> dict[str, str | None]:
    """Python, the project and everything that it requires; None marks what is missing."""
    names = sorted(need.name for need in requirements())
    return {
        "python": platform.python_version(),
        PROJECT: essa_dist.__version__,
        **{name: installed(name) for name in names},
    }


def package_problems() -> list[str]:
    """A line for each requirement that is missing or outside its range."""
    problems = []
    for need in requirements():
        version = installed(need.name)
        if version is None:
            problems.append(f"{need.name} is not installed: {REMEDY}")
        elif not need.specifier.contains(version, prereleases=True):
            problems.append(f"{need.name} {version} is outside {need.specifier}: {REMEDY}")
    return problems
