"""`gradsurgery.PooledModel`: the domains' gradients from one forward and one backward pass."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from gradsurgery.engine.backward import DomainLoss
from gradsurgery.engine.collector import Collector
from gradsurgery.engine.parameters import trainable_parameters
from gradsurgery.engine.update import BackwardResult, Scaler, check_loss_form, write_update
from gradsurgery.errors import ArgumentError
from gradsurgery.gradients.mixing import normalizes_by_batch
from gradsurgery.gradients.probe import Probe, probe
from gradsurgery.gradients.recorder import Piece, Recorder, uncompiled
from gradsurgery.rules.base import Rule


class PooledModel:
    """A model whose pass over the images of D domains gives the D gradients.

        g_d = Σ_{i in d} ∂(Σ_e L_e)/∂θ as it flows through the samples i of domain d,

    which is ∇L_d wherever samples do not see each other: batch normalisation, if any, is in
    evaluation mode. In training mode it normalises by the pooled batch, and what its statistics
    carry from one domain to another counts for the domain whose samples it flows through; the g_d
    then still sum to the gradient of Σ_e L_e.

    Each layer's gradients are computed from its input and its output's gradient, domain by domain,
    and handed to the rule at once. Memory: the pooled batch's activations, and beyond those what
    `gradsurgery.backward` takes for the rule. Known are linear layers, convolutions, embeddings,
    layer, group and batch normalisation, and parameters added to, multiplied with or put beside
    the samples. For any other use of a parameter, and for one with a hook on its gradient, one
    backward pass per domain goes through the pooled graph, for ∇L_d of that parameter alone.

    model: any module that maps images, along the first dimension, to outputs along the first. One
        that is compiled runs uncompiled here.
        The first pass is preceded by one of two images in evaluation mode that shows where the
        samples are in each layer's input; build one `PooledModel` for the whole training.

    >>> from gradsurgery.rules import AgrSum
    >>> model = nn.Linear(2, 1, bias=False)
    >>> pooled = PooledModel(model)
    >>> outputs = pooled([torch.tensor([[1.0, -2.0]]), torch.tensor([[3.0, 4.0]])])
    >>> result = pooled.backward([output.sum() for output in outputs], AgrSum())
    >>> model.weight.grad, result.agreeing
    (tensor([[4., 0.]]), 0.5)
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._seen = Probe([], mixed=False)
        self._known_for: tuple[object, ...] = ()
        self._passes: list[Recorder] = []
        self._sizes: list[int] = []

    def __call__(self, images: Iterable[Tensor]) -> list[Tensor]:
        """The model's outputs for each domain's images, from one forward pass."""
        parts = list(images)
        sizes = [len(part) for part in parts]
        return list(self.forward(torch.cat(parts), sizes).split(sizes))

    def forward(self, images: Tensor, sizes: Sequence[int]) -> Tensor:
        """The model's output for images of domains that hold `sizes` of them, in order.

        Under `torch.no_grad` that is all; `backward` goes through the last pass with gradients.
        """
        if torch.is_grad_enabled():
            self._look_at(images)
            self._sizes = list(sizes)
            recorder = Recorder(self._parameters(), self._seen.sights)
            self._passes.append(recorder)
            with uncompiled(), recorder:
                output: Tensor = self.model(images)
        else:
            output = self.model(images)
        if not isinstance(output, Tensor) or len(output) != len(images):
            raise ArgumentError(
                f"{type(self.model).__name__} gives one output per image, expected {len(images)} "
                "along the first dimension of a tensor; use gradsurgery.backward"
            )
        return output

    def is_exact(self, images: Tensor) -> bool:
        """Whether one pass alone gives what one pass per domain would, up to dropout's draws.

        So where every use of the model's parameters is known and samples do not see each other.
        """
        if normalizes_by_batch(self.model):
            return False
        self._look_at(images)
        sights, mixed = self._seen
        known = {key for sight in sights if sight.apart for key in sight.parameters}
        others = {key for sight in sights if not sight.apart for key in sight.parameters}
        return not mixed and not others and known.issuperset(map(id, self._parameters()))

    def backward(
        self,
        losses: Iterable[DomainLoss],
        rule: Rule,
        *,
        scaler: torch.amp.GradScaler | None = None,
    ) -> BackwardResult:
        """Add the rule's update of the D gradients to `.grad`, as `gradsurgery.backward` does.

        losses: D losses, one a domain in the order of the images, each from the outputs of its
            domain in the last forward pass, which may be made on the way. A loss may come as an
            iterable of parts.
        rule, scaler: as in `gradsurgery.backward`.

        Raises `NonFiniteError` naming the domain and the parameter, `ArgumentError` where there
        was no forward pass, or where the losses are of another number or another pass. `.grad` is
        then as before.
        """
        named = trainable_parameters(self.model.named_parameters())
        positions = {id(parameter): at for at, (_, parameter) in enumerate(named)}

        def run(collector: Collector, enabled: Scaler) -> list[Tensor]:
            domains = [_sum_of(domain, number) for number, domain in enumerate(losses)]
            recorder = self._recorder_of(domains)
            scaled = domains if enabled is None else [enabled.scale(loss) for loss in domains]
            collector.begin_pooled(len(domains))
            _go_back(recorder, scaled, self._sizes, positions, collector)
            return [domain.detach() for domain in domains]

        try:
            return write_update(named, rule, scaler, run)
        finally:
            self._passes = []

    def _recorder_of(self, domains: list[Tensor]) -> Recorder:
        """The recorder of the last pass, which must be the one that all losses come from."""
        if not self._passes:
            raise ArgumentError("no forward pass to go back through; call the pooled model first")
        *earlier, last = self._passes
        if any(recorder.is_reached_by(domains) for recorder in earlier):
            raise ArgumentError(
                "the losses come from more than one forward pass of the pooled model; make one for "
                "all domains"
            )
        if len(domains) != len(self._sizes):
            raise ArgumentError(
                f"expected one loss for each of the {len(self._sizes)} domains of the forward "
                f"pass, found {len(domains)}"
            )
        return last

    def _parameters(self) -> list[Tensor]:
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def _look_at(self, images: Tensor) -> None:
        parameters = self._parameters()
        now = (images.shape[1:], images.dtype, *map(id, parameters))
        if now != self._known_for:
            self._seen = probe(self.model, images[:1], parameters)
            self._known_for = now


