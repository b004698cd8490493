"""The verbs: what ``essa VERB`` runs, and the same as Python calls.

Every call takes the same things and returns what ``essa VERB --json`` prints: first a YAML file, a mapping or a config
object, then ``"a.b=value"`` overrides, and keywords for top-level keys, whose values are Python objects. What is wrong
with them raises ``essa_dist.errors.UsageError``, a ValueError with one line for each problem.
"""

import importlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from essa_dist.settings import Config

Source: TypeAlias = "str | Path | Mapping[str, Any] | Config | None"


class Verb(NamedTuple):
    module: str
    function: str
    config: str
    """Its Config class: ``module:class``."""
    help: str
    positional: str = ""
    """The key that a first word without ``=`` gives, unless that word is a YAML file."""
    example: str = ""
    recipe: str = ""
    """YAML file in the repository that is taken when none is given."""
    others: str = ""
    """The key that takes, as they are, the words that set no key of this verb: they are another verb's."""
    has_file: bool = True
    """A YAML file among the words is this verb's own, and not one of the other's words."""


VERBS: dict[str, Verb] = {
    "pack": Verb(
        "essa_dist.packing.pack",
        "pack",
        "essa_dist.packing.pack:PackConfig",
        "write medical images of any usual format as shards, with a manifest and a data report",
        "src",
        "essa pack IMAGES out=PACKED",
    ),
    "pack index": Verb(
        "essa_dist.packing.foreign",
        "index",
        "essa_dist.packing.foreign:IndexConfig",
        "make existing WebDataset tars a packed data set, where they lie",
        "src",
        "essa pack index SHARDS",
    ),
    "data show": Verb(
        "essa_dist.report.step_view",
        "show_step",
        "essa_dist.report.step_view:ShowStepConfig",
        "draw what one step of a run saw: images, crops, masks, keys",
        "run",
        "essa data show RUN step=123",
    ),
    "data ledger": Verb(
        "essa_dist.report.ledger",
        "check_ledger",
        "essa_dist.report.ledger:LedgerConfig",
        "check that a run recorded with ledger=true repeated and skipped no sample",
        "run",
        "essa data ledger RUN",
    ),
    "data report": Verb(
        "essa_dist.packing.report",
        "data_report",
        "essa_dist.packing.report:DataReportConfig",
        "write the page about a packed data set again",
        "packed",
        "essa data report PACKED",
    ),
    "data verify": Verb(
        "essa_dist.data.remote.verify",
        "verify_data",
        "essa_dist.data.remote.verify:VerifyConfig",
        "read a packed data set through, local or remote, and compare its checksums",
        "packed",
        "essa data verify PACKED",
    ),
    "adapt": Verb(
        "essa_dist.engine.adapt",
        "adapt",
        "essa_dist.config:RunConfig",
        "adapt a vision transformer to unlabelled images",
        example="essa adapt configs/smoke.yaml data.train=PACKED out=RUN",
    ),
    "plan": Verb(
        "essa_dist.planning.plan",
        "plan",
        "essa_dist.planning.config:PlanConfig",
        "say what a run of adapt or finetune will take on any device: memory by term, speed, hours, cost; no GPU is needed",
        example="essa plan configs/vitl_apla.yaml devices=h100,8xl4 images=100000",
        others="run",
        has_file=False,
    ),
    "scale": Verb(
        "essa_dist.scaling.scale",
        "scale",
        "essa_dist.scaling.config:ScaleConfig",
        "weak and strong scaling over numbers of processes: speed, efficiency, split of a step, cost; and predictions beyond",
        example="essa scale configs/smoke.yaml sizes=1,2 predict=4,8,64 strategy=ddp,zero2 mode=both out=SCALING",
        others="run",
        has_file=False,
    ),
    "finetune": Verb(
        "essa_dist.finetune",
        "finetune",
        "essa_dist.finetune:FinetuneConfig",
        "train for a labelled task: classes, several labels, grades or masks",
        example="essa finetune configs/finetune.yaml model=RUN data.train=PACKED out=RUN2",
    ),
    "evaluate": Verb(
        "essa_dist.evaluation.evaluate",
        "evaluate",
        "essa_dist.evaluation.evaluate:EvaluateConfig",
        "measure frozen features on labelled images (knn | linear | linear_sgd | fewshot | retrieval)",
        "protocol",
        "essa evaluate knn model=RUN bank=PACKED test=PACKED",
    ),
    "evaluate suite": Verb(
        "essa_dist.report.suite",
        "evaluate_suite",
        "essa_dist.evaluation.suite:SuiteConfig",
        "several protocols over several models, data sets and seeds, into one table (also: evaluate suite=FILE)",
        example="essa evaluate suite=configs/suites/cells.yaml models=A,B,C out=SUITE",
    ),
    "reproduce": Verb(
        "essa_dist.reproduce",
        "reproduce",
        "essa_dist.reproduce:ReproduceConfig",
        "run a paper's comparison (medpeft | essa), or both in small on real images, and fill its table",
        "grid",
        "essa reproduce medpeft data_root=PACKED_SETS out=OUT --dry-run",
    ),
    "embed": Verb(
        "essa_dist.inference.embed",
        "embed",
        "essa_dist.inference.embed:EmbedConfig",
        "write the features of any images by any model as Parquet or npz",
        "model",
        "essa embed RUN images=IMAGES out=FEATURES",
    ),
    "predict": Verb(
        "essa_dist.inference.predict",
        "predict",
        "essa_dist.inference.predict:PredictConfig",
        "say what a fine-tuned run sees in any images: a table, masks, metrics",
        "run",
        "essa predict RUN images=IMAGES out=PREDICTIONS",
    ),
    "export": Verb(
        "essa_dist.export",
        "export",
        "essa_dist.export:ExportConfig",
        "write the adapted model for use elsewhere",
        "run",
        "essa export RUN format=timm out=MODEL",
    ),
    "report": Verb(
        "essa_dist.report",
        "report",
        "essa_dist.report:ReportConfig",
        "write the page of a run: curves, tables, pictures",
        "run",
        "essa report RUN",
    ),
    "config": Verb(
        "essa_dist.settings",
        "as_tree",
        "essa_dist.config:RunConfig",
        "show a recipe resolved, with the meaning of every setting",
        example="essa config configs/demo.yaml optim.lr=1e-4",
    ),
    "doctor": Verb(
        "essa_dist.doctor",
        "doctor",
        "essa_dist.doctor:DoctorConfig",
        "say what is installed and works on this machine, or under a launcher what is wrong with its ranks",
        example="essa doctor",
        others="run",
        has_file=False,
    ),
    "tune": Verb(
        "essa_dist.tuning.sweep",
        "tune",
        "essa_dist.tuning.config:TuneConfig",
        "search settings of a run with Ray Tune; each trial is a distributed job",
        example="essa tune tune/spaces/adapters.yaml base=CONFIG.yaml data.train=PACKED out=SWEEP",
        others="settings",
    ),
    "bench data": Verb(
        "essa_dist.bench",
        "bench_data",
        "essa_dist.bench:BenchDataConfig",
        "time decoding and cropping: PIL, torchvision v2, ours and DALI, in turns",
        example="essa bench data",
    ),
    "bench step": Verb(
        "essa_dist.bench.step",
        "bench_step",
        "essa_dist.bench.step:BenchStepConfig",
        "time one configuration's training step on noise, phase by phase, with memory and the share of the machine's peak",
        example="essa bench step backbone.name=dinov2_vits14 batch_size=8",
        others="run",
        has_file=False,
    ),
    "bench compare": Verb(
        "essa_dist.bench.compare",
        "bench_compare",
        "essa_dist.bench.compare:BenchCompareConfig",
        "time adapters, strategies or settings side by side, in turns, and tell their ratios",
        example="essa bench compare backbone.name=dinov2_vits14 batch_size=8 adapters=full,apla,lora",
        others="run",
        has_file=False,
    ),
    "bench peaks": Verb(
        "essa_dist.bench.peaks",
        "bench_peaks",
        "essa_dist.bench.peaks:BenchPeaksConfig",
        "measure the most this machine makes of a product of matrices and of a copy",
        example="essa bench peaks",
    ),
    "bench head": Verb(
        "essa_dist.bench.head",
        "bench_head",
        "essa_dist.bench.head:BenchHeadConfig",
        "time projection heads and cross-entropies with very many prototypes, the slow and the fast way",
        example="essa bench head backbone.name=dinov2_vits14 batch_size=8",
        others="run",
        has_file=False,
    ),
    "bench attention": Verb(
        "essa_dist.bench.attention",
        "bench_attention",
        "essa_dist.bench.attention:BenchAttentionConfig",
        "time a block's attention over all crops of a batch, several ways",
        example="essa bench attention backbone.name=dinov2_vits14 batch_size=8",
        others="run",
        has_file=False,
    ),
    "bench memory": Verb(
        "essa_dist.bench.memory",
        "bench_memory",
        "essa_dist.bench.memory:BenchMemoryConfig",
        "say what autograd keeps of a step, layer by layer, for adapters side by side",
        example="essa bench memory backbone.name=dinov2_vits14 batch_size=2 adapters=full,apla",
        others="run",
        has_file=False,
    ),
    "bench reference": Verb(
        "essa_dist.bench.reference",
        "bench_reference",
        "essa_dist.bench.reference:BenchReferenceConfig",
        "time lightly-train's DINOv2 step, in an environment of its own, and ours, in turns",
        example="essa bench reference backbone.name=dinov2_vits14 batch_size=8",
        others="run",
        has_file=False,
    ),
    "demo": Verb(
        "essa_dist.demo",
        "demo",
        "essa_dist.demo:DemoConfig",
        "evaluate, adapt, evaluate again, export and report, on images that come along",
        example="essa demo",
        recipe="configs/demo.yaml",
    ),
}
"""Name of the verb, one word or two, to where it lives. Nothing is imported before its verb is called."""


