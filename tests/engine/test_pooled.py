"""One pass over the pooled domains gives the update of one pass per domain."""

import pytest
import timm
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

import gradsurgery as gs
from gradsurgery.errors import ArgumentError, NonFiniteError
from gradsurgery.rules import RULES
from tests.engine.models import MODELS, domain_batches
from tests.gradients.test_gradient_gram import alexnet, hooks, with_mild_logits
from tests.gradients.test_layers import (
    Positions,
    SequenceFirst,
    Shared,
    Tokens,
    Unknown,
    Written,
)

NETWORKS = {
    "alexnet": (alexnet, 64),
    "resnet18": (lambda: timm.create_model("resnet18", num_classes=4), 40),
    "vit-tiny": (lambda: timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=4), 32),
}


def seeded(name: str) -> gs.Rule:
    return gs.rule(name, generator=torch.Generator().manual_seed(7))


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def both_ways(model, batches, rule):
    """Results and gradients of separate passes and of a pooled one."""
    losses = (cross_entropy(model(x), y) for x, y in batches)
    separate = gs.backward(losses, model.named_parameters(), seeded(rule))
    expected = gradients(model)
    pooled = gs.PooledModel(model)
    outputs = pooled([x for x, _ in batches])
    losses = [cross_entropy(z, y) for z, (_, y) in zip(outputs, batches, strict=True)]
    result = pooled.backward(losses, seeded(rule))
    return separate, expected, result, gradients(model)


def check(model, batches, rule, bound=1e-5, differing=0.0):
    """Equal up to rounding, which also decides the sign, and so agreement, of what is zero.

    The bias of attention's keys has a gradient that is zero: softmax does not see it.
    """
    separate, expected, result, found = both_ways(model, batches, rule)
    assert found.keys() == expected.keys()
    wrong = count = 0
    for name, gradient in expected.items():
        far = (found[name] - gradient).abs() > bound * gradient.abs().max() + 1e-12
        wrong, count = wrong + far.sum().item(), count + far.numel()
    assert wrong <= differing * count
    torch.testing.assert_close(result.losses, separate.losses)
    assert (result.agreeing is None) == (separate.agreeing is None)
    if separate.agreeing is not None:
        assert result.agreeing == pytest.approx(separate.agreeing, abs=0.02)
    if separate.cosines is not None:
        torch.testing.assert_close(result.cosines, separate.cosines, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rule", ["agr-sum", "pcgrad", "mean"])
@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name, rule):
    build, size = NETWORKS[name]
    torch.manual_seed(0)
    model = with_mild_logits(build()).eval()
    generator = torch.Generator().manual_seed(1)
    batches = [
        (torch.randn(3, 3, size, size, generator=generator) + d, torch.tensor([d, 3, 1]))
        for d in range(3)
    ]
    # where a sum of domains is near zero its sign, and so Agr-Sum's mask, is a matter of rounding
    check(model, batches, rule, differing=1e-4 if rule == "agr-sum" else 0.0)


@pytest.mark.parametrize("domains", [2, 4, 5])
@pytest.mark.parametrize("rule", sorted(set(RULES) - {"agr-rand", "graddrop"}))
def test_every_rule(rule, domains):
    batches = domain_batches(max(domains, seeded(rule).minimum_domains))
    check(MODELS["mlp"]().double(), [(x.double(), y) for x, y in batches], rule, bound=1e-9)


@pytest.mark.parametrize("rule", ["agr-rand", "graddrop"])
def test_rules_that_draw(rule):
    model = MODELS["mlp"]().double()
    batches = [(x.double(), y) for x, y in domain_batches(3)]
    check(model, batches, rule, bound=1e-9)


@settings(max_examples=8)
@given(st.lists(st.integers(1, 4), min_size=2, max_size=4), st.sampled_from(["agr-sum", "pcgrad"]))
def test_domains_of_any_size(sizes, rule):
    torch.manual_seed(len(sizes))
    model = MODELS["timm-vit"]().double()
    batches = [(torch.randn(n, 3, 16, 16).double(), torch.arange(n) % 4) for n in sizes]
    check(model, batches, rule, bound=1e-8)


