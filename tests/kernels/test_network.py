"""The kernels for a whole network, run by Triton's interpreter, against the processor's way."""

import itertools
import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import gradsurgery as gs
from gradsurgery.engine.accumulators import accumulator_for
from gradsurgery.kernels import network

pytestmark = [
    pytest.mark.usefixtures("accelerator"),
    # numpy's, which the interpreter computes with
    pytest.mark.filterwarnings("ignore:(divide by zero|invalid value|overflow):RuntimeWarning"),
]
SETTINGS = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=6)

COMPONENTWISE = {
    "sum": gs.Sum,
    "mean": gs.Mean,
    "agr-sum": gs.AgrSum,
    "agr-sum, mean": lambda: gs.AgrSum(reduction="mean"),
    "and-mask": gs.ANDMask,
    "and-mask, half": lambda: gs.ANDMask(tau=0.5, reduction="sum"),
    "and-mask, rescaled": lambda: gs.ANDMask(tau=0.6, rescale=True),
    "sand-mask": gs.SANDMask,
    "sand-mask, rescaled": lambda: gs.SANDMask(rescale=True, reduction="sum"),
}
OTHERS = {
    "cagrad": gs.CAGrad,
    "mgda": gs.MGDA,
    "median": gs.Median,
    "agr-ema": gs.AgrEMA,
    "trimmed-mean": lambda: gs.TrimmedMean(trim=0),
    "a function": lambda: lambda gradients: gradients.square().sum(0),
}
SHAPES = st.sampled_from([(0,), (1,), (7,), (2, 3, 3, 3), (64,), (4096,), (4097,), (31, 133)])


