import json
from pathlib import Path
from typing import Any

import pytest

from gradsurgery.data.open_source import BUILT_IN as BUILT_IN_SETS
from gradsurgery.documents.configuration import RunConfiguration
from gradsurgery.documents.defaults import BUILT_IN_DATA as BUILT_IN
from gradsurgery.errors import ArgumentError


def test_defaults_are_the_papers() -> None:
    run = RunConfiguration(data="pacs", target="sketch")
    assert (run.backbone, run.image_size, run.iterations) == ("alexnet", 224, 1000)
    assert (run.batch_size, run.learning_rate, run.weight_decay) == (128, 1e-5, 5e-5)
    assert (run.optimizer, run.validate_every, run.precision) == ("adam", 20, "float32")
    assert run.split_seed == 0


def test_domainbeds_defaults_where_the_protocol_says_so() -> None:
    """As in DomainBed's source.

    `hparams_registry.py`: resnet50, batch_size 32, lr 5e-5, weight_decay 0, data_augmentation;
    `datasets.py`: N_STEPS 5001 (the last is step 5000), CHECKPOINT_FREQ 300, images of 224;
    `scripts/train.py`: holdout_fraction 0.2, splits drawn from the trial's seed.
    """
    options = RunConfiguration(data="pacs", target="sketch", protocol="domainbed")
    assert (options.backbone, options.weights, options.batch_norm) == (
        "resnet50",
        "IMAGENET1K_V1",
        "frozen",
    )
    assert (options.iterations, options.validate_every, options.batch_size) == (5000, 300, 32)
    assert (options.optimizer, options.learning_rate, options.weight_decay) == ("adam", 5e-5, 0)
    assert (options.augment, options.image_size, options.resize) == ("domainbed", 224, "squash")
    assert (options.split, options.split_per_run, options.test_on) == ("80/20/0", True, "all")
    assert options.validation_mean == "domains"


def test_what_is_given_goes_before_the_protocol() -> None:
    def of(**options: Any) -> RunConfiguration:
        return RunConfiguration(data="pacs", target="sketch", protocol="domainbed", **options)

    assert of(iterations=7).iterations == 7
    assert of(backbone="resnet18").weights == "default"  # the protocol's are those of ResNet-50
    assert of(backbone="resnet50").weights == "IMAGENET1K_V1"
    assert of(backbone="small-cnn").weights == "none"
    assert of(weights="none").batch_norm == "per-domain"
    assert of(split="60/20/20").split_per_run
    for told in ("lists", "column", "2024", "../1", "./7"):  # what is told is not drawn
        assert not of(split=told).split_per_run
    spelled = of().model_dump(exclude={"protocol"})
    assert not RunConfiguration(**spelled).differences(of())


def test_a_protocol_leaves_the_digits_their_small_network_and_few_steps() -> None:
    """DomainBed's small images have settings of their own too, and are not augmented."""
    small = RunConfiguration(data="rotated-digits", target="75")
    run = RunConfiguration(data="rotated-digits", target="75", protocol="domainbed")
    assert {name: own for name, (own, _) in run.differences(small).items()} == {
        "split": "80/20/0",
        "split_per_run": True,
        "test_on": "all",
        "validation_mean": "domains",
    }


def test_every_built_in_set_has_defaults() -> None:
    assert set(BUILT_IN) == set(BUILT_IN_SETS)


@pytest.mark.parametrize(
    ("data", "backbone"),
    [
        ("rotated-digits", "small-cnn"),
        ("colored-digits", "small-cnn"),
        ("coded-digits", "small-mlp"),
        ("coded-digits:domains=4", "small-mlp"),
    ],
)
def test_digits_have_small_defaults_which_options_override(data: str, backbone: str) -> None:
    run = RunConfiguration(data=data, target="75", iterations=7)
    assert (run.backbone, run.weights, run.iterations) == (backbone, "none", 7)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "frozen"),
        ({"weights": "some.safetensors"}, "frozen"),
        ({"weights": "none"}, "per-domain"),
        ({"weights": "none", "batch_norm": "frozen"}, "frozen"),
        ({"batch_norm": "per-domain"}, "per-domain"),
    ],
)
def test_batch_norm_follows_the_weights(options: dict[str, str], expected: str) -> None:
    assert RunConfiguration(data="pacs", target="sketch", **options).batch_norm == expected  # type: ignore[arg-type]


