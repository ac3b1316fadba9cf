"""What holds for every rule."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import gradsurgery as gs
from gradsurgery.errors import ArgumentError, NonFiniteError
from gradsurgery.rules import RULES
from tests.rules.matrices import matrices

NAMES = st.sampled_from(sorted(RULES))
MINIMUM = {name: max(2, gs.rule(name).minimum_domains) for name in RULES}
RANDOM = ["agr-rand", "graddrop", "gradvac", "pcgrad"]
AVERAGES = ["mean", "mgda", "and-mask", "sand-mask", "median", "trimmed-mean"]


def seeded(name: str) -> gs.Rule:
    return gs.rule(name, generator=torch.Generator().manual_seed(7))


@st.composite
def rules_and_gradients(draw, names=NAMES):
    """A rule's name, and gradients of at least as many domains as it needs."""
    name = draw(names)
    return name, draw(matrices(min_domains=MINIMUM[name]))


@given(matrices(min_domains=1))
def test_sum_and_mean(gradients):
    torch.testing.assert_close(gs.Sum()(gradients), gradients.sum(0))
    torch.testing.assert_close(gs.Mean()(gradients), gradients.mean(0))


@given(rules_and_gradients())
def test_updates_are_finite_and_of_the_right_shape(drawn):
    name, gradients = drawn
    update = seeded(name)(gradients)
    assert update.shape == gradients.shape[1:]
    assert update.dtype == gradients.dtype
    assert update.isfinite().all()


@given(rules_and_gradients(), st.sampled_from([0.25, 2.0, 1024.0]))
def test_scaling_the_gradients_scales_the_update(drawn, factor):
    name, gradients = drawn
    # the variance of SAND-mask is absolute: its k has to follow
    options = {"k": 10.0 * factor**2} if name == "sand-mask" else {}
    scaled = gs.rule(name, generator=torch.Generator().manual_seed(7), **options)
    # powers of two, so that no rounding differs
    torch.testing.assert_close(
        scaled(gradients * factor), seeded(name)(gradients) * factor, rtol=1e-9, atol=1e-12
    )


@given(
    rules_and_gradients(st.sampled_from(sorted(set(RULES) - {"agr-rand", "gradvac", "pcgrad"}))),
    st.randoms(use_true_random=False),
)
def test_the_order_of_the_domains_does_not_matter(drawn, random):
    name, gradients = drawn  # GradDrop draws for the components, not for the domains
    order = list(range(len(gradients)))
    random.shuffle(order)
    scale = gradients.abs().max().item()
    torch.testing.assert_close(
        seeded(name)(gradients[order]), seeded(name)(gradients), rtol=1e-6, atol=1e-6 * scale
    )


@given(NAMES, matrices(min_domains=1, max_domains=1), st.integers(2, 6))
def test_equal_rows_give_their_sum_or_mean(name, gradient, domains):
    domains = max(domains, MINIMUM[name])
    update = seeded(name)(gradient.repeat(domains, 1))
    factor = 1 if name in AVERAGES else 1.5 if name == "cagrad" else domains  # 1 + c, c = 0.5
    torch.testing.assert_close(update, gradient[0] * factor)


@given(st.sampled_from(["pcgrad", "gradvac", "agr-sum", "graddrop"]), matrices())
def test_without_conflict_nothing_is_lost(name, gradients):
    agreeing = gradients.abs()  # no component and no pair conflicts
    options = {"target": 0.0} if name == "gradvac" else {}
    expected = agreeing.sum(0)
    if name == "agr-sum":  # for which 0 is a sign of its own
        expected = torch.where((agreeing > 0).all(0), expected, 0.0)
    torch.testing.assert_close(gs.rule(name, **options)(agreeing), expected)


@given(st.sampled_from(["mgda", "cagrad"]), matrices())
def test_no_domain_is_made_worse(name, gradients):
    rule = gs.CAGrad(c=1.0) if name == "cagrad" else gs.MGDA()
    worst = (gradients @ rule(gradients)).min().item()
    assert worst >= -1e-6 * gradients.square().sum(1).max().item()


