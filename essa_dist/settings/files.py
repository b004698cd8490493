"""YAML files of settings: one mapping, each key once, which may begin from another file with ``base: other.yaml``."""

import re
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from essa_dist.errors import UsageError
from essa_dist.nearest import nearest
from essa_dist.settings.merging import merge
from essa_dist.settings.schema import Model

BASE = "base"
SUFFIXES = (".yaml", ".yml")


def read_tree(model: Model, path: Path, below: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The file's mapping merged onto that of its ``base``; interpolations are left as they are written.

    ``below`` is the chain of files whose base this one is. Raises UsageError for whatever is wrong with the file.
    """
    if path.resolve() in below:
        raise UsageError(f"{path}: its base leads back to itself; take one {BASE}: out of the circle")
    tree = _parse(path, _text(path))
    base = tree.pop(BASE, None)
    if base is None:
        return tree
    if not isinstance(base, str):
        raise UsageError(f"{path}: {BASE}: {base!r} is not allowed; give the path of one YAML file")
    merged = merge([model], read_tree(model, path.parent / base, (*below, path.resolve())), tree)
    return dict(merged)


def _text(path: Path) -> str:
    if path.is_dir():
        raise UsageError(f"{path} is a folder; give a YAML file{_candidates(path, path.name)}")
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UsageError(f"no file {path}{_candidates(path.parent, path.name)}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not text; give a YAML file") from None
    except OSError as error:
        raise UsageError(f"{path} can't be read ({error.strerror}); give a YAML file that can be") from None


def _candidates(folder: Path, name: str) -> str:
    if not folder.is_dir():
        return f"; there is no folder {folder} either"
    names = sorted(file.name for file in folder.iterdir() if file.suffix in SUFFIXES)
    if not names:
        return f"; {folder} holds no YAML file"
    best = nearest(name, names)
    if best is not None:
        return f"; did you mean {folder / best}?"
    return f"; {folder} holds {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}"


def _parse(path: Path, text: str) -> dict[str, Any]:
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is None:  # nothing but comments
            return {}
        if not isinstance(node, yaml.MappingNode):
            what = "list" if isinstance(node, yaml.SequenceNode) else "single value"
            raise UsageError(f"{path} holds a {what}; settings are a mapping of key: value")
        return OmegaConf.to_container(OmegaConf.create(text), resolve=False)  # type: ignore[return-value]
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UsageError(f"{path} line {line}: {_problem(error)}") from None
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise UsageError(f"{path}: {str(error).splitlines()[0]}") from None


def _problem(error: yaml.MarkedYAMLError) -> str:
    problem = error.problem or "not YAML"
    twice = re.fullmatch(r"found duplicate key (.+)", problem)
    return f"key {twice[1]} is given a second time; keep one" if twice else f"not YAML: {problem}"