def verb_of(words: Sequence[str]) -> tuple[str, list[str]]:
    """The verb that ``words`` (not none) begin with, and the words behind it: `pack index` is one, not `pack` of `index`.

    `evaluate suite=FILE` is `evaluate suite FILE`. Raises UsageError with the verbs that there are.
    """
    from essa_dist.errors import UsageError
    from essa_dist.nearest import nearest

    for i, word in enumerate(words[1:], start=1):
        second, equals, value = word.partition("=")
        if equals and words[0] in VERBS and (name := f"{words[0]} {second}") in VERBS:
            return name, [value, *words[1:i], *words[i + 1 :]]
    for n in (2, 1):
        name = " ".join(words[:n])
        if name in VERBS:
            return name, list(words[n:])
    family = [name for name in VERBS if name.startswith(f"{words[0]} ")]
    if family:
        raise UsageError(f"essa {words[0]} needs a second word: {', '.join(family)}")
    best = nearest(words[0], VERBS)
    hint = f"; did you mean {best}?" if best else ""
    raise UsageError(f"no verb {words[0]!r}; verbs are {', '.join(VERBS)}{hint}")


def config_class(verb: Verb) -> "type[Config]":
    """The Config of a verb. Imports the verb's package: seconds, where that needs torch."""
    module, _, name = verb.config.partition(":")
    found: type[Config] = getattr(importlib.import_module(module), name)
    return found


