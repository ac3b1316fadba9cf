"""DANN and CDANN: the risks, and features from which a discriminator cannot tell the domain."""

from collections.abc import Sequence
from itertools import pairwise
from math import prod
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy, linear
from typing_extensions import override

from gradsurgery.algorithms.forward import Forward, check_labels
from gradsurgery.algorithms.objectives.base import Batch, DomainLosses, Objective
from gradsurgery.hyperparameters import DOMAINBED, Hyperparameter

Features = Float[Tensor, "batch features"]
Labels = Int[Tensor, " batch"]
Shares = Float[Tensor, " batch"]
Flat = Float[Tensor, " weights"]
Shapes = list[tuple[int, ...]]

_BETAS, _EPSILON = (0.5, 0.9), 1e-8  # of the discriminator's Adam; the betas are DomainBed's


class DANN(Objective):
    """L_d − λ·A_d, where A_d is a discriminator's cross-entropy for telling d from d's features.

    The discriminator, a perceptron on the features, lowers mean_d A_d, and the network raises it.
    Both take their step at once, from the same weights, as with Ganin's reversed gradient: loss d
    has the discriminator as it was before the step, and after the D losses it takes a step of Adam
    on the features that it has seen. (DomainBed lets them take turns, where the network stands
    still at every second step.) λ is constant, as in DomainBed.

    The state is the discriminator's weights, Adam's two moments of them, and the steps taken. The
    weights start as those of torch's linear layers, drawn from `generator`.

    Source: Ganin et al., "Domain-Adversarial Training of Neural Networks", JMLR 2016, section 4,
    between the source domains alone. The perceptron and its Adam are DomainBed's, without the
    penalty on its gradients, whose weight there is 0.
    """

    name = "dann"
    smooths_labels = True
    reads_features = True
    shapes_features = True
    minimum_domains = 2
    hyperparameters: ClassVar[tuple[Hyperparameter, ...]] = (
        Hyperparameter("penalty", 1.0, "weight λ of the discriminator's loss", source=DOMAINBED),
        Hyperparameter("learning_rate", 5e-5, "the discriminator's", source=DOMAINBED),
        Hyperparameter("width", 256, "units of its hidden layers", low=1, source=DOMAINBED),
        Hyperparameter("depth", 3, "its linear layers", low=2, source=DOMAINBED),
    )
    state_names = ("discriminator", "moments", "steps")
    conditional: ClassVar[bool] = False

    @override
    def losses(self, forward: Forward, batches: Sequence[Batch], step: int) -> DomainLosses:
        passes = forward.with_head_inputs([images for images, _ in batches])
        discriminator: Discriminator | None = None
        values: list[Tensor] = []
        for domain, (_, labels) in enumerate(batches):
            features, z = next(passes)
            risk = self.risk(z, labels)
            if discriminator is None:
                fixed = features.detach()
                shares = self.shares([labels for _, labels in batches], fixed)
                discriminator = self._discriminator(fixed, z.shape[1], len(batches))
            told = discriminator.loss(features, labels, domain, shares[domain])
            loss = risk - self.values["penalty"] * told
            values.append(loss.detach())
            yield loss
        if discriminator is not None:
            forward.values_of(values)  # what is not finite is not learned
            self.state = discriminator.learned(self.values["learning_rate"], len(batches))

    def shares(self, labels: Sequence[Labels], like: Tensor) -> list[Shares]:
        """What each image counts in A_d, in the precision and the place of `like`."""
        return [like.new_full((len(own),), 1 / len(own)) for own in labels]

    def _discriminator(self, features: Features, classes: int, domains: int) -> "Discriminator":
        """The one that is remembered, or a new one before the first step."""
        hidden = [self.values["width"]] * (self.values["depth"] - 1)
        sizes = [features.shape[1], *hidden, domains]
        shapes: Shapes = []
        for inputs, outputs in pairwise(sizes):
            shapes += [(outputs, inputs), (outputs,)]
        if self.conditional:
            shapes.append((classes, features.shape[1]))
        count = sum(map(prod, shapes))
        start = features.new_zeros(count) if self.state else self._drawn(shapes).to(features)
        return Discriminator(
            shapes,
            self.remembered("discriminator", start),
            self.remembered("moments", features.new_zeros(2, count)),
            self.remembered("steps", features.new_zeros(())),
        )

    def _drawn(self, shapes: Shapes) -> Flat:
        """Layers of n inputs from U(−1/√n, 1/√n), embeddings of classes from N(0, 1)."""
        drawn = [torch.empty(shape, device=self.generator.device) for shape in shapes]
        if self.conditional:
            drawn[-1].normal_(generator=self.generator)
        for weights, bias in zip(drawn[::2], drawn[1::2], strict=False):
            bound = weights.shape[1] ** -0.5
            for part in (weights, bias):
                part.uniform_(-bound, bound, generator=self.generator)
        return torch.cat([part.flatten() for part in drawn])


