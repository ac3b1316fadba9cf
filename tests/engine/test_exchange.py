"""Several processes that train one model: real ones, over torch's gloo backend.

What each of two processes gets is compared with the rule on the mean of what both have, computed
in the process of the test.
"""

import json
import subprocess
import sys
import warnings
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import cross_entropy

import gradsurgery as gs

RANKS, DOMAINS, CLASSES = 2, 3, 3


class Network(nn.Module):
    """Layers in two precisions, a frozen one, and a head that some losses alone reach."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.Linear(4, 8)
        self.middle = nn.Conv2d(8, 4, (2, 1)).to(memory_format=torch.channels_last)
        self.last = nn.Linear(4, CLASSES, dtype=torch.float64)
        self.head = nn.Linear(8, 1)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)

    def forward(self, x):
        features = self.trunk(x).tanh()
        seen = self.middle(features[:, :, None, None].expand(-1, -1, 2, 1)).flatten(1)
        return self.last(seen.double()), self.head(features)


def network() -> Network:
    torch.manual_seed(3)
    return Network()


def batches_of(rank: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(rank)
    return [
        (
            torch.randn(6, 4, generator=generator) + domain,
            torch.randint(CLASSES, (6,), generator=generator),
        )
        for domain in range(DOMAINS)
    ]


def loss_of(model, x, y, *, head: bool):
    logits, extra = model(x)
    return cross_entropy(logits, y) + (extra.square().mean() if head else 0)


def losses_of(model, rank: int):
    """The head is reached by the second domain of the first process alone."""
    for domain, (x, y) in enumerate(batches_of(rank)):
        yield loss_of(model, x, y, head=(rank, domain) == (0, 1))


RULES = {
    "agr-sum": gs.AgrSum,
    "agr-rand": lambda: gs.AgrRand(generator=torch.Generator().manual_seed(5)),
    "pcgrad": lambda: gs.PCGrad(generator=torch.Generator().manual_seed(5)),
    "mean": gs.Mean,
    "function": lambda: lambda gradients: gradients.median(0).values,
}


def taken(rank: int) -> dict:
    """What one process sees of everything, for the test."""
    found: dict = {}
    for name, make in RULES.items():
        model = network()
        model.trunk.bias.grad = torch.ones(8)  # is added to
        result = gs.backward(losses_of(model, rank), model.named_parameters(), make())
        found[name] = [gradients_in(model), result.losses.tolist(), result.agreeing]
    model = network()
    as_list = list(losses_of(model, rank))
    gs.backward(as_list, model.parameters(), gs.AgrSum())
    found["list"] = gradients_in(model)
    model = network()
    parts = ([loss / 2, loss_again / 2] for loss, loss_again in zip(
        losses_of(model, rank), losses_of(model, rank), strict=True
    ))  # fmt: skip
    gs.backward(parts, model.parameters(), gs.AgrSum())
    found["micro-batches"] = gradients_in(model)
    for wrapped in ("synchronised", "not synchronised", "in buckets"):
        model = network()
        ddp = nn.parallel.DistributedDataParallel(
            model, find_unused_parameters=True, gradient_as_bucket_view=wrapped == "in buckets"
        )
        ddp.require_backward_grad_sync = wrapped != "not synchronised"
        gs.backward(losses_of(ddp, rank), ddp.parameters(), gs.AgrSum())
        found[wrapped] = gradients_in(model)
    found["beside"] = beside_a_loss_of_its_own(rank)
    found["half"] = half(rank)
    found["steps"] = steps(rank)
    found["errors"] = errors(rank)
    return found


def beside_a_loss_of_its_own(rank: int) -> list:
    """The update that is added to gradients in DistributedDataParallel's buckets."""
    model = network()
    ddp = nn.parallel.DistributedDataParallel(
        model, find_unused_parameters=True, gradient_as_bucket_view=True
    )
    loss_of(ddp, *batches_of(rank)[0], head=True).backward()
    before = [p.grad for p in model.parameters()]
    copies = [None if g is None else g.clone() for g in before]

    def broken():
        yield next(losses_of(ddp, rank))
        raise KeyError("no further image")

    with pytest.raises(KeyError):
        gs.backward(broken(), ddp.parameters(), gs.PCGrad())
    for p, gradient, copy in zip(model.parameters(), before, copies, strict=True):
        assert p.grad is gradient
        assert copy is None or torch.equal(gradient, copy)
    gs.backward(losses_of(ddp, rank), ddp.parameters(), gs.Mean())
    for p, copy in zip(model.parameters(), copies, strict=True):
        if copy is not None:
            p.grad -= copy
    return gradients_in(model)