@pytest.mark.parametrize("rule", ["agr-sum", "pcgrad", "median", "sum"])
@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        (Shared, (2, 5, 5)),
        (Tokens, (5, 4)),
        (Unknown, (2, 5, 5)),
        (SequenceFirst, (6, 4)),
        (lambda: Positions(0), (6, 4)),
        (lambda: Written(whole=True), (5,)),
        (lambda: Written(whole=False), (5,)),
    ],
)
def test_shared_parameters_and_uses_that_are_not_known(kind, shape, rule):
    torch.manual_seed(0)
    model = kind().double()
    batches = [(torch.randn(2, *shape).double(), torch.tensor([0, d])) for d in range(3)]
    assert gs.PooledModel(model).is_exact(batches[0][0]) == (kind in (Shared, Tokens))
    check(model, batches, rule, bound=1e-9)


def test_frozen_and_unreached_parameters_and_an_existing_grad():
    model = MODELS["mlp"]()
    model[1].weight.requires_grad_(False)
    model.add_module("idle", nn.Linear(4, 4))
    model.forward = nn.Sequential(*model[:4]).forward
    batches = domain_batches(2)
    pooled = gs.PooledModel(model)

    def step() -> None:
        outputs = pooled([x for x, _ in batches])
        pooled.backward(
            [cross_entropy(z, y) for z, (_, y) in zip(outputs, batches, strict=True)], gs.AgrSum()
        )

    step()
    assert model[1].weight.grad is None
    assert model.idle.weight.grad is None
    first = model[1].bias.grad.clone()
    step()
    torch.testing.assert_close(model[1].bias.grad, 2 * first)


def test_batch_norm_in_training_mode_splits_the_pooled_gradient():
    torch.manual_seed(0)
    model = MODELS["cnn-batch-norm"]().double()
    batches = [(x.double(), y) for x, y in domain_batches(3)]
    images, labels = torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])
    cross_entropy(model(images), labels, reduction="sum").backward()
    expected, running = gradients(model), model[1].running_mean.clone()
    model[1].reset_running_stats()
    pooled = gs.PooledModel(model)
    outputs = pooled([x for x, _ in batches])
    losses = [
        cross_entropy(z, y, reduction="sum") for z, (_, y) in zip(outputs, batches, strict=True)
    ]
    pooled.backward(losses, gs.Sum())
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected[name])
    torch.testing.assert_close(model[1].running_mean, running)  # the look at it changed nothing
    assert model[1].num_batches_tracked == 1
    # what flows through domain d's samples, by hand for γ and β: Σ_{i in d} b_i x̂_i and Σ b_i
    hidden = model[0](images)
    normal = nn.functional.batch_norm(hidden, None, None, training=True, eps=model[1].eps)
    output = (normal * model[1].weight[:, None, None] + model[1].bias[:, None, None]).detach()
    output.requires_grad_()
    cross_entropy(model[2:](output), labels, reduction="sum").backward()
    share = (output.grad * normal.detach())[4:8].sum((0, 2, 3))

    class Second(gs.Rule):
        name = "second"

        def __call__(self, gradients):
            return gradients[1]

    model.zero_grad()
    outputs = pooled([x for x, _ in batches])
    losses = [
        cross_entropy(z, y, reduction="sum") for z, (_, y) in zip(outputs, batches, strict=True)
    ]
    pooled.backward(losses, Second())
    torch.testing.assert_close(model[1].weight.grad, share)
    torch.testing.assert_close(model[1].bias.grad, output.grad[4:8].sum((0, 2, 3)))


def test_dropout_draws_once_for_all_domains():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 4)).double()
    batches = [(torch.randn(3, 6).double(), torch.tensor([0, 1, d])) for d in range(2)]
    pooled = gs.PooledModel(model)
    torch.manual_seed(1)
    outputs = pooled([x for x, _ in batches])
    losses = [cross_entropy(z, y) for z, (_, y) in zip(outputs, batches, strict=True)]
    pooled.backward(losses, gs.Sum())
    found = gradients(model)
    torch.manual_seed(1)
    logits = model(torch.cat([x for x, _ in batches]))
    sum(cross_entropy(z, y) for z, (_, y) in zip(logits.split(3), batches, strict=True)).backward()
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(found[name], gradient)


