"""What the library's functions say of arguments that mean nothing: one line, with the cure.

They are called in a process of their own, in which annotations are not checked: `said_of_all`.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import gradsurgery as gs
import gradsurgery.rules

MODEL = nn.Sequential(nn.Flatten(), nn.Linear(12, 2), nn.Linear(2, 2))
BATCHES = [(torch.ones(2, 3, 2, 2), torch.tensor([0, 1])) for _ in range(2)]
LABELS = BATCHES[0][1]
LOSS = nn.CrossEntropyLoss()
METHODS = ["deep-all", "agr-sum", "irm", "mixup", "fish", "mldg", "fishr", "group-dro", "gradnorm"]
METHODS += ["sd", "eqrm", "ib-irm", "cdann"]


def labelled(labels):
    return [(images, labels) for images, _ in BATCHES]


def stepped(name="agr-sum", model=MODEL, batches=BATCHES, optimizer=None, step=1, **options):
    optimizer = torch.optim.SGD(MODEL.parameters(), lr=0.1) if optimizer is None else optimizer
    if name == "mldg":
        options = {"make_optimizer": torch.optim.Adam} | options
    return gs.method(name, **options).step(model, batches, optimizer, step=step)


def backward(parameters, losses=None):
    losses = [(MODEL(x) ** 2).sum() for x, _ in BATCHES] if losses is None else losses
    return gs.backward(losses, parameters, gs.AgrSum())


CALLS = {
    "parameters: None": (lambda: backward(None), "parameters are several tensors, found NoneType"),
    "parameters: a number": (lambda: backward(3), "several tensors, found int"),
    "parameters: one tensor": (
        lambda: backward(MODEL[1].weight),
        "several tensors, found a single one; give model.parameters",
    ),
    "parameters: triples": (
        lambda: backward([("a", MODEL[1].weight, 1)]),
        "pairs, found tuple at position 0",
    ),
    "generator: a dict": (lambda: gs.AgrRand(generator={}), "is a torch.Generator, found a dict"),
    "generator: of a method": (
        lambda: gs.method("mixup", generator={}),
        "is a torch.Generator, found a dict",
    ),
    "generator: of an objective": (
        lambda: gs.algorithms.OBJECTIVES["irm"](generator=5),
        "is a torch.Generator, found a int",
    ),
    "batches: None": (
        lambda: gs.domain_conflict(MODEL, LOSS, None),
        r"pair \(x, y\) per domain, found a NoneType; give a list",
    ),
    "model: None": (
        lambda: gs.domain_conflict(None, LOSS, BATCHES),
        "model is a torch.nn.Module, found a NoneType",
    ),
    "loss: a class": (
        lambda: gs.domain_conflict(MODEL, nn.CrossEntropyLoss, BATCHES),
        "found the class CrossEntropyLoss; give e.g. torch.nn.CrossEntropyLoss()",
    ),
    "loss: None": (
        lambda: gs.gradient_gram(MODEL, None, *BATCHES[0]),
        r"called as loss\(model\(x\), y\), found NoneType",
    ),
    "make_optimizer: a number": (
        lambda: gs.method("mldg", make_optimizer=5),
        "function of the parameters, found a int",
    ),
    "make_optimizer: gives nothing": (
        lambda: stepped("mldg", make_optimizer=lambda parameters: None),
        "gives a torch optimiser, found a NoneType",
    ),
    "settings: a number": (
        lambda: gs.method("irm", settings=5),
        "settings are a dict, .* say, found a int",
    ),
    "step: None": (lambda: stepped(step=None), "counted from 1, found None"),
    "step: 0": (lambda: stepped(step=0), "counted from 1, found 0"),
    "step: -1": (lambda: stepped("irm", step=-1), "counted from 1, found -1"),
    "step: a half": (lambda: stepped(step=1.5), r"counted from 1, found 1\.5"),
    "step's model": (lambda: stepped(model=None), "model is a torch.nn.Module, found a NoneType"),
    "step's optimizer: of another model": (
        lambda: stepped(optimizer=torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)),
        "none of the model's parameters",
    ),
    "step's optimizer: of what is frozen": (
        lambda: stepped(
            model=(model := nn.Sequential(nn.Linear(4, 4).requires_grad_(False), nn.Linear(4, 2))),
            optimizer=torch.optim.SGD(model[0].parameters(), lr=0.1),
        ),
        "none of the model's parameters that require gradients",
    ),
    "step's optimizer: LBFGS": (
        lambda: stepped(optimizer=torch.optim.LBFGS(MODEL.parameters())),
        "LBFGS computes the loss several times a step, .* use another optimiser",
    ),
    "step's optimizer": (lambda: stepped(optimizer=5), "torch optimiser .* found a int"),
    "step's batches": (
        lambda: stepped(batches=None),
        "one pair .* per source domain, found a None",
    ),
    "labels: a list": (
        lambda: stepped(batches=[(BATCHES[0][0], [0, 1])] * 2),
        "torch.int64, found a list",
    ),
    **{
        f"labels: {dtype}, {name}": (
            lambda dtype=dtype, name=name: stepped(name, batches=labelled(LABELS.to(dtype))),
            f"found {dtype}; give labels.long",
        )
        for dtype in (torch.int32, torch.float32, torch.bool)
        for name in METHODS
    },
    **{
        f"labels: beyond, {name}": (
            lambda name=name: stepped(name, batches=labelled(LABELS + 4)),
            "label 4 is none of the classes 0 to 1",
        )
        for name in METHODS
    },
    "labels: below": (
        lambda: stepped(batches=labelled(LABELS - 1)),
        "label -1 is none of the classes 0 to 1",
    ),
    "labels: one-hot": (
        lambda: stepped(batches=labelled(torch.eye(2).long())),
        r"found shape \[2, 2\] for logits of shape \[2, 2\]",
    ),
    "labels: None": (
        lambda: stepped(batches=[(BATCHES[0][0], None)] * 2),
        "labels of domain 0 are a tensor with one row each, found NoneType",
    ),
    "labels: one number": (
        lambda: stepped(batches=[BATCHES[0], (BATCHES[0][0], torch.tensor(1))]),
        "labels of domain 1 are a tensor with one row each, found a single number",
    ),
}


class Pictures(gs.Source):
    """Two images of two domains, of which something is of another kind."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)

    def encoded(self):
        return 5