@given(matrices(max_domains=2))
def test_pcgrad_makes_neither_of_two_domains_worse(gradients):
    worst = (gradients @ gs.PCGrad()(gradients)).min().item()
    assert worst >= -1e-9 * gradients.square().sum(1).max().item()


@pytest.mark.parametrize("name", sorted(RULES))
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_raises_and_names_the_domain(name, bad):
    gradients = torch.ones(3, 5)
    gradients[1, 2] = bad
    gradients[0, 2] = -1.0
    with pytest.raises(NonFiniteError, match=r"domain 1 is .* at component 2") as caught:
        seeded(name)(gradients)
    assert caught.value.domain == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize("name", ["sum", "agr-sum", "and-mask", "graddrop", "pcgrad", "agr-rand"])
def test_an_update_beyond_the_precision_is_refused_and_no_gradient_blamed(name, dtype):
    options = {"reduction": "sum"} if name == "and-mask" else {}
    gradients = torch.full((2, 3), 0.9 * torch.finfo(dtype).max, dtype=dtype)
    with pytest.raises(NonFiniteError, match=r"finite and the update is not, whose torch.float"):
        gs.rule(name, **options)(gradients)
    if dtype != torch.float64:  # a sum on the way may end beyond it, where nothing is wider
        gradients = torch.tensor([[3e38], [3e38], [-3e38]]).to(torch.float32)
        assert gs.Sum()(gradients).item() == gradients[0].item()
        assert gs.AgrSum()(gradients).item() == 0


def test_a_mask_that_keeps_little_may_rescale_beyond_the_precision():
    gradients = torch.full((2, 10_000), 1e36)
    gradients[1, 1:] *= -1  # one of 10,000 is kept: 10,000 · 1e36
    weight = torch.zeros(10_000, requires_grad=True)
    for rule in (gs.ANDMask(rescale=True), gs.SANDMask(rescale=True)):
        with pytest.raises(NonFiniteError, match="finite and the update is not"):
            rule(gradients)
        with pytest.raises(NonFiniteError, match="finite and the update is not"):
            gs.backward((weight @ row for row in gradients), [weight], rule)


@pytest.mark.parametrize("name", sorted(set(RULES) - {"sum", "mean"}))
def test_surgery_needs_two_domains(name):
    needed = 3 if name == "trimmed-mean" else 2
    message = f"{name} compares .* at least {needed} domains, found {needed - 1}"
    with pytest.raises(ArgumentError, match=message):
        seeded(name)(torch.ones(needed - 1, 3))


@pytest.mark.parametrize("name", sorted(RULES))
@pytest.mark.parametrize("gradients", [torch.ones(3), torch.ones(2, 3, dtype=torch.int64)])
def test_wrong_shape_or_type(name, gradients):
    with pytest.raises(ArgumentError, match=r"expects floating point gradients of shape"):
        seeded(name).check_matrix(gradients)