@pytest.mark.parametrize("rule", ["agr-sum", "pcgrad", "median"])
def test_what_is_not_finite_is_named_and_nothing_remains(rule):
    model = MODELS["mlp"]()
    batches = domain_batches(3)
    kept = model[1].weight.grad = torch.ones_like(model[1].weight)
    pooled = gs.PooledModel(model)

    def losses(spoil):
        outputs = pooled([x for x, _ in batches])
        values = [cross_entropy(z, y) for z, (_, y) in zip(outputs, batches, strict=True)]
        values[1] = spoil(values[1])
        return values

    with pytest.raises(NonFiniteError, match="loss of domain 1") as caught:
        pooled.backward(losses(lambda loss: loss * torch.nan), seeded(rule))
    assert caught.value.domain == 1
    # the derivative of √ at 0 is infinite, its value finite
    with pytest.raises(NonFiniteError, match=r"domain 1 at parameter 1\.weight") as caught:
        pooled.backward(losses(lambda loss: loss + (0 * loss).sqrt()), seeded(rule))
    assert (caught.value.domain, caught.value.parameter) == (1, "1.weight")
    assert model[1].weight.grad is kept
    assert torch.equal(kept, torch.ones_like(kept))
    assert model[3].weight.grad is None
    assert hooks(model) == 0
    pooled.backward(losses(lambda loss: loss), seeded(rule))
    assert model[3].weight.grad is not None


def test_a_scaler_scales_and_poisons():
    model = MODELS["mlp"]()
    batches = domain_batches(2)
    pooled = gs.PooledModel(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)

    def losses():
        outputs = pooled([x for x, _ in batches])
        return [cross_entropy(z, y) for z, (_, y) in zip(outputs, batches, strict=True)]

    pooled.backward(losses(), gs.AgrSum())
    plain = gradients(model)
    result = pooled.backward(losses(), gs.AgrSum(), scaler=scaler)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, 8 * plain[name])
    torch.testing.assert_close(result.losses, torch.stack(losses()).detach())
    spoiled = losses()
    pooled.backward([spoiled[0], spoiled[1] + (0 * spoiled[1]).sqrt()], gs.AgrSum(), scaler=scaler)
    assert model[1].weight.grad.isnan().all()


def test_autocast():
    torch.manual_seed(0)
    model = timm.create_model("convnext_atto", num_classes=4).eval()
    batches = [(torch.randn(2, 3, 32, 32), torch.tensor([0, d])) for d in range(2)]
    pooled = gs.PooledModel(model)

    def update() -> torch.Tensor:
        outputs = pooled([x for x, _ in batches])
        losses = [cross_entropy(z.float(), y) for z, (_, y) in zip(outputs, batches, strict=True)]
        pooled.backward(losses, gs.Mean())
        return torch.cat([g.flatten() for g in gradients(model).values()])

    exact = update()
    with torch.autocast("cpu", torch.bfloat16):
        coarse = update()
    assert coarse.dtype == torch.float32
    assert (coarse - exact).norm() < 0.1 * exact.norm()


def test_hooks_on_parameters_run():
    model = MODELS["mlp"]().double()
    model[1].weight.register_hook(lambda gradient: -2 * gradient)
    batches = [(x.double(), y) for x, y in domain_batches(2)]
    assert not gs.PooledModel(model).is_exact(batches[0][0])
    check(model, batches, "agr-sum", bound=1e-9)