def pictures(name="photos", domains=("a", "b"), classes=("u", "u"), files=("1", "2"), **order):
    return Pictures(name, domains, classes, files, **order)


def given_no_say(mask):
    losses = (LOSS(MODEL(x), y) for x, y in BATCHES)
    return gs.backward(losses, MODEL.parameters(), gs.AgrSum(), no_say={"1": mask})


MATRIX = torch.ones(2, 3)
LIBRARY = {
    "matrix: an array": (lambda: gs.AgrSum()(MATRIX.numpy()), "dense tensor .* found ndarray"),
    "matrix: None": (lambda: gs.AgrSum()(None), "dense tensor .* found NoneType"),
    **{
        f"matrix: {what}, {name}": (
            lambda matrix=matrix, name=name: gs.rule(name)(matrix),
            rf"of 16, 32 or 64 bits, found {found} of shape \[2, 3\]",
        )
        for name in gs.rules.RULES
        for what, matrix, found in (
            ("float8", MATRIX.to(torch.float8_e4m3fn), "torch.float8_e4m3fn"),
            ("whole numbers", MATRIX.long(), "torch.int64"),
        )
    },
    "matrix: meta": (lambda: gs.AgrSum()(MATRIX.to("meta")), r"\[2, 3\] on the device meta"),
    "matrix: meta, PCGrad": (lambda: gs.PCGrad()(MATRIX.to("meta")), "on the device meta"),
    "scaler: True": (
        lambda: gs.backward([], MODEL.parameters(), gs.AgrSum(), scaler=True),
        "scaler is a torch.amp.GradScaler, found a bool",
    ),
    "no_say: a list": (
        lambda: given_no_say([[True, False], [False, False]]),
        r"no_say of 1 is a tensor, bool \[domains, rows\], found a list",
    ),
    "no_say: numbers": (
        lambda: given_no_say(torch.tensor([[1, 0], [0, 0]])),
        r"no_say of 1 is bool \[domains, rows\] for \[2\], found torch.int64 \[2, 2\]",
    ),
    "aggregator: None": (lambda: gs.AggregatorRule(None), "one of torchjd.aggregation, found"),
    "rule as aggregator: text": (lambda: gs.as_aggregator("agr-sum"), "is a Rule, .*found a str"),
    "batch_norm: an array": (
        lambda: gs.method("agr-sum", batch_norm=MATRIX),
        "batch_norm must be .*pooled.*, found tensor",
    ),
    "settings: an array": (
        lambda: gs.method("agr-sum", settings=MATRIX),
        "settings are a dict, .* found a Tensor",
    ),
    "step's optimizer: a module": (lambda: stepped(optimizer=MODEL), "optimiser .* a Sequential"),
    "batches: a tensor": (
        lambda: gs.domain_conflict(MODEL, LOSS, torch.tensor(1.0)),
        "per domain, found a Tensor",
    ),
    "samples of another type": (
        lambda: gs.gradient_gram(MODEL, LOSS, BATCHES[0][0].cfloat(), LABELS),
        r"does not run on x, torch.complex64 \[2, 3, 2, 2\]",
    ),
    "place: bytes": (lambda: gs.load_model(b"x"), "place is a run's folder, .* found a bytes"),
    "device: a number": (lambda: gs.load_model("x", device=3), "auto, cpu or cuda, found a int"),
    "model to export: a module": (
        lambda: gs.export_model(MODEL, Path("x")),
        "model is what gradsurgery.load_model gives, found a Sequential",
    ),
    "model to evaluate: None": (
        lambda: gs.evaluate_model(None, None),
        "model is what gradsurgery.load_model gives, found a NoneType",
    ),
    "source: classes": (
        lambda: gs.open_source("rotated-digits", classes="some"),
        "classes is same, common, all, found 'some'",
    ),
    "source: resize": (
        lambda: gs.open_source("rotated-digits", resize=None),
        "resize is squash, crop, pad, found None",
    ),
    "source: its name": (lambda: pictures(name=b"x"), "the data set's name, found a bytes"),
    "source: domains": (lambda: pictures(domains="ab"), "list of names, found a str"),
    "source: a class": (lambda: pictures(classes=["u", 1]), r"classes_of\[1\] .* found a int"),
    "source: a file": (
        lambda: pictures(files=[Path("1"), "2"]),
        r"files\[0\] is a name, found a PosixPath",
    ),
    "source: an order": (
        lambda: pictures(domain_order={"a", "b"}),
        "domain_order are a list of names, found a set",
    ),
    "source: encoded": (
        lambda: list(pictures().contents()),
        "`encoded` gives a int; let it yield the bytes",
    ),
    "hyperparameter: of a method's rule": (
        lambda: gs.method("irm+cagrad", c=0.5),
        r"settings, settings={'cagrad.c': 0.5} say, found c by itself",
    ),
    "hyperparameter: without its owner": (
        lambda: gs.method("irm", settings={"penalty": 1}),
        r"irm has no hyperparameter 'penalty'; it has: irm.penalty, irm.anneal",
    ),
    "hyperparameter: settings of a rule": (
        lambda: gs.rule("cagrad", settings={"c": 0.5}),
        r"by name, as gs.rule\('cagrad', c=0.4\), found settings, which are gs.method's",
    ),
    "losses: numbers": (
        lambda: gs.backward([1.0, 2.0], MODEL.parameters(), gs.AgrSum()),
        r"found float; give what the criterion returns, without .item\(\)",
    ),
}
CALLS |= LIBRARY


def said_of_all():
    """What each call raises, by its name."""
    said = {}
    for name, (function, _) in CALLS.items():
        try:
            function()
        except Exception as error:
            said[name] = type(error).__name__, str(error)
    return said


@pytest.fixture(scope="module")
def said():
    this = "import json; from tests.test_arguments import *; print(json.dumps(said_of_all()))"
    done = subprocess.run(
        [sys.executable, "-c", this],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parent.parent,
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize("call", CALLS)
def test_arguments_that_mean_nothing_get_one_line(call, said):
    kind, message = said[call]
    assert kind == ("DataError" if call == "source: encoded" else "ArgumentError"), message
    assert "\n" not in message
    assert re.search(CALLS[call][1], message), message
    assert "\n" not in message
