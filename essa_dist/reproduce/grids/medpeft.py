"""MED-PEFT, "Less Could Be Better" (arXiv 2401.12215): LoRA against full fine-tuning on three sets of chest X-rays.

Sizes and LoRA's settings: the lists and scripts of RL4M/MED-PEFT at 086aeb4; what all cells share is in the recipes.
"""

from collections.abc import Sequence
from typing import NamedTuple

from essa_dist.reproduce.cells import Cell, Claim, DataSet, Figure, Grid, Sizes, percent
from essa_dist.reproduce.config import ReproduceConfig

PACK = ("layout=medpeft", "lists=LISTS", "image_size=256")  # image_size: our choice; they read the originals
NIH = DataSet("nih", Sizes(78_468, 11_219, 22_433), PACK)
CHEXPERT = DataSet("chexpert", Sizes(223_414, 234, 668), PACK)  # train: ten times the list of 10 %
RSNA = DataSet("rsna", Sizes(25_184, 1_500, 3_000), PACK)
SETS = {one.name: one for one in (NIH, CHEXPERT, RSNA)}

SPLITS = {0.01: "train_1", 0.1: "train_10", 1.0: "train"}
"""The authors' lists."""

LISTED = {
    ("nih", 0.01): 785,
    ("nih", 0.1): 7_847,
    ("chexpert", 0.01): 2_234,
    ("chexpert", 0.1): 22_341,
    ("rsna", 0.01): 251,
    ("rsna", 0.1): 2_518,
}


class LoRACell(NamedTuple):
    lr: float
    """MRM: absolute; CXR-MAE: blr, of which the learning rate is 64 / 256."""
    epochs: int
    rank: int


LORA: dict[tuple[str, str, float], LoRACell] = {
    ("mrm", "nih", 0.01): LoRACell(0.05, 100, 4),
    ("mrm", "nih", 0.1): LoRACell(0.05, 100, 8),
    ("mrm", "nih", 1.0): LoRACell(0.2, 100, 32),
    ("mrm", "chexpert", 0.01): LoRACell(0.02, 100, 4),
    ("mrm", "chexpert", 0.1): LoRACell(0.05, 100, 16),
    ("mrm", "chexpert", 1.0): LoRACell(0.01, 100, 32),
    ("mrm", "rsna", 0.01): LoRACell(0.01, 100, 4),
    ("mrm", "rsna", 0.1): LoRACell(0.01, 100, 32),
    ("mrm", "rsna", 1.0): LoRACell(0.01, 100, 32),
    ("cxr_mae", "nih", 0.01): LoRACell(3e-3, 400, 4),
    ("cxr_mae", "nih", 0.1): LoRACell(1e-3, 200, 8),
    ("cxr_mae", "nih", 1.0): LoRACell(3e-3, 100, 32),
    ("cxr_mae", "chexpert", 0.01): LoRACell(3e-3, 400, 4),
    ("cxr_mae", "chexpert", 0.1): LoRACell(5e-3, 100, 8),
    ("cxr_mae", "chexpert", 1.0): LoRACell(3e-3, 100, 32),
    ("cxr_mae", "rsna", 0.01): LoRACell(3e-3, 100, 4),
    ("cxr_mae", "rsna", 0.1): LoRACell(5e-3, 100, 8),
    ("cxr_mae", "rsna", 1.0): LoRACell(5e-3, 100, 32),
}
"""From the scripts, cell by cell."""

FULL = {"mrm": (1e-2, 200), "cxr_mae": (5e-4, 400)}
"""Full fine-tuning: learning rate (of CXR-MAE blr) and epochs of the scripts for 1 % of NIH, the only ones published. For
the other cells the rate is our choice, and so is to train as long as LoRA does there."""

RECIPES = {"mrm": "paper/medpeft_mrm.yaml", "cxr_mae": "paper/medpeft_cxrmae.yaml"}
VIT_L = ("mae_vitl", "cxr_mae")
"""MAE's ViT-L/16 of natural images is in the paper, and not in its code: our choice is CXR-MAE's settings, with
ImageNet's mean and deviation."""


def cells(config: ReproduceConfig, seeds: Sequence[int]) -> list[Cell]:
    """18 cells of each of LoRA and full, then the 9 of ViT-L, for each seed."""
    found = []
    for seed in seeds:
        for model, like in (("mrm", "mrm"), ("cxr_mae", "cxr_mae"), VIT_L):
            for data_set in SETS.values():
                for fraction in SPLITS:
                    found += [
                        _cell(model, like, data_set, fraction, adapter, seed) for adapter in ("lora", "full")
                    ]
    return found


def _cell(model: str, like: str, data_set: DataSet, fraction: float, adapter: str, seed: int) -> Cell:
    lora = LORA[like, data_set.name, fraction]
    lr, epochs = lora.lr, lora.epochs
    if adapter == "full":
        lr, released = FULL[like]
        epochs = released if (data_set.name, fraction) == ("nih", 0.01) else epochs
    lr = lr * 64 / 256 if like == "cxr_mae" else lr
    settings = [f"optim.lr={lr:g}", f"duration={epochs}ep", f"seed={seed}"]
    settings += [f"adapter.rank={lora.rank}"] if adapter == "lora" else ["adapter=full"]
    if model == "mae_vitl":
        settings += [
            "backbone.name=vit_large_patch16_224",
            "backbone.mean=[0.485,0.456,0.406]",
            "backbone.std=[0.229,0.224,0.225]",
        ]
    return Cell(
        f"{data_set.name}/{model}/{percent(fraction)}/{adapter}/s{seed}",
        "finetune",
        RECIPES[like],
        data_set,
        SPLITS[fraction],
        share=LISTED.get((data_set.name, fraction), data_set.sizes.train) / data_set.sizes.train,
        settings=tuple(settings),
        weights=model,
        facts={"model": model, "fraction": fraction, "start": "base", "adapter": adapter, "seed": seed},
    )


ABSTRACT = "arXiv 2401.12215, abstract"
MEDPEFT = Grid(
    tuple(SETS.values()),
    cells,
    (
        Claim(
            "LoRA is better than full fine-tuning in 13 of 18 transfer tasks, by at most 2.9 %",
            ABSTRACT,
            {"adapter": "lora"},
            {"adapter": "full"},
            share=13 / 18,
            within={"model": ("mrm", "cxr_mae")},
        ),
    ),
    (
        Figure(
            "80.6 AUROC on NIH with 1 % of the labels (LoRA over MRM)",
            ABSTRACT,
            80.6,
            {"model": "mrm", "data": "nih", "fraction": 0.01, "adapter": "lora"},
        ),
        Figure(
            "79.4 AUROC on NIH with 1 % of the labels (MRM, full fine-tuning)",
            "MRM's paper, by a third page",
            79.4,
            {"model": "mrm", "data": "nih", "fraction": 0.01, "adapter": "full"},
        ),
        Figure(
            "88.5 AUROC on CheXpert with 1 % of the labels (MRM, full fine-tuning)",
            "MRM's paper, by a third page",
            88.5,
            {"model": "mrm", "data": "chexpert", "fraction": 0.01, "adapter": "full"},
        ),
    ),
)
