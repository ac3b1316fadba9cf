"""Rules and objectives of other packages, by name and as instances."""

import hashlib
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

import gradsurgery as gs
from gradsurgery import doors
from gradsurgery.algorithms import Objective, method_parts, settings_of
from gradsurgery.algorithms.methods import hyperparameter_names, method_provenance
from gradsurgery.errors import ArgumentError
from tests.algorithms import oracles

MODULE = '''
import gradsurgery as gs
from torch.nn.functional import cross_entropy
from gradsurgery.algorithms import Objective
from gradsurgery.hyperparameters import Hyperparameter


class Scaled(gs.Rule):
    """factor times the sum."""

    hyperparameters = (Hyperparameter("factor", 2.0, "of the sum"),)

    def __call__(self, gradients):
        return self.values["factor"] * gradients.sum(0)


class Own(gs.Rule):
    """With a constructor of its own."""

    name = "own"

    def __init__(self, generator=None):
        self.generator = generator

    def __call__(self, gradients):
        return gradients[0] + float(self.generator is not None)


class Weighted(Objective):
    hyperparameters = (Hyperparameter("weight", 3, "of the risks"),)

    def losses(self, forward, batches, step):
        logits = forward([x for x, _ in batches])
        for z, (_, y) in zip(logits, batches):
            yield self.values["weight"] * cross_entropy(z, y)


class Unfinished(gs.Rule):
    pass


def first(gradients):
    return gradients[0]


instance = Scaled(factor=4)
number = 7
'''


@pytest.fixture
def neighbour(tmp_path, monkeypatch):
    (tmp_path / "neighbour.py").write_text(MODULE)
    info = tmp_path / "neighbour-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: neighbour\nVersion: 1.2\n")
    (info / "top_level.txt").write_text("neighbour\n")
    points = "[gradsurgery.rules]\nscaled = neighbour:Scaled\n"
    points += "[gradsurgery.objectives]\nweighted = neighbour:Weighted\n"
    (info / "entry_points.txt").write_text(points)
    monkeypatch.syspath_prepend(tmp_path)
    doors._entries.cache_clear(), doors._distributions.cache_clear()
    yield
    doors._entries.cache_clear(), doors._distributions.cache_clear()
    sys.modules.pop("neighbour", None)


def rows(data) -> torch.Tensor:
    return torch.stack(
        [
            oracles.flat_gradient(loss, m)
            for m in [oracles.network()]
            for loss in oracles.risks(m, data)
        ]
    )


def moved(algorithm, data) -> torch.Tensor:
    """The update that one step applied."""
    model = oracles.network()
    before = oracles.flat_parameters(model)
    algorithm.step(model, data, oracles.sgd(model.parameters()), step=1)
    return (before - oracles.flat_parameters(model)) / oracles.LEARNING_RATE


@pytest.mark.parametrize(
    ("name", "settings", "update"),
    [
        ("erm+neighbour:Scaled", {}, lambda g: 2 * g.sum(0)),
        ("neighbour:Scaled", {"neighbour:Scaled.factor": "5"}, lambda g: 5 * g.sum(0)),
        ("scaled", {"scaled.factor": 5}, lambda g: 5 * g.sum(0)),
        ("erm+neighbour:instance", {}, lambda g: 4 * g.sum(0)),
        ("neighbour:first", {}, lambda g: g[0]),
        ("neighbour:Own", {}, lambda g: g[0] + 1),
        ("neighbour:Weighted", {}, lambda g: 3 * g.mean(0)),
        ("neighbour:Weighted", {"neighbour:Weighted.weight": "2"}, lambda g: 2 * g.mean(0)),
        ("weighted", {"weighted.weight": 4}, lambda g: 4 * g.mean(0)),
        ("neighbour:Weighted+agr-sum", {}, lambda g: 3 * gs.AgrSum()(g)),
        ("weighted+neighbour:Scaled", {}, lambda g: 6 * g.sum(0)),
        ("mldg+neighbour:first", {"mldg.beta": 0}, lambda g: g[0]),
    ],
)
def test_by_name(name, settings, update, neighbour, built):
    data = oracles.batches(3)
    torch.testing.assert_close(moved(built(name, settings=settings), data), update(rows(data)))


