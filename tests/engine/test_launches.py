"""What a step asks of an accelerator: counts, which are the same on any machine."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import gradsurgery as gs
from benchmarks.launch_recorder import Recording, recorded
from gradsurgery.backbones import build_backbone, set_training_mode
from gradsurgery.rules import RULES, pieces
from tests.engine.models import MODELS, domain_batches

# Those that solve a problem on the host wait for the Gramian; those that are called on a matrix
# wait to see that it is finite, and then that the update is.
WAITS = {"cagrad": 1, "mgda": 1, "median": 1, "trimmed-mean": 1}

# Kernels of our own in a step of three domains, whatever the network.
WEIGHTED = {"gramian_program": 1, "weighted_sum_program": 1}
GATHERED = {"gather_program": 3}
KERNELS = {name: {"combine_program": 1} for name in RULES} | {
    "agr-rand": {"combine_program": 1, "noise_program": 1},
    "pcgrad": WEIGHTED | {"projections_program": 1},
    "gradvac": WEIGHTED | {"projections_program": 1},
    "cagrad": WEIGHTED,
    "mgda": WEIGHTED,
    "median": GATHERED,
    "trimmed-mean": GATHERED,
    "agr-ema": dict(GATHERED),  # nothing of it is looked at
}


OWN = {kernel for kernels in KERNELS.values() for kernel in kernels}


def second(step, *, run: bool = False) -> Recording:
    """Of a step after the first, which makes what the others keep."""
    with recorded(run=run):
        step()
    with recorded(run=run) as recording:
        step()
    return recording


def test_the_recorder_counts_launches_reads_and_copies():
    a, b = torch.ones(4), torch.arange(4.0)
    weight = torch.ones(3, requires_grad=True)
    with recorded() as recording:
        (a + b).view(2, 2).T.detach()  # a launch, and views
        torch.empty_like(a)
        a.sum().item()
        assert b.tolist() == [0, 1, 2, 3]
        if (b > 2).any():
            b[b > 2]
        host = torch.tensor([1.0, 2.0, 3.0, 4.0])
        assert (host * 2).tolist() == [2, 4, 6, 8]  # on the host alone
        there = host.to(a.device)
        there.mul_(2)
        there.cpu().add_(1)
        (weight * 2).sum().backward()
    launches = {"add": 1, "sum": 2, "gt": 2, "any": 1, "index": 1, "mul_": 1}
    assert recording.launches == launches | {"mul": 2, "ones_like": 1}
    assert recording.synchronisations == {"item": 2, "tolist": 1, "index": 1, "cpu": 1}
    assert recording.copies == {"item": 2, "tolist": 1, "index": 1, "cpu": 1, "to": 1}


def test_the_recorder_sees_hooks_of_a_backward_pass_and_leaves_torch_as_it_was():
    originals = torch.Tensor.tolist, torch.zeros
    weight = torch.ones(3, requires_grad=True)
    weight.register_post_accumulate_grad_hook(lambda p: p.grad.tolist() and None)
    with recorded() as recording:
        weight.sum().backward()
    assert recording.synchronisations == {"tolist": 1}
    assert (torch.Tensor.tolist, torch.zeros) == originals


def test_many_tensors_in_one_operation_take_few_launches():
    tensors = [torch.ones(3) for _ in range(250)]
    with recorded() as recording:
        torch._foreach_add_(tensors, 1.0)
        torch._foreach_mul(tensors, tensors)
    # of one list 110 tensors a launch, of three lists 48
    assert recording.launches == {"_foreach_add_": 3, "_foreach_mul": 6}


def resnet50() -> nn.Module:
    model = build_backbone("resnet50", classes=4, weights="none", seed=0).model
    set_training_mode(model, "frozen")
    return model


def plain_step(model, batches, optimizer):
    optimizer.zero_grad()
    for images, labels in batches:
        for parameter in model.parameters():
            parameter.grad = None
        cross_entropy(model(images), labels).backward()
    optimizer.step()


@pytest.mark.usefixtures("accelerator")
@pytest.mark.parametrize(
    ("network", "rules"),
    [(MODELS["cnn-batch-norm"], RULES), (resnet50, ["agr-sum", "pcgrad", "agr-ema"])],
    ids=["cnn", "resnet50"],
)
def test_a_rule_takes_a_few_launches_whatever_the_network(network, rules, monkeypatch):
    monkeypatch.setattr(pieces, "PIECE_PER_THREAD", 1 << 40)  # an accelerator takes all at once
    model, batches = network().train(), domain_batches(3)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    plain = second(partial(plain_step, model, batches, optimizer))
    for name in rules:
        method = gs.method(gs.rule(name))
        run = KERNELS[name] is GATHERED  # what is gathered is looked at
        seen = second(lambda m=method: m.step(model, batches, optimizer, step=1), run=run)
        beyond = seen.counts - plain.counts
        own = {kernel: n for kernel, n in seen.launches.items() if kernel in OWN}
        assert own == KERNELS[name], name
        most = 12 if "combine_program" in own else 60 if name == "agr-ema" else 16
        assert beyond.launches <= most or run, name
        assert beyond.synchronisations == WAITS.get(name, 0), name


@pytest.mark.usefixtures("accelerator")
def test_a_kernel_takes_the_domains_four_at_a_time():
    model = MODELS["mlp"]().train()
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    for domains, kernels in ((2, 1), (4, 1), (5, 2), (9, 3)):
        batches, method = domain_batches(domains), gs.method("agr-sum")
        seen = second(lambda b=batches, m=method: m.step(model, b, optimizer, step=1))
        assert seen.launches["combine_program"] == kernels
