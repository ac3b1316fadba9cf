"""Steps and runs on the device: every method and precision, repeated, as a graph, without waits."""

import json
import random

import pytest
import torch
from torch import nn
from torch.nn import functional

import gradsurgery as gs
from gradsurgery.algorithms import METHODS, OTHER_METHODS, hyperparameter_names
from gradsurgery.training.cuda_graph import GraphedSteps
from tests.gpu import DEVICE, needs_gpu, nobody_waits, relative_error

pytestmark = needs_gpu

REPEATED = ("deep-all", "agr-sum", "agr-rand", "pcgrad", "graddrop", "mixup")
GRAPHED = ("deep-all", "agr-sum", "agr-rand", "pcgrad", "graddrop", "and-mask", "irm")
SETTINGS = {
    name: {key: 13 for key in hyperparameter_names(name) if key.endswith("anneal")}
    for name in ("fishr", "eqrm", "ib-erm", "ib-irm")
}


@pytest.fixture(autouse=True)
def numbers_of_python(monkeypatch):
    """What checks the annotations under the tests draws from them: no such step is recorded."""
    monkeypatch.setattr(random, "getstate", random.Random(0).getstate)


class Net(nn.Module):
    """Layers of the kinds that matter, one used twice, and a parameter that nothing reaches."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.second = nn.Conv2d(16, 32, 3, stride=2, groups=2)
        self.groups = nn.GroupNorm(4, 32)
        self.twice = nn.Linear(32, 32)
        self.head = nn.Linear(32, 5)
        self.unused = nn.Parameter(torch.zeros(3))

    def forward(self, x):
        x = functional.relu(self.norm(self.first(x)))
        x = self.groups(self.second(x)).mean((2, 3))
        x = functional.gelu(self.twice(x))
        return self.head(x + self.twice(x))


def net_and_batches(device, dtype):
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = Net().to(device, dtype).eval()
    batches = [
        (
            torch.randn(6, 3, 17, 17, generator=generator).to(device, dtype),
            torch.randint(5, (6,), generator=generator).to(device),
        )
        for _ in range(3)
    ]
    return model, batches


def updates(model) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for n, p in model.named_parameters() if n != "unused"])


def backward(device, dtype, rule):
    model, batches = net_and_batches(device, dtype)
    losses = (functional.cross_entropy(model(x), y) for x, y in batches)
    result = gs.backward(losses, model.named_parameters(), rule)
    assert model.unused.grad is None
    return updates(model), result


@pytest.fixture
def exact(monkeypatch):
    """Convolutions in float32."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize(
    "name", ["sum", "agr-sum", "cagrad", "mgda", "and-mask", "sand-mask", "median"]
)
def test_backward_of_a_network_is_that_of_float64(name):
    found, result = backward(DEVICE, torch.float32, gs.rule(name))
    expected, wanted = backward(torch.device("cpu"), torch.float64, gs.rule(name))
    assert relative_error(found, expected) < 1e-3
    assert relative_error(result.losses, wanted.losses) < 1e-5
    if wanted.agreeing is not None:
        assert result.agreeing == pytest.approx(wanted.agreeing, abs=1e-3)
    if wanted.cosines is not None:
        assert relative_error(result.cosines, wanted.cosines) < 1e-4


@pytest.mark.usefixtures("exact")
def test_inner_products_of_single_gradients_are_those_of_float64():
    model, batches = net_and_batches(torch.device("cpu"), torch.float64)
    x, y = batches[0]
    parameters = [p for n, p in model.named_parameters() if n != "unused"]
    rows = []
    for i in range(len(x)):
        loss = functional.cross_entropy(model(x[i : i + 1]), y[i : i + 1])
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)]))
    expected = torch.stack(rows) @ torch.stack(rows).T
    model, batches = net_and_batches(DEVICE, torch.float32)
    found = gs.gradient_gram(model, functional.cross_entropy, *batches[0])
    assert relative_error(found.total, expected) < 1e-4


@pytest.mark.skipif(DEVICE.type != "cuda", reason="only CUDA says when the host waits for it")
@pytest.mark.parametrize(
    "name", ["deep-all", "sum", "agr-sum", "agr-rand", "and-mask", "pcgrad", "agr-ema"]
)
def test_a_step_does_not_wait_for_the_device(name):
    model, batches = net_and_batches(DEVICE, torch.float32)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    method = gs.method(name, generator=torch.Generator(DEVICE).manual_seed(0))
    for step in (1, 2):
        method.step(model, batches, optimizer, step=step)
    torch.cuda.synchronize()
    with nobody_waits():
        method.step(model, batches, optimizer, step=3)