class CDANN(DANN):
    """`DANN` within the classes: its discriminator sees features plus an embedding of the label.

    It trains the embeddings too, and in mean_d A_d each class of the step's images weighs the same,
    as far as there are images of it.

    Source: Li et al., "Deep Domain Generalization via Conditional Invariant Adversarial Networks",
    ECCV 2018, in the form that DomainBed gives it.
    """

    name = "cdann"
    conditional = True

    @override
    def shares(self, labels: Sequence[Labels], like: Tensor) -> list[Shares]:
        for own in labels:  # before the risks of all domains have looked at them
            check_labels(own)
        together = torch.cat([own.flatten() for own in labels])
        alike = [(own.reshape(-1, 1) == together).sum(1) for own in labels]  # images of its class
        parts = [count.to(like.dtype).reciprocal() for count in alike]
        classes = torch.cat(parts).sum()
        return [len(labels) * part / classes for part in parts]


class Discriminator:
    """A perceptron that tells the domains of features apart, at one step.

    shapes: of its layers' weights and biases in turn, and last of the embeddings, if it has any.
    weights, moments, steps: before this step.
    """

    def __init__(
        self,
        shapes: Shapes,
        weights: Flat,
        moments: Float[Tensor, "2 weights"],
        steps: Float[Tensor, ""],
    ) -> None:
        self._shapes = shapes
        self._weights, self._moments, self._steps = weights, moments, steps
        self._trained = weights.clone().requires_grad_()
        self._gradient = torch.zeros_like(weights)

    def loss(
        self, features: Features, labels: Labels, domain: int, shares: Shares
    ) -> Float[Tensor, ""]:
        """The cross-entropy for the network; the gradient that it has here is kept."""
        truth = torch.full_like(labels, domain, dtype=torch.int64)

        def told(weights: Flat, features: Features) -> Tensor:
            scores = self._scores(weights, features, labels)
            return (shares * cross_entropy(scores, truth, reduction="none")).sum()

        own = told(self._trained, features.detach())
        self._gradient += torch.autograd.grad(own, self._trained)[0]
        return told(self._weights, features)

    def _scores(
        self, weights: Flat, features: Features, labels: Labels
    ) -> Float[Tensor, "batch domains"]:
        sizes = [prod(shape) for shape in self._shapes]
        pairs = zip(weights.split(sizes), self._shapes, strict=True)
        layers = [part.view(shape) for part, shape in pairs]
        if len(layers) % 2:
            features = features + layers.pop()[labels.long()]
        for at in range(0, len(layers), 2):
            features = linear(features.relu() if at else features, layers[at], layers[at + 1])
        return features

    def learned(self, rate: float, domains: int) -> dict[str, Tensor]:
        """The state after a step of Adam on the mean of the domains' losses."""
        gradient = self._gradient / domains
        steps = self._steps + 1
        powers = gradient, gradient.square()
        moments = [
            by * before + (1 - by) * now
            for by, before, now in zip(_BETAS, self._moments, powers, strict=True)
        ]
        mean, square = (m / (1 - by**steps) for m, by in zip(moments, _BETAS, strict=True))
        weights = self._weights - rate * mean / (square.sqrt() + _EPSILON)
        return {"discriminator": weights, "moments": torch.stack(moments), "steps": steps}
