"""Every rule on the device, called on a matrix and through `gs.backward`."""

import math
from collections.abc import Iterator

import pytest
import torch
from scipy import stats
from torch import Tensor

import gradsurgery as gs
from gradsurgery.kernels import network as kernels
from gradsurgery.rules import RULES
from tests.gpu import DEVICE, needs_gpu, relative_error
from tests.oracles import pcgrad_results

pytestmark = needs_gpu


@pytest.fixture(autouse=True, params=["with Triton", "without"])
def triton(request, monkeypatch) -> None:
    """Without, everything is done in torch's own operations, as on Windows."""
    if request.param == "without":
        monkeypatch.setattr(kernels, "has_triton", lambda: False)
        monkeypatch.setattr(kernels, "ONE_BY_ONE", set())


RANDOM = {"agr-rand", "graddrop", "pcgrad", "gradvac"}
CERTAIN = sorted(set(RULES) - RANDOM)
BOUNDS = {
    torch.float64: 1e-12,
    torch.float32: 1e-5,
    torch.bfloat16: 1e-2,
    torch.float16: 2e-3,
}


def conflicting(domains: int, size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Gradients with all kinds of agreement, conflict and zeros, exact in `dtype`."""
    generator = torch.Generator().manual_seed(domains * size)
    gradients = torch.randn(domains, size, generator=generator)
    gradients += 0.5 * torch.randn(size, generator=generator)
    gradients[:, ::7] = 0
    gradients[0, ::5] = 0
    return gradients.to(dtype)


def defined(name: str, domains: int) -> bool:
    """A trimmed mean of two domains would leave none."""
    return domains > 2 or name != "trimmed-mean"


@pytest.mark.parametrize("domains", [2, 3, 8])
@pytest.mark.parametrize("name", CERTAIN)
def test_a_rule_on_a_matrix_is_that_of_float64(name, domains):
    if not defined(name, domains):
        return
    gradients = conflicting(domains, 100_003)
    found = gs.rule(name)(gradients.to(DEVICE))
    assert found.device.type == DEVICE.type
    assert relative_error(found, gs.rule(name)(gradients.double())) < 1e-4


def test_pcgrad_is_one_of_the_results_of_its_orders():
    gradients = conflicting(3, 50)
    expected = [torch.tensor(result) for result in pcgrad_results(gradients.double().tolist())]
    for seed in range(6):
        rule = gs.PCGrad(generator=torch.Generator(DEVICE).manual_seed(seed))
        found = rule(gradients.to(DEVICE))
        assert min(relative_error(found, one) for one in expected) < 1e-5


class _Given(torch.autograd.Function):
    """Hands over gradients as they are: their memory, layout and alignment."""

    @staticmethod
    def forward(ctx, gradients, *parameters):
        ctx.gradients = [gradient for gradient in gradients if gradient is not None]
        return parameters[0].new_zeros((), dtype=torch.float32)

    @staticmethod
    def backward(ctx, _):
        return None, *(gradient.clone() for gradient in ctx.gradients)


class _Unaligned(_Given):
    """The same in memory that begins one element after an address that is aligned."""

    @staticmethod
    def backward(ctx, _):
        found = []
        for gradient in ctx.gradients:
            memory = gradient.new_empty(gradient.numel() + 1)
            found.append(memory[1:].view(gradient.shape).copy_(gradient))
        return None, *found


def losses_for(rows: list[list], parameters: list[Tensor], given=_Given) -> Iterator[Tensor]:
    """Losses whose gradients are the rows; a parameter without one is not reached."""
    for row in rows:
        reached = [p for p, g in zip(parameters, row, strict=True) if g is not None]
        yield given.apply(row, *reached)


SHAPES = [(1000,), (7,), (2049,), (64, 33), (1,), (0,), (17, 5, 3, 3), (4096,), (8192 + 3,), ()]


def network(dtype: torch.dtype) -> list[Tensor]:
    """Parameters of ragged shapes, one of them channels last."""
    parameters = [torch.zeros(shape, dtype=dtype, device=DEVICE) for shape in SHAPES]
    parameters[6] = parameters[6].to(memory_format=torch.channels_last)
    return [parameter.requires_grad_() for parameter in parameters]


def domain_gradients(domains: int, dtype: torch.dtype, *, missing: bool) -> list[list]:
    """[domains][parameters], in the parameters' layout; some are missing in some domains."""
    sizes = [math.prod(shape) for shape in SHAPES]
    flat = conflicting(domains, sum(sizes), dtype).to(DEVICE)
    rows: list[list] = []
    for domain in range(domains):
        parts = flat[domain].split(sizes)
        row = [part.view(shape) for part, shape in zip(parts, SHAPES, strict=True)]
        row[6] = row[6].to(memory_format=torch.channels_last)
        rows.append(row)
    if missing:
        rows[0][0] = rows[1][3] = rows[0][8] = None
        for row in rows:
            row[7] = None
    return rows


def expected_update(name: str, rows: list[list]) -> list[Tensor | None]:
    """The rule in float64 on the processor, on the matrix of what any domain reaches."""
    columns = list(zip(*rows, strict=True))
    reached = [i for i, column in enumerate(columns) if any(g is not None for g in column)]
    matrix = torch.stack(
        [
            torch.cat(
                [
                    torch.zeros(math.prod(SHAPES[i]))
                    if row[i] is None
                    else row[i].cpu().double().flatten()
                    for i in reached
                ]
            )
            for row in rows
        ]
    )
    sizes = [math.prod(SHAPES[i]) for i in reached]
    parts = dict(zip(reached, gs.rule(name)(matrix).split(sizes), strict=True))
    return [parts[i].view(SHAPES[i]) if i in parts else None for i in range(len(columns))]


@pytest.mark.parametrize(
    ("dtype", "missing", "given"),
    [
        pytest.param(torch.float32, False, _Given, id="float32"),
        pytest.param(torch.float32, True, _Unaligned, id="float32, unaligned"),
        pytest.param(torch.float64, True, _Given, id="float64"),
        pytest.param(torch.bfloat16, True, _Unaligned, id="bfloat16, unaligned"),
        pytest.param(torch.float16, False, _Given, id="float16"),
    ],
)
@pytest.mark.parametrize("name", CERTAIN)
def test_backward_over_a_ragged_network_is_that_of_float64(name, dtype, missing, given):
    for domains in (2, 3, 5) if dtype == torch.float32 else (3,):
        if not defined(name, domains):
            continue
        rows = domain_gradients(domains, dtype, missing=missing)
        parameters = network(dtype)
        gs.backward(losses_for(rows, parameters, given), parameters, gs.rule(name))
        expected = expected_update(name, rows)
        present = [i for i, update in enumerate(expected) if update is not None]
        assert [p.grad is not None for p in parameters] == [u is not None for u in expected]
        for i in present:
            assert parameters[i].grad.dtype == dtype
            assert parameters[i].grad.shape == parameters[i].shape
        found = torch.cat([parameters[i].grad.cpu().double().flatten() for i in present])
        wanted = torch.cat([expected[i].flatten() for i in present])
        assert relative_error(found, wanted) < BOUNDS[dtype]


@pytest.mark.parametrize("name", ["agr-sum", "agr-rand", "and-mask"])
def test_what_agrees_is_counted_by_parameter(name):
    rows = domain_gradients(3, torch.float32, missing=True)
    on_device, on_cpu = network(torch.float32), [p.detach().cpu() for p in network(torch.float32)]
    found = gs.backward(losses_for(rows, on_device), on_device, gs.rule(name))
    rows = [[None if g is None else g.cpu() for g in row] for row in rows]
    on_cpu = [p.requires_grad_() for p in on_cpu]
    expected = gs.backward(losses_for(rows, on_cpu), on_cpu, gs.rule(name))
    assert found.agreeing == expected.agreeing
    assert found.zero == expected.zero
    assert found.agreeing_by_parameter == expected.agreeing_by_parameter
    assert found.moving_by_parameter == expected.moving_by_parameter


def test_the_noise_of_agr_rand_is_normal_with_the_mean_size_of_what_agrees():
    size = 1_000_000
    gradients = conflicting(3, size)
    agrees = torch.stack([g.sign() for g in gradients]).sum(0).abs() == 3
    agrees |= (gradients == 0).all(0)
    sigma = gradients.sum(0)[agrees].double().abs().mean()
    generator = torch.Generator(DEVICE)
    noise = []
    for seed in (1, 2):
        rows = [[row.to(DEVICE)] for row in gradients]
        parameter = torch.zeros(size, device=DEVICE, requires_grad=True)
        rule = gs.AgrRand(generator=generator.manual_seed(seed))
        gs.backward(losses_for(rows, [parameter]), [parameter], rule)
        update = parameter.grad.cpu()
        assert torch.allclose(update[agrees], gradients.sum(0)[agrees], atol=1e-5)
        noise.append((update[~agrees].double() / sigma).numpy())
    first, second = noise
    count = len(first)
    assert abs(first.mean()) < 5 / math.sqrt(count)
    assert abs(first.std() - 1) < 5 / math.sqrt(2 * count)
    assert stats.kstest(first, "norm").pvalue > 1e-4
    assert abs((first[1:] * first[:-1]).mean()) < 5 / math.sqrt(count)
    assert abs((first * second).mean()) < 5 / math.sqrt(count)


@pytest.mark.parametrize("name", sorted(RULES))
def test_the_same_seed_gives_the_same_bits(name):
    updates = []
    for _ in range(2):
        rows = domain_gradients(3, torch.float32, missing=False)
        parameters = network(torch.float32)
        rule = gs.rule(name, generator=torch.Generator(DEVICE).manual_seed(5))
        gs.backward(losses_for(rows, parameters), parameters, rule)
        updates.append(torch.cat([p.grad.flatten() for p in parameters]))
    assert torch.equal(*updates)


@pytest.mark.parametrize("name", sorted(RULES))
def test_a_gradient_that_is_not_finite_is_named(name):
    rows = domain_gradients(3, torch.float32, missing=False)
    rows[1][3][5, 6] = float("nan")
    parameters = network(torch.float32)
    with pytest.raises(gs.NonFiniteError) as caught:
        gs.backward(losses_for(rows, parameters), parameters, gs.rule(name))
    assert (caught.value.domain, caught.value.parameter) == (1, "3")
    assert all(parameter.grad is None for parameter in parameters)
