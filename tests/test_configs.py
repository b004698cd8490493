"""Every shipped recipe loads, says how it is run and what it costs, and the paper's is the paper's."""

import re
from pathlib import Path

import pytest

from essa_dist.config import RunConfig
from essa_dist.engine.schedules import in_steps
from essa_dist.settings import load
from essa_dist.verbs import VERBS, config_class, verb_of

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "configs").rglob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: str(p.relative_to(ROOT / "configs")))
def test_a_recipe_loads_and_its_header_has_command_cost_and_expectation(path: Path) -> None:
    text = path.read_text()
    words = re.search(rf"^#.*(?:essa|-m essa_dist) (.*?{path.name}.*)$", text, re.MULTILINE)
    assert words is not None
    name, _ = verb_of(words[1].replace("evaluate suite=", "evaluate suite ").split())
    load(config_class(VERBS[name]), path, partial=True)
    header = [line for line in text.splitlines() if line.startswith("#")]
    assert any(line.startswith("#   ") and "essa" in line for line in header)
    assert any("Cost:" in line for line in header)


def test_the_paper_preset_is_essas_released_configuration() -> None:
    """Values of MoeinSorkhei/APLA 3f41ec9 (arXiv 2503.18873), ISIC2019, ViT-B, APLA."""
    config = load(RunConfig, ROOT / "configs/paper/essa_isic2019_vitb_apla.yaml")
    assert (config.backbone.name, config.backbone.pos_embed, config.backbone.drop_path) == (
        "dinov2_vitb14",
        "dinov2",
        0,
    )
    assert (config.adapter.kind, config.adapter.rank) == ("apla", "full")
    assert (config.batch_size, in_steps(config.duration, 20_265 // 256)) == (256, 23_700)
    assert (config.optim.lr, config.optim.min_lr, config.optim.clip, config.optim.layer_decay) == (
        1e-3,
        1e-6,
        1.0,
        1.0,
    )
    assert (config.optim.weight_decay, config.optim.weight_decay_end, config.optim.clip_over) == (
        1e-5,
        1e-4,
        "model",
    )
    s = config.schedule
    assert (s.warmup, s.freeze_last_layer, s.head_warmup) == ("10ep", "1ep", 0)
    assert (s.ema_momentum, s.ema_momentum_end) == (0.994, 1.0)
    assert (s.teacher_temp_start, s.teacher_temp, s.teacher_temp_warmup) == (0.04, 0.07, "30ep")
    o = config.objective
    assert (o.dino_weight, o.ibot_weight, o.koleo_weight, o.student_temp) == (1, 1, 0.1, 0.1)
    assert (o.centering, o.ibot_head) == ("softmax", "shared")
    assert (o.head.layers, o.head.hidden, o.head.bottleneck, o.head.prototypes) == (3, 2048, 256, 65536)
    crops, masks = config.data.crops, config.data.masks
    assert (crops.policy, crops.resize, crops.n_local) == ("as_named", 256, 8)
    assert (crops.global_size, crops.global_scale) == (224, (0.32, 1.0))
    assert (crops.local_size, crops.local_scale) == (98, (0.05, 0.32))
    assert (masks.probability, masks.ratio_min, masks.ratio_max) == (0.5, 0.1, 0.5)
    assert config.precision == "fp16"


def test_the_full_twin_differs_in_adapter_and_learning_rate_only() -> None:
    apla, full = (
        load(RunConfig, ROOT / f"configs/paper/essa_isic2019_vitb_{k}.yaml") for k in ("apla", "full")
    )
    changed = {key for key in RunConfig.model_fields if getattr(apla, key) != getattr(full, key)}
    assert changed == {"out", "adapter", "optim"}
    assert full.optim == apla.optim.model_copy(update={"lr": 1e-4})


def test_recipes_for_real_use_default_to_dinov2() -> None:
    assert load(RunConfig, ROOT / "configs/vitl_apla.yaml").backbone.name == "dinov2_vitl14"
    assert RunConfig(out="x").backbone.name == "dinov2_vitl14"