@st.composite
def networks(draw, dtypes=(torch.float32,)):
    """Parameters, and for each domain their gradients, None where the domain does not reach one."""
    dtype = draw(st.sampled_from(dtypes))
    shapes = draw(st.lists(SHAPES, min_size=1, max_size=3))
    domains = draw(st.sampled_from([2, 3, 5, 9]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    parameters = [torch.zeros(shape, dtype=dtype) for shape in shapes]
    last = draw(st.booleans())  # convolutions whose channels lie next to one another
    if last:
        parameters = [
            p.contiguous(memory_format=torch.channels_last) if p.ndim == 4 else p
            for p in parameters
        ]
    missing = draw(st.sets(st.tuples(st.integers(0, domains - 1), st.integers(0, 3))))

    def gradient(parameter):
        values = torch.randint(-3, 4, parameter.shape, generator=generator) / 4
        if draw(st.booleans()):  # an address that is no multiple of 16 bytes
            memory = torch.empty(parameter.numel() + 1, dtype=dtype)[1:]
            place = memory.as_strided(parameter.shape, parameter.stride())
        else:
            place = torch.empty_like(parameter)
        return place.copy_(values)

    gradients = [
        [None if (d, at) in missing else gradient(p) for at, p in enumerate(parameters)]
        for d in range(domains)
    ]
    return parameters, gradients


def updates(rule, parameters, gradients, *, kernels: bool):
    """What `gs.backward` gets from the accumulator of the rule."""
    network.DEVICES.clear()
    network.DEVICES.update({"cpu"} if kernels else ())
    try:
        accumulator = accumulator_for(gs.rules.as_rule(rule), parameters)
        assert accumulator.at_once is not kernels
        for domain, row in enumerate(copied(gradients)):
            accumulator.receive_domain(domain, row)
        return accumulator.finish(len(gradients), poison=False)
    finally:
        network.DEVICES.add("cpu")


def copied(gradients):
    """Copies with the same strides and the same alignment."""

    def copy(gradient):
        if gradient is None:
            return None
        offset = gradient.storage_offset()
        memory = torch.empty(gradient.numel() + offset, dtype=gradient.dtype)[offset:]
        return memory.as_strided(gradient.shape, gradient.stride()).copy_(gradient)

    return [[copy(gradient) for gradient in row] for row in gradients]


def assert_equal_updates(found, expected, **tolerances):
    for update, right in zip(found.gradients, expected.gradients, strict=True):
        assert (update is None) == (right is None)
        if update is not None:
            assert update.stride() == right.stride()
            torch.testing.assert_close(update, right, **tolerances)


@pytest.mark.parametrize("name", COMPONENTWISE)
@SETTINGS
@given(networks((torch.float32, torch.float64, torch.float16, torch.bfloat16)))
def test_component_wise_rules(name, drawn):
    parameters, gradients = drawn
    rule = COMPONENTWISE[name]()
    expected = updates(rule, parameters, gradients, kernels=False)
    found = updates(rule, parameters, gradients, kernels=True)
    assert_equal_updates(found, expected)
    if expected.agreeing is not None and found.agreeing is not None:
        assert found.agreeing.tolist() == expected.agreeing.tolist()
        assert found.zeros.tolist() == expected.zeros.tolist()
        assert found.sizes == expected.sizes
    if found.found is not None:
        assert not found.found
        assert not found.flags.any()


@pytest.mark.parametrize("name", OTHERS)
@SETTINGS
@given(networks())
def test_rules_of_gramian_and_matrix(name, drawn):
    parameters, gradients = drawn
    rule = OTHERS[name]()
    expected = updates(rule, parameters, gradients, kernels=False)
    found = updates(rule, parameters, gradients, kernels=True)
    assert_equal_updates(found, expected)
    if expected.gramian is not None:
        torch.testing.assert_close(found.gramian, expected.gramian, rtol=1e-12, atol=1e-12)


@settings(SETTINGS, max_examples=4)
@given(networks(), st.integers(0, 8), st.integers(0, 3), st.sampled_from([math.nan, math.inf]))
def test_what_is_not_finite_is_named_and_spoils_the_update(drawn, domain, position, value):
    parameters, gradients = drawn
    domain, position = domain % len(gradients), position % len(parameters)
    gradient = gradients[domain][position]
    if gradient is None or not gradient.numel():
        return
    gradient[(0,) * gradient.ndim] = value
    for rule in (gs.AgrSum(), gs.AgrRand(), gs.GradDrop(), gs.PCGrad(), gs.Median()):
        found = updates(rule, parameters, gradients, kernels=True)
        assert found.found == 1
        assert found.flags.nonzero().tolist() == [[domain, position]]
        assert not found.gradients[position][(0,) * gradient.ndim].isfinite()


def test_agr_rand_draws_where_the_domains_conflict_and_keeps_the_rest():
    generator = torch.Generator().manual_seed(0)
    parameters = [torch.zeros(40_000), torch.zeros(300, 100)]
    gradients = [[torch.randn(p.shape, generator=generator) for p in parameters] for _ in range(3)]
    kept = updates(gs.AgrSum(), parameters, gradients, kernels=True).gradients
    rule = gs.AgrRand(generator=torch.Generator().manual_seed(1))
    drawn = updates(rule, parameters, gradients, kernels=True).gradients
    kept, drawn = (torch.cat([u.flatten() for u in parts]) for parts in (kept, drawn))
    agrees = kept != 0
    torch.testing.assert_close(drawn[agrees], kept[agrees])
    noise = drawn[~agrees] / kept[agrees].abs().mean()
    n = len(noise)
    # mean 0 and variance 1 within 5 standard deviations, and its distribution by quantiles
    assert abs(noise.mean()) < 5 / math.sqrt(n)
    assert abs(noise.var() - 1) < 5 * math.sqrt(2 / n)
    for probability in (0.01, 0.1, 0.5, 0.9, 0.99):
        at = math.sqrt(2) * torch.erfinv(torch.tensor(2 * probability - 1)).item()
        share = (noise < at).double().mean().item()
        assert abs(share - probability) < 5 * math.sqrt(probability * (1 - probability) / n)


def test_draws_belong_to_the_seed_and_the_component_whatever_the_blocks(monkeypatch):
    gradients = torch.tensor([[1.0], [-1.0]]).expand(2, 5000).contiguous()
    gradients[:, :10] = 1.0
    rule = gs.AgrRand(generator=torch.Generator().manual_seed(3))
    whole = rule(gradients)
    rule = gs.AgrRand(generator=torch.Generator().manual_seed(3))
    parts = [torch.zeros(10), torch.zeros(4097 - 10), torch.zeros(903)]
    rows = [list(row.split([len(part) for part in parts])) for row in gradients]
    split = updates(rule, parts, rows, kernels=True).gradients
    torch.testing.assert_close(torch.cat(split), whole, rtol=0, atol=0)
    other = gs.AgrRand(generator=torch.Generator().manual_seed(4))(gradients)
    assert (other[10:] != whole[10:]).double().mean() > 0.99


def test_graddrop_keeps_one_sign_with_the_probability_of_its_purity():
    gradients = torch.tensor([[3.0], [-1.0]]).expand(2, 40_000).contiguous()
    update = gs.GradDrop(generator=torch.Generator().manual_seed(0))(gradients)
    assert set(update.tolist()) == {3.0, -1.0}
    share = (update == 3).double().mean().item()  # purity 3 / 4
    assert abs(share - 0.75) < 5 * math.sqrt(0.75 * 0.25 / 40_000)


@pytest.mark.parametrize("rule", [gs.PCGrad, gs.GradVac, lambda: gs.GradVac(target=0.3)])
@settings(SETTINGS, max_examples=4)
@given(networks())
def test_projections_equal_those_on_the_processor_in_the_same_order(rule, drawn):
    parameters, gradients = drawn
    orders = torch.stack(
        [torch.tensor([o for o in range(len(gradients)) if o != d]) for d in range(len(gradients))]
    )
    found, expected = rule(), rule()
    found.random.orders_on = lambda domains, device: orders
    expected.random.pairs = lambda domains: itertools.permutations(range(domains), 2)
    for _ in range(2):  # GradVac's targets move
        on_device = updates(found, parameters, gradients, kernels=True)
        on_processor = updates(expected, parameters, gradients, kernels=False)
        assert_equal_updates(on_device, on_processor, rtol=1e-5, atol=1e-6)
    assert found.state_dict().keys() == expected.state_dict().keys()
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], value, rtol=1e-9, atol=1e-9)


