"""What takes a whole network at once, against the processor's way and the equations.

Triton's kernels are run by its interpreter, torch's own operations on the processor.
"""

import gc
import itertools
import math
import weakref
from contextlib import contextmanager
from unittest import mock

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import gradsurgery as gs
from gradsurgery.engine.accumulators import accumulator_for
from gradsurgery.errors import ArgumentError
from gradsurgery.kernels import flat, network
from gradsurgery.rules.gramian import cosines_of
from tests import oracles

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
PRECISIONS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
SHAPES = st.sampled_from(
    [(0,), (), (1,), (7,), (2, 3, 3, 3), (64,), (256,), (4096,), (4097,), (31, 133)]
)


@st.composite
def networks(draw, dtypes=(torch.float32,), *, mixed=False, shapes=SHAPES):
    """Parameters, and for each domain their gradients, None where the domain does not reach one.

    mixed: the precision is each parameter's own.
    """
    dtype = draw(st.sampled_from(dtypes))
    shapes = draw(st.lists(shapes, min_size=1, max_size=3))
    domains = draw(st.sampled_from([2, 3, 5, 9]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    parameters = [
        torch.zeros(shape, dtype=draw(st.sampled_from(dtypes)) if mixed else dtype)
        for shape in shapes
    ]
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
            memory = torch.empty(parameter.numel() + 1, dtype=parameter.dtype)[1:]
            place = memory.as_strided(parameter.shape, parameter.stride())
        else:
            place = torch.empty_like(parameter)
        return place.copy_(values)

    gradients = [
        [None if (d, at) in missing else gradient(p) for at, p in enumerate(parameters)]
        for d in range(domains)
    ]
    return parameters, gradients


@contextmanager
def taken(form):
    """Inside, the processor's tensors are taken by Triton's kernels ("triton"), in torch's own

    operations ("torch"), or one by one ("none").
    """
    with (
        mock.patch.object(network, "DEVICES", {"cpu"} if form == "triton" else set()),
        mock.patch.object(network, "ONE_BY_ONE", {"cpu"} if form == "none" else set()),
    ):
        yield


def updates(rule, parameters, gradients, form):
    """What `gs.backward` gets from the accumulator of the rule."""
    with taken(form):
        accumulator = accumulator_for(gs.rules.as_rule(rule), parameters)
        assert accumulator.at_once is (form == "none")
        for domain, row in enumerate(copied(gradients)):
            accumulator.receive_domain(domain, row)
        return accumulator.finish(len(gradients), poison=False)


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


def check_component_wise(name, drawn, form):
    parameters, gradients = drawn
    rule = COMPONENTWISE[name]()
    expected = updates(rule, parameters, gradients, "none")
    found = updates(rule, parameters, gradients, form)
    assert_equal_updates(found, expected)
    if expected.agreeing is not None and found.agreeing is not None:
        assert found.counts() == expected.counts()
    if found.found is not None:
        assert not found.found
        assert found.found.dtype == torch.float32
        assert not found.not_finite()


@pytest.mark.parametrize("name", COMPONENTWISE)
@SETTINGS
@given(networks(PRECISIONS))
def test_component_wise_rules(name, drawn):
    check_component_wise(name, drawn, "triton")


@pytest.mark.parametrize("name", COMPONENTWISE)
@SETTINGS
@given(networks(PRECISIONS, mixed=True))
def test_component_wise_rules_without_triton(name, drawn):
    check_component_wise(name, drawn, "torch")


def check_others(name, drawn, form):
    parameters, gradients = drawn
    rule = OTHERS[name]()
    expected = updates(rule, parameters, gradients, "none")
    found = updates(rule, parameters, gradients, form)
    assert_equal_updates(found, expected)
    if expected.gramian is not None and gs.rules.as_rule(rule).name in ("cagrad", "mgda"):
        right, seen = cosines_of(expected.gramian), cosines_of(found.gramian)
        torch.testing.assert_close(seen, right, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", OTHERS)
@SETTINGS
@given(networks())
def test_rules_of_gramian_and_matrix(name, drawn):
    check_others(name, drawn, "triton")


@pytest.mark.parametrize("name", OTHERS)
@SETTINGS
@given(networks((torch.float32, torch.float64), mixed=True))
def test_rules_of_gramian_and_matrix_without_triton(name, drawn):
    check_others(name, drawn, "torch")


@pytest.mark.parametrize("form", ["triton", "torch"])
@settings(SETTINGS, max_examples=4)
@given(networks(), st.integers(0, 8), st.integers(0, 3), st.sampled_from([math.nan, math.inf]))
def test_what_is_not_finite_is_named_and_spoils_the_update(form, drawn, domain, position, value):
    parameters, gradients = drawn
    domain, position = domain % len(gradients), position % len(parameters)
    gradient = gradients[domain][position]
    if gradient is None or not gradient.numel():
        return
    gradient[(0,) * gradient.ndim] = value
    rules = [gs.AgrSum, gs.AgrRand, gs.GradDrop, gs.PCGrad, gs.Median]
    for rule in rules + [gs.Sum, gs.SANDMask, gs.MGDA] * (form == "torch"):
        found = updates(rule(), parameters, gradients, form)
        assert found.found == 1
        assert found.not_finite() == [(domain, position)]
        assert not found.gradients[position][(0,) * gradient.ndim].isfinite()


@pytest.mark.parametrize("form", ["triton", "torch"])
@pytest.mark.parametrize("rule", [gs.Mean, gs.AgrSum, gs.ANDMask, gs.PCGrad, gs.MGDA])
def test_an_update_beyond_the_precision_is_found(form, rule):
    parameters = [torch.zeros(3, dtype=torch.float16), torch.zeros(2, dtype=torch.float16)]
    largest = torch.tensor([6e4, 1.0, 6e4]).half()
    gradients = [[largest * factor, torch.ones(2).half()] for factor in (1.0, 1.0, 0.9)]
    found = updates(rule(), parameters, gradients, form)
    fits = rule in (gs.Mean, gs.ANDMask, gs.MGDA)  # those that average
    assert found.found == (not fits)
    assert not found.not_finite()
    assert found.gradients[0].isfinite().all() == fits


@pytest.mark.parametrize("form", ["triton", "torch"])
@pytest.mark.parametrize("rule", [gs.ANDMask, gs.SANDMask])
@pytest.mark.parametrize(("dtype", "size"), [(torch.float16, 3e4), (torch.float32, 2e38)])
def test_an_update_that_is_rescaled_beyond_the_precision_is_found(form, rule, dtype, size):
    parameters = [torch.zeros(4, dtype=dtype), torch.zeros(0, dtype=dtype)]
    rows = torch.tensor([[1.0, 1.0, 1.0, 1.0], [1.0, -1.0, -1.0, -1.0]], dtype=dtype) * size
    empty = torch.zeros(0, dtype=dtype)
    # one component in four is kept, of the size that all have, and divided by a quarter
    found = updates(rule(rescale=True), parameters, [[row, empty] for row in rows], form)
    assert found.found == 1
    smaller = [[row / 16, empty] for row in rows]
    if rule is gs.SANDMask:  # whose squares end before
        smaller = [[row / 2e38, empty] for row in rows]
    assert not updates(rule(rescale=True), parameters, smaller, form).found


@pytest.mark.parametrize("form", ["triton", "torch"])
def test_agr_rand_draws_where_the_domains_conflict_and_keeps_the_rest(form):
    generator = torch.Generator().manual_seed(0)
    parameters = [torch.zeros(40_000), torch.zeros(300, 100)]
    gradients = [[torch.randn(p.shape, generator=generator) for p in parameters] for _ in range(3)]
    kept = updates(gs.AgrSum(), parameters, gradients, form).gradients
    rule = gs.AgrRand(generator=torch.Generator().manual_seed(1))
    drawn = updates(rule, parameters, gradients, form).gradients
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


@pytest.mark.parametrize("zero_agrees", [True, False])
def test_noise_without_triton_is_of_the_seed_and_zeros_are_as_they_are_asked_for(zero_agrees):
    gradients = [[torch.tensor([0.0, 1.0, 3.0, -1.0])], [torch.tensor([0.0, 2.0, 3.0, 1.0])]]

    def drawn(seed):
        generator = torch.Generator().manual_seed(seed)
        rule = gs.AgrRand(generator=generator, zero_agrees=zero_agrees, reduction="mean")
        (update,) = updates(rule, [torch.zeros(4)], gradients, "torch").gradients
        return update

    first, again, other = drawn(1), drawn(1), drawn(2)
    assert torch.equal(first, again)
    assert first[1:3].tolist() == other[1:3].tolist() == [1.5, 3.0]
    assert first[3] != other[3]
    assert (first[0] == 0) == (other[0] == 0) == zero_agrees
    # σ is the mean of 3 and 6, and of 0 where that agrees: the draw itself does not change
    noise = torch.empty(256).normal_(generator=torch.Generator().manual_seed(1))[3]
    assert first[3].item() == pytest.approx(noise.item() * (3.0 if zero_agrees else 4.5) / 2)


def test_draws_belong_to_the_seed_and_the_component_whatever_the_blocks(monkeypatch):
    gradients = torch.tensor([[1.0], [-1.0]]).expand(2, 5000).contiguous()
    gradients[:, :10] = 1.0
    rule = gs.AgrRand(generator=torch.Generator().manual_seed(3))
    whole = rule(gradients)
    rule = gs.AgrRand(generator=torch.Generator().manual_seed(3))
    parts = [torch.zeros(10), torch.zeros(4097 - 10), torch.zeros(903)]
    rows = [list(row.split([len(part) for part in parts])) for row in gradients]
    split = updates(rule, parts, rows, "triton").gradients
    torch.testing.assert_close(torch.cat(split), whole, rtol=0, atol=0)
    other = gs.AgrRand(generator=torch.Generator().manual_seed(4))(gradients)
    assert (other[10:] != whole[10:]).double().mean() > 0.99


@pytest.mark.parametrize("form", ["triton", "torch"])
def test_graddrop_keeps_one_sign_with_the_probability_of_its_purity(form):
    gradients = torch.tensor([[3.0], [-1.0]]).expand(2, 40_000).contiguous()
    with taken(form):
        update = gs.GradDrop(generator=torch.Generator().manual_seed(0))(gradients)
    assert set(update.tolist()) == {3.0, -1.0}
    share = (update == 3).double().mean().item()  # purity 3 / 4
    assert abs(share - 0.75) < 5 * math.sqrt(0.75 * 0.25 / 40_000)


@pytest.mark.parametrize("form", ["triton", "torch"])
@pytest.mark.parametrize("rule", [gs.PCGrad, gs.GradVac, lambda: gs.GradVac(target=0.3)])
@settings(SETTINGS, max_examples=4)
@given(networks())
def test_projections_equal_those_on_the_processor_in_the_same_order(form, rule, drawn):
    parameters, gradients = drawn
    orders = torch.stack(
        [torch.tensor([o for o in range(len(gradients)) if o != d]) for d in range(len(gradients))]
    )
    found, expected = rule(), rule()
    found.random.orders_on = lambda domains, device: orders
    for one in (found, expected):
        one.random.pairs = lambda domains: itertools.permutations(range(domains), 2)
    for _ in range(2):  # GradVac's targets move
        on_device = updates(found, parameters, gradients, form)
        on_processor = updates(expected, parameters, gradients, "none")
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

    def step(rule, form):
        model.zero_grad()
        losses = (torch.nn.functional.cross_entropy(model(x), y) for x, y in batches)
        with taken(form):
            result = gs.backward(losses, model.named_parameters(), rule)
        return result, [parameter.grad.clone() for parameter in model.parameters()]

    for rule, form in itertools.product(
        (gs.AgrSum(), gs.MGDA(), gs.ANDMask()), ("triton", "torch")
    ):
        (found, update), (expected, right) = step(rule, form), step(rule, "none")
        torch.testing.assert_close(update, right, rtol=1e-5, atol=1e-6)
        assert found.agreeing == expected.agreeing
        assert found.agreeing_by_parameter == expected.agreeing_by_parameter


FEW = st.sampled_from([(0,), (), (3,), (2, 2, 1, 3), (5, 2)])


def matrix_of(parameters, gradients):
    """The gradients as lists of numbers, without the parameters that no domain reaches."""
    columns = zip(parameters, *gradients, strict=True)
    reached = [(p, *row) for p, *row in columns if any(g is not None for g in row)]
    return [
        [
            value
            for p, *row in reached
            for value in (torch.zeros_like(p) if row[d] is None else row[d]).flatten().tolist()
        ]
        for d in range(len(gradients))
    ]


@settings(SETTINGS, max_examples=20)
@given(networks(shapes=FEW))
def test_without_triton_the_updates_are_those_of_the_equations(drawn):
    parameters, gradients = drawn
    rows = matrix_of(parameters, gradients)
    orders = [tuple(o for o in range(len(rows)) if o != d) for d in range(len(rows))]
    pcgrad = gs.PCGrad()
    pcgrad.random.orders_on = lambda domains, device: torch.tensor(orders)
    pairs = {
        gs.AgrSum(): oracles.agr_sum(rows),
        gs.ANDMask(tau=0.6): oracles.and_mask(rows, 0.6),
        gs.SANDMask(): oracles.sand_mask(rows, 0.5, 10.0),
        pcgrad: oracles.pcgrad(rows, orders),
    }
    for rule, right in pairs.items():
        found = updates(rule, parameters, gradients, "torch")
        flat_update = [v for u in found.gradients if u is not None for v in u.flatten().tolist()]
        assert flat_update == pytest.approx(right, rel=1e-6, abs=1e-6)
        if isinstance(rule, gs.AgrSum) and found.agreeing is not None:
            agreeing, moving, reached = map(sum, zip(*found.counts(), strict=True))
            assert (agreeing, reached - moving) == oracles.agreeing_and_zero(rows)


@pytest.mark.parametrize("rule", [gs.Sum, gs.Mean, gs.AgrSum, gs.ANDMask, gs.MGDA])
def test_of_up_to_four_domains_both_forms_have_the_same_bits(rule):
    generator = torch.Generator().manual_seed(0)
    parameters = [torch.zeros(shape) for shape in ((700,), (31, 133), ())]
    for domains in (2, 3, 4):
        gradients = [
            [torch.randn(p.shape, generator=generator) + 0.5 for p in parameters]
            for _ in range(domains)
        ]
        found, expected = (
            updates(rule(), parameters, gradients, form) for form in ("torch", "triton")
        )
        assert_equal_updates(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("dtype", "sizes"),
    [
        (torch.float32, (1.0, 1.0, 1.0)),
        (torch.float32, (1e-25, 1e-25, 1e-26)),
        (torch.float32, (1e25, 1e25, 1e26)),
        (torch.float64, (1e-200, 1e-200, 1e-201)),
        (torch.float64, (1e200, 1e201, 1e200)),
    ],
)
@pytest.mark.parametrize("double", [True, False])
def test_inner_products_without_triton_are_those_of_float64(monkeypatch, dtype, sizes, double):
    """Of gradients whose squares the precision does not hold too, and without float64."""
    if not double and dtype == torch.float32:
        monkeypatch.setattr(network, "_DOUBLE", set())
    generator = torch.Generator().manual_seed(0)
    unit = torch.randn(3, 100_000, generator=generator, dtype=torch.float64)
    unit += torch.randn(100_000, generator=generator, dtype=torch.float64)
    rows = [[(row * size).to(dtype)] for row, size in zip(unit, sizes, strict=True)]
    expected = cosines_of(unit @ unit.T)
    weights = torch.tensor([1.0, 0.5, -2.0], dtype=network.wide_on(torch.device("cpu")))
    right = sum(row.double() * w.double() for (row,), w in zip(rows, weights, strict=True))
    out = [torch.empty(100_000, dtype=dtype)]
    gramian, seen = flat.weigh(rows, (100_000,), lambda _: weights, out=out)
    torch.testing.assert_close(cosines_of(gramian).double(), expected, rtol=0, atol=1e-6)
    assert not seen.found
    largest = right.abs().max()
    torch.testing.assert_close(out[0].double() / largest, right / largest, rtol=0, atol=1e-6)


def test_gradients_are_let_go_once_they_have_been_copied():
    """So that a component-wise rule does not hold them twice."""
    gradients = [[torch.ones(600)], [torch.ones(600)]]
    references = [weakref.ref(gradient) for (gradient,) in gradients]
    places = flat.places_of((600,), torch.device("cpu"))
    matrix = flat.joined(gradients, places, torch.float32)
    assert matrix.shape == (2, flat.BLOCK)
    assert [reference() for reference in references] == [None, None]


def test_what_a_recorded_graph_reads_stays_as_long_as_what_the_recording_gave():
    here, sizes = torch.device("cpu"), (3, 5)
    with network.staged_tables(here) as read:
        network.layout_of(sizes, here)
        places = weakref.ref(flat.places_of(sizes, here).owners)
    for other in range(40):  # more than are kept for later steps
        network.layout_of((other,), here), flat.places_of((other,), here)
    gc.collect()
    assert places() is not None
    assert any(isinstance(each, network.Layout) and each.sizes.tolist() == [3, 5] for each in read)
    del read
    gc.collect()
    assert places() is None


def test_parameters_on_several_devices_are_refused():
    parameters = [torch.zeros(1), torch.zeros(1, device="meta")]
    for rule in (gs.AgrSum(), gs.PCGrad(), gs.Median()):
        with pytest.raises(ArgumentError, match="found parameters on cpu, meta; put the model on"):
            accumulator_for(rule, parameters)
