"""`gradsurgery.gradient_gram`: networks as users have them, groups of layers, errors."""

import pytest
import timm
import torch
import torchvision
from torch import nn

import gradsurgery as gs
from gradsurgery.errors import ArgumentError, NonFiniteError
from tests.gradients.oracle import cross_entropy, relative_error, stored_grams


def small(name, **options):
    return lambda: timm.create_model(name, num_classes=7, **options)


def alexnet() -> nn.Module:
    """With a narrower classifier: gradients of 57 million components take long to store."""
    model = torchvision.models.AlexNet(num_classes=7)
    model.classifier[1] = nn.Linear(9216, 256)
    model.classifier[4] = nn.Linear(256, 128)
    model.classifier[6] = nn.Linear(128, 7)
    return model


narrow_convnext = small("convnext_atto", depths=(1, 1, 1, 1), dims=(8, 16, 24, 32))
NETWORKS = {
    "alexnet": (alexnet, 64),
    "resnet18": (small("resnet18", zero_init_last=False), 40),
    "efficientnet-lite0": (small("tf_efficientnet_lite0"), 40),
    "vit": (small("vit_tiny_patch16_224", img_size=32, depth=2), 32),
    "convnext": (narrow_convnext, 40),
}


def with_mild_logits(model: nn.Module) -> nn.Module:
    """Random weights without running statistics give logits that round the loss to zero."""
    head = [layer for layer in model.modules() if isinstance(layer, nn.Linear)][-1]
    with torch.no_grad():
        head.weight.mul_(0.02)
    return model


@pytest.mark.parametrize(
    ("name", "dtype", "bound"),
    [("efficientnet-lite0", torch.float32, 1e-5)]  # of every layer: test_layers.py
    + [(name, torch.float64, 1e-10) for name in NETWORKS],
)
def test_equal_to_one_backward_pass_a_sample(name, dtype, bound):
    torch.manual_seed(0)
    build, size = NETWORKS[name]
    model = with_mild_logits(build()).to(dtype).eval()
    samples = 3
    x, y = torch.randn(samples, 3, size, size, dtype=dtype), torch.arange(samples)
    gram = gs.gradient_gram(model, cross_entropy, x, y)
    assert gram.fallbacks == ()
    expected = stored_grams(model, cross_entropy, x, y)
    assert relative_error(gram.total, sum(expected.values())) < bound
    assert gram.total.dtype == torch.float64
    for layer, matrix in expected.items():
        assert relative_error(gram.layers[layer], matrix) < bound, layer
    assert all(parameter.grad is None for parameter in model.parameters())
    torch.testing.assert_close(gram.losses, cross_entropy(model(x), y).detach())


def test_groups_cosines_and_names():
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=3).eval()
    gram = gs.gradient_gram(model, cross_entropy, torch.randn(3, 3, 32, 32), torch.arange(3))
    layers = {
        name.rpartition(".")[0] or "VisionTransformer" for name, _ in model.named_parameters()
    }
    assert gram.layers.keys() == layers
    groups = gram.groups()
    assert list(groups) == [
        *("VisionTransformer", "patch_embed.proj", "blocks.0", "blocks.1", "norm", "head")
    ]
    torch.testing.assert_close(sum(groups.values()), gram.total)
    two = gram.groups(lambda layer: "head" if layer == "head" else "body")
    torch.testing.assert_close(two["body"] + two["head"], gram.total)
    torch.testing.assert_close(two["head"], gram.layers["head"])
    cosines = gram.cosines()
    torch.testing.assert_close(cosines.diagonal(), torch.ones(3, dtype=torch.float64))
    lengths = gram.total.diagonal().sqrt()
    torch.testing.assert_close(cosines * lengths[:, None] * lengths, gram.total)


def test_by_hand():
    # ℓ = w·x gives ∇ℓ = x, so that G is the inputs' own inner products
    x = torch.tensor([[1.0, 2.0], [3.0, -1.0], [0.0, 0.0]])
    gram = gs.gradient_gram(nn.Linear(2, 1, bias=False), lambda z, _: z[:, 0], x, x)
    assert gram.total.tolist() == [[5, 1, 0], [1, 10, 0], [0, 0, 0]]
    assert gram.cosines()[2].tolist() == [0, 0, 0]
    assert list(gram.layers) == ["Linear"]


