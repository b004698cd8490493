"""What a user may say about the way a data set lies on disk."""

import re
from typing import Literal

from pydantic import Field, field_validator

from essa_dist.settings import Config

LayoutName = Literal[
    "auto",
    "folder",
    "table",
    "medpeft",
    "aptos2019",
    "isic2018",
    "isic2019",
    "ddsm",
    "nct_crc",
    "colorectal",
    "pneumonia",
]


class ColumnsConfig(Config):
    """Names of the columns of a table; null: it has none such, whatever its columns are called."""

    path: str = "path"
    """The image's file, from the table's folder or from `root`. The one column that is needed."""
    label: str | None = "label"
    """Its class, where it has one."""
    labels: str | None = "labels"
    """Its classes, where it may have several, as text: `A|B`."""
    patient: str | None = "patient"
    """Whose image it is. Used to keep a patient in one split; never stored."""
    split: str | None = "split"
    """Its split, where that is decided already."""
    key: str | None = "key"
    """Its name in the packed set, in place of its path."""
    mask: str | None = "mask"
    """File of its segmentation mask."""


class LayoutConfig(Config):
    """How the images lie in `src`, and what is known of them."""

    layout: LayoutName = "auto"
    """A folder of images, a table (CSV, TSV, Parquet), MED-PEFT's lists, or a data set as it is published; auto: told
    by the files that are there."""
    root: str | None = None
    """table: folder from which its paths go; none: the table's own folder."""
    columns: ColumnsConfig = ColumnsConfig()
    """table: names of its columns."""
    label_columns: Literal["auto"] | tuple[str, ...] = "auto"
    """table: the columns that hold 0, 1, -1 (not known) or nothing, one for each class; auto: where there is neither a
    `label` nor a `labels` column, all columns of such values; []: none."""
    label_separator: str = Field(default="|", min_length=1)
    """table: what stands between the names in the column `labels`."""
    masks: str | None = None
    """folder, table: folder of segmentation masks that lie in it as the images do in theirs; none: `masks` beside a
    folder `images`, where there is one."""
    mask_suffix: str = ""
    """folder, table: what a mask's name has behind the image's, e.g. `_mask`."""
    mask_classes: tuple[str, ...] = Field(default=("background", "foreground"), min_length=2)
    """folder, table: names of the values of the masks."""
    lists: str | tuple[str, ...] | None = None
    """medpeft: the split lists, or the folder that holds them; none: `src`."""
    isic2018_task: Literal["segmentation", "classification"] | None = None
    """isic2018: task 1 or task 3; none: the one that is there."""
    ddsm_classes: Literal[2, 3] = 2
    """ddsm: 2: normal and abnormal (benign or cancer), as the reference has it; 3: normal, benign, cancer."""
    reference_split: bool = True
    """aptos2019, isic2019: the reference's division, drawn by image with seed 42; colorectal, ddsm: its lists where
    they are there. false: `splits` decides, by patient (isic2019: lesion; colorectal: slide) where known."""
    patients: Literal["auto", "header", "none"] = "auto"
    """Where patients are known from. auto: from the table, list or file names, else from the headers of DICOM files
    (a millisecond a file); header: from these always; none: not at all."""
    patient_pattern: str | None = None
    """Regular expression that is searched in a file's path below `src`; its first group names the patient, e.g.
    `patient(\\d+)/`."""

    @field_validator("patient_pattern")
    @classmethod
    def _one_group(cls, pattern: str | None) -> str | None:
        try:
            groups = 1 if pattern is None else re.compile(pattern).groups
        except re.error as error:
            raise ValueError(f"not a regular expression ({error})") from error
        if groups != 1:
            raise ValueError(f"must have one group, in parentheses, got {groups}, e.g. patient(\\d+)/")
        return pattern