def test_errors_name_the_cure():
    model = MODELS["mlp"]()
    batches = domain_batches(2)
    pooled = gs.PooledModel(model)
    images = [x for x, _ in batches]
    with pytest.raises(ArgumentError, match="call the pooled model first"):
        pooled.backward([model(images[0]).sum()], gs.Sum())
    with pytest.raises(ArgumentError, match=r"each of the 2 domains.*found 1"):
        pooled.backward([pooled(images)[0].sum()], gs.Sum())
    first = pooled(images)[0].sum()
    with pytest.raises(ArgumentError, match="more than one forward pass"):
        pooled.backward([first, pooled(images)[1].sum()], gs.Sum())
    with pytest.raises(ArgumentError, match="at least 2 domains"):
        pooled.backward([pooled(images[:1])[0].sum()], gs.AgrSum())
    with pytest.raises(ArgumentError, match="loss of domain 1 is a tensor with one value"):
        pooled.backward([pooled(images)[0].sum(), torch.ones(2)], gs.AgrSum())
    with pytest.raises(ArgumentError, match="one output per image"):
        gs.PooledModel(nn.Flatten(0))(images)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_torchvision_vit_whose_attention_is_not_known():
    torch.manual_seed(0)
    model = torchvision.models.VisionTransformer(16, 8, 1, 2, 8, 16, num_classes=4).double().eval()
    nn.init.normal_(model.heads[0].weight)
    batches = [(torch.randn(2, 3, 16, 16).double(), torch.tensor([0, d])) for d in range(2)]
    check(model, batches, "agr-sum", bound=1e-8)


def test_a_model_whose_outputs_see_each_other_is_not_exact():
    class Centred(nn.Linear):
        def forward(self, x):
            outputs = super().forward(x)
            return outputs - outputs.mean(0)

    assert not gs.PooledModel(Centred(4, 3)).is_exact(torch.randn(2, 4))
    assert gs.PooledModel(nn.Linear(4, 3)).is_exact(torch.randn(2, 4))


def test_a_look_without_gradients_between_the_passes():
    model = MODELS["mlp"]()
    batches = domain_batches(2)
    pooled = gs.PooledModel(model)
    outputs = pooled([x for x, _ in batches])
    with torch.no_grad():
        (alone,) = pooled([batches[0][0]])
    torch.testing.assert_close(alone, outputs[0].detach())
    losses = [cross_entropy(z, y) for z, (_, y) in zip(outputs, batches, strict=True)]
    result = pooled.backward(losses, gs.Sum())
    assert len(result.losses) == 2
    assert all(parameter.grad is not None for parameter in model.parameters())
    with torch.no_grad():
        pooled([batches[0][0]])
    with pytest.raises(ArgumentError, match="call the pooled model first"):
        pooled.backward(losses, gs.Sum())


def test_a_compiled_model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.PReLU(), nn.Linear(5, 3)).double()
    compiled = torch.compile(model, backend="eager")
    x, y = torch.randn(6, 4).double(), torch.arange(6) % 3
    outputs = (pooled := gs.PooledModel(compiled))([x[:3], x[3:]])
    assert not pooled.is_exact(x)  # PReLU's slope
    losses = [cross_entropy(z, t) for z, t in zip(outputs, (y[:3], y[3:]), strict=True)]
    pooled.backward(losses, gs.AgrSum())
    found = gradients(model)
    gs.backward(
        (cross_entropy(model(x[p]), y[p]) for p in (slice(3), slice(3, 6))),
        model.named_parameters(),
        gs.AgrSum(),
    )
    expected = gradients(model)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient)
    grams = [
        gs.gradient_gram(kind, nn.CrossEntropyLoss(reduction="none"), x, y).total
        for kind in (compiled, model)
    ]
    torch.testing.assert_close(*grams)


class Checkpointed(nn.Sequential):
    def forward(self, x):
        x = checkpoint(self[1], self[0](x).tanh(), use_reentrant=False).tanh()
        return self[2](x)


def test_layers_that_run_again_in_the_backward_pass():
    torch.manual_seed(0)
    model = Checkpointed(nn.Linear(6, 5), nn.Linear(5, 5), nn.Linear(5, 4)).double()
    batches = [(x.flatten(1)[:, :6].double(), y) for x, y in domain_batches(2)]
    check(model, batches, "agr-sum", bound=1e-9)
    each = nn.CrossEntropyLoss(reduction="none")
    gram = gs.gradient_gram(model, each, *batches[0]).total
    plain = gs.gradient_gram(
        nn.Sequential(model[0], nn.Tanh(), model[1], nn.Tanh(), model[2]), each, *batches[0]
    )
    torch.testing.assert_close(gram, plain.total)