def test_opposite_labels_conflict_fully():
    # the logistic loss of one logit: at w = 0 its gradient is −x/2 for label 1, and x/2 for label 0
    model = nn.Linear(3, 1)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    x = torch.randn(4, 3).repeat(2, 1)
    y = torch.tensor([0.0, 1, 0, 1, 1, 0, 1, 0])
    loss = nn.BCEWithLogitsLoss(reduction="none")
    gram = gs.gradient_gram(model, lambda z, t: loss(z[:, 0], t), x, y)
    torch.testing.assert_close(gram.cosines()[:4, 4:].diagonal(), -torch.ones(4).double())


def test_a_scalar_loss_is_called_on_one_sample_at_a_time():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    x, y = torch.randn(4, 3, 2, 2), torch.tensor([0, 1, 2, 0])
    mean = gs.gradient_gram(model, nn.CrossEntropyLoss(), x, y)
    torch.testing.assert_close(
        mean.total, gs.gradient_gram(model, cross_entropy, x, y).total, rtol=1e-5, atol=1e-8
    )


def test_frozen_parameters_and_unreached_ones():
    torch.manual_seed(0)
    model = nn.ModuleDict({"used": nn.Linear(4, 3), "idle": nn.Linear(4, 3)})
    model.forward = model["used"].forward
    model["used"].bias.requires_grad_(False)
    x, y = torch.randn(3, 4), torch.tensor([0, 1, 2])
    gram = gs.gradient_gram(model, cross_entropy, x, y)
    assert not gram.layers["idle"].any()
    expected = stored_grams(model, cross_entropy, x, y)
    assert relative_error(gram.layers["used"], expected["used"]) < 1e-5


def hooks(model: nn.Module) -> int:
    of_layers = ("_forward_hooks", "_backward_hooks", "_forward_pre_hooks", "_backward_pre_hooks")
    count = sum(len(getattr(layer, name)) for layer in model.modules() for name in of_layers)
    return count + sum(
        len(hook or ())
        for parameter in model.parameters()
        for hook in (parameter._backward_hooks, parameter._post_accumulate_grad_hooks)
    )


@pytest.mark.parametrize("where", ["model", "loss", "backward"])
def test_nothing_remains_after_an_exception(where):
    class Fails(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            raise RuntimeError("backward")

    class Model(nn.Sequential):
        def forward(self, x):
            if where == "model":
                raise RuntimeError("model")
            return self[1](Fails.apply(self[0](x)) if where == "backward" else self[0](x))

    def loss(logits, y):
        if where == "loss":
            raise RuntimeError("loss")
        return cross_entropy(logits, y)

    model = Model(nn.Linear(4, 4), nn.Dropout(), nn.Linear(4, 3)).train()
    model[0].weight.grad = kept = torch.ones(4, 4)
    with pytest.raises((RuntimeError, ArgumentError), match=where):
        gs.gradient_gram(model, loss, torch.randn(2, 4), torch.tensor([0, 1]))
    assert hooks(model) == 0
    assert all(layer.training for layer in model.modules())
    assert model[0].weight.grad is kept
    assert torch.equal(kept, torch.ones(4, 4))
    assert model[0].bias.grad is None
    assert torch.overrides._len_torch_function_stack() == 0


def test_batch_normalisation_in_training_mode_has_no_gradient_per_sample():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))
    x, y = torch.randn(2, 3, 4, 4), torch.tensor([0, 1])
    with pytest.raises(ArgumentError, match=r"1 is in training mode.*model\.eval\(\)"):
        gs.gradient_gram(model, cross_entropy, x, y)
    gs.gradient_gram(model.eval(), cross_entropy, x, y)
    model[1] = nn.BatchNorm2d(4, track_running_stats=False)
    with pytest.raises(ArgumentError, match="no running statistics"):
        gs.gradient_gram(model.eval(), cross_entropy, x, y)


def test_samples_that_see_each_other_are_refused():
    class Centred(nn.Linear):
        def forward(self, x):
            return super().forward(x - x.mean(0))

    with pytest.raises(ArgumentError, match="see each other"):
        gs.gradient_gram(Centred(4, 3), cross_entropy, torch.randn(3, 4), torch.tensor([0, 1, 2]))


def test_the_warning_names_three_layers_and_counts_the_rest(caplog):
    class Doubly(nn.Linear):  # a product of weights is no known use
        def forward(self, x):
            return nn.functional.linear(x, self.weight @ self.weight)

    model = nn.Sequential(*[Doubly(3, 3, bias=False) for _ in range(5)])
    gram = gs.gradient_gram(model, cross_entropy, torch.randn(2, 3), torch.tensor([0, 1]))
    assert gram.fallbacks == ("0", "1", "2", "3", "4")
    assert caplog.messages == ["per-sample gradients one pass a sample for: 0, 1, 2 and 2 more"]


