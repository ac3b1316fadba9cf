"""What a step asks of an accelerator: counts, which are the same on any machine."""

import math
from functools import cache, partial

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import gradsurgery as gs
from benchmarks.launch_recorder import Recording, accelerated, recorded, second_step
from gradsurgery.algorithms import forward
from gradsurgery.algorithms.objectives import OBJECTIVES
from gradsurgery.backbones import build_backbone, set_training_mode
from gradsurgery.engine.accumulators import accumulator_for
from gradsurgery.kernels import flat
from gradsurgery.rules import RULES, base
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
        there.mul_(2).copy_(host)
        host.to(a.device, non_blocking=True)
        torch.ones(4).copy_(host, non_blocking=True)
        there.cpu().add_(1)
        (weight * 2).sum().backward()
    launches = {"add": 1, "sum": 2, "gt": 2, "any": 1, "index": 1, "mul_": 1}
    assert recording.launches == launches | {"mul": 2, "ones_like": 1}
    reads = {"item": 2, "tolist": 1, "index": 1, "cpu": 1}
    assert recording.synchronisations == reads | {"to": 1, "copy_": 1}
    assert recording.copies == reads | {"to": 2, "copy_": 1}


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
        torch.cat(tensors)
    # of one list 110 tensors a launch, of three lists 48, and 128 that are joined
    assert recording.launches == {"_foreach_add_": 3, "_foreach_mul": 6, "cat": 2}


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
    monkeypatch.setattr(base, "PIECE_PER_THREAD", 1 << 40)  # an accelerator takes all at once
    model, batches = network().train(), domain_batches(3)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    plain = second_step(partial(plain_step, model, batches, optimizer))
    for name in rules:
        method = gs.method(gs.rule(name))
        run = KERNELS[name] is GATHERED  # what is gathered is looked at
        seen = second_step(lambda m=method: m.step(model, batches, optimizer, step=1), run=run)
        beyond = seen.counts - plain.counts
        own = {kernel: n for kernel, n in seen.launches.items() if kernel in OWN}
        assert own == KERNELS[name], name
        most = 12 if "combine_program" in own else 60 if name == "agr-ema" else 16
        assert beyond.launches <= most or run, name
        assert beyond.synchronisations == WAITS.get(name, 0), name


@pytest.mark.usefixtures("accelerator")
def test_what_a_graph_may_record_waits_for_nothing(monkeypatch):
    monkeypatch.setattr(forward, "check_losses", lambda losses: None)  # of a processor alone
    model, batches = MODELS["cnn-batch-norm"]().train(), domain_batches(3)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    recorded_ones = set()
    for name in OBJECTIVES:
        method = gs.method(f"{name}+agr-sum")
        if method.stage(1) is None:
            continue
        recorded_ones.add(name)
        seen = second_step(lambda m=method: m.step(model, batches, optimizer, step=1))
        looked_at = {"item": 6} if name == "fishr" else {}  # one_hot, on a processor alone
        assert seen.synchronisations == looked_at, name
    assert recorded_ones >= {"erm", "irm", "vrex", "coral", "mmd", "sd", "eqrm", "ib-irm"}


@pytest.mark.parametrize("triton", [True, False])
def test_a_loop_of_ones_own_waits_once_where_all_is_well(triton):
    model, batches = MODELS["cnn-batch-norm"]().train(), domain_batches(3)
    for name in ("mean", "agr-sum", "agr-rand", "pcgrad", "agr-ema", "mgda"):
        rule = gs.rule(name)

        def step(rule=rule):
            losses = (cross_entropy(model(images), labels) for images, labels in batches)
            gs.backward(losses, model.named_parameters(), rule)

        with accelerated(triton=triton):
            seen = second_step(step, run=not triton or name == "agr-ema")  # which is looked at
        assert seen.synchronisations == {"tolist": 1} | ({"cpu": 1} if name == "mgda" else {})


@pytest.mark.usefixtures("accelerator")
def test_a_kernel_takes_the_domains_four_at_a_time():
    model = MODELS["mlp"]().train()
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    for domains, kernels in ((2, 1), (4, 1), (5, 2), (9, 3)):
        batches, method = domain_batches(domains), gs.method("agr-sum")
        seen = second_step(lambda b=batches, m=method: m.step(model, b, optimizer, step=1))
        assert seen.launches["combine_program"] == kernels