def test_a_configuration_is_read_back_as_it_was() -> None:
    run = RunConfiguration(data="rotated-digits", target="75", learning_rate=0.1)
    assert RunConfiguration.model_validate_json(run.model_dump_json()) == run


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("learning_rate", 0.0, ["greater than 0", "0.0"]),
        ("learning_rate", float("nan"), ["finite", "nan"]),
        ("weight_decay", -1, ["greater than or equal to 0", "-1"]),
        ("iterations", 0, ["greater than or equal to 1", "0"]),
        ("batch_size", "many", ["valid integer", "many"]),
        ("validate_every", 0, ["greater than or equal to 1"]),
        ("image_size", 5000, ["less than or equal to 2048", "5000"]),
        ("seed", -1, ["greater than or equal to 0"]),
        ("precision", "float8", ["'ieee', 'bfloat16' or 'float16'", "float8"]),
        ("optimizer", "lion", ["'adam', 'adamw' or 'sgd'", "lion"]),
        ("batch_norm", "thawed", ["'per-domain' or 'pooled'", "thawed"]),
        ("target", "", ["at least 1 character"]),
        ("learnin_rate", 1, ["unknown option", "learning_rate"]),
    ],
)
def test_an_error_is_one_line_that_names_option_range_and_value(
    option: str, value: Any, words: list[str]
) -> None:
    with pytest.raises(ArgumentError) as caught:
        RunConfiguration(**{"data": "pacs", "target": "sketch", option: value})
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in [option, *words]), message


def test_a_missing_option_is_named() -> None:
    with pytest.raises(ArgumentError, match="target is missing"):
        RunConfiguration(data="pacs")  # type: ignore[call-arg]


def test_differences_name_both_values() -> None:
    one = RunConfiguration(data="pacs", target="sketch", seed=1)
    two = RunConfiguration(data="pacs", target="sketch", seed=2, precision="bfloat16")
    assert one.differences(two) == {"seed": (1, 2), "precision": ("float32", "bfloat16")}


def test_folders_as_paths_and_domains_that_are_numbers() -> None:
    run = RunConfiguration(data=Path("photos"), target=75, without=[15, 0], weights=Path("a.pth"))  # type: ignore[arg-type,list-item]
    assert (run.data, run.target, run.without) == ("photos", "75", ["0", "15"])
    assert run.weights == "a.pth"


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("target", True, "target must be a valid string, found True"),
        ("target", None, "target must be a valid string, found None"),
        ("data", 5, "data must be a valid string, found 5"),
        ("without", "75", "without must be a valid list, found '75'"),
        ("without", [["a"]], "without.0 must be a valid string"),
        ("seed", 2**63, "seed must be a number of up to 18 digits"),
        ("seed", 10**4000, "found one of 13288 bits"),
        ("seed", "9" * 30, "seed must be less than or equal to"),
        ("iterations", "9" * 30, "iterations must be a number of up to 18 digits"),
        ("settings", {"irm.penalty": float("inf")}, "settings.irm.penalty must be finite"),
        ("target", "a" * 10_000, ""),
    ],
)
def test_what_is_no_option_is_one_short_line(option: str, value: Any, words: str) -> None:
    options: dict[str, Any] = {"data": "pacs", "target": "sketch", option: value}
    if not words:
        assert RunConfiguration(**options).target == value
        return
    with pytest.raises(ArgumentError) as caught:
        RunConfiguration(**options)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_a_configuration_says_its_version_and_loads_itself(tmp_path: Path) -> None:
    run = RunConfiguration(data="rotated-digits", target="75", settings={"ema.decay": 0.9})
    run.save(tmp_path)
    path = tmp_path / "configuration.json"
    content = json.loads(path.read_text())
    assert content["version"] == 1
    assert RunConfiguration.load(tmp_path) == RunConfiguration.load(path) == run
    del content["version"]  # as version 0.1.0 wrote it, with an option that is no more
    path.write_text(json.dumps(content | {"passes": "auto"}))
    assert RunConfiguration.load(tmp_path) == run
    path.write_text(json.dumps(content | {"version": 2}))
    with pytest.raises(ArgumentError, match="of version 2, expected 1"):
        RunConfiguration.load(tmp_path)
    with pytest.raises(ArgumentError, match="cannot read the configuration"):
        RunConfiguration.load(tmp_path / "nowhere")


def test_yaml_takes_on_and_off_for_true_and_false() -> None:
    written = {"channels_last": True, "cuda_graph": False}
    run = RunConfiguration(data="pacs", target="sketch", **written)
    assert (run.channels_last, run.cuda_graph) == ("on", "off")
    run = RunConfiguration(data="pacs", target="sketch", cuda_graph="auto")
    assert (run.channels_last, run.cuda_graph) == ("auto", "auto")


def test_how_a_run_computes_does_not_decide_its_folder() -> None:
    plain = RunConfiguration(data="pacs", target="sketch")
    options = {"channels_last": "on", "compile": True, "cuda_graph": "off"}
    other = RunConfiguration(data="pacs", target="sketch", **options)
    assert other.departures() == plain.departures()
    assert plain.differences(other) == {}
