"""The help texts."""

from pathlib import Path

from essa_dist import __version__
from essa_dist.verbs import VERBS, config_class

FLAGS = {
    "--json": "one JSON object on stdout, everything else on stderr",
    "--debug": "the traceback of an internal error, and more in the log",
    "--dry-run": "of reproduce: print the plan and run nothing, as dry_run=true",
    "--help": "this page; after a verb, its settings",
    "--version": "the version",
}


def overview() -> str:
    """``essa --help``: imports nothing, so it comes at once."""
    width = max(map(len, (*VERBS, *FLAGS)))
    verbs = "".join(f"  {name:<{width}}  {verb.help}\n" for name, verb in VERBS.items())
    flags = "".join(f"  {name:<{width}}  {meaning}\n" for name, meaning in FLAGS.items())
    return (
        f"essa {__version__}: adapt vision transformers to medical images by self-supervision, training an adapter only\n\n"
        f"usage: essa VERB [CONFIG.yaml] [key=value ...] [--json] [--help]\n\n{verbs}\n{flags}\n"
        f"example: {VERBS['adapt'].example}\n"
        "`essa VERB --help` lists every setting of a verb.\n"
    )


def verb_page(name: str) -> str:
    """``essa VERB --help``: usage and every setting with its default and meaning, and the recipes at hand."""
    from essa_dist.settings import render

    verb = VERBS[name]
    word = f" [{verb.positional}]" if verb.positional else ""
    page = (
        f"essa {name}: {verb.help}\n\n"
        f"usage: essa {name}{word} [CONFIG.yaml] [key=value ...] [--json]\nexample: {verb.example}\n\n"
    )
    page += (
        f"Settings, with their defaults (??? has to be given):\n\n{render(config_class(verb)) or '(none)'}"
    )
    return page + (_recipes() if verb.config == VERBS["adapt"].config else "")


def _recipes() -> str:
    """The recipes below configs/, here and in a checkout of the project, with the first line of each."""
    folders = dict.fromkeys([Path("configs"), Path(__file__).parents[2] / "configs"])
    files = {
        file.resolve(): file for folder in folders for file in sorted(folder.rglob("*.yaml"), reverse=True)
    }
    if not files:
        return ""
    width = max(len(str(file)) for file in files.values())
    rows = [f"  {file!s:<{width}}  {_headline(file)}".rstrip() for file in sorted(files.values())]
    return "\nRecipes:\n\n" + "\n".join(rows) + "\n"


def _headline(file: Path) -> str:
    first = file.read_text(encoding="utf-8").partition("\n")[0]
    return first.lstrip("# ") if first.startswith("#") else ""