@given(rules_and_gradients())
def test_arguments_are_left_as_they_are(drawn):
    name, gradients = drawn
    before = gradients.clone()
    seeded(name)(gradients)
    assert torch.equal(gradients, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", sorted(RULES))
def test_other_precisions_and_layouts(name, dtype):
    gradients = torch.tensor([[1.0, -2.0, 0.5], [3.0, 1.0, 0.5], [2.0, -4.0, 1.0]])
    expected = seeded(name)(gradients.double())
    tall = gradients.to(dtype).T.contiguous().T  # rows that do not lie in one piece
    update = seeded(name)(tall)
    assert update.dtype == dtype
    conflict_free = [0, 2]  # where nothing random decides
    torch.testing.assert_close(
        update[conflict_free].double(), expected[conflict_free], rtol=0.02, atol=0.02
    )


@pytest.mark.parametrize(
    ("name", "option", "value", "message"),
    [
        ("and-mask", "tau", 1.5, "and-mask.tau is a number at least 0 and at most 1, found 1.5"),
        ("and-mask", "reduction", "max", "and-mask.reduction is 'sum' or 'mean', found 'max'"),
        ("sand-mask", "tau", 1.0, "sand-mask.tau is a number at least 0 and below 1, found 1.0"),
        ("sand-mask", "k", 0.0, "sand-mask.k is a number above 0, found 0.0"),
        (
            "graddrop",
            "leak",
            float("nan"),
            "graddrop.leak is a number .* at most 1, found nan",
        ),
        ("gradvac", "beta", -0.1, "gradvac.beta is a number at least 0 and at most 1, found -0.1"),
        ("gradvac", "target", 1.0, "gradvac.target is a number above -1 and below 1, found 1.0"),
        ("agr-ema", "beta", 1.0, "agr-ema.beta is a number at least 0 and below 1, found 1.0"),
        ("cagrad", "c", -1.0, "cagrad.c is a number at least 0, found -1.0"),
        ("trimmed-mean", "trim", -1, "trimmed-mean.trim is a whole number at least 0, found -1"),
    ],
)
def test_options_have_ranges(name, option, value, message):
    with pytest.raises(ArgumentError, match=message):
        gs.rule(name, **{option: value})


@pytest.mark.parametrize("name", sorted(RULES))
def test_state_can_be_saved_and_unknown_keys_raise(name):
    rule = seeded(name)
    assert rule.state_dict() == {}
    rule.load_state_dict({})
    with pytest.raises(ArgumentError, match=r"found '?momentum"):
        rule.load_state_dict({"momentum": torch.ones(1)})


@pytest.mark.parametrize("way", ["matrix", "backward", "matrix of kernels", "kernels"])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mean", {}),
        ("and-mask", {}),
        ("and-mask", {"rescale": True}),
        ("agr-sum", {"reduction": "mean"}),
        ("agr-rand", {"reduction": "mean"}),
        ("sand-mask", {}),
        ("median", {}),
        ("trimmed-mean", {"trim": 0}),
        ("cagrad", {"c": 0.0}),
        ("mgda", {}),
    ],
)
@pytest.mark.filterwarnings("ignore:(divide by zero|invalid value|overflow):RuntimeWarning")
def test_means_at_the_end_of_float32_have_sums_beyond_it(name, options, way, request):
    if "kernels" in way:
        request.getfixturevalue("accelerator")
    rule = gs.rule(name, **options)
    rows = torch.tensor([[3e38, -3.2e38, 1e38]]).repeat(4, 1)
    if "matrix" in way:
        update = rule(rows)
    else:
        weight = torch.zeros(3, requires_grad=True)
        gs.backward([(row * weight).sum() for row in rows], [weight], rule)
        update = weight.grad
    torch.testing.assert_close(update, rows[0])


@pytest.mark.filterwarnings("ignore:(divide by zero|invalid value|overflow):RuntimeWarning")
@pytest.mark.parametrize("kernels", [None, "accelerator", "without_triton"])
def test_more_domains_than_a_kernel_holds_at_the_end_of_float32(kernels, request):
    """Their running total has to fit; what does not is refused."""
    if kernels:
        request.getfixturevalue(kernels)
    rows = torch.full((9, 3), 3e38)
    weight = torch.zeros(3, requires_grad=True)
    losses = [(row * weight).sum() for row in rows]
    if not kernels:
        gs.backward(losses, [weight], gs.Mean())
        torch.testing.assert_close(weight.grad, rows[0])
        return
    with pytest.raises(NonFiniteError, match="finite and the update is not"):
        gs.backward(losses, [weight], gs.Mean())


@pytest.mark.filterwarnings("ignore:(divide by zero|invalid value|overflow):RuntimeWarning")
@pytest.mark.parametrize("kernels", [None, "accelerator", "without_triton"])
def test_squared_deviations_beyond_float32(kernels, request):
    """σ² = 2e40 (for 1e20 and 3e20): the mask is about k · ½ / σ², the same for both components."""
    rows = torch.tensor([[1e20, -1e20], [3e20, -3e20]])
    if kernels:
        request.getfixturevalue(kernels)
        with pytest.raises(NonFiniteError, match="finite and the update is not"):
            gs.SANDMask()(rows)
        return
    rescaled = torch.tensor([2e20, -2e20])
    torch.testing.assert_close(gs.SANDMask(rescale=True)(rows), rescaled)
    torch.testing.assert_close(gs.SANDMask(k=1e20)(rows), rescaled * 2.5e-21, rtol=1e-6, atol=0)
    weight = torch.zeros(2, requires_grad=True)
    gs.backward([weight @ row for row in rows], [weight], gs.SANDMask(k=1e20))
    torch.testing.assert_close(weight.grad, rescaled * 2.5e-21, rtol=1e-6, atol=0)