def test_orders_are_permutations_of_the_others_and_all_occur():
    source = gs.PCGrad(generator=torch.Generator().manual_seed(0)).random
    seen = [source.orders_on(3, torch.device("cpu")).tolist() for _ in range(200)]
    assert {tuple(map(tuple, orders)) for orders in seen} == {
        (a, b, c) for a in ((1, 2), (2, 1)) for b in ((0, 2), (2, 0)) for c in ((0, 1), (1, 0))
    }


def test_a_subclass_that_changes_a_rule_does_not_inherit_its_kernel():
    class Halved(gs.AgrSum):
        def finish(self, states, domains):
            consensus = super().finish(states, domains)
            return consensus._replace(updates=[update / 2 for update in consensus.updates])

    class First(gs.PCGrad):
        def weights(self, gramian):
            return torch.eye(len(gramian), dtype=gramian.dtype)[0]

    gradients = torch.tensor([[1.0, 2.0], [3.0, -4.0]])
    assert Halved()(gradients).tolist() == [2.0, 0.0]
    assert First()(gradients).tolist() == [1.0, 2.0]


def test_gradients_of_a_network_that_backward_gives_to_the_kernels():
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(4 * 36, 5)
    )
    batches = [(torch.randn(4, 3, 8, 8), torch.randint(5, (4,))) for _ in range(3)]

    def step(rule, kernels):
        network.DEVICES.clear()
        network.DEVICES.update({"cpu"} if kernels else ())
        model.zero_grad()
        losses = (torch.nn.functional.cross_entropy(model(x), y) for x, y in batches)
        result = gs.backward(losses, model.named_parameters(), rule)
        return result, [parameter.grad.clone() for parameter in model.parameters()]

    for rule in (gs.AgrSum(), gs.MGDA(), gs.ANDMask()):
        (found, update), (expected, right) = step(rule, True), step(rule, False)
        torch.testing.assert_close(update, right, rtol=1e-5, atol=1e-6)
        assert found.agreeing == expected.agreeing
        assert found.agreeing_by_parameter == expected.agreeing_by_parameter