@pytest.mark.parametrize("batch_norm", ["frozen", "pooled", "per-domain"])
def test_with_every_way_of_passing(batch_norm, neighbour, built):
    data = oracles.batches(3)
    algorithm = built("weighted+neighbour:first", batch_norm=batch_norm)
    torch.testing.assert_close(moved(algorithm, data), 3 * rows(data)[0])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("erm+neighbour:number", "rule 'neighbour:number' is of type int; expected a subclass of"),
        (
            "erm+neighbour:Weighted",
            r"is the class Weighted\(Objective\); expected a subclass of gr",
        ),
        ("neighbour:Scaled+agr-sum", r"objective 'neighbour:Scaled' is the class Scaled\(Rule\)"),
        (
            "neighbour:Unfinished",
            r"is the class Unfinished\(Rule\) without __call__; expected a subclass",
        ),
        ("neighbour:Scald", "neighbour has no Scald; there is Scaled"),
        ("erm+nowhere:Rule", "no module nowhere; install the package, or add the folder"),
        (
            "erm+scalded",
            r"rule 'scalded' \(.* scaled\?\); there are .*scaled.* and package.module:N",
        ),
        (
            "wighted+sum",
            r"'wighted' \(did you mean weighted\?\); there are .*weighted, and package",
        ),
        ("neighbour:Scaled+neighbour:first+x", "unknown rule"),
    ],
)
def test_what_cannot_be_used_gets_one_line(name, words, neighbour, built):
    with pytest.raises(ArgumentError, match=words) as caught:
        built(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        (
            "neighbour:Scaled",
            {"factor": 1},
            r"no hyperparameter 'factor'; .*neighbour:Scaled.facto",
        ),
        ("neighbour:Scaled", {"neighbour:Scaled.k": 1}, r"no hyperparameter 'k'; it has: "),
        ("neighbour:Scaled", {"neighbour:Scaled.factor": -1}, "is a number at least 0, found -1"),
        ("neighbour:first", {"neighbour:first.k": 1}, "no hyperparameter 'k'; it has: none"),
        ("neighbour:instance", {"neighbour:instance.factor": 1}, "'factor'; it has: none"),
        ("weighted", {"weighted.generator": 1}, "no hyperparameter 'generator'"),
    ],
)
def test_settings_of_somebody_elses_are_checked(name, settings, words, neighbour, built):
    with pytest.raises(ArgumentError, match=words):
        built(name, settings=settings)


def test_reading_a_name_imports_nothing():
    code = """
        import sys
        from gradsurgery.algorithms import method_parts, settings_of
        assert method_parts("erm+this.module:Rule") == ("erm", "this.module:Rule")
        assert method_parts("this:Thing") == ("erm", "this:Thing")
        assert method_parts("this:Objective+agr-sum") == ("this:Objective", "agr-sum")
        settings = {"this:Thing.k": 1, "agr-sum.reduction": "mean"}
        assert settings_of("this:Thing", settings) == {"this:Thing.k": 1}
        assert "this" not in sys.modules
    """
    this = textwrap.dedent(code)
    subprocess.run([sys.executable, "-W", "error", "-c", this], check=True, capture_output=True)


def test_names_and_provenance(neighbour):
    assert hyperparameter_names("weighted+scaled") == ["weighted.weight", "scaled.factor"]
    assert hyperparameter_names("neighbour:Weighted") == ["neighbour:Weighted.weight"]
    assert method_parts("weighted") == ("weighted", "mean")
    assert settings_of("weighted", {"weighted.weight": 1, "irm.anneal": 1}) == {
        "weighted.weight": 1
    }
    digest = hashlib.sha256(Path(sys.modules["neighbour"].__file__).read_bytes()).hexdigest()
    place = {"package": "neighbour", "version": "1.2", "sha256": digest}
    assert method_provenance("weighted+neighbour:first") == [
        {"object": "neighbour:Weighted", **place},
        {"object": "neighbour:first", **place},
    ]
    assert method_provenance("neighbour:instance") == [{"object": "neighbour:Scaled", **place}]
    for name in ("irm+agr-sum", "fish", "mldg", "erm+torchjd:UPGrad", "deep-all"):
        assert method_provenance(name) == []


class First(gs.Rule):
    def __call__(self, gradients):
        return gradients[0]


class Doubled(Objective):
    def losses(self, forward, batches, step):
        for images, labels in batches:
            yield 2 * cross_entropy(next(forward([images])), labels)