def half(rank: int) -> dict[str, list]:
    """What is made of gradients of narrow precisions, and a scaler of what overflows in one."""
    found: dict[str, list] = {}
    slopes = torch.tensor([[1.0, -2.0], [3.0, 4.0]]) * (1 + 2 * rank)  # means: twice the first
    for dtype in (torch.bfloat16, torch.float16):
        weight, empty = torch.zeros(2, dtype=dtype), torch.zeros(0, dtype=dtype)
        losses = [(weight.requires_grad_() * row).sum() + empty.sum() for row in slopes.to(dtype)]
        gs.backward(losses, [weight, empty.requires_grad_()], gs.AgrSum())
        found[str(dtype)] = weight.grad.tolist()
    weight = torch.zeros(2, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=1.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for overflow in (torch.inf, 1.0):
        optimizer.zero_grad()
        steep = slopes * torch.tensor([1.0, overflow if rank else 1.0])
        losses = [(weight * row).nan_to_num().sum() for row in steep]
        gs.backward(losses, [weight], gs.AgrSum(), scaler=scaler)
        scaler.step(optimizer)
        scaler.update()
        found[f"scaled {overflow}"] = [scaler.get_scale(), *weight.tolist()]
    return found


def gradients_in(model: nn.Module) -> list:
    return [None if p.grad is None else p.grad.tolist() for p in model.parameters()]


def steps(rank: int) -> list:
    """The weights after some steps of random rules, which all processes draw the same for."""
    model, rule = network(), gs.AgrRand()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(4):
        optimizer.zero_grad()
        gs.backward(losses_of(model, rank), model.parameters(), rule)
        optimizer.step()
    return [p.tolist() for p in model.parameters()]


def errors(rank: int) -> dict[str, str]:
    def failure(losses, model, rule) -> str:
        try:
            gs.backward(losses, model.named_parameters(), rule)
        except Exception as error:
            assert all(p.grad is None for p in model.parameters())
            return f"{type(error).__name__}: {error}"
        return "none"

    def spoilt(model):
        for domain, loss in enumerate(losses_of(model, rank)):
            yield loss * (float("nan") if (rank, domain) == (1, 2) else 1)

    def first(domains: int):
        return islice(losses_of(model, rank), domains)

    def steep(model):  # finite losses, gradients that are not
        for domain, loss in enumerate(losses_of(model, rank)):
            root = (model.trunk.bias - model.trunk.bias.detach()).square().sum().sqrt()
            yield loss + (root if (rank, domain) == (0, 1) else 0)

    model, other = network(), network()
    with torch.no_grad():
        other.last.bias[0] += 1e-3 * rank
    turned = network()
    if rank:
        turned.middle.to(memory_format=torch.contiguous_format)
    frozen = network()
    if rank:
        frozen.last.bias.requires_grad_(False)
    twins = [nn.Parameter(torch.full((2,), float(size))) for size in (1, 2)][:: 1 - 2 * rank]
    draws = torch.Generator().manual_seed(rank)
    split = network()
    fully_shard(split.trunk, mesh=init_device_mesh("cpu", (RANKS,)))
    method = gs.method("agr-sum")
    found = {
        "loss": failure(spoilt(model), model, gs.AgrSum()),
        "gradient": failure(steep(model), model, gs.AgrSum()),
        "weights": failure(losses_of(other, rank), other, gs.AgrSum()),
        "layout": failure(losses_of(turned, rank), turned, gs.AgrSum()),
        "seed": failure(losses_of(model, rank), model, gs.AgrRand(generator=draws)),
        "rule": failure(losses_of(model, rank), model, [gs.AgrSum(), gs.Mean()][rank]),
        "split": failure(losses_of(split, rank), split, gs.AgrSum()),
        "domains": failure(first(2 + rank), model, gs.AgrSum()),
        "too few": failure(first(1 + rank), model, gs.AgrSum()),
        "none": failure(first(2 * rank), model, gs.AgrSum()),
        "parameters": failure(losses_of(frozen, rank), frozen, gs.AgrSum()),
        "order": failure([sum(twins).sum()] * 2, nn.ParameterList(twins), gs.Mean()),
    }

    def skipping():
        for domain, loss in enumerate(losses_of(model, rank)):
            if (rank, domain) == (1, 1):
                raise MemoryError
            yield loss

    found["skipped"] = failure(skipping(), model, gs.AgrSum())
    if rank:
        found["skipped"] = failure(losses_of(model, rank), model, gs.AgrSum())
    wide = (loss.double() if rank else loss.float() for loss in losses_of(model, rank))
    found["losses of two precisions"] = failure(wide, model, gs.AgrSum())
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        # the head is reached in every domain, though in one process a time
        heads = (
            loss_of(model, x, y, head=domain % RANKS == rank)
            for domain, (x, y) in enumerate(batches_of(rank))
        )
        found["reached in one"] = failure(heads, model, gs.AgrSum())
    found["warnings"] = " ".join(str(warning.message) for warning in warned)
    try:
        method.step(
            nn.Sequential(nn.Flatten(), plain := nn.Linear(3, 2)),
            [(torch.ones(2, 3, 1, 1), torch.zeros(2).long())] * 2,
            torch.optim.SGD(plain.parameters()),
            step=1,
        )
    except gs.ArgumentError as error:
        found["method"] = str(error)
    return found


def work(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=RANKS
    )
    (folder / f"{rank}.json").write_text(json.dumps(taken(rank)))
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def seen(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("processes")
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.engine.test_exchange", str(rank), str(folder)],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(RANKS)
    ]
    for process in started:
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(RANKS)]


