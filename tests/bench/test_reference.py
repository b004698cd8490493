"""``essa bench reference``: the same work on both sides, in turns; a stand-in takes lightly-train's place."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from essa_dist.bench import peer, reference
from essa_dist.bench.children import ChildError, run_json
from essa_dist.bench.peer import make_images, peer_command, peer_turn, ready_environment
from essa_dist.bench.reference import PEER, BenchReferenceConfig, bench_reference, rows_of
from essa_dist.errors import EssaError, UsageError
from essa_dist.planning.plan import read_words
from essa_dist.settings import load

RUN = ("backbone.name=dinov2_vitl14", "batch_size=2", "precision=fp16", "device=cpu", "threads=1")


def told(words: list[str]) -> dict[str, Any]:
    return {key: json.loads(value) for key, _, value in (word.partition("=") for word in words[1:])}


def test_it_is_told_the_crops_heads_masks_and_model_of_the_run() -> None:
    more = [
        "data.crops={global_size: 112, local_size: 56, n_local: 3}",
        "objective.head={prototypes: 512, hidden: 96}",
    ]
    run = read_words([*RUN, *more, "data.masks.ratio_max=0.4", "objective.centering=sinkhorn"])
    words = told(peer_command(run, images=Path("I"), out=Path("O"), gpu=True))
    assert words["model"] == "dinov2/vitl14-noreg-notpretrained"
    assert (words["precision"], words["accelerator"], words["batch_size"]) == ("16-mixed", "gpu", 2)
    assert words["transform_args"] == {
        "image_size": [112, 112],
        "local_view": {"num_views": 3, "view_size": [56, 56]},
    }
    method = words["method_args"]
    assert (method["output_dim"], method["hidden_dim"], method["dino_bottleneck_dim"]) == (512, 96, 256)
    assert (method["mask_ratio_max"], method["center_method"]) == (0.4, "sinkhorn_knopp")
    assert words["model_args"] == {"drop_path_rate": 0.0, "ffn_layer": "mlp"}


def test_a_model_that_it_has_not_is_refused_before_anything_is_installed(tmp_path: Path) -> None:
    config = BenchReferenceConfig(run=("backbone.name=test_vit", "device=cpu"), env=str(tmp_path / "env"))
    with pytest.raises(UsageError, match="is compared on dinov2_vits14"):
        bench_reference(config)
    assert not list(tmp_path.iterdir())


def stand_in(env: Path, body: str) -> None:
    """An environment whose lightly-train is a script."""
    (env / "bin").mkdir(parents=True)
    program = env / "bin" / "lightly-train"
    program.write_text(f"#!{sys.executable}\nimport json, os, pathlib, sys\n{body}")
    program.chmod(0o755)


def test_its_own_profile_of_each_step_is_read_and_it_sends_nothing_home(tmp_path: Path) -> None:
    body = (
        "out = pathlib.Path(next(json.loads(w[4:]) for w in sys.argv if w.startswith('out=')))\n"
        "out.mkdir()\n"
        "rows = [{'profiling/batch_time': 3.0}, {'lr': 1.0}, {'profiling/batch_time': 2.0, 'profiling/data_time': 0.5}]\n"
        "(out / 'metrics.jsonl').write_text('\\n'.join(map(json.dumps, rows)))\n"
        "(out.parent / 'env.json').write_text(json.dumps(dict(os.environ)))\n"
    )
    stand_in(tmp_path / "env", body)
    words = peer_command(read_words(RUN), images=tmp_path, out=tmp_path / "out", gpu=False)
    found = peer_turn(
        tmp_path / "env", words, scratch=tmp_path, threads=1, out=tmp_path / "out", timeout_s=60
    )
    assert found == {"step_s": [3.0, 2.0], "data_s": [0.5]}
    environment = json.loads((tmp_path / "env.json").read_text())
    assert (environment["LIGHTLY_TRAIN_EVENTS_DISABLED"], environment["OMP_NUM_THREADS"]) == ("1", "1")


def test_torchvision_is_mended_in_every_python_that_has_the_folder_on_its_path(tmp_path: Path) -> None:
    folder = peer._cure(tmp_path)
    code = "import json, sys; print(json.dumps({'cured': [type(f).__name__ for f in sys.meta_path]}))"
    found = run_json([sys.executable, "-c", code], timeout_s=60, env={"PYTHONPATH": str(folder)})
    assert found["cured"][0] == "_Finder"


def test_without_a_registry_the_way_out_is_told_and_no_half_environment_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(command: list[str], **_: Any) -> str:
        (tmp_path / "env" / "bin").mkdir(parents=True, exist_ok=True)
        if "pip" in command:
            raise ChildError("no route to host")
        return ""

    monkeypatch.setattr(peer, "run", refuse)
    with pytest.raises(EssaError, match=r"no route to host.*PIP_FIND_LINKS") as caught:
        ready_environment(tmp_path / "env")
    assert "\n" not in str(caught.value)
    assert "+cpu" not in str(caught.value)
    assert not (tmp_path / "env").exists()


def test_a_folder_that_is_no_environment_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("x")
    with pytest.raises(UsageError, match="no virtual environment"):
        ready_environment(tmp_path)
    assert (tmp_path / "thesis.txt").exists()


def test_ratios_are_to_the_peer_in_the_same_round() -> None:
    turns = {
        PEER: [{"img_per_s": 2.0, "data_s": 0.1}, {"img_per_s": 1.0, "data_s": 0.3}],
        "essa apla": [{"img_per_s": 6.0, "peak_gib": 1.0}, {"img_per_s": 3.0, "peak_gib": 1.0}],
    }
    first, apla = rows_of(turns)
    assert apla["ratio"] == {"median": 3.0, "min": 3.0, "max": 3.0}
    assert first["data_s"] == pytest.approx(0.2)


def test_both_take_turns_on_the_same_images_and_the_file_grows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def theirs(env: Path, words: list[str], **_: Any) -> dict[str, list[float]]:
        images = list(Path(told(words)["data"]).iterdir())
        assert len(images) == 2 * 3
        with Image.open(images[0]) as image:
            assert image.mode == "RGB"
        seen.append("peer")
        return {"step_s": [9.0, 2.0, 2.0], "data_s": [0.1]}

    def ours(command: list[str], **_: Any) -> dict[str, Any]:
        seen.append(next(word for word in command if word.startswith("adapter=")))
        return {"img_per_s": 2.0, "peak_gib": 1.0}

    monkeypatch.setattr(reference, "ready_environment", lambda env: {PEER: "0.18.0", "torch": "2"})
    monkeypatch.setattr(reference, "make_images", lambda folder, count: make_images(folder, count))
    monkeypatch.setattr(reference, "peer_turn", theirs)
    monkeypatch.setattr(reference, "run_json", ours)
    monkeypatch.setattr(peer, "IMAGE_PX", 16)
    words = ["warmup=1", "steps=2", "rounds=2", "adapters=full,apla:rank=4", f"out={tmp_path / 'r.json'}"]
    result = bench_reference(load(BenchReferenceConfig, None, words, values={"run": RUN}))
    assert seen == ["peer", "adapter=full", "adapter=apla"] * 2
    assert [row["ratio"]["median"] for row in result["rows"]] == [1.0, 2.0, 2.0]
    assert json.loads((tmp_path / "r.json").read_text())["rows"] == result["rows"]
