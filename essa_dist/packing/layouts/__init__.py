"""Layouts of data sets on disk: each finds the files to pack and what is known of them before they are opened."""

from pathlib import Path

from essa_dist.errors import DataError, UsageError
from essa_dist.packing.layouts import (
    aptos2019,
    colorectal,
    ddsm,
    folder,
    isic2018,
    isic2019,
    medpeft,
    nct_crc,
    pneumonia,
    table,
)
from essa_dist.packing.layouts.config import ColumnsConfig, LayoutConfig
from essa_dist.packing.layouts.finish import finish
from essa_dist.packing.layouts.found import Found, Layout, Provenance

LAYOUTS: dict[str, Layout] = {
    "folder": folder.LAYOUT,
    "table": table.LAYOUT,
    "medpeft": medpeft.LAYOUT,
    "aptos2019": aptos2019.LAYOUT,
    "isic2018": isic2018.LAYOUT,
    "isic2019": isic2019.LAYOUT,
    "ddsm": ddsm.LAYOUT,
    "nct_crc": nct_crc.LAYOUT,
    "colorectal": colorectal.LAYOUT,
    "pneumonia": pneumonia.LAYOUT,
}
GENERAL = ("folder", "table")
"""What any folder or table is taken for where no data set is recognised."""

__all__ = ["LAYOUTS", "ColumnsConfig", "Found", "Layout", "LayoutConfig", "Provenance", "find_sources"]


def find_sources(src: Path, config: LayoutConfig) -> Found:
    """All files to pack in ``src``, in the order of their keys.

    Raises UsageError for a path that does not exist, a layout that doesn't fit or a setting that means nothing to it;
    DataError where there are no images, two have the same key, or a list or table has a line that can't be right.
    """
    if not src.exists():
        raise UsageError(
            f"no such file or folder: {src}; give a folder of images or a table with a `path` column"
        )
    given = {name for name in config.model_fields_set if _differs(config, name)} & _specific()
    name = _detect(src, given) if config.layout == "auto" else config.layout
    layout = LAYOUTS[name]
    if foreign := sorted(given - layout.settings):
        users = [other for other, one in LAYOUTS.items() if foreign[0] in one.settings]
        raise UsageError(
            f"{foreign[0]}= means nothing to layout={name}; it is a setting of {', '.join(users)}"
        )
    found = layout.find(src, config)
    if not found.sources and found.missing:
        path, reason = found.missing[0]
        raise DataError(f"none of the {len(found.missing)} listed files can be packed: {path} ({reason})")
    return finish(found, name, src, config)


def _detect(src: Path, given: set[str]) -> str:
    """The layout of a data set where one fits, else a general one; settings that only some layouts have count too."""
    fitting = [name for name, layout in LAYOUTS.items() if layout.detect(src)]
    if given:
        meant = [name for name, layout in LAYOUTS.items() if given <= layout.settings]
        fitting = [name for name in fitting if name in meant] or (meant if len(meant) == 1 else fitting)
    special = [name for name in fitting if name not in GENERAL]
    if len(special) > 1:
        raise UsageError(f"{src} fits several layouts: choose one with layout={' or layout='.join(special)}")
    if not fitting:
        raise UsageError(
            f"{src} fits no layout: give a folder of images or a CSV, TSV or Parquet table, or choose one with "
            f"layout={'|'.join(LAYOUTS)}"
        )
    return (special or fitting)[0]


def _specific() -> set[str]:
    return {name for layout in LAYOUTS.values() for name in layout.settings}


def _differs(config: LayoutConfig, name: str) -> bool:
    return bool(
        getattr(config, name) != type(config).model_fields[name].get_default(call_default_factory=True)
    )
