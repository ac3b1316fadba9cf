import json
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import cross_entropy

from gradsurgery import load_model
from gradsurgery.algorithms import METHODS
from gradsurgery.backbones import Backbone, build_backbone
from gradsurgery.data import ImageSet, draw_split, image_loader, normalize, open_source, prepare
from gradsurgery.data.loader import prefetched
from gradsurgery.documents.configuration import RunConfiguration
from gradsurgery.documents.record import Record
from gradsurgery.errors import (
    ArgumentError,
    DataError,
    GradsurgeryError,
    NonFiniteError,
    WeightsError,
)
from gradsurgery.training import TrainingProgress, train
from gradsurgery.training import loop as loop_module
from gradsurgery.training import run as run_module
from gradsurgery.training.outcome import Evaluation, Run, evaluate

Configure = Callable[..., RunConfiguration]
Outcome = Callable[[Record, Path], tuple[dict[str, Any], bytes]]


def test_a_run_leaves_its_record_and_its_best_model(
    tmp_path: Path, images: ImageSet, configured: Configure
) -> None:
    configuration = configured()
    record = train(configuration, tmp_path / "run", opened=images)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "configuration.json",
        "model.safetensors",
        "record.json",
        "split.json",
    ]
    assert Record.load(tmp_path / "run" / "record.json") == record
    threads = {"threads": torch.get_num_threads()}
    assert record.configuration == configuration.model_copy(update=threads)
    assert record.curves.step == [4, 8, 12]
    assert record.result.last.step == 12
    best = record.curves.validation_accuracy.index(max(record.curves.validation_accuracy))
    assert record.result.best.step == record.curves.step[best]
    assert record.result.best.target_accuracy == record.result.best.test_accuracy["75"]
    assert record.data.images == {"0": 300, "15": 300, "30": 300, "45": 299, "60": 299, "75": 299}
    assert set(record.result.best.test_accuracy) == set(images.domains)
    assert record.cost.seconds > 0
    assert record.cost.peak_memory_bytes > 1e6


def test_the_saved_model_has_the_accuracy_in_the_record(
    tmp_path: Path, images: ImageSet, configured: Configure
) -> None:
    record = train(configured(method="deep-all", iterations=40), tmp_path, opened=images)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        description = json.loads(file.metadata()["gradsurgery"])
    assert description["classes"] == list(images.classes)
    backbone = build_backbone(
        description["backbone"], classes=len(description["classes"]), weights="none", seed=1
    )
    backbone.model.load_state_dict(load_file(tmp_path / "model.safetensors"))
    split = draw_split(images, seed=0)
    best = record.result.best
    for chosen, found in (
        (split.test["75"], best.target_accuracy),
        (split.validation["75"], best.target_validation_accuracy),
    ):
        right = right_answers(backbone, images, chosen)
        assert found == pytest.approx(right.mean())
        assert right.mean() > 0.1


def right_answers(
    backbone: Backbone, images: ImageSet, chosen: NDArray[np.int64]
) -> NDArray[np.bool_]:
    pixels = normalize(torch.from_numpy(images.images[chosen]), backbone.mean, backbone.std)
    with torch.no_grad():
        predicted = backbone.model(pixels).argmax(dim=1).numpy()
    right: NDArray[np.bool_] = predicted == images.label[chosen]
    return right


def test_validation_is_the_mean_of_all_images_or_of_the_domains(
    tmp_path: Path, images: ImageSet, configured: Configure
) -> None:
    drawn = draw_split(images, seed=0)
    # of one domain three validation images are left, and of another none
    told = {domain: dict(parts) for domain, parts in drawn.identities.items()}
    told["0"]["validation"], told["15"]["validation"] = told["0"]["validation"][:3], []
    lists = tmp_path / "split.json"
    lists.write_text(json.dumps({"version": 1, "seed": 0, "digest": "", "domains": told}))
    options = {"iterations": 40, "validate_every": 40, "split": lists, "weights": "none"}
    by: dict[str, Record] = {}
    for mean in ("images", "domains"):
        configuration = configured(**options, validation_mean=mean)
        by[mean] = train(configuration, tmp_path / mean, opened=images)
        backbone = build_backbone("small-cnn", classes=10, weights="none", seed=1)
        backbone.model.load_state_dict(load_file(tmp_path / mean / "model.safetensors"))
        known = [drawn.validation["0"][:3], *(drawn.validation[d] for d in ("30", "45", "60"))]
        right = [right_answers(backbone, images, chosen) for chosen in known]
        expected = {
            "images": np.concatenate(right).mean(),
            "domains": sum(each.mean() for each in right) / 4,
        }
        assert expected["images"] != pytest.approx(expected["domains"])
        assert by[mean].curves.validation_accuracy == pytest.approx([expected[mean]])
    assert by["images"].curves.train_loss == by["domains"].curves.train_loss
    assert by["images"].curves.validation_loss != by["domains"].curves.validation_loss


