"""What a step asks of an accelerator: counts, which are the same on any machine."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import gradsurgery as gs
from benchmarks.launch_recorder import Counts, recorded
from gradsurgery.backbones import build_backbone, set_training_mode
from gradsurgery.rules import RULES
from tests.engine.models import MODELS, domain_batches

BEYOND = 12  # launches that a step may take beyond the passes and the optimiser
WAITING = {"cagrad", "mgda", "median", "trimmed-mean"}  # at most once a step


def counted(step) -> Counts:
    """Of a step after the first, which makes what the others keep."""
    with recorded(run=False):
        step()
    with recorded(run=False) as recording:
        step()
    return recording.counts


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
    assert recording.launches == {
        **{"add": 1, "sum": 2, "gt": 2, "any": 1, "index": 1, "mul_": 1},
        **{"mul": 2, "ones_like": 1},
    }
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
    [(MODELS["mlp"], RULES), (MODELS["cnn-batch-norm"], RULES), (resnet50, ["agr-sum", "pcgrad"])],
    ids=["mlp", "cnn", "resnet50"],
)
def test_a_rule_takes_a_few_launches_and_no_wait_whatever_the_network(network, rules):
    model, batches = network().train(), domain_batches(3)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    plain = counted(partial(plain_step, model, batches, optimizer))
    for name in rules:
        method = gs.method(gs.rule(name))
        beyond = counted(lambda m=method: m.step(model, batches, optimizer, step=1)) - plain
        assert beyond.launches <= BEYOND, name
        assert beyond.synchronisations <= (name in WAITING), name
