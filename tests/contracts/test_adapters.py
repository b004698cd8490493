"""The contract of every adapter on every family of ViTs.

A no-op before training, only its tensors move, one trunk for both branches, merge keeps features, what was saved
loads in another process bit for bit.
"""

import copy
import hashlib
import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from safetensors.torch import load_file, save_file
from timm.layers import SwiGLUPacked
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from essa_dist.adapters import ADAPTERS, Adapter, AdapterConfig, Branches, inject_adapter
from essa_dist.adapters.branches import SUFFIX
from essa_dist.adapters.interface import silent_at_start
from essa_dist.backbones import Backbone, BackboneConfig, build_backbone
from essa_dist.backbones.recompute import recompute_blocks
from essa_dist.backbones.weights import EMBEDDED
from essa_dist.errors import UsageError

CASES: list[dict[str, Any]] = [
    {"kind": "full"},
    {"kind": "frozen"},
    {"kind": "apla"},
    {"kind": "apla", "rank": 1},
    {"kind": "apla", "rank": 7},
    {"kind": "apla", "rank": 5, "targets": ["q", "v", "fc2"]},
    {"kind": "bitfit"},
    {"kind": "apla+bitfit"},
    {"kind": "apla+bitfit", "rank": 3},
    {"kind": "vpt", "tokens": 5},
    {"kind": "vpt", "tokens": 3, "deep": False},
    {"kind": "adaptformer", "dim": 5, "scale": "learned"},
    {"kind": "ssf"},
    {"kind": "ln_tuning"},
    {"kind": "last_blocks"},
    {"kind": "vpt+adaptformer+apla", "tokens": 2, "dim": 3, "rank": 3},
    {"kind": "lora", "rank": 3},
    {"kind": "lora", "rank": 3, "targets": ["k"], "rslora": True, "init": "pissa"},
    {"kind": "lora", "rank": 3, "targets": ["qkv", "fc1"], "dora": True},
    {"kind": "explora", "rank": 2},
    {"kind": "lora+bitfit", "targets": ["proj", "fc2"], "dora": True},
]
B, SIDE, PATCH, WIDTH, DEPTH = 3, 16, 4, 24, 2
SIZE = {"img_size": SIDE, "patch_size": PATCH, "embed_dim": WIDTH, "depth": DEPTH, "num_heads": 2}
FAMILIES: dict[str, Callable[..., nn.Module]] = {
    "augreg": partial(VisionTransformer),  # also MAE, MRM, DeiT
    "dinov2": partial(VisionTransformer, init_values=0.1),
    "dinov2_reg": partial(VisionTransformer, init_values=0.1, reg_tokens=3, no_embed_class=True),
    "dinov2_swiglu": partial(
        VisionTransformer, init_values=0.1, mlp_layer=SwiGLUPacked, act_layer=nn.SiLU, mlp_ratio=3
    ),
    "no_qkv_bias": partial(VisionTransformer, qkv_bias=False),
    "dinov3": partial(
        Eva,
        init_values=0.1,
        num_reg_tokens=2,
        use_rot_pos_emb=True,
        use_abs_pos_emb=False,
        rope_type="dinov3",
        rope_rotate_half=True,
        qkv_bias=False,
    ),
    "eva02_fused": partial(Eva, use_rot_pos_emb=True, swiglu_mlp=True, ref_feat_shape=(4, 4)),
    "eva02_split": partial(
        Eva,
        use_rot_pos_emb=True,
        swiglu_mlp=True,
        scale_mlp=True,
        scale_attn_inner=True,
        qkv_fused=False,
        ref_feat_shape=(4, 4),
    ),
    "rope_mixed": partial(
        Eva,
        attn_type="rope",
        use_rot_pos_emb=True,
        use_abs_pos_emb=False,
        rope_type="mixed",
        no_embed_class=True,
        init_values=0.1,
    ),
}


