"""``evaluate_model``'s promises: one extraction for all protocols, results that say how they were made."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from essa_dist.backbones import Backbone
from essa_dist.errors import UsageError
from essa_dist.evaluation import probe
from essa_dist.evaluation.probe import ProbeConfig, evaluate_model

Draw = Callable[..., Any]
SMALL = ProbeConfig(image_size=32, k=(3,), device="cpu")
COMMON = {"model", "image_size", "crop", "pooling", "n_bank", "n_test", "overlap", "seed", "classes"}
MEASURED = {"protocol", "accuracy", "balanced_accuracy", "interval", "confusion", "seconds"}


def test_each_protocol_reports_what_it_measured_and_how(backbone: Backbone, draw: Draw) -> None:
    bank, test = draw(["red", "green", "blue"], [6, 5, 4]), draw(["red", "green", "blue"], [3, 2, 1], seed=1)
    found = evaluate_model(backbone, bank, test, config=SMALL, model="untrained")
    assert set(found["knn"]) == COMMON | MEASURED | {"k", "temperature"}
    assert set(found["linear"]) == COMMON | MEASURED | {"C"}
    for protocol, result in found.items():
        assert result["protocol"] == protocol
        assert (result["model"], result["n_bank"], result["n_test"]) == ("untrained", 15, 6)
        assert result["balanced_accuracy"] == result["accuracy"] == 1.0  # plain colours
        assert result["confusion"] == [[3, 0, 0], [0, 2, 0], [0, 0, 1]]
        assert result["interval"] == [1.0, 1.0]
        assert json.loads(json.dumps(result)) == result


def test_features_are_extracted_once_for_all_protocols(
    backbone: Backbone, draw: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    extracted = []
    extract = probe.extract_features

    def counting(backbone: Backbone, images: Any, **settings: Any) -> Any:
        extracted.append(images)
        return extract(backbone, images, **settings)

    monkeypatch.setattr(probe, "extract_features", counting)
    bank, test = draw(["red", "blue"], [4, 4]), draw(["red", "blue"], [2, 2], seed=1)
    evaluate_model(backbone, bank, test, ("knn", "linear"), SMALL)
    assert extracted == [bank, test]


def test_classes_in_another_order_give_the_same_result(backbone: Backbone, draw: Draw) -> None:
    bank, test = draw(["red", "blue", "grey"], [4, 4, 4]), draw(["grey", "red", "blue"], [3, 1, 2], seed=1)
    found = evaluate_model(backbone, bank, test, ("knn",), SMALL)["knn"]
    assert found["classes"] == ["red", "blue", "grey"]
    assert found["confusion"] == [[1, 0, 0], [0, 2, 0], [0, 0, 3]]


@pytest.mark.parametrize("protocol", ["knn", "linear"])
def test_a_class_that_only_the_test_set_shows_counts_as_missed(
    backbone: Backbone, draw: Draw, protocol: Any
) -> None:
    bank, test = draw(["red", "blue"], [4, 4]), draw(["red", "blue", "green"], [2, 2, 2], seed=1)
    found = evaluate_model(backbone, bank, test, (protocol,), SMALL)[protocol]
    assert found["balanced_accuracy"] == pytest.approx(2 / 3)
    assert found["confusion"][2][2] == 0


def test_without_a_size_the_model_sees_its_own(backbone: Backbone, draw: Draw) -> None:
    bank, test = draw(["red", "blue"], [1, 1]), draw(["red", "blue"], [1, 1], seed=1)
    own = evaluate_model(backbone, bank, test, ("knn",), ProbeConfig(k=(1,), device="cpu"))["knn"]
    assert own["image_size"] == backbone.image_size == 224


def test_the_crop_hides_the_border(backbone: Backbone, draw: Draw) -> None:
    """Bank of whole colours; test images are red in the middle half of each side and blue around it."""
    bank, test = draw(["red", "blue"], [2, 2]), draw(["red", "blue"], [1, 0], seed=1)
    centre = test.pixels[0].clone()
    test.pixels[0] = draw(["blue"], [1]).pixels[0]
    test.pixels[0][:, 5:15, 6:18] = centre[:, 5:15, 6:18]
    config = SMALL.model_copy(update={"k": (2,), "crop": 0.5})
    assert evaluate_model(backbone, bank, test, ("knn",), config)["knn"]["confusion"] == [[1, 0], [0, 0]]
    whole = config.model_copy(update={"crop": 1.0})
    assert evaluate_model(backbone, bank, test, ("knn",), whole)["knn"]["confusion"] == [[0, 1], [0, 0]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": (9,)}, r"k=9 is outside 1\.\.8 \(the bank\)"),
        ({"image_size": 40}, "use 32 or 48"),
        ({"device": "cuda:99"}, "device='cuda:99' can't be used here"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_any_image_is_read(
    backbone: Backbone, draw: Draw, settings: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = draw(["red", "blue"], [4, 4])
    monkeypatch.setattr(type(images), "decode", lambda *_: pytest.fail("an image was read"))
    config = SMALL.model_copy(update=settings)
    with pytest.raises(UsageError, match=message):
        evaluate_model(backbone, images, images, ("knn",), config)


def test_k_does_not_bind_the_linear_probe(backbone: Backbone, draw: Draw) -> None:
    images = draw(["red", "blue"], [2, 2])
    config = SMALL.model_copy(update={"k": (20,)})
    assert evaluate_model(backbone, images, images, ("linear",), config)["linear"]["n_bank"] == 4