def test_a_processor_evaluates_a_few_images_at_a_time(
    images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.get_num_threads", lambda: 1)
    backbone = build_backbone("small-cnn", classes=10, weights="none", seed=0, image_size=12)
    about = {"device": torch.device("cpu"), "channels_last": False}
    loader = image_loader(images, backbone.mean, backbone.std, **about)
    chosen = np.arange(0, 1750, 7)  # 250, one batch of 128 and one of 122
    sizes: list[int] = []
    handle = backbone.model.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    found = evaluate(backbone, loader, chosen, autocast=nullcontext)
    handle.remove()
    assert sizes == [16] * 8 + [18] * 3 + [17] * 4
    pixels, labels = torch.from_numpy(images.images[chosen]), images.label[chosen]
    with torch.no_grad():
        logits = backbone.model(normalize(pixels, backbone.mean, backbone.std))
    loss = cross_entropy(logits, torch.from_numpy(labels)).item()
    assert found.loss == pytest.approx(loss, rel=1e-6)
    assert found.accuracy == (logits.argmax(1).numpy() == labels).mean()


def test_a_domain_left_out_is_neither_trained_nor_validated_on(
    tmp_path: Path, images: ImageSet, configured: Configure
) -> None:
    both = [
        train(configured(target=a, without=[b]), tmp_path / a, opened=images)
        for a, b in (("0", "30"), ("30", "0"))
    ]
    assert both[0].curves == both[1].curves
    assert both[0].result.best.test_accuracy == both[1].result.best.test_accuracy
    alone = train(configured(target="0"), tmp_path / "alone", opened=images)
    assert alone.curves.train_loss != both[0].curves.train_loss
    with pytest.raises(ArgumentError, match="no domain 'moon' to leave out"):
        train(configured(without=["moon"]), tmp_path / "moon", opened=images)
    with pytest.raises(ArgumentError, match="leaves 1 source domain"):
        train(configured(without=["0", "15", "30", "45"]), tmp_path / "few", opened=images)


@pytest.mark.parametrize("method", METHODS)
def test_the_same_call_gives_the_same_record_whatever_prefetches_and_decodes(
    method: str,
    tmp_path: Path,
    cache: Path,
    images: ImageSet,
    configured: Configure,
    outcome: Outcome,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one = train(configured(method=method), tmp_path / "one", cache=cache)
    source = open_source("rotated-digits")
    again = prepare(source, size=images.size, cache=tmp_path / "cache", workers=3)

    def at_once(
        at: Callable[[int], Any], first: int, last: int, *, ahead: int
    ) -> Iterator[tuple[int, Any]]:
        assert ahead == 1
        return prefetched(at, first, last, ahead=0)

    monkeypatch.setattr(loop_module, "prefetched", at_once)
    torch.manual_seed(123)  # the global random state must not matter
    two = train(configured(method=method), tmp_path / "two", opened=again)
    assert outcome(one, tmp_path / "one") == outcome(two, tmp_path / "two")


def test_run_k_of_every_method_has_the_same_weights_and_batches(
    tmp_path: Path, images: ImageSet, configured: Configure
) -> None:
    # What makes a method's first loss the plain one; Mixup has images of its own.
    plain = {"irm": {"irm.anneal": 0, "irm.penalty": 0}, "mldg": {"mldg.beta": 0}}
    plain["group-dro"] = {"group-dro.eta": 0}

    def first_loss(method: str, seed: int) -> float:
        settings = plain.get(method, {})
        options = configured(
            method=method, settings=settings, seed=seed, iterations=1, validate_every=1
        )
        record = train(options, tmp_path / method / str(seed), opened=images)
        loss = record.curves.train_loss[0]
        assert loss is not None
        return loss

    reference = first_loss("deep-all", 3)
    for method in set(METHODS) - {"mixup"}:
        assert first_loss(method, 3) == pytest.approx(reference, rel=1e-5)
    assert first_loss("deep-all", 4) != pytest.approx(reference, rel=1e-3)


def test_training_leaves_the_global_random_state(
    tmp_path: Path, images: ImageSet, configured: Configure
) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    train(configured(), tmp_path, opened=images)
    assert torch.equal(torch.get_rng_state(), before)


def test_dropout_is_seeded_as_torch_seeds_it() -> None:
    before = torch.get_rng_state()
    torch.manual_seed(2**62 + 1)
    expected = torch.rand(3)
    loop_module._seed_dropout(torch.device("cpu"), 2**62 + 1)
    assert torch.equal(torch.rand(3), expected)
    torch.set_rng_state(before)


def test_ties_go_to_the_earlier_model_and_its_weights_are_kept(
    tmp_path: Path,
    images: ImageSet,
    configured: Configure,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    accuracies = iter([0.25, 0.5, 0.5])
    monkeypatch.setattr(Run, "validate", lambda _: Evaluation(float("nan"), next(accuracies)))
    record = train(configured(), tmp_path / "ties", opened=images)
    assert record.result.best.step == 8
    assert record.curves.validation_loss == [None, None, None]
    monkeypatch.setattr(Run, "validate", lambda _: Evaluation(1.0, 0.5))
    train(configured(iterations=8, validate_every=8), tmp_path / "short", opened=images)
    kept = load_file(tmp_path / "ties" / "model.safetensors")
    expected = load_file(tmp_path / "short" / "model.safetensors")
    assert all(torch.equal(kept[name], expected[name]) for name in expected)


def test_conflict_and_cosine_are_recorded_where_the_rule_has_them(
    tmp_path: Path, images: ImageSet, configured: Configure
) -> None:
    surgery = train(configured(method="agr-sum"), tmp_path / "a", opened=images).curves
    projection = train(configured(method="pcgrad"), tmp_path / "b", opened=images).curves
    assert all(0 < value < 1 for value in surgery.agreeing if value is not None)
    assert None not in surgery.agreeing
    assert projection.agreeing == [None, None, None]
    assert all(-1 <= value <= 1 for value in projection.cosine if value is not None)
    assert None not in projection.cosine


def test_progress_tells_every_step_and_every_validation(
    tmp_path: Path, images: ImageSet, configured: Configure
) -> None:
    reports: list[TrainingProgress] = []
    record = train(configured(), tmp_path, reports.append, opened=images)
    steps = [report for report in reports if report.stage == "training"]
    assert [report.done for report in steps] == list(range(1, 13))
    told = [
        report.validation_accuracy for report in steps if report.validation_accuracy is not None
    ]
    assert told == record.curves.validation_accuracy
    assert reports[-1] == TrainingProgress("testing", 12, 12)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_lower_precision_trains_and_is_repeatable(
    precision: str, tmp_path: Path, images: ImageSet, configured: Configure, outcome: Outcome
) -> None:
    options = configured(precision=precision, method="deep-all", iterations=40)
    one = train(options, tmp_path / "one", opened=images)
    two = train(options, tmp_path / "two", opened=images)
    assert outcome(one, tmp_path / "one") == outcome(two, tmp_path / "two")
    losses = one.curves.train_loss
    assert losses[-1] is not None
    assert losses[0] is not None
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_other_optimisers_train(
    optimizer: str, tmp_path: Path, images: ImageSet, configured: Configure
) -> None:
    curves = train(configured(optimizer=optimizer), tmp_path, opened=images).curves
    assert curves.train_loss[0] != curves.train_loss[-1]


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"target": "90"}, ArgumentError, "no domain '90'; its domains are 0, 15, 30, 45, 60, 75"),
        ({"method": "agr-product"}, ArgumentError, "unknown method 'agr-product'"),
        ({"backbone": "alexnett"}, ArgumentError, "alexnet"),
        ({"weights": "absent.pth"}, WeightsError, "absent.pth"),
        ({"weights": "default"}, WeightsError, "no default weights of small-cnn"),
        ({"device": "toaster"}, ArgumentError, "device 'toaster' cannot be used"),
        ({"device": "meta"}, ArgumentError, "device 'meta' cannot train"),
        ({"data": "no-such-data"}, ArgumentError, "no-such-data"),
        ({"split": "lists/"}, ArgumentError, "the split lists/ is no percentages"),
    ],
)
def test_errors_come_before_any_work_and_leave_nothing(
    options: dict[str, str],
    error: type[Exception],
    words: str,
    tmp_path: Path,
    cache: Path,
    configured: Configure,
) -> None:
    with pytest.raises(error, match=words):
        train(configured(**options), tmp_path / "a" / "run", cache=cache)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["gather", "normalize"])  # in the thread ahead, and in a step