def base_of(family: str) -> Backbone:
    """A tiny trunk, always the same one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vit: Any = FAMILIES[family](**SIZE, num_classes=0, global_pool="", dynamic_img_size=True)
        vit.pretrained_cfg = {}
        for p in vit.parameters():  # biases start at zero: an adapter that loses one must not go unseen
            p.data.add_(torch.randn_like(p) * 0.05)
    return Backbone(vit, name=family)


def settings(case: dict[str, Any]) -> AdapterConfig:
    return TypeAdapter(AdapterConfig).validate_python(case)


def adapted(family: str, case: dict[str, Any]) -> tuple[Backbone, Adapter]:
    backbone = base_of(family)
    return backbone, inject_adapter(backbone, settings(case), seed=3)


def name_of(case: dict[str, Any]) -> str:
    return "-".join("_".join(v) if isinstance(v, list) else str(v) for v in case.values())


IMAGES = torch.randn(B, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
MASKS = torch.rand(B, (SIDE // PATCH) ** 2, generator=torch.Generator().manual_seed(2)) < 0.5
PAIRS = list(itertools.product(FAMILIES, CASES))
each = pytest.mark.parametrize(("family", "case"), PAIRS, ids=[f"{f}-{name_of(c)}" for f, c in PAIRS])


def features(backbone: Backbone, images: Tensor = IMAGES) -> Tensor:
    out = backbone(images)
    return torch.cat([out.cls[:, None], out.patches], dim=1).float()


def trained_names(backbone: Backbone) -> set[str]:
    return {name for name, p in backbone.named_parameters() if p.requires_grad}


def train(backbone: Backbone, steps: int) -> None:
    """Some steps of AdamW on a loss that reaches every token, with masks as in training."""
    parameters = [p for p in backbone.parameters() if p.requires_grad]
    if not parameters:
        return
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    weights = torch.randn(B, 1 + MASKS.shape[1], WIDTH, generator=torch.Generator().manual_seed(5))
    for _ in range(steps):
        optimizer.zero_grad()
        out = backbone(IMAGES, MASKS)
        tokens = torch.cat([out.cls[:, None], out.patches], dim=1)
        (tokens * weights).sum().backward()
        optimizer.step()


def frozen_hash(backbone: Backbone) -> str:
    digest = hashlib.sha256()
    for name, p in sorted(backbone.named_parameters()):
        if not p.requires_grad and not name.endswith(SUFFIX):
            digest.update(name.encode() + p.detach().numpy().tobytes())
    return digest.hexdigest()


def test_every_adapter_has_a_case() -> None:
    kinds = {kind for case in CASES for kind in case["kind"].split("+")}
    assert kinds == set(ADAPTERS)


@each
@torch.no_grad()
def test_before_training_both_branches_are_the_base_model_bit_for_bit(
    family: str, case: dict[str, Any]
) -> None:
    base = features(base_of(family))
    backbone, adapter = adapted(family, case)
    branches = Branches(backbone)
    student = features(backbone)
    with branches.teacher():
        assert torch.equal(features(backbone), student)
    if adapter.starts_exact:
        assert torch.equal(student, base)
    else:
        assert student.isfinite().all()
        assert not torch.equal(student, base), "it could promise more"
    assert student.shape == base.shape  # no prompt or other token leaks


@each
def test_every_trained_tensor_gets_a_gradient_and_no_other(family: str, case: dict[str, Any]) -> None:
    backbone, adapter = adapted(family, case)
    branches = Branches(backbone)
    for step in (1, 2):
        train(backbone, steps=1)
        for name, p in backbone.named_parameters():
            if name in branches.students:
                assert p.grad is not None, name
                assert p.grad.isfinite().all(), name
                # What stands behind a zero gets its first gradient in the second step.
                silent = step == 1 and silent_at_start(adapter, name)
                assert p.grad.any().item() != silent, name
            else:
                assert p.grad is None, name


@each
def test_twenty_steps_move_every_trained_tensor_and_nothing_else(family: str, case: dict[str, Any]) -> None:
    backbone, _ = adapted(family, case)
    frozen, before = (
        frozen_hash(backbone),
        {n: p.detach().clone() for n, p in backbone.named_parameters() if p.requires_grad},
    )
    buffers = {n: b.clone() for n, b in backbone.named_buffers()}
    train(backbone, steps=20)
    assert frozen_hash(backbone) == frozen
    assert all(torch.equal(b, buffers[n]) for n, b in backbone.named_buffers())
    own = dict(backbone.named_parameters())
    assert [n for n, p in before.items() if torch.equal(p, own[n])] == []


@each
def test_gradients_are_the_same_under_activation_checkpointing(family: str, case: dict[str, Any]) -> None:
    grads = []
    for checkpointing in (False, True):
        backbone, _ = adapted(family, case)
        torch.manual_seed(0)  # dropout
        train(backbone, steps=1)
        if checkpointing:
            recompute_blocks(backbone.vit)
        branches = Branches(backbone)
        backbone.train()
        for p in backbone.parameters():
            p.grad = None
        out = features(backbone)
        with branches.teacher():  # a teacher pass before the recomputation must not leak into it
            features(backbone)
        if out.requires_grad:
            out.square().sum().backward()
        grads.append({name: p.grad for name, p in branches.students.items() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, msg=name)


@each
def test_the_teacher_is_the_closed_form_ema(family: str, case: dict[str, Any]) -> None:
    backbone, _ = adapted(family, case)
    branches = Branches(backbone)
    expected = {name: p.detach().double() for name, p in branches.students.items()}
    for momentum in (0.9, 0.5, 0.99):
        train(backbone, steps=1)
        branches.update_teacher(momentum)
        for name, student in branches.students.items():
            expected[name] = momentum * expected[name] + (1 - momentum) * student.detach().double()
    for name, teacher in branches.teachers.items():
        torch.testing.assert_close(teacher.double(), expected[name], rtol=1e-6, atol=1e-7)
    with branches.teacher():
        seen = features(backbone)
    alone, _ = adapted(family, case)  # the same tensors in a model without branches
    state = backbone.state_dict()
    alone.load_state_dict({n: state.get(n + SUFFIX, t) for n, t in state.items() if not n.endswith(SUFFIX)})
    with torch.no_grad():
        assert torch.equal(seen, features(alone.eval()))


@each
def test_branches_share_every_frozen_tensor(family: str, case: dict[str, Any]) -> None:
    backbone, _ = adapted(family, case)
    before = sum(p.numel() for p in backbone.parameters())
    storage = {n: p.data_ptr() for n, p in backbone.named_parameters()}
    branches = Branches(backbone)
    trained = sum(p.numel() for p in branches.students.values())
    assert sum(p.numel() for p in backbone.parameters()) == before + trained  # the teacher costs no more
    seen: dict[str, int] = {}
    for name, module in backbone.named_modules():

        def note(m: nn.Module, args: Any, kwargs: Any, name: str = name) -> None:
            entered = {n: getattr(m, n) for n, p in m._parameters.items() if p is not None}
            seen.update({f"{name}.{n}".lstrip("."): p.data_ptr() for n, p in entered.items()})

        module.register_forward_pre_hook(note, with_kwargs=True)
    with branches.teacher():
        backbone(IMAGES, MASKS)
    for name, pointer in storage.items():
        if name in seen:  # not those of a layer that another one composes without entering it
            assert (seen[name] == pointer) == (name not in branches.students), name
    assert set(branches.students) <= set(seen), (
        "a trained tensor whose module is never entered has no teacher"
    )


@each
def test_merge_keeps_the_features_and_restores_the_plain_module_tree(
    family: str, case: dict[str, Any]
) -> None:
    backbone, adapter = adapted(family, case)
    train(backbone, steps=5)
    backbone.eval()
    with torch.no_grad():
        base, trained = features(base_of(family)), features(backbone)
        adapter.merge(backbone)
        torch.testing.assert_close(features(backbone), trained, rtol=0, atol=1e-5)
    assert torch.equal(trained, base) == (case["kind"] == "frozen")
    plain = base_of(family)
    same_tree = {n: type(m) for n, m in backbone.named_modules()} == {
        n: type(m) for n, m in plain.named_modules()
    }
    assert same_tree == adapter.merges
    if adapter.merges:
        assert backbone.state_dict().keys() == plain.state_dict().keys()


@each
def test_random_choices_come_from_the_seed_not_from_the_global_rng(family: str, case: dict[str, Any]) -> None:
    states = []
    for global_seed in (0, 1):
        backbone = base_of(family)
        torch.manual_seed(global_seed)
        before = torch.get_rng_state()
        inject_adapter(backbone, settings(case), seed=3)
        assert torch.equal(torch.get_rng_state(), before)
        states.append(backbone.state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@each
def test_a_deep_copy_is_independent(family: str, case: dict[str, Any]) -> None:
    backbone, _ = adapted(family, case)
    backbone.eval()
    with torch.no_grad():
        before = features(backbone)
        twin = copy.deepcopy(backbone)
        assert torch.equal(features(twin), before)
        for p in backbone.parameters():
            p.zero_()
        assert torch.equal(features(twin), before)


@each
def test_bf16_computes_in_bf16_and_trains_fp32_masters(family: str, case: dict[str, Any]) -> None:
    backbone, _ = adapted(family, case)
    branches = Branches(backbone, compute_dtype=torch.bfloat16)
    trained = {id(p) for group in (branches.students, branches.teachers) for p in group.values()}
    for p in backbone.parameters():
        if id(p) not in trained:
            p.data = p.data.bfloat16()
    out = backbone(IMAGES.bfloat16(), MASKS)
    with branches.teacher():
        teacher = backbone(IMAGES.bfloat16(), MASKS)
    assert {out.cls.dtype, out.patches.dtype, teacher.cls.dtype} == {torch.bfloat16}
    if branches.students:
        (out.cls.float().sum() + out.patches.float().square().sum()).backward()
    assert {p.dtype for p in branches.students.values()} <= {torch.float32}
    assert all(p.grad is None or p.grad.isfinite().all() for p in branches.students.values())


def saved(backbone: Backbone) -> dict[str, Tensor]:
    """What a checkpoint has of the trunk: trained tensors and buffers."""
    tensors = {n: p for n, p in backbone.named_parameters() if p.requires_grad} | dict(
        backbone.named_buffers()
    )
    return {name: t.detach().clone() for name, t in tensors.items()}


def reload(folder: Path) -> None:
    """In a fresh process: build every pair anew, in another order of moving and loading, and write its features."""
    for number, (family, case) in enumerate(PAIRS):
        backbone, _ = adapted(family, case)
        if number % 2:  # stands for .to(device): every tensor gets new storage
            backbone.double().float()
        tensors = load_file(folder / f"{number}.safetensors")
        own = dict(backbone.named_parameters()) | dict(backbone.named_buffers())
        with torch.no_grad():
            for name, tensor in tensors.items():
                own[name].copy_(tensor)
            if not number % 2:
                backbone.double().float()
            save_file({"features": features(backbone.eval())}, folder / f"{number}.features")


@pytest.fixture(scope="module")
def reloaded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reload")
    for number, (family, case) in enumerate(PAIRS):
        backbone, _ = adapted(family, case)
        train(backbone, steps=2)
        save_file(saved(backbone), folder / f"{number}.safetensors")
        with torch.no_grad():
            save_file({"features": features(backbone.eval())}, folder / f"{number}.expected")
    code = (
        "import essa_dist, importlib.util, sys, pathlib;"
        f"spec = importlib.util.spec_from_file_location('contract', {str(Path(__file__))!r});"
        "m = importlib.util.module_from_spec(spec); sys.modules['contract'] = m; spec.loader.exec_module(m);"
        f"m.torch.manual_seed(99); m.torch.set_num_threads({torch.get_num_threads()});"
        f"m.reload(pathlib.Path({str(folder)!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


@each
def test_what_was_saved_loads_in_a_fresh_process_bit_for_bit(
    family: str, case: dict[str, Any], reloaded: Path
) -> None:
    number = PAIRS.index((family, case))
    found, expected = (
        load_file(reloaded / f"{number}.{end}")["features"] for end in ("features", "expected")
    )
    assert torch.equal(found, expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("case", CASES, ids=name_of)
@torch.no_grad()
def test_on_a_gpu_it_does_not_matter_whether_it_is_moved_or_loaded_first(case: dict[str, Any]) -> None:
    with torch.enable_grad():
        trained, _ = adapted("dinov2", case)
        train(trained, steps=2)
    found = []
    for moved_first in (True, False):
        backbone, _ = adapted("dinov2", case)
        for move in (moved_first, not moved_first):
            if move:
                backbone.cuda()
            else:
                own = dict(backbone.named_parameters()) | dict(backbone.named_buffers())
                for name, tensor in saved(trained).items():
                    own[name].copy_(tensor)
        found.append(features(backbone.eval(), IMAGES.cuda()).cpu())
    assert torch.equal(*found)
    # cuDNN's convolutions, as the patch embedding, are in TF32 unless told otherwise.
    torch.testing.assert_close(found[0], features(trained.eval()), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_the_real_vit_keeps_the_contract(case: dict[str, Any]) -> None:
    config = BackboneConfig(
        name="vit_tiny_patch16_224",
        weights=str(EMBEDDED["vit_tiny_patch16_224"]),
        checkpoint_activations=True,
    )
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    backbone = build_backbone(config).eval()
    with torch.no_grad():
        base = features(backbone, images)
    adapter = inject_adapter(backbone, settings(case), seed=0)
    backbone.eval()
    with torch.no_grad():
        assert torch.equal(features(backbone, images), base) == adapter.starts_exact
    frozen = frozen_hash(backbone)
    branches = Branches(backbone)
    if branches.students:
        optimizer = torch.optim.AdamW(branches.students.values(), lr=1e-3)
        for _ in range(2):
            optimizer.zero_grad()
            out = backbone(images, torch.rand(2, 16) < 0.5)
            (out.cls.square().mean() + out.patches.square().mean()).backward()
            assert [
                n for n, p in backbone.named_parameters() if p.grad is not None and n not in branches.students
            ] == []
            optimizer.step()
        assert [n for n, p in branches.students.items() if p.grad is None or not p.grad.any()] == []
    assert frozen_hash(backbone) == frozen
    with torch.no_grad():
        trained = features(backbone, images)
        with branches.teacher():  # has not been updated
            assert torch.equal(features(backbone, images), base) == adapter.starts_exact
    fresh = build_backbone(config).eval()
    inject_adapter(fresh, settings(case), seed=0)
    fresh.eval()
    own = dict(fresh.named_parameters()) | dict(fresh.named_buffers())
    with torch.no_grad():
        for name, tensor in saved(backbone).items():
            if not name.endswith(SUFFIX):
                own[name].copy_(tensor)
        adapter.merge(fresh)
        scale = float(trained.abs().max().clamp(min=1))
        torch.testing.assert_close(features(fresh, images), trained, rtol=0, atol=1e-5 * scale)
    plain = build_backbone(config)
    assert (fresh.state_dict().keys() == plain.state_dict().keys()) == adapter.merges


@pytest.mark.parametrize(
    ("kind", "named"),
    [
        ("full+bitfit", "bitfit adds nothing"),
        ("frozen+apla", "frozen adds nothing"),
        ("apla+full", "apla and full both train or change vit.blocks.0.attn.proj.weight"),
        ("full+lora", "full and lora both train or change vit.blocks.0.attn.qkv.weight"),
    ],
)
def test_a_clash_names_the_tensors(kind: str, named: str) -> None:
    with pytest.raises(UsageError, match=named):
        adapted("augreg", {"kind": kind})


def test_two_adapters_of_one_layer_clash() -> None:
    parts = [{"kind": "apla", "rank": 2}, {"kind": "apla", "rank": 3}]
    with pytest.raises(UsageError, match=r"two adapters change vit\.blocks\.0\.attn\.proj"):
        adapted("augreg", {"kind": "combined", "parts": parts})


def test_settings_of_a_combination_go_to_the_part_that_has_them() -> None:
    config: Any = settings({"kind": "apla+bitfit", "rank": 3})
    assert [part.kind for part in config.parts] == ["apla", "bitfit"]
    assert config.parts[0].rank == 3
    assert json.loads(json.dumps(config.model_dump()))["parts"][0]["rank"] == 3
