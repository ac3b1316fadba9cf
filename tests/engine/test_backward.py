"""`gradsurgery.backward` against the rule applied to separately computed gradients."""

import gc
import subprocess
import sys
import weakref
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy
from torch.testing._internal.distributed.fake_pg import FakeStore

import gradsurgery as gs
from gradsurgery.engine import gradients_of
from gradsurgery.engine.network import laid_out_as
from gradsurgery.errors import ArgumentError, NonFiniteError
from gradsurgery.rules import RULES, GramianRule
from tests.engine.models import MODELS, domain_batches, separate_gradients


def seeded(name: str) -> gs.Rule:
    return gs.rule(name, generator=torch.Generator().manual_seed(7))


def flat_grad(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.reshape(-1) for p in model.parameters() if p.grad is not None])


def losses_of(model, batches):
    return (cross_entropy(model(x), y) for x, y in batches)


@pytest.mark.parametrize("domains", [2, 3, 5])
@pytest.mark.parametrize("rule", sorted(set(RULES) - {"agr-rand"}))
@pytest.mark.parametrize("model", sorted(MODELS))
def test_equal_to_the_rule_on_separate_gradients(model, rule, domains):
    network = MODELS[model]()
    batches = domain_batches(max(domains, seeded(rule).minimum_domains))
    gradients = separate_gradients(network, batches)
    result = gs.backward(losses_of(network, batches), network.parameters(), seeded(rule))
    torch.testing.assert_close(flat_grad(network), seeded(rule)(gradients), rtol=1e-4, atol=1e-7)
    losses = torch.stack([cross_entropy(network(x), y) for x, y in batches]).detach()
    if model != "cnn-batch-norm":  # whose running statistics do not change the batch's loss
        torch.testing.assert_close(result.losses, losses)
    signs = gradients.sign()
    if rule == "agr-sum":
        moving = (signs != 0).any(0)
        agrees = (signs == signs[0]).all(0)[moving].double().mean().item()
        assert result.agreeing == pytest.approx(agrees, abs=1e-3)
        assert result.cosines is None
    if rule == "pcgrad":
        wide = nn.functional.normalize(gradients.double(), dim=1)
        torch.testing.assert_close(result.cosines, wide @ wide.T, rtol=1e-4, atol=1e-6)


def test_agr_rand_has_one_sigma_for_the_whole_network():
    network = MODELS["mlp"]()
    batches = domain_batches(3)
    gradients = separate_gradients(network, batches)
    result = gs.backward(losses_of(network, batches), network.parameters(), seeded("agr-rand"))
    agrees = (gradients.sign() == gradients[0].sign()).all(0)
    update = flat_grad(network)
    torch.testing.assert_close(update[agrees], gradients.sum(0)[agrees])
    moving = (gradients != 0).any(0)
    assert result.agreeing == pytest.approx(agrees[moving].double().mean().item())
    sigma = gradients.sum(0)[agrees].abs().mean()
    draws = torch.Generator().manual_seed(7)
    noise = torch.cat([torch.randn(p.numel(), generator=draws) for p in network.parameters()])
    torch.testing.assert_close(update[~agrees], noise[~agrees] * sigma)


@pytest.mark.parametrize("rule", sorted(RULES))
def test_no_hook_and_no_gradient_of_a_domain_remains(rule):
    network = MODELS["mlp"]()
    batches = domain_batches(3)
    gs.backward(losses_of(network, batches), network.parameters(), seeded(rule))
    assert not any(p._post_accumulate_grad_hooks for p in network.parameters())

    def failing():
        yield from losses_of(network, batches)
        raise RuntimeError("the fourth domain's batch could not be read")

    before = [p.grad for p in network.parameters()]
    values = [p.grad.clone() for p in network.parameters()]
    with pytest.raises(RuntimeError, match="fourth domain"):
        gs.backward(failing(), network.parameters(), seeded(rule))
    assert not any(p._post_accumulate_grad_hooks for p in network.parameters())
    for parameter, gradient, value in zip(network.parameters(), before, values, strict=True):
        assert parameter.grad is gradient
        assert torch.equal(gradient, value)


def test_one_graph_is_alive_at_a_time():
    network = MODELS["mlp"]()
    alive: list[weakref.ref] = []
    counts = []

    def losses():
        for x, y in domain_batches(4):
            gc.collect()
            counts.append(sum(ref() is not None for ref in alive))
            hidden = network(x)
            alive.append(weakref.ref(hidden))
            yield cross_entropy(hidden, y)
            del hidden

    gs.backward(losses(), network.parameters(), gs.AgrSum())
    assert counts == [0, 0, 0, 0]