@cache
def sizes_of_resnet50() -> list[int]:
    """Of its parameters, modulo a block; launches depend on how many have a rest."""
    sizes = [(parameter.numel() - 1) % flat.BLOCK + 1 for parameter in resnet50().parameters()]
    assert (len(sizes), sum(size < flat.BLOCK for size in sizes)) == (161, 86)
    return sizes


# Launches of a step beside torch.cat, and waits, by rule and domains. A component-wise rule begins
# anew after four domains; a Gramian has D (D + 1) / 2 products.
WITHOUT_TRITON = {
    "agr-sum": ({3: 12, 8: 21}, 0),
    "agr-rand": ({3: 23, 8: 32}, 0),
    "and-mask": ({3: 15, 8: 24}, 0),
    "pcgrad": ({3: 48, 8: 143}, 0),
    "gradvac": ({3: 33, 8: 108}, 1),  # of which five draw the orders
    "mgda": ({3: 28, 8: 103}, 1),
    "agr-ema": ({3: 59, 8: 85}, 0),
}


def launched_by(name: str, parameters: list[torch.Tensor], domains: int) -> Recording:
    """The second of two updates of the rule."""
    rule = gs.rule(name)
    steps = [[[torch.ones_like(p) for p in parameters] for _ in range(domains)] for _ in range(2)]

    def update():
        accumulator = accumulator_for(rule, parameters)
        for domain, gradients in enumerate(steps.pop()):
            accumulator.receive_domain(domain, gradients)
        accumulator.finish(domains, poison=False)

    return second_step(update, run=True)


@pytest.mark.usefixtures("without_triton")
@pytest.mark.parametrize("name", WITHOUT_TRITON)
@pytest.mark.parametrize("domains", [3, 8])
def test_without_triton_launches_do_not_grow_with_the_parameters(name, domains, monkeypatch):
    monkeypatch.setattr(base, "PIECE_PER_THREAD", 1 << 40)  # an accelerator takes all at once
    launches, waits = WITHOUT_TRITON[name]
    for count in (20, 161):
        parameters = [torch.zeros(size) for size in sizes_of_resnet50()[-count:]]
        seen = launched_by(name, parameters, domains)
        joined = seen.launches.pop("cat")
        assert seen.counts.launches == launches[domains]
        assert seen.counts.synchronisations == waits
    # a tensor with a rest is two for torch.cat, which takes 128; then come the flags of all domains
    if name in (
        "pcgrad",
        "gradvac",
        "mgda",
        "agr-ema",
    ):  # domain by domain; a row without rests
        assert joined == domains * 2 * (1 + (name == "agr-ema")) + (name == "gradvac")
    else:
        rows = {3: [3], 8: [4, 4]}[domains]
        expected = sum(math.ceil((161 + 86) * held / 128) for held in rows)
        assert joined == expected + (len(rows) > 1)


@pytest.mark.usefixtures("without_triton")
@pytest.mark.parametrize("name", ["agr-sum", "pcgrad"])
def test_several_precisions_take_a_few_launches_more(name):
    one, two = (
        launched_by(name, [torch.zeros(300, dtype=kinds[at % 2]) for at in range(40)], 3).counts
        for kinds in ([torch.float32] * 2, [torch.float32, torch.bfloat16])
    )
    assert one.launches < two.launches <= one.launches + 20
    assert two.synchronisations == 0


@pytest.mark.usefixtures("without_triton")
def test_a_step_without_triton_waits_for_nothing_that_the_passes_do_not():
    model, batches = MODELS["cnn-batch-norm"]().train(), domain_batches(3)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    plain = second_step(partial(plain_step, model, batches, optimizer), run=True)
    for name in ("mean", "agr-sum", "agr-rand", "graddrop", "pcgrad", "and-mask", "agr-ema"):
        method = gs.method(gs.rule(name))
        seen = second_step(lambda m=method: m.step(model, batches, optimizer, step=1), run=True)
        beyond = seen.counts - plain.counts
        assert beyond.synchronisations == 0, name