def sort_words(verb: Verb, words: list[str]) -> tuple[Path | None, dict[str, Any], list[str]]:
    """The words after a verb as (YAML file, values, overrides). Raises UsageError for a word too many.

    The first word without ``=`` is the verb's positional value or the YAML file. A file whose name holds ``=`` is
    known by its suffix and by being there.
    """
    from essa_dist.errors import UsageError

    values: dict[str, Any] = {}
    if verb.others:
        theirs = [word for word in words if not _is_own(word, verb)]
        words = [word for word in words if _is_own(word, verb)]
        values = {verb.others: theirs} if theirs else {}
    source: Path | None = None
    overrides: list[str] = []
    for word in words:
        is_yaml = word.endswith((".yaml", ".yml"))
        if "=" in word and not (is_yaml and os.path.isfile(word)):
            overrides.append(word)
        elif verb.positional and not is_yaml and verb.positional not in values:
            values[verb.positional] = word
        elif source is None and (is_yaml or not verb.positional):
            source = Path(word)
        else:
            raise UsageError(f"{word!r} is one word too many; settings are written key=value")
    if source is None and verb.recipe:
        source = Path(__file__).parents[1] / verb.recipe
    return source, values, overrides


def _is_own(word: str, verb: Verb) -> bool:
    """Whether a word is of ``verb`` itself, where others' words stand beside its own."""
    key, equals, _ = word.partition("=")
    if not equals or os.path.isfile(word):  # Path's raises where a word is too long for a name
        return verb.has_file
    return key.partition(".")[0] in config_class(verb).model_fields