@pytest.mark.parametrize("rule", ["sum", "agr-sum", "sand-mask", "pcgrad", "median"])
def test_a_missing_gradient_is_a_zero_gradient(rule):
    shared, left, right, unused = (torch.ones(2, requires_grad=True) for _ in range(4))
    frozen = torch.ones(2)
    losses = [(shared * left).sum(), -(shared * right).sum() * 2, (shared * right).sum()]
    parameters = [shared, left, right, unused, frozen]
    gs.backward(losses, parameters, gs.rule(rule, generator=torch.Generator()))
    rows = torch.tensor(
        [[1.0] * 4 + [0] * 2, [-2.0] * 2 + [0] * 2 + [-2] * 2, [1.0] * 2 + [0] * 2 + [1] * 2]
    )
    expected = gs.rule(rule, generator=torch.Generator())(rows)
    torch.testing.assert_close(torch.cat([shared.grad, left.grad, right.grad]), expected)
    assert unused.grad is None
    assert frozen.grad is None


def test_agreement_counts_zeros_for_domains_that_do_not_reach_a_parameter():
    reached, late = (torch.ones(2, requires_grad=True) for _ in range(2))
    losses = [reached.sum(), reached.sum(), (late * torch.tensor([0.0, 1.0])).sum()]
    result = gs.backward(losses, [reached, late], gs.AgrSum())
    # (1, 1, 0) conflicts twice; (0, 0, 0) is left out; (0, 0, 1) conflicts
    assert (result.agreeing, result.zero) == (0.0, 1 / 4)
    assert repr(result) == "BackwardResult(losses=tensor([2., 2., 1.]), agreeing=0.0)"
    assert late.grad.tolist() == [0.0, 0.0]


def test_shared_parameters_take_part_once():
    layer = nn.Linear(3, 3, bias=False)
    tied = nn.Sequential(layer, nn.Tanh(), layer)
    inputs = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    gradients = torch.stack(
        [torch.autograd.grad(tied(x).sum(), layer.weight)[0].reshape(-1) for x in inputs]
    )
    parameters = [*tied.parameters(), layer.weight]  # named twice
    gs.backward((tied(x).sum() for x in inputs), parameters, gs.AgrSum())
    torch.testing.assert_close(layer.weight.grad.reshape(-1), gs.AgrSum()(gradients))


@pytest.mark.parametrize("rule", sorted(set(RULES) - {"agr-rand"}))
def test_micro_batches_are_summed_before_the_rule(rule):
    network = MODELS["mlp"]()
    batches = domain_batches(3)
    whole = gs.backward(losses_of(network, batches), network.parameters(), seeded(rule))
    expected = flat_grad(network)
    network.zero_grad()

    def halves(x, y):
        return (
            cross_entropy(network(a), b) / 2 for a, b in zip(x.chunk(2), y.chunk(2), strict=True)
        )

    split = gs.backward((halves(x, y) for x, y in batches), network.parameters(), seeded(rule))
    torch.testing.assert_close(flat_grad(network), expected, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(split.losses, whole.losses)


def test_updates_add_to_gradients_that_exist():
    weight = torch.zeros(2, requires_grad=True)
    weight.grad = torch.tensor([10.0, 20.0])
    domains = torch.tensor([[1.0, -2.0], [3.0, 4.0]])
    for expected in ([14.0, 20.0], [18.0, 20.0]):
        gs.backward((g @ weight for g in domains), [weight], gs.AgrSum())
        assert weight.grad.tolist() == expected


def test_channels_last_and_transposed_parameters_keep_their_layout():
    network = MODELS["cnn-batch-norm"]().to(memory_format=torch.channels_last)
    batches = domain_batches(2)
    gradients = separate_gradients(network, batches)
    gs.backward(losses_of(network, batches), network.parameters(), gs.AgrSum())
    torch.testing.assert_close(flat_grad(network), gs.AgrSum()(gradients), rtol=1e-4, atol=1e-7)
    for parameter in network.parameters():
        assert parameter.grad.stride() == parameter.stride()
    torch.optim.Adam(network.parameters(), fused=True).step()
    weight = torch.zeros(3, 2).T.requires_grad_()
    factors = torch.arange(6.0).reshape(2, 3) - 2
    gs.backward(((weight * f * factors).sum() for f in (1.0, 2.0)), [weight], gs.AgrSum())
    assert torch.equal(weight.grad, 3 * factors)


@given(
    st.sampled_from(["agr-sum", "pcgrad", "median"]),
    st.integers(0, 2),
    st.sampled_from(["nan", "inf"]),
    st.sampled_from([torch.bfloat16, torch.float32, torch.float64]),
)
def test_a_gradient_that_is_not_finite_names_domain_and_parameter(rule, bad, value, dtype):
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)).to(dtype)
    before = [p.clone() for p in network.parameters()]

    def losses():
        for domain in range(3):
            out = network(torch.ones(1, 2, dtype=dtype)).sum()
            if domain == bad:
                # a finite loss whose gradient is not: the factor is 0 in the value alone
                out = out + Poison.apply(network[1].weight, float(value)).sum()
            yield out

    with pytest.raises(NonFiniteError, match=rf"domain {bad} at parameter 1.weight") as caught:
        gs.backward(losses(), network.named_parameters(), seeded(rule))
    assert (caught.value.domain, caught.value.parameter) == (bad, "1.weight")
    assert all(p.grad is None for p in network.parameters())
    assert all(torch.equal(p, b) for p, b in zip(network.parameters(), before, strict=True))