def test_a_batch_beyond_all_memory_is_one_line(
    place: str,
    tmp_path: Path,
    images: ImageSet,
    configured: Configure,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: object) -> None:
        torch.empty(2**60, dtype=torch.uint8)

    monkeypatch.setattr(f"gradsurgery.data.loader.{place}", full)
    words = "out of memory on cpu with 8 images of 12 pixels per domain; lower --batch-size or"
    with pytest.raises(GradsurgeryError, match=words):
        train(configured(batch_size=8), tmp_path / "run", opened=images)


def image_folder(root: Path, domains: list[str], each: int) -> Path:
    from PIL import Image

    for domain in domains:
        for label in ("cat", "dog"):
            folder = root / domain / label
            folder.mkdir(parents=True)
            for number in range(each):
                shade = (40 * number, 255 if label == "cat" else 0, 0)
                Image.new("RGB", (12, 12), shade).save(folder / f"{number}.png")
    return root


def test_surgery_needs_two_source_domains_and_deep_all_one(
    tmp_path: Path, cache: Path, configured: Configure
) -> None:
    data = str(image_folder(tmp_path / "data", ["photo", "sketch"], 5))
    options = {"data": data, "target": "sketch", "backbone": "small-cnn", "weights": "none"}
    with pytest.raises(ArgumentError, match=r"leaves 1 source .* needs 2; .* the method deep-all"):
        train(configured(**options, method="agr-sum"), tmp_path / "run", cache=cache)
    record = train(configured(**options, method="deep-all"), tmp_path / "run", cache=cache)
    assert record.split.sizes["photo"].train > 0
    none_left = r"leaves 0 source .* without photo and .* needs 1; leave fewer of them out$"
    with pytest.raises(ArgumentError, match=none_left):
        train(
            configured(**options, method="deep-all", without=["photo"]),
            tmp_path / "none",
            cache=cache,
        )