def test_gradients_that_a_zero_output_hides():
    """z = N · (W x) with W = 0 is zero for any N; its gradient is N times that of one sample."""
    model = nn.Linear(3, 3, bias=False)
    nn.init.zeros_(model.weight)
    model.forward = lambda x: nn.functional.linear(x, model.weight) * len(x)
    x, y = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    expected = stored_grams(model, cross_entropy, x, y)
    gram = gs.gradient_gram(model, cross_entropy, x, y)
    assert gram.fallbacks == ("Linear",)
    assert relative_error(gram.total, sum(expected.values())) < 1e-5


def cross_entropy_of(y):
    return lambda z, _: cross_entropy(z, y[: len(z)])


def test_what_losses_are_compared_with_in_any_form():
    model, x, y = nn.Linear(4, 3), torch.randn(2, 4), torch.tensor([0, 1])
    expected = gs.gradient_gram(model, cross_entropy, x, y).total
    for form, loss in (
        ({"labels": y, "note": None}, lambda z, t: cross_entropy(z, t["labels"])),
        ([0, 1], lambda z, t: cross_entropy(z, torch.tensor(t))),
    ):
        assert torch.equal(gs.gradient_gram(model, loss, x, form).total, expected)
    # ∂(Σ z)/∂W_k = x, ∂/∂b_k = 1, for each of three outputs
    found = gs.gradient_gram(model, lambda z, _: z.sum(1), x, None).total
    torch.testing.assert_close(found, 3 * (x @ x.T + 1).double(), rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:Using a target size")
def test_errors_name_the_cure():
    model, x, y = nn.Linear(4, 3), torch.randn(2, 4), torch.tensor([0, 1])
    with pytest.raises(ArgumentError, match=r"expected shape \[2\].*\[2, 3\]"):
        gs.gradient_gram(model, lambda z, _: z, x, y)
    with pytest.raises(ArgumentError, match=r"at least one sample.*found shape \[0, 4\]"):
        gs.gradient_gram(model, cross_entropy, x[:0], y[:0])
    with pytest.raises(ArgumentError, match=r"y holds one target per sample.*: 'int' object"):
        gs.gradient_gram(model, cross_entropy_of(y), x, 0)
    with pytest.raises(ArgumentError, match=r"computed from.*shape \[2, 3\], and y.*\[1\]"):
        gs.gradient_gram(model, cross_entropy, x, y[:1])
    with pytest.raises(NonFiniteError, match="layer Linear"):
        gs.gradient_gram(model, cross_entropy, torch.full((2, 4), torch.inf), y)
    with pytest.raises(ArgumentError, match="no parameter requires a gradient"):
        gs.gradient_gram(model.requires_grad_(False), cross_entropy, x, y)


def test_autocast_and_no_grad_around_it():
    torch.manual_seed(0)
    model = narrow_convnext().eval()
    x, y = torch.randn(3, 3, 32, 32), torch.arange(3)
    exact = gs.gradient_gram(model, cross_entropy, x, y).total
    with torch.no_grad():
        assert torch.equal(gs.gradient_gram(model, cross_entropy, x, y).total, exact)
    with torch.autocast("cpu", torch.bfloat16):
        coarse = gs.gradient_gram(model, cross_entropy, x, y).total
    assert relative_error(coarse, exact) < 0.1


def test_parameters_without_components():
    with pytest.warns(UserWarning, match="no-op"):
        model = nn.Sequential(nn.Linear(2, 0), nn.Linear(0, 1))
    x = torch.ones(3, 2)
    gram = gs.gradient_gram(model, lambda output, _: output[:, 0], x, x)
    assert gram.layers["0"].tolist() == torch.zeros(3, 3).tolist()
    assert gram.layers["1"].tolist() == torch.ones(3, 3).tolist()


def test_another_default_device_changes_nothing():
    """As `torch.set_default_device("cuda")` does not, in a process with a model on the CPU."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)).eval()
    x, y = torch.randn(6, 3, 8, 8), torch.tensor([0, 1, 2, 3, 4, 0])
    batches = [(x[:3], y[:3]), (x[3:], y[3:])]
    with torch.device("meta"):
        gram = gs.gradient_gram(model, nn.CrossEntropyLoss(), x, y)
        conflict = gs.domain_conflict(model, nn.CrossEntropyLoss(), batches)
    expected = stored_grams(model, cross_entropy, x, y)
    assert relative_error(gram.total, sum(expected.values())) < 1e-5
    again = gs.domain_conflict(model, nn.CrossEntropyLoss(), batches)
    for name, found in conflict.items():
        assert torch.equal(found.cosines, again[name].cosines)