def run(folder, method, **options):
    """The record of a short run, and the weights of its best model."""
    configuration = gs.RunConfiguration(
        data="rotated-digits",
        target="75",
        method=method,
        settings=SETTINGS.get(method, {}),
        iterations=30,
        validate_every=15,
        device=DEVICE.type,
        **options,
    )
    gs.train(configuration, folder)
    record = json.loads((folder / "record.json").read_text())
    return record, (folder / "model.safetensors").read_bytes()


def same(first, second) -> bool:
    return all(first[0][part] == second[0][part] for part in ("result", "curves")) and (
        first[1] == second[1]
    )


@pytest.mark.parametrize("method", [*METHODS, *OTHER_METHODS, "mixup+agr-sum", "irm+pcgrad"])
def test_every_method_trains(method, tmp_path):
    first = run(tmp_path / "first", method)
    losses = first[0]["curves"]["train_loss"]
    assert None not in losses
    assert losses[-1] < losses[0] or method == "fishr"  # whose penalty begins on the way
    if method in REPEATED:
        assert same(first, run(tmp_path / "second", method))


@pytest.mark.parametrize("method", ["deep-all", "agr-sum", "pcgrad", "irm"])
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_narrow_precisions_train(precision, method, tmp_path):
    record, _ = run(tmp_path, method, precision=precision)
    losses = record["curves"]["train_loss"]
    assert losses[-1] < losses[0]


needs_graphs = pytest.mark.skipif(DEVICE.type != "cuda", reason="a processor has no graphs")


@needs_graphs
@pytest.mark.parametrize("triton", [True, False])
@pytest.mark.parametrize("method", GRAPHED)
def test_a_run_as_a_graph_is_the_run_without_one(method, triton, tmp_path, monkeypatch):
    if not triton:
        monkeypatch.setattr("gradsurgery.kernels.network.has_triton", lambda: False)
    # raises where the domains' passes cannot be side by side
    monkeypatch.setattr(GraphedSteps, "_give_up", GraphedSteps._refuse)
    off, on = (run(tmp_path / graph, method, cuda_graph=graph) for graph in ("off", "on"))
    assert same(off, on)


@needs_graphs
@pytest.mark.parametrize("precision", ["tf32", "bfloat16"])
def test_dropout_in_a_graph_follows_seed_and_step(precision, tmp_path):
    options = {"backbone": "alexnet", "image_size": 64, "batch_size": 4, "learning_rate": 1e-5}
    off, on = (
        run(tmp_path / graph, "agr-rand", cuda_graph=graph, precision=precision, **options)
        for graph in ("off", "on")
    )
    assert same(off, on)


@needs_graphs
def test_what_cannot_be_recorded_is_refused_or_taken_step_by_step(tmp_path):
    with pytest.raises(gs.ArgumentError, match="--cuda-graph on"):
        run(tmp_path / "on", "mixup", cuda_graph="on")
    assert same(
        run(tmp_path / "auto", "mixup", cuda_graph="auto"),
        run(tmp_path / "off", "mixup", cuda_graph="off"),
    )


@needs_graphs
def test_after_a_recording_that_fails_everything_goes_on(tmp_path, monkeypatch):
    """Both generators draw in these steps: dropout's and the rule's."""
    off = run(tmp_path / "off", "agr-rand", cuda_graph="off")
    with monkeypatch.context() as patched:
        waits = "gradsurgery.algorithms.forward.widened"
        patched.setattr(waits, lambda logits: logits.float() if logits.sum().item() else logits)
        auto = run(tmp_path / "auto", "agr-rand", cuda_graph="auto")
    assert "cannot be recorded" in auto[0]["cost"]["cuda_graph"]
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    assert same(off, auto)
    assert same(off, run(tmp_path / "on", "agr-rand", cuda_graph="on"))


def test_a_run_whose_images_do_not_fit_on_the_device_is_the_same(tmp_path, monkeypatch):
    held = run(tmp_path / "held", "agr-sum")
    monkeypatch.setattr("gradsurgery.data.loader.SHARE", 0.0)
    assert same(held, run(tmp_path / "streamed", "agr-sum"))


def test_a_run_that_diverges_names_domain_parameter_and_step(tmp_path):
    with pytest.raises(gs.NonFiniteError, match="step"):
        run(tmp_path, "agr-sum", learning_rate=1e30)
    assert not (tmp_path / "record.json").exists()