def _sum_of(domain: DomainLoss, number: int) -> Tensor:
    total = None
    for loss in [domain] if isinstance(domain, Tensor) else domain:
        check_loss_form(loss, number)
        total = loss if total is None else total + loss
    if total is None:
        raise ArgumentError(f"domain {number} has no micro-batch; give at least one loss")
    return total


def _go_back(
    recorder: Recorder,
    losses: Sequence[Tensor],
    sizes: Sequence[int],
    positions: dict[int, int],
    collector: Collector,
) -> None:
    held = _through_the_graph(losses, recorder.left_in_graph(losses))

    def receive(parameter: Tensor, pieces: list[Piece]) -> None:
        rest = held.pop(id(parameter), None)
        for domain, gradient in enumerate(_by_domain(pieces, sizes)):
            whole = gradient.to(parameter.dtype)
            if rest is not None and (more := rest[domain]) is not None:
                whole = whole + more
            collector.receive(positions[id(parameter)], domain, whole)

    recorder.backward(losses, receive)
    for key, gradients in held.items():
        for domain, found in enumerate(gradients):
            collector.receive(positions[key], domain, found)


def _through_the_graph(
    losses: Sequence[Tensor], parameters: list[Tensor]
) -> dict[int, list[Tensor | None]]:
    """∇L_d of each domain, by the parameter's id, as far as uses that are not known go."""
    found: dict[int, list[Tensor | None]] = {id(parameter): [] for parameter in parameters}
    for loss in losses if parameters else ():
        gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            # the rule may write into it, and autograd may give one tensor twice
            found[id(parameter)].append(None if gradient is None else gradient.clone())
    return found


def _by_domain(pieces: list[Piece], sizes: Sequence[int]) -> Iterator[Tensor]:
    """The parameter's gradient of each domain, summed over its uses; one alive at a time."""
    columns = [
        piece.use.totals(piece.role, piece.gradient, _parts(len(piece.gradient), sizes))
        for piece in pieces
    ]
    for first, *others in zip(*columns, strict=True):
        total = first
        for other in others:
            total = total + other
        yield total


def _parts(rows: int, sizes: Sequence[int]) -> list[slice]:
    """The rows of each domain."""
    each = rows // sum(sizes)
    ends = torch.tensor([0, *sizes]).cumsum(0).mul(each).tolist()
    return [slice(begin, end) for begin, end in pairwise(ends)]