def mean_of_both(domain: int) -> list[torch.Tensor | None]:
    """The gradients of a domain's loss, by parameter: the mean over the processes, by hand."""
    sums: list[torch.Tensor | None] = [None] * 8
    for rank in range(RANKS):
        model = network()
        x, y = batches_of(rank)[domain]
        loss = loss_of(model, x, y, head=(rank, domain) == (0, 1))
        trained = [p for p in model.parameters() if p.requires_grad]
        for at, gradient in enumerate(torch.autograd.grad(loss, trained, allow_unused=True)):
            if gradient is not None:
                sums[at] = gradient / RANKS + (0 if sums[at] is None else sums[at])
    return sums


def expected(make) -> list[torch.Tensor]:
    model = network()
    shapes = [p for p in model.parameters() if p.requires_grad]
    rows = [
        torch.cat(
            [
                (torch.zeros_like(p) if g is None else g).double().flatten()
                for g, p in zip(mean_of_both(domain), shapes, strict=True)
            ]
        )
        for domain in range(DOMAINS)
    ]
    rule = make()
    update = rule(torch.stack(rows))
    return [
        part.view(p.shape)
        for part, p in zip(update.split([p.numel() for p in shapes]), shapes, strict=True)
    ]


def assert_as_by_hand(found: list, make, *, added: bool = False) -> None:
    *trained, frozen, frozen_bias = found
    assert frozen is None
    assert frozen_bias is None
    for at, (gradient, by_hand) in enumerate(zip(trained, expected(make), strict=True)):
        given = torch.tensor(gradient, dtype=torch.float64) - (1.0 if added and at == 1 else 0.0)
        torch.testing.assert_close(given, by_hand, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("rule", sorted(set(RULES) - {"agr-rand"}))
def test_the_rule_gets_the_mean_over_the_processes(seen, rule):
    for of_process in seen:
        gradients, losses, _ = of_process[rule]
        assert_as_by_hand(gradients, RULES[rule], added=True)
        means = torch.zeros(DOMAINS, dtype=torch.float64)
        for rank in range(RANKS):
            means += torch.stack([*losses_of(network(), rank)]).detach() / RANKS
        torch.testing.assert_close(torch.tensor(losses, dtype=torch.float64), means)
    assert seen[0][rule] == seen[1][rule]


def test_agreement_is_that_of_the_means(seen):
    rows = [
        torch.cat([torch.zeros(n) if g is None else g.flatten() for g, n in zip(
            mean_of_both(domain), [32, 8, 64, 4, 12, 3, 8, 1], strict=True
        )])
        for domain in range(DOMAINS)
    ]  # fmt: skip
    signs = torch.stack(rows).sign()
    moving = (signs != 0).any(0)
    agrees = (signs == signs[0]).all(0) & moving
    for of_process in seen:
        assert of_process["agr-sum"][2] == pytest.approx((agrees.sum() / moving.sum()).item())


@pytest.mark.parametrize(
    "way", ["list", "micro-batches", "synchronised", "not synchronised", "in buckets"]
)
def test_losses_of_one_pass_and_of_wrapped_models_give_the_same(seen, way):
    for of_process in seen:
        assert_as_by_hand(of_process[way], gs.AgrSum)


def test_gradients_in_buckets_are_added_to(seen):
    for of_process in seen:
        assert_as_by_hand(of_process["beside"], gs.Mean)


def test_narrow_gradients_and_an_overflow_in_one_process(seen):
    for of_process in seen:
        assert of_process["half"] == {
            "torch.bfloat16": [8.0, 0.0],
            "torch.float16": [8.0, 0.0],
            "scaled inf": [2.0, 0.0, 0.0],
            "scaled 1.0": [2.0, -8.0, 0.0],
        }


def test_what_differs_between_the_processes_and_does_no_harm(seen):
    for of_process in seen:
        for kind in ("losses of two precisions", "reached in one"):
            assert of_process["errors"][kind] == "none"
        assert of_process["errors"]["warnings"] == ""


def test_the_models_stay_the_same_bit_for_bit(seen):
    assert seen[0]["steps"] == seen[1]["steps"]
    assert seen[0]["steps"] != [p.tolist() for p in network().parameters()]
    assert seen[0]["agr-rand"] == seen[1]["agr-rand"]


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("loss", "NonFiniteError: the loss of domain 2 is nan"),
        ("gradient", "NonFiniteError: the gradient of domain 1 at parameter trunk.bias is NaN"),
        ("weights", "ArgumentError: the 2 processes of the group hold different weights"),
        ("layout", "ArgumentError: the 2 processes of the group hold different weights, or parts"),
        ("seed", "ArgumentError: the 2 processes of the group make different updates"),
        ("rule", "ArgumentError: the 2 processes of the group make different updates"),
        ("parameters", "ArgumentError: the 2 processes of the group hold different weights"),
        ("order", "ArgumentError: the 2 processes of the group hold different weights"),
        ("domains", "ArgumentError: the 2 processes of the group have not as many domains"),
        ("too few", "ArgumentError: the 2 processes of the group have not as many domains"),
        ("none", "ArgumentError: the 2 processes of the group have not as many domains"),
        ("skipped", "ArgumentError: the 2 processes of the group are at domain 0 and at domain 1"),
        ("split", "ArgumentError: the parameters are split over the processes (DTensor)"),
        ("method", "found a process group of 2 ranks: a method takes its step in one process"),
    ],
)
def test_what_would_let_the_models_drift_apart_is_said_in_every_process(seen, fault, said):
    for of_process in seen:
        assert of_process["errors"][fault].startswith(said)


if __name__ == "__main__":
    work(int(sys.argv[1]), Path(sys.argv[2]))