def test_a_data_set_too_small_to_validate_is_refused(
    tmp_path: Path, cache: Path, configured: Configure
) -> None:
    data = str(image_folder(tmp_path / "data", ["art", "photo", "sketch"], 2))
    options = {"data": data, "target": "sketch", "backbone": "small-cnn", "weights": "none"}
    with pytest.raises(DataError, match="no image is left for validation"):
        train(configured(**options), tmp_path / "run", cache=cache)
    assert not (tmp_path / "run").exists()


def test_a_gradient_that_is_not_finite_names_domain_step_and_parameter(
    tmp_path: Path,
    images: ImageSet,
    configured: Configure,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    passes = 0

    def spoil(gradient: Tensor) -> Tensor:
        nonlocal passes
        passes += 1
        # Step 3, second of the five source domains.
        return gradient * float("nan") if passes == 12 else gradient

    def spoiled(*args: Any, **kwargs: Any) -> Backbone:
        backbone = build_backbone(*args, **kwargs)
        backbone.model.get_parameter("classifier.bias").register_hook(spoil)
        return backbone

    monkeypatch.setattr(run_module, "build_backbone", spoiled)
    with pytest.raises(NonFiniteError) as caught:
        train(configured(), tmp_path / "run", opened=images)
    message = str(caught.value)
    assert "gradient of classifier.bias of domain '15' is not finite at step 3;" in message
    assert "lower the learning rate" in message
    assert (caught.value.domain, caught.value.parameter) == (1, "classifier.bias")


@pytest.mark.parametrize("method", METHODS)
def test_a_run_that_diverges_says_so(
    method: str, tmp_path: Path, images: ImageSet, configured: Configure
) -> None:
    options = configured(method=method, optimizer="sgd", learning_rate=1e30)
    with pytest.raises(NonFiniteError, match="is not finite at step"):
        train(options, tmp_path / "run", opened=images)


@pytest.mark.parametrize(("rate", "warned"), [(1e4, 1), (1e-3, 0)])
def test_a_loss_that_no_useful_model_has_is_said_once(
    rate: float, warned: int, tmp_path: Path, images: ImageSet, configured: Configure
) -> None:
    said: list[TrainingProgress] = []
    options = configured(
        method="deep-all", optimizer="sgd", learning_rate=rate, iterations=2, validate_every=1
    )
    record = train(options, tmp_path / "run", said.append, opened=images)
    losses = record.curves.validation_loss
    assert all((loss > 1e4) == bool(warned) for loss in losses)
    notes = [progress.note for progress in said if progress.note is not None]
    assert len(notes) == warned
    if warned:
        expected = f"the validation loss is {losses[0]:.3g} at step 1: training diverges; lower"
        assert notes[0].startswith(expected)


def test_a_validation_loss_that_is_not_finite_is_said_once(
    tmp_path: Path, images: ImageSet, configured: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = iter([1.0, float("nan"), float("inf")])
    monkeypatch.setattr(Run, "validate", lambda _: Evaluation(next(found), 0.5))
    said: list[TrainingProgress] = []
    train(configured(iterations=3, validate_every=1), tmp_path / "run", said.append, opened=images)
    notes = [progress.note for progress in said if progress.note is not None]
    assert len(notes) == 1
    assert notes[0].startswith("the validation loss is not finite at step 2: training diverges;")


def test_the_split_is_the_runs_own_on_request(
    tmp_path: Path, images: ImageSet, configured: Configure
) -> None:
    def digest(name: str, **options: Any) -> tuple[int, str]:
        record = train(configured(iterations=1, **options), tmp_path / name, opened=images)
        return record.split.seed, record.split.digest

    shared = digest("a", seed=1)
    assert shared == digest("b", seed=2)
    assert shared[0] == 0
    own = digest("c", seed=1, split_per_run=True)
    assert own[0] == 1
    assert own != shared
    assert own == digest("d", seed=7, split_seed=1)


def test_batch_norm_is_frozen_or_not_as_the_record_says(
    tmp_path: Path, images: ImageSet, configured: Configure
) -> None:
    means = {}
    for mode in ("frozen", "per-domain"):
        options = configured(
            backbone="resnet18", image_size=32, batch_norm=mode, method="deep-all", iterations=1
        )
        larger = prepare(open_source("rotated-digits"), size=32, cache=tmp_path / "cache")
        record = train(options, tmp_path / mode, opened=larger)
        assert record.configuration.batch_norm == mode
        means[mode] = load_file(tmp_path / mode / "model.safetensors")["bn1.running_mean"]
    assert not means["frozen"].any()
    assert means["per-domain"].all()


@pytest.mark.parametrize("average", ["none", "ema", "swad"])
def test_layers_that_ask_for_their_version_are_given_it(
    average: str, tmp_path: Path, images: ImageSet, configured: Callable[..., RunConfiguration]
) -> None:
    """Those of torchvision's MNASNet raise for weights without."""
    options = {"backbone": "mnasnet0_5", "weights": "none", "iterations": 4, "average": average}

    def stop(progress: TrainingProgress) -> None:
        if progress.stage == "testing":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(configured(**options), tmp_path, stop, opened=images)
    train(configured(**options), tmp_path, opened=images)
    assert list(load_model(tmp_path).classes) == list(images.classes)