class Poison(torch.autograd.Function):
    """Zeros forward, a constant backward."""

    @staticmethod
    def forward(ctx, weight, value):
        ctx.value = value
        return torch.zeros_like(weight)

    @staticmethod
    def backward(ctx, gradient):
        return torch.full_like(gradient, ctx.value), None


def test_a_loss_that_is_not_finite_names_the_domain():
    weight = torch.ones(1, requires_grad=True)
    with pytest.raises(NonFiniteError, match=r"loss of domain 1 is nan") as caught:
        gs.backward([weight.sum(), (weight * torch.nan).sum()], [weight], gs.AgrSum())
    assert (caught.value.domain, caught.value.parameter) == (1, None)


@pytest.mark.parametrize("rule", sorted(set(RULES) - {"sand-mask", "agr-ema"}))
def test_gradient_scaler_skips_a_step_that_overflowed(rule):
    weight = torch.ones(3, requires_grad=True)
    other = torch.ones(2, requires_grad=True)
    optimizer = torch.optim.SGD([weight, other], lr=0.5)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    rows = torch.tensor([[1.0, 1.0, 2.0], [3.0, 1.0, 2.0], [2.0, 1.0, 3.0]])
    result = gs.backward(
        (r @ weight + other.sum() for r in rows), [weight, other], seeded(rule), scaler=scaler
    )
    torch.testing.assert_close(result.losses, torch.tensor([6.0, 8.0, 8.0]))  # unscaled
    scaler.step(optimizer)
    scaler.update()
    scaled = 4 * torch.cat([rows, torch.ones(3, 2)], 1)
    update = seeded(rule)(scaled)[:3] / 4
    torch.testing.assert_close(weight.detach(), 1 - 0.5 * update)
    before = weight.detach().clone()
    optimizer.zero_grad()
    poisoned = (
        weight.sum() + Poison.apply(weight, float("inf")).sum() * f for f in (0.0, 1.0, 0.0)
    )
    gs.backward(poisoned, [weight, other], seeded(rule), scaler=scaler)
    assert weight.grad.isnan().all()
    scaler.step(optimizer)
    scaler.update()
    assert torch.equal(weight, before)
    assert scaler.get_scale() == 2.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast(dtype):
    network = MODELS["mlp"]()
    batches = domain_batches(3)

    def losses():
        for x, y in batches:
            with torch.autocast("cpu", dtype=dtype):
                loss = cross_entropy(network(x), y)
            yield loss

    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=dtype == torch.float16)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0)
    gs.backward(losses(), network.parameters(), gs.Sum(), scaler=scaler)
    scaler.unscale_(optimizer)
    expected = separate_gradients(network, batches).sum(0)
    error = (flat_grad(network) - expected).norm() / expected.norm()
    assert error < 0.02  # bfloat16 has 8 bits of mantissa


def test_arguments_that_cannot_be_used():
    weight = torch.ones(1, requires_grad=True)
    for losses, parameters, message in (
        ([weight.sum()], [weight], "agr-sum compares .* found 1"),
        ([], [weight], "found 0"),
        ([weight.sum(), weight.sum()], [torch.ones(1)], "no parameter requires a gradient"),
        ([weight.sum(), weight.sum()], iter([]), "found no parameters; .* used up"),
        (
            [weight.sum(), weight.repeat(2)],
            [weight],
            r"loss of domain 1 is a tensor with one value",
        ),
        ([weight.sum(), torch.ones(())], [weight], "loss of domain 1 does not depend"),
        ([weight.sum(), iter(())], [weight], "domain 1 has no micro-batch"),
        ([weight.sum(), weight.sum()], [weight * 2], "parameter 0 is not a leaf"),
    ):
        with pytest.raises(ArgumentError, match=message):
            gs.backward(losses, parameters, gs.AgrSum())
        assert weight.grad is None