@pytest.mark.parametrize("size", [1.0, 1e6, 1e12])
def test_a_rescaled_sand_mask_has_no_least_mean(size):
    """Small masks are k · (agreement − τ) / σ²; divided by their mean the factor of s² is gone."""
    rows = size * torch.tensor([[1.0, 2.0, 3.0], [2.0, 4.0, -1.0]], dtype=torch.float64)
    masks = torch.tensor([1 / 0.5, 1 / 2.0, 0.0], dtype=torch.float64)  # σ² = ½, 2 and 8
    expected = rows.mean(0) * masks / masks.mean()
    rule = gs.SANDMask(k=1e-6, rescale=True)
    torch.testing.assert_close(rule(rows), expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mean", {}),
        ("and-mask", {}),
        ("agr-sum", {"reduction": "mean"}),
        ("agr-rand", {"reduction": "mean"}),
        ("agr-ema", {"reduction": "mean"}),
        ("sand-mask", {}),
        ("median", {}),
        ("trimmed-mean", {}),
        ("mgda", {}),
    ],
)
def test_means_of_narrow_gradients_do_not_overflow(name, options, dtype):
    gradients = torch.full((3, 5), 40_000.0, dtype=dtype)  # their sum is beyond float16
    update = gs.rule(name, **options)(gradients)
    assert update.dtype == dtype
    assert torch.equal(update, gradients[0])
    weight = torch.zeros(5, dtype=dtype, requires_grad=True)
    gs.backward(((row * weight).sum() for row in gradients), [weight], gs.rule(name, **options))
    assert torch.equal(weight.grad, gradients[0])


@pytest.mark.parametrize("name", [*RULES, "torchjd:Mean"])
def test_a_matrix_without_columns_has_an_empty_update(name):
    assert gs.rule(name)(torch.zeros(3, 0)).shape == (0,)


def test_rules_by_name():
    assert isinstance(gs.rule("agr-sum", reduction="mean"), gs.AgrSum)
    with pytest.raises(
        ArgumentError, match=r"'agrsum' \(did you mean agr-sum\?\); there are sum, "
    ):
        gs.rule("agrsum")
    with pytest.raises(ArgumentError, match="sum has no hyperparameter 'tau'; it has: none"):
        gs.rule("sum", tau=0.5)
    with pytest.raises(ArgumentError, match=r"agr-rand has .* it has: reduction, zero_agrees"):
        gs.rule("agr-rand", tau=0.5)
    with pytest.raises(ArgumentError, match=r"by name, as gs.rule\('cagrad', c=0.4\), found setti"):
        gs.rule("cagrad", settings={"cagrad.c": 0.5})


@pytest.mark.parametrize("name", RANDOM)
def test_random_rules_draw_from_their_generator_alone(name):
    angles = torch.tensor([0.0, 2.1, 4.0])
    gradients = torch.stack([angles.cos(), angles.sin()], 1)
    state = torch.get_rng_state()
    first = [seeded(name)(gradients) for _ in range(2)]
    assert torch.equal(*first)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(gs.rule(name)(gradients), gs.rule(name)(gradients))


@pytest.mark.parametrize("name", sorted(RULES))
def test_a_matrix_that_requires_a_gradient_and_what_is_no_matrix(name):
    rows = torch.tensor([[1.0, 2.0], [3.0, 5.0], [2.0, 4.0]])
    expected = gs.rule(name)(rows)
    found = gs.rule(name)(rows.clone().requires_grad_())
    assert not found.requires_grad
    torch.testing.assert_close(found, expected)
    with pytest.raises(ArgumentError, match=r"expects a dense tensor .* found torch.sparse_coo"):
        gs.rule(name)(rows.to_sparse())
