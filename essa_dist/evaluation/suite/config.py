"""What a suite is asked for."""

from collections.abc import Mapping
from pathlib import PurePath
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, field_validator, model_validator

from essa_dist.data.pixels import Window
from essa_dist.data.remote import CacheConfig
from essa_dist.evaluation.metrics import higher_is_better
from essa_dist.evaluation.probe import FeatureConfig
from essa_dist.evaluation.protocols import Protocol, ProtocolConfig
from essa_dist.settings import Config
from essa_dist.settings.words import OneOrMore, several

SEED = "{seed}"


class SuiteData(Config):
    """One bank and one test set."""

    bank: str
    """Packed, labelled images to learn from: DIR or DIR:split (without a split: train)."""
    test: str
    """Packed, labelled images to be judged on: DIR or DIR:split (without a split: test, else val)."""
    image_size: int | None = Field(default=None, gt=0)
    """Side in pixels that the models see; null: the suite's."""
    crop: float | None = Field(default=None, gt=0, le=1)
    """Central share of each side that is shown; null: the suite's."""
    window: Window | None = None
    """Real values shown black and white; null: the suite's."""
    ordered: bool = False
    """Whether the classes, in their order, are grades: adds quadratic_kappa and mae."""
    metric: str | None = None
    """What is quoted and drawn, where a protocol measures it, e.g. auroc or quadratic_kappa; null: the protocol's own."""

    @field_validator("metric")
    @classmethod
    def _is_a_share(cls, metric: str | None) -> str | None:
        if metric is not None and not higher_is_better(metric):
            raise ValueError(
                "tables and pictures quote shares of which more is better: choose auroc, f1_macro, ..."
            )
        return metric


def short_names(refs: Any) -> Any:
    """References ``A,B`` or a list of them as a mapping, each under the end of its path, or whole where ends are alike."""
    refs = several(refs)
    if isinstance(refs, Mapping) or not isinstance(refs, (list, tuple)):
        return refs
    ends = ["+".join(_end(part) for part in str(ref).split("+")) for ref in refs]
    return {end if ends.count(end) == 1 else str(ref): ref for end, ref in zip(ends, refs, strict=True)}


def _end(ref: str) -> str:
    path = PurePath(ref)
    return (path.stem if path.suffix in (".safetensors", ".pth", ".pt", ".bin") else path.name) or ref


def _sets(value: Any) -> Any:
    """A packed data set alone stands for its own splits."""
    named = short_names(value)
    if not isinstance(named, Mapping):
        return named
    return {name: {"bank": one, "test": one} if isinstance(one, str) else one for name, one in named.items()}


class SuiteConfig(ProtocolConfig, FeatureConfig):
    """Protocols, models, data sets, label fractions, seeds: every combination is a cell of the suite."""

    models: Annotated[dict[str, str], BeforeValidator(short_names), Field(min_length=1)]
    """Name: reference, as `essa evaluate` takes it (BASE+RUN for an adapter), or A,B,C; {seed} in one stands for each seed."""
    baseline: str = ""
    """Name of the model that the others are compared with, on the same images (empty: the first)."""
    data: Annotated[dict[str, SuiteData], BeforeValidator(_sets), Field(min_length=1)]
    """Name: {bank, test, image_size, crop, window, ordered, metric}, or name: PACKED, or A,B."""
    protocols: OneOrMore[Protocol] = ("knn", "linear")
    """knn, linear, linear_sgd, fewshot, retrieval: those that are run."""
    fractions: OneOrMore[Annotated[float, Field(gt=0, le=1)]] = (1.0,)
    """Shares of the bank that are learnt, in proportion of the classes and by whole patients, drawn by the seed."""
    seeds: OneOrMore[Annotated[int, Field(ge=0)]] = (0,)
    """Of folds, held-out patients, shots, fractions, and of models with {seed}; what doesn't depend on one is done once."""
    resamples: int = Field(default=1000, ge=100)
    """Of the test images (by patient, where known), for intervals and paired comparisons."""
    window: Window = "header"
    """Real values shown black and white, e.g. [-1000, 400] in Hounsfield units; header: each image's own."""
    cache: CacheConfig = CacheConfig()
    """How remote images are fetched, and kept on this machine."""
    out: str
    """Folder of the table, pictures and page, and of the finished cells: called again, the suite does what is missing."""
    features: str | None = None
    """Folder of extracted features, which several suites may share (null: OUT/features)."""

    @field_validator("protocols", "seeds", "fractions")
    @classmethod
    def _once(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(dict.fromkeys(values))

    @model_validator(mode="after")
    def _baseline_is_a_model(self) -> "SuiteConfig":
        if self.baseline and self.baseline not in self.models:
            raise ValueError(f"baseline={self.baseline} is none of the models: {', '.join(self.models)}")
        return self

    @property
    def reference(self) -> str:
        """Name of the baseline."""
        return self.baseline or next(iter(self.models))

    def features_config(self, data: SuiteData) -> FeatureConfig:
        """How features of one of the data sets are made."""
        own = {"image_size": data.image_size, "crop": data.crop}
        common = {name: getattr(self, name) for name in FeatureConfig.model_fields}
        return FeatureConfig(**common | {name: value for name, value in own.items() if value is not None})