def test_one_loss_and_a_class_in_place_of_a_rule_are_told_apart():
    # in a process of its own, where no type is checked before ours are
    code = """
import torch, gradsurgery as gs
weight = torch.ones(2, requires_grad=True)
for losses, rule in ((weight.sum(), gs.Sum()), ([weight.sum()] * 2, gs.AgrSum)):
    try:
        gs.backward(losses, [weight], rule)
    except gs.ArgumentError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    single, of_a_class = done.stdout.splitlines()
    assert "found a single one; give the domains' losses as a list" in single
    assert "found the class AgrSum instead of AgrSum()" in of_a_class


def test_sparse_gradients_are_refused_with_the_cure():
    embedding = nn.Embedding(3, 2, sparse=True)
    with pytest.raises(ArgumentError, match="sparse=False"):
        gs.backward(
            (embedding(torch.tensor([i])).sum() for i in (0, 1)),
            embedding.parameters(),
            gs.AgrSum(),
        )


def test_a_disabled_scaler_is_no_scaler():
    weight = torch.ones(2, requires_grad=True)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    bad = (weight.sum() + Poison.apply(weight, float("nan")).sum() * f for f in (0.0, 1.0))
    with pytest.raises(NonFiniteError, match="domain 0 at parameter 0"):
        gs.backward(bad, [weight], gs.AgrSum(), scaler=scaler)


def test_a_rule_that_depends_on_the_scale_is_refused_with_a_scaler():
    weight = torch.ones(2, requires_grad=True)
    scaler = torch.amp.GradScaler("cpu")
    with pytest.raises(ArgumentError, match="sand-mask gives another update for scaled losses"):
        gs.backward([weight.sum()] * 2, [weight], gs.rule("sand-mask"), scaler=scaler)


def test_a_parameter_with_gaps_in_memory_is_refused():
    part = nn.Parameter(torch.zeros(4, 4)[:, :2])
    with pytest.raises(ArgumentError, match=r"parameter 0 is a part of a larger tensor"):
        gs.backward([part.sum(), part.sum()], [part], gs.AgrSum())


@pytest.mark.skipif(not hasattr(torch.Tensor, "grad_dtype"), reason="this torch has one dtype")
def test_gradients_in_another_precision_than_their_parameter_are_refused():
    """A kernel would read float32 as bfloat16."""
    weight = torch.zeros(4, dtype=torch.bfloat16, requires_grad=True)
    weight.grad_dtype = torch.float32
    losses = [weight.float().sum()] * 2
    with pytest.raises(ArgumentError, match=r"parameter 0 is torch.bfloat16 and its gradients"):
        gs.backward(losses, [weight], gs.AgrSum())


def test_a_gradient_that_differs_in_the_strides_of_single_components_alone_is_not_copied():
    """As cuDNN may give that of a convolution of one pixel."""
    parameter = torch.zeros(6, 5, 1, 1)
    gradient = torch.arange(30.0).view(6, 1, 1, 5).permute(0, 3, 1, 2)
    assert gradient.stride() != parameter.stride()
    (found,) = laid_out_as([parameter], [gradient])
    assert found.stride() == parameter.stride()
    assert found.data_ptr() == gradient.data_ptr()
    assert torch.equal(found, gradient)


@pytest.mark.parametrize("rule", ["agr-sum", "pcgrad"])
def test_one_forward_pass_in_a_generator_is_refused_with_the_cure(rule):
    network = MODELS["mlp"]()
    images, labels = domain_batches(1)[0]
    logits = network(images)
    losses = (cross_entropy(z, y) for z, y in zip(logits.chunk(2), labels.chunk(2), strict=True))
    with pytest.raises(ArgumentError, match=r"domain 1 is used up .*that share a graph as a list"):
        gs.backward(losses, network.parameters(), seeded(rule))
    assert all(p.grad is None for p in network.parameters())


def test_complex_parameters_are_refused_with_the_cure():
    weight = torch.ones(2, dtype=torch.complex64, requires_grad=True)
    with pytest.raises(ArgumentError, match=r"parameter 0 is torch.complex64.*view_as_real"):
        gs.backward([weight.abs().sum()] * 2, [weight], gs.AgrSum())


def test_empty_parameters():
    weight, empty = torch.ones(2, requires_grad=True), torch.ones(0, requires_grad=True)
    for rule in (gs.AgrSum(), gs.PCGrad(), gs.Median()):
        losses = (f * weight.sum() + empty.sum() for f in (1.0, 2.0))
        gs.backward(losses, [weight, empty], rule)
        assert empty.grad.shape == (0,)


@pytest.mark.parametrize(
    ("backend", "ranks", "expected"),
    [
        ("gloo", 1, "trained"),
        (
            "fake",  # of this process alone: nothing is sent to the other rank
            2,
            "found a process group of 2 ranks: a method takes its step in one process, as its "
            "objective would see a part of each domain's images; train in one, or call "
            "gradsurgery.backward, which takes the gradients of several together",
        ),
    ],
)
def test_a_method_refuses_a_process_group_of_several_ranks(backend, ranks, expected):
    store = FakeStore() if backend == "fake" else torch.distributed.HashStore()
    torch.distributed.init_process_group(backend, store=store, rank=0, world_size=ranks)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3, 2))
    sgd = partial(torch.optim.SGD, lr=0.1)
    batches = [(torch.ones(2, 3, 1, 1), torch.zeros(2).long())] * 2
    found = []
    try:
        for name in ("deep-all", "pcgrad", "fish", "mldg"):
            method = gs.method(name, make_optimizer=sgd)
            try:
                method.step(model, batches, sgd(model.parameters()), step=1)
                found.append("trained")
            except ArgumentError as error:
                found.append(str(error))
    finally:
        torch.distributed.destroy_process_group()
    assert found == [expected] * 4


def test_gradients_in_the_buckets_of_one_process_are_kept():
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    found = []
    try:
        for wrapped in (False, True):
            model = nn.Linear(3, 2)
            torch.nn.init.ones_(model.weight)
            torch.nn.init.zeros_(model.bias)
            ddp = nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)
            called = ddp if wrapped else model
            rows = torch.tensor([[1.0, 2.0, -3.0], [-4.0, 1.0, 1.0]])
            losses = ((called(row)[at].square() for at in (0, 1)) for row in rows)
            gs.backward(losses, model.parameters(), gs.PCGrad())
            found.append([p.grad for p in model.parameters()])
    finally:
        torch.distributed.destroy_process_group()
    torch.testing.assert_close(found[0], found[1])


def test_an_update_may_be_laid_out_in_any_way():
    weight = torch.zeros(2, 2, requires_grad=True)
    losses = [(weight * torch.tensor([[1.0, 2.0], [3.0, 4.0]])).sum(), (weight * -10).sum()]
    gs.backward(losses, [weight], lambda gradients: gradients.T.contiguous()[:, 0])
    assert weight.grad.tolist() == [[1.0, 2.0], [3.0, 4.0]]
    weight.grad = None
    gs.backward([weight.sum()], [weight], lambda gradients: gradients.new_ones(1).expand(4))
    assert weight.grad.tolist() == [[1.0, 1.0], [1.0, 1.0]]


def test_a_rule_keeps_its_own_memory():
    kept = torch.full((2,), 2.0)
    weight = torch.zeros(2, requires_grad=True)
    for _ in range(2):
        gs.backward([weight.sum()], [weight], lambda gradients: kept)
    assert kept.tolist() == [2.0, 2.0]
    assert weight.grad.tolist() == [4.0, 4.0]


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (lambda g: g[0].long(), "int64"),
        (lambda g: g[0].to(torch.complex64), "complex64"),
        (lambda g: g[0] * torch.nan, "NaN or infinity"),
        (lambda g: None, "found NoneType"),
        (lambda g: [1.0, 2.0], "found list"),
        (lambda g: g, r"found \[1, 2\]"),
    ],
)
def test_what_is_no_update_is_refused(rule, words):
    weight = torch.zeros(2, requires_grad=True)
    weight.grad = torch.ones(2)
    with pytest.raises(ArgumentError, match=words):
        gs.backward([weight.sum()], [weight], rule)
    assert weight.grad.tolist() == [1.0, 1.0]


def test_gradients_of_any_kind_are_added_to_or_stay():
    first = torch.zeros(2, requires_grad=True)
    first.grad = torch.ones(2)
    held = first.grad
    second = torch.zeros(3, requires_grad=True)
    second.grad = torch.ones(1).expand(3)
    gs.backward([first.sum() + second.sum()] * 2, [first, second], gs.Sum())
    assert first.grad is held
    assert first.grad.tolist() == [3.0, 3.0]
    assert second.grad.tolist() == [3.0, 3.0, 3.0]


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_a_hook_of_the_users_may_change_a_gradient_and_not_take_it(micro_batches):
    weight = torch.ones(2, requires_grad=True)

    def losses():
        return [[(weight * d).sum()] * micro_batches for d in (1.0, 3.0)]

    def doubled(parameter):
        parameter.grad.mul_(2)

    handle = weight.register_post_accumulate_grad_hook(doubled)
    gs.backward(([loss[0]] for loss in losses()), [weight], gs.AgrSum())
    assert weight.grad.tolist() == [8, 8]  # 2 · (1 + 3)
    handle.remove()

    def steps_and_clears(parameter):
        parameter.grad = None

    weight.register_post_accumulate_grad_hook(steps_and_clears)
    weight.grad = None
    with pytest.raises(ArgumentError, match=r"hook of parameter 0, of shape \[2\], clears its"):
        gs.backward(losses(), [weight], gs.AgrSum())
    with pytest.raises(ArgumentError, match=r"hook of parameter 0, of shape \[2\], clears its"):
        gradients_of(weight.sum(), [weight], 0)
    assert len(weight._post_accumulate_grad_hooks) == 1


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, partial(torch.optim.Adam, fused=True)])
@pytest.mark.parametrize("to_none", [True, False, None])
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_a_hook_that_steps_an_optimiser_on_one_domains_gradient(optimizer, to_none, micro_batches):
    weight = torch.ones(2, requires_grad=True)
    steps = optimizer([weight], lr=0.1)

    def step(_):
        steps.step()
        if to_none is not None:
            steps.zero_grad(set_to_none=to_none)

    handle = weight.register_post_accumulate_grad_hook(step)
    losses = ([(weight * d).sum()] * micro_batches for d in (1.0, -3.0))
    losses = losses if micro_batches > 1 else (loss for (loss,) in losses)
    with pytest.raises(ArgumentError, match=r"hook of parameter 0.* steps an optimiser"):
        gs.backward(losses, [weight], gs.AgrSum())
    assert weight.grad is None
    with pytest.raises(ArgumentError, match=r"hook of parameter 0.* steps an optimiser"):
        gradients_of(weight.sum(), [weight], 0)
    assert weight.tolist() == [1.0, 1.0]
    assert list(weight._post_accumulate_grad_hooks) == [handle.id]
    assert not weight._backward_hooks


def test_a_hook_that_changes_the_weights():
    weight = torch.ones(2, requires_grad=True)

    def descend(weight):
        with torch.no_grad():
            weight.sub_(weight.grad)

    weight.register_post_accumulate_grad_hook(descend)
    with pytest.raises(ArgumentError, match=r"hook of parameter 0.* changes it by"):
        gs.backward(((weight * d).sum() for d in (1.0, 3.0)), [weight], gs.AgrSum())


def test_weights_may_change_between_the_domains():
    """As by an inner step of a method by two levels, whatever hooks look at gradients."""
    weight = torch.ones(2, requires_grad=True)
    weight.register_post_accumulate_grad_hook(lambda _: None)
    inner = torch.optim.SGD([weight], lr=0.1)

    def losses():
        for domain in (1.0, 3.0):
            weight.grad = torch.ones(2)
            inner.step()
            weight.grad = None
            yield (weight * domain).sum()

    gs.backward(losses(), [weight], gs.AgrSum())
    assert weight.grad.tolist() == [4.0, 4.0]
    torch.testing.assert_close(weight.detach(), torch.tensor([0.8, 0.8]))


@pytest.mark.parametrize(
    "rule", [gs.Mean(), gs.AgrSum(reduction="mean"), gs.rule("and-mask"), gs.rule("median")]
)
def test_a_mean_in_float16_of_what_has_no_sum_in_it(rule):
    weight = torch.zeros(3, dtype=torch.float16, requires_grad=True)
    rows = torch.tensor([[40_000.0, -40_000.0, 60_000.0]]).repeat(3, 1)
    result = gs.backward((weight.float() @ row for row in rows), [weight], rule)
    assert weight.grad.tolist() == [40_000, -40_000, 60_000]
    assert result.agreeing in (1, None)


@pytest.mark.parametrize("size", [1e200, 1e-200])
@pytest.mark.parametrize("rule", [gs.PCGrad, gs.GradVac, gs.CAGrad, gs.MGDA])
def test_gramians_of_gradients_whose_squares_no_float64_holds(rule, size):
    rows = torch.randn(3, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    update = {}
    for scale in (1.0, size):
        weight = torch.zeros(50, dtype=torch.float64, requires_grad=True)
        made = rule(generator=torch.Generator().manual_seed(0))
        gs.backward([weight @ row for row in rows * scale], [weight], made)
        update[scale] = weight.grad
        again = rule(generator=torch.Generator().manual_seed(0))(rows * scale)
        torch.testing.assert_close(again / scale, weight.grad / scale, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(update[size] / size, update[1.0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("size", [1e200, 1e-200])
@pytest.mark.parametrize("narrow_first", [False, True])
def test_such_gradients_beside_parameters_of_float32(narrow_first, size):
    narrow, wide = torch.zeros(2), torch.zeros(2, dtype=torch.float64)
    parameters = [narrow.requires_grad_(), wide.requires_grad_()]
    rows = torch.tensor([[1.0, 0.0], [-1.0, 1.0]], dtype=torch.float64) * size
    losses = [wide @ row + 0 * narrow.sum() for row in rows]
    gs.backward(losses, parameters if narrow_first else parameters[::-1], gs.PCGrad())
    # the projections are (1/2, 1/2) and (0, 1)
    expected = torch.tensor([0.5, 1.5], dtype=torch.float64)
    torch.testing.assert_close(wide.grad / size, expected)
    assert narrow.grad.tolist() == [0, 0]


@pytest.mark.parametrize("name", ["sum", "agr-sum", "pcgrad", "graddrop"])
def test_an_update_beyond_the_precision_of_its_parameter_is_refused(name):
    weight = torch.zeros(2, dtype=torch.float16, requires_grad=True)
    rows = torch.full((3, 2), 40_000.0, dtype=torch.float16)
    with pytest.raises(NonFiniteError, match=r"finite and the update is not, .* ends at 6.55e\+04"):
        gs.backward([weight @ row for row in rows], [weight], gs.rule(name))
    assert weight.grad is None


@pytest.mark.filterwarnings("ignore:(divide by zero|invalid value|overflow):RuntimeWarning")
@pytest.mark.parametrize("name", ["sum", "agr-sum", "and-mask", "graddrop", "pcgrad", "median"])
@pytest.mark.parametrize("kernels", [None, "accelerator", "without_triton"])
def test_parameters_whose_gradients_share_memory(name, kernels, request):
    """Autograd gives both parameters of x.view(6) + y.view(6) the same memory."""
    if kernels:
        request.getfixturevalue(kernels)
    rows = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    x, y = torch.zeros(2, 3, requires_grad=True), torch.zeros(3, 2, requires_grad=True)
    # without Triton a draw belongs to a place that depends on the parameters before it
    options = {"leak": 1.0} if (name, kernels) == ("graddrop", "without_triton") else {}
    rule = gs.rule(name, generator=torch.Generator().manual_seed(0), **options)
    gs.backward((((x.view(6) + y.view(6)) * row).sum() for row in rows), [x, y], rule)
    matrix = torch.cat([rows, rows], 1)
    expected = gs.rule(name, generator=torch.Generator().manual_seed(0), **options)(matrix)
    torch.testing.assert_close(torch.cat([x.grad.flatten(), y.grad.flatten()]), expected)


class Mixed:
    def finish(self, states, domains):
        consensus = super().finish(states, domains)
        return consensus._replace(updates=[update / 2 for update in consensus.updates])


class MixedSum(Mixed, gs.Sum):
    pass


class CalledHalf(gs.AgrSum):
    def __call__(self, gradients):
        return super().__call__(gradients) / 2


class CalledDouble(gs.PCGrad):
    def __call__(self, gradients):
        return super().__call__(gradients) * 2


@pytest.mark.parametrize("kernels", [None, "accelerator", "without_triton"])
@pytest.mark.parametrize(
    ("rule", "expected"),
    [(MixedSum(), [2.0, 1.5]), (CalledHalf(), [2.0, 0.0]), (CalledDouble(), [8.0, 6.0])],
)
def test_what_a_subclass_changes_is_what_backward_does(rule, expected, kernels, request):
    if kernels:
        request.getfixturevalue(kernels)
    rows = torch.tensor([[1.0, 4.0], [3.0, -1.0]])
    if isinstance(rule, gs.PCGrad):
        expected = (2 * gs.PCGrad()(rows)).tolist()
    weight = torch.zeros(2, requires_grad=True)
    gs.backward((weight @ row for row in rows), [weight], rule)
    torch.testing.assert_close(weight.grad, torch.tensor(expected))
    torch.testing.assert_close(rule(rows), torch.tensor(expected))


@pytest.mark.filterwarnings("ignore:(divide by zero|invalid value|overflow):RuntimeWarning")
@pytest.mark.parametrize("kernels", ["accelerator", "without_triton"])
@pytest.mark.parametrize("name", ["sum", "agr-sum", "agr-rand", "pcgrad"])
def test_kernels_notice_an_update_beyond_the_precision(name, kernels, request):
    request.getfixturevalue(kernels)
    rows = torch.full((3, 2), 60_000.0, dtype=torch.float16)
    weight = torch.zeros(2, dtype=torch.float16, requires_grad=True)
    losses = [(weight * row).sum() for row in rows]
    with pytest.raises(NonFiniteError, match="are finite and the update is not"):
        gs.backward(losses, [weight], gs.rule(name))
    losses = [(weight * row).sum() for row in rows]
    result = gs.backward(losses, [weight], gs.rule(name), defer_check=True)
    assert result.found_inf == 1
    with pytest.raises(NonFiniteError, match="are finite and the update is not"):
        result.check()


class Unit(GramianRule):
    """The sum of the gradients at length 1, which needs their own Gramian."""

    name = "unit"
    scale_equivariant = False

    def weights(self, gramian):
        return gramian.diagonal().rsqrt()


@pytest.mark.parametrize("kernels", [None, "accelerator", "without_triton"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_rule_gets_the_gramian_of_the_gradients_as_they_are(dtype, kernels, request):
    if kernels is not None:
        request.getfixturevalue(kernels)
    rows = torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.0, 8.0]], dtype=dtype)
    expected = torch.tensor([0.6, 0.8, 1.0], dtype=dtype)
    weight = torch.zeros(3, dtype=dtype, requires_grad=True)
    gs.backward([row @ weight for row in rows], [weight], Unit())
    torch.testing.assert_close(weight.grad, expected)
    torch.testing.assert_close(Unit()(rows), expected)


class Weighed(GramianRule):
    """The weights that it is given, whatever they are."""

    name = "weighed"

    def __init__(self, weights):
        super().__init__()
        self._weights = weights

    def weights(self, gramian):
        return self._weights


class WeighedThere(Weighed):
    """The same without a round trip to the host."""

    def weights_on_device(self, gramian):
        return self._weights


@pytest.mark.parametrize("kind", [Weighed, WeighedThere])
@pytest.mark.parametrize("kernels", [None, "accelerator", "without_triton"])
def test_weights_are_one_real_number_per_domain(kernels, kind, request):
    """What takes the sum reads a number per domain from memory, which may be another's."""
    if kernels is not None:
        request.getfixturevalue(kernels)
    rows = torch.tensor([[1.0, 2.0], [4.0, 8.0], [16.0, 32.0]])
    odd = [torch.ones(2), torch.ones(4), torch.ones(3, 1), torch.ones(()), [1.0, 1.0, 1.0], None]
    for weights in [*odd, torch.ones(3, dtype=torch.complex64)]:
        with pytest.raises(ArgumentError, match=r"one weight per domain.* of shape \[3\], found"):
            kind(weights)(rows)
        weight = torch.zeros(2, requires_grad=True)
        with pytest.raises(ArgumentError, match=r"one weight per domain.* of shape \[3\], found"):
            gs.backward([row @ weight for row in rows], [weight], kind(weights))
        assert weight.grad is None
    table = torch.tensor([[1, 0], [10, 0], [100, 0]])
    for weights in [table[:, 0], table[:, 0].float().requires_grad_()]:
        assert kind(weights)(rows).tolist() == [1641.0, 3282.0]