def call(
    name: str, source: Any = None, overrides: tuple[str, ...] = (), values: Any = None
) -> dict[str, Any]:
    """Run verb ``name`` on settings given as in :func:`adapt`; raises what its function raises."""
    from essa_dist.settings import load

    verb = VERBS[name]
    words = [str(source)] if isinstance(source, (str, Path)) else []
    file, positional, texts = sort_words(verb, [*words, *overrides])
    settings = load(
        config_class(verb), file or (None if words else source), texts, values=positional | (values or {})
    )
    result: dict[str, Any] = getattr(importlib.import_module(verb.module), verb.function)(settings)
    return result


def pack(source: Source = None, *overrides: str, **values: Any) -> dict[str, Any]:
    """Write the images of a folder as shards with a manifest, like ``essa pack``.

    A text that isn't a YAML file is the folder: ``pack("IMAGES", out="PACKED")``.
    """
    return call("pack", source, overrides, values)


def adapt(source: Source = None, *overrides: str, **values: Any) -> dict[str, Any]:
    """Adapt a vision transformer to unlabelled images, like ``essa adapt``.

    ``adapt("configs/smoke.yaml", "data.train=PACKED", out="RUN")``, or ``adapt(config)`` of a ``RunConfig``.
    """
    return call("adapt", source, overrides, values)


def evaluate(source: Source = None, *overrides: str, **values: Any) -> dict[str, Any]:
    """Measure the frozen features of a model on labelled images, like ``essa evaluate``.

    A text that isn't a YAML file is the protocol: ``evaluate("knn", model="RUN", bank="PACKED", test="PACKED")``.
    With a suite it is ``evaluate(suite="SUITE.yaml", models="A,B")``.
    """
    if "suite" in values:
        words = overrides if source is None else (str(source), *overrides)
        return call("evaluate suite", values.pop("suite"), words, values)
    return call("evaluate", source, overrides, values)


def finetune(source: Source = None, *overrides: str, **values: Any) -> dict[str, Any]:
    """Train for a labelled task and judge the result on the test images, like ``essa finetune``.

    ``finetune("configs/finetune.yaml", model="RUN", data={"train": "PACKED"}, out="TASK")``.
    """
    return call("finetune", source, overrides, values)


def embed(source: Source = None, *overrides: str, **values: Any) -> dict[str, Any]:
    """Write the features of images, like ``essa embed``: ``embed("RUN", images="IMAGES", out="FEATURES")``."""
    return call("embed", source, overrides, values)


def predict(source: Source = None, *overrides: str, **values: Any) -> dict[str, Any]:
    """Say what a fine-tuned run sees, like ``essa predict``: ``predict("TASK", images="IMAGES", out="PREDICTIONS")``."""
    return call("predict", source, overrides, values)


def export(source: Source = None, *overrides: str, **values: Any) -> dict[str, Any]:
    """Write the adapted model for use elsewhere, like ``essa export``: ``export("RUN", out="MODEL")``."""
    return call("export", source, overrides, values)


def report(source: Source = None, *overrides: str, **values: Any) -> dict[str, Any]:
    """Write the page of a run, like ``essa report``: ``report("RUN")``."""
    return call("report", source, overrides, values)


class Package(ModuleType):
    """The class of the package ``essa_dist``: keeps ``essa_dist.export`` and others in CALLABLE_MODULES callable.

    They are verbs and, once imported, subpackages, and Python then puts the subpackage in the place of the verb.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, ModuleType) and name in CALLABLE_MODULES:
            value.__class__ = CALLABLE_MODULES[name]
        super().__setattr__(name, value)


def _callable_as(verb: Callable[..., dict[str, Any]]) -> type[ModuleType]:
    """The class of a module that is called as ``verb`` is."""
    return type(f"{verb.__name__.title()}Module", (ModuleType,), {"__call__": staticmethod(verb)})


CALLABLE_MODULES: dict[str, type[ModuleType]] = {
    verb.__name__: _callable_as(verb) for verb in (export, finetune, report)
}