def test_instances():
    data = oracles.batches(3)
    gradients = rows(data)
    for algorithm, expected in (
        (gs.method(First()), gradients[0]),
        (gs.method(lambda g: g.sum(0)), gradients.sum(0)),
        (gs.method(gs.AgrSum()), gs.AgrSum()(gradients)),
        (gs.method("deep-all", rule=First()), gradients[0]),
        (gs.method("erm", rule=lambda g: g[1]), gradients[1]),
        (gs.method(Doubled(), rule=First()), 2 * gradients[0]),
        (gs.method(Doubled(), rule=gs.Sum(), batch_norm="per-domain"), 2 * gradients.sum(0)),
    ):
        torch.testing.assert_close(moved(algorithm, data), expected)
    assert First().name == "First"
    assert Doubled().name == "Doubled"


def test_two_rules_are_refused():
    for build in (
        lambda: gs.method("irm+agr-sum", rule=First()),
        lambda: gs.method("agr-sum", rule=First()),
        lambda: gs.method("fish", rule=First()),
        lambda: gs.method(First(), rule=gs.Sum()),
    ):
        with pytest.raises(ArgumentError, match=r"rule of its own|two rules"):
            build()


def test_mldg_takes_a_rule_of_ones_own(drawn):
    data = oracles.batches(3)
    algorithm = gs.method("mldg", rule=First(), make_optimizer=oracles.sgd)
    update = moved(algorithm, data)
    gradients = oracles.mldg_gradients(oracles.network(), data, drawn.ring, 1.0)
    torch.testing.assert_close(update, gradients[0])


def test_a_loss_that_is_no_number_is_named(built):
    class Odd(Objective):
        def losses(self, forward, batches, step):
            for images, _ in batches:
                yield next(forward([images]))[:, 0]

    for algorithm in (gs.method(Odd()), gs.method(Odd(), rule=gs.AgrSum())):
        with pytest.raises(ArgumentError, match="loss of domain 0 is a tensor with one value"):
            moved(algorithm, oracles.batches(2))


@pytest.mark.parametrize("rule", [gs.AgrSum(), gs.Mean()])
def test_an_objective_that_does_not_yield_is_named(rule):
    class Listed(gs.Objective):
        def losses(self, forward, batches, step):
            return [z.sum() for z in forward([images for images, _ in batches])]

    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3, 2))
    batches = [(torch.ones(2, 3, 1, 1), torch.zeros(2).long()) for _ in range(2)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ArgumentError, match=r"objective Listed yields .* found a list; write it"):
        gs.method(Listed(), rule=rule).step(model, batches, optimizer, step=1)


def test_losses_out_of_a_stack_are_told_how_to_share_no_graph():
    class Stacked(gs.Objective):
        def losses(self, forward, batches, step):
            yield from torch.stack(self.risks(forward, batches))

    method = gs.method(Stacked(), rule=gs.AgrSum())
    with pytest.raises(ArgumentError, match=r"domain 1 .* take none out of a torch\.stack of them"):
        moved(method, oracles.batches(2))


def test_settings_with_a_rule_of_ones_own_mean_nothing():
    with pytest.raises(
        ArgumentError, match=r"settings are of a method by name, found irm\.penalty"
    ):
        gs.method(gs.AgrSum(), settings={"irm.penalty": 1.0})


def test_batches_that_are_none():
    from gradsurgery.algorithms.base import _check_batches

    images = torch.zeros(2, 3, 4, 4)
    for batches, words in (
        ([], "there is no batch"),
        ([(images, torch.zeros(2)), images], "the batch of domain 1 is a pair .* found Tensor"),
        ([(images, torch.zeros(3))], "domain 0 has 2 images and 3 labels"),
    ):
        with pytest.raises(ArgumentError, match=words):
            _check_batches(batches)


@pytest.mark.parametrize("name", ["mixup", "mldg", "mldg+sum", "fish", "trimmed-mean"])
def test_a_step_on_too_few_domains_is_none(name):
    """Mixup would mix a domain with itself, MLDG test on what it has just trained on."""
    method = gs.method(name, make_optimizer=oracles.sgd if "mldg" in name else None)
    least = 3 if name == "trimmed-mean" else 2
    words = rf"needs batches of at least {least} source domains, found {least - 1}; leave such"
    with pytest.raises(ArgumentError, match=words):
        moved(method, oracles.batches(least - 1))