def test_float64_at_its_ends():
    rows = torch.tensor([[1e-310, 0.0], [0.0, 1e-310]], dtype=torch.float64)
    torch.testing.assert_close(gs.PCGrad()(rows), rows.sum(0), rtol=1e-6, atol=0)


def test_weights_that_explode_are_no_update():
    """GradVac with a target near 1 over many domains: finite gradients, an update that is not."""
    weight = torch.zeros(64, requires_grad=True)
    rows = torch.randn(50, 64, generator=torch.Generator().manual_seed(0))
    with pytest.raises(NonFiniteError, match="are finite and the update is not"):
        gs.backward([row @ weight for row in rows], [weight], gs.GradVac(target=0.99))
    assert weight.grad is None


@pytest.mark.parametrize("kernels", [None, "accelerator", "without_triton"])
@pytest.mark.parametrize("shape", [(), (1,)])
@pytest.mark.parametrize("rule", ["sum", "agr-sum", "agr-rand", "agr-ema", "pcgrad", "median"])
def test_a_minus_sign_that_is_not_in_memory(rule, shape, kernels, request):
    """Autograd's gradient of an imaginary part is a view whose memory has the opposite sign."""
    if kernels is not None:
        request.getfixturevalue(kernels)
    part, one = torch.zeros(shape, requires_grad=True), torch.ones(shape)

    def losses():
        yield (torch.complex(one, part).conj() * (1 + 2j)).real.sum()  # its derivative is 2
        yield (-3 * part).sum()

    next(losses()).backward()
    assert part.grad.is_neg()
    part.grad = None
    gs.backward(losses(), [part], seeded(rule))
    expected = {"sum": -1.0, "median": -0.5}.get(rule, 0.0)
    assert not part.grad.is_neg()
    torch.testing.assert_close(part.grad, torch.full(shape, expected))


@pytest.mark.parametrize("kernels", [None, "accelerator", "without_triton"])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.filterwarnings("ignore:(divide by zero|invalid value):RuntimeWarning")
def test_another_default_device_changes_nothing(rule, kernels, request):
    """As `torch.set_default_device("cuda")` does not, in a process with a model on the CPU."""
    if kernels is not None:
        request.getfixturevalue(kernels)
    length = 40 + [*RULES].index(rule)  # of which nothing is known yet
    rows = torch.randn(3, length, generator=torch.Generator().manual_seed(0))
    weight = torch.zeros(length, requires_grad=True)
    with torch.device("meta"):
        update = seeded(rule)(rows)
        gs.backward([row @ weight for row in rows], [weight], seeded(rule))
    expected = seeded(rule)(rows)
    assert torch.equal(update, expected)
    torch.testing.assert_close(weight.grad, expected)
