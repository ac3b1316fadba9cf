"""Which method is better depends on learning rate, steps and selection of the model: how far?

`run` trains small networks on the built-in sets and appends one row a run to a table: the method,
its learning rate, the seed, and, at every so many steps, source validation accuracy and loss, the
fraction of components that agree, and accuracy on a domain never seen (all of its images).
`fair_settings_tables.py` makes of that table what `docs/evidence/fair-settings.md` shows.

    python benchmarks/fair_settings.py run coded-8 agr-sum,agr-ema --seeds 0-9 --rates 1e-3
"""

import argparse
import csv
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy
from typing_extensions import override

import gradsurgery as gs
from gradsurgery.backbones import build_backbone
from gradsurgery.data import DomainBatches, ImageSet, draw_split, open_source, prepare
from gradsurgery.rules.remembering import RememberingRule, Verdict
from gradsurgery.seeds import derive_seed, named_generator

TABLE = Path(__file__).parents[1] / "docs" / "evidence" / "fair-settings.csv"
COLUMNS = ("setting", "method", "rate", "seed", "held_out", "every")
CURVES = ("validation", "loss", "agreeing", "target")
SCALES = {"validation": 1e3, "loss": 1e3, "agreeing": 1e5, "target": 1e3}
"""Curves are written as whole numbers: accuracies in 1/1000, agreement in 1/100,000."""


WIDTHS = {"mlp": [64], "deep-mlp": [64, 64]}
"""Hidden layers of the perceptrons."""


class Setting(NamedTuple):
    """A data set with one domain held out, and how networks are trained on it.

    data: its name; "{seed}" stands for the run's seed, with which the codes change.
    network: "mlp", "deep-mlp", or a backbone's name.
    """

    data: str
    target: str
    network: str
    size: int
    steps: int
    batch: int = 32
    every: int = 20


def _coded(domains: int, noise: float, network: str = "mlp", steps: int = 600) -> Setting:
    data = f"coded-digits:domains={domains},noise={noise},seed={{seed}}"
    return Setting(data, "random", network, 16, steps)


SETTINGS = {
    "coded-4": _coded(4, 0.3),
    "coded-8": _coded(8, 0.2),
    "coded-12": _coded(12, 0.25),
    "coded-8-deep": _coded(8, 0.2, "deep-mlp"),
    "coded-8-long": _coded(8, 0.2, steps=3000),
    "colored-mlp": Setting("colored-digits", "-90%", "mlp", 14, 400),
    "rotated-mlp": Setting("rotated-digits", "75", "mlp", 14, 600),
    "rotated": Setting("rotated-digits", "75", "small-cnn", 14, 300, batch=24),
}


class Narrow(gs.AgrEMA):
    """The sums kept in bfloat16."""

    @override
    def judge(self, gradients: Tensor, finite: Tensor) -> Verdict:
        verdict = super().judge(gradients, finite)
        self._memory = self._memory.bfloat16().float()
        return verdict


STATES: dict[str, Callable[..., gs.Rule]] = {
    "counted": partial(gs.AgrEMA, memory="counts"),
    "narrow": Narrow,
}
"""What agr-ema may remember instead: a count of signs, and sums of 16 bits."""


class Data(NamedTuple):
    """Images in [-1, 1] and labels of a set."""

    images: ImageSet
    pixels: Tensor
    labels: Tensor

    @classmethod
    def of(cls, setting: Setting, seed: int, cache: Path | None) -> "Data":
        """The set of that seed; perceptrons see gray images once, not three times."""
        images = prepare(open_source(setting.data.format(seed=seed)), setting.size, cache)
        pixels = torch.tensor(images.images).permute(0, 3, 1, 2) / 127.5 - 1
        if setting.network in WIDTHS:
            gray = bool((pixels == pixels[:, :1]).all())
            pixels = pixels[:, : 1 if gray else 3]
        return cls(images, pixels.contiguous(), torch.from_numpy(images.label))


class Job(NamedTuple):
    """A run: its seed and learning rate, and the domains that are held out.

    Accuracy is measured on the last of them.
    """

    rate: float
    seed: int
    held_out: tuple[str, ...]
    data: Data

    @property
    def sources(self) -> list[str]:
        """The domains that are trained on."""
        return [domain for domain in self.data.images.domains if domain not in self.held_out]

    def tested(self) -> dict[str, Tensor]:
        """Positions of the images of source validation and of the domain never seen."""
        images = self.data.images
        validation = draw_split(images).validation
        there = images.domain == images.domains.index(self.held_out[-1])
        return {
            "validation": torch.cat([torch.from_numpy(validation[d]) for d in self.sources]),
            "target": torch.from_numpy(there).nonzero()[:, 0],
        }

    def batches(self, size: int) -> DomainBatches:
        """Those of the run's seed, `size` images a domain."""
        images = self.data.images
        drawn, seed = draw_split(images).train, derive_seed(self.seed, "batches")
        return DomainBatches(images, drawn, domains=self.sources, batch_size=size, seed=seed)


def network(setting: Setting, data: Data, seed: int) -> nn.Module:
    """The network with the weights of that seed."""
    classes = len(data.images.classes)
    if setting.network not in WIDTHS:
        return build_backbone(setting.network, classes=classes, weights="none", seed=seed).model
    widths = [data.pixels[0].numel(), *WIDTHS[setting.network]]
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(seed, "network"))
        layers: list[nn.Module] = [nn.Flatten()]
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(widths[-1], classes))


def parts_of(method: str) -> tuple[str, dict[str, float]]:
    """A method's name and settings: "agr-ema:beta=0.99"."""
    name, _, options = method.partition(":")
    pairs = (option.partition("=") for option in options.split(";") if option)
    return name, {key: float(value) for key, _, value in pairs}


Curve = dict[str, list[float]]


def one_by_one(setting: Setting, method: str, job: Job) -> Curve:
    """Train by `gs.method`, as everybody does."""
    data, batches = job.data, job.batches(setting.batch)
    model = network(setting, data, job.seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=job.rate, fused=True)
    name, options = parts_of(method)
    settings = {f"{name}.{key}": value for key, value in options.items()}
    algorithm = gs.method(name, settings=settings, generator=named_generator(job.seed, "method"))
    tested = job.tested()
    curve: Curve = {name: [] for name in CURVES}
    agreeing: list[float] = []
    for step in range(1, setting.steps + 1):
        rows = torch.from_numpy(batches.indices_at(step - 1))
        given = [(data.pixels[row], data.labels[row]) for row in rows]
        result = algorithm.step(model, given, optimizer, step=step)
        if result.agreeing is not None:
            agreeing.append(result.agreeing)
        if step % setting.every == 0:
            with torch.no_grad():
                logits = {name: model(data.pixels[at])[None] for name, at in tested.items()}
            labels = {name: data.labels[at][None] for name, at in tested.items()}
            _note([curve], logits, labels, [agreeing])
    return curve


def together(setting: Setting, method: str, jobs: list[Job]) -> list[Curve]:
    """The same for perceptrons and rules, many runs at once: ten times as fast.

    The domains' gradients of all runs come from one call; each run has a rule of its own, and Adam
    is written out, so that every run has its learning rate.
    """
    models = [network(setting, job.data, job.seed) for job in jobs]
    base, flat = models[0], torch.stack([flattened(model) for model in models]).detach()
    batches = [job.batches(setting.batch) for job in jobs]
    tested = [job.tested() for job in jobs]
    seen = {
        n: torch.stack([j.data.pixels[t[n]] for j, t in zip(jobs, tested, strict=True)])
        for n in tested[0]
    }
    labels = {
        n: torch.stack([j.data.labels[t[n]] for j, t in zip(jobs, tested, strict=True)])
        for n in seen
    }
    combine = [Combining(method, job.seed) for job in jobs]
    adam = Adam(flat, torch.tensor([[job.rate] for job in jobs]))

    def loss(weights: Tensor, images: Tensor, classes: Tensor) -> Tensor:
        return cross_entropy(functional_call(base, shaped(base, weights), (images,)), classes)

    def logits_of(weights: Tensor, images: Tensor) -> Tensor:
        return functional_call(base, shaped(base, weights), (images,))

    gradients_of = vmap(vmap(grad(loss), in_dims=(None, 0, 0)))
    found: list[Curve] = [{name: [] for name in CURVES} for _ in jobs]
    agreeing: list[list[float]] = [[] for _ in jobs]
    for step in range(1, setting.steps + 1):
        rows = [torch.from_numpy(each.indices_at(step - 1)) for each in batches]
        images = torch.stack([j.data.pixels[row] for j, row in zip(jobs, rows, strict=True)])
        classes_of = torch.stack([j.data.labels[row] for j, row in zip(jobs, rows, strict=True)])
        gradients = gradients_of(flat, images, classes_of)
        pairs = [rule(each) for rule, each in zip(combine, gradients, strict=True)]
        masks = [mask for _, mask in pairs] if combine[0].masks_adam else None
        adam.step(torch.stack([update for update, _ in pairs]), masks)
        for noted, rule in zip(agreeing, combine, strict=True):
            if rule.agreeing is not None:
                noted.append(rule.agreeing)
        if step % setting.every == 0:
            logits = {name: vmap(logits_of)(flat, seen[name]) for name in seen}
            _note(found, logits, labels, agreeing)
    return found


def flattened(model: nn.Module) -> Tensor:
    """The parameters in one row."""
    return torch.cat([parameter.reshape(-1) for parameter in model.parameters()])


def shaped(model: nn.Module, flat: Tensor) -> dict[str, Tensor]:
    """A row as the model's parameters."""
    parts = flat.split([parameter.numel() for parameter in model.parameters()])
    named = zip(model.named_parameters(), parts, strict=True)
    return {name: part.view(parameter.shape) for (name, parameter), part in named}


class Combining:
    """A rule of one run, with the fraction of components that agree.

    "mask:METHOD" applies the rule's Φ to Adam's step for the mean gradient instead.
    """

    def __init__(self, method: str, seed: int) -> None:
        self.masks_adam = method.startswith("mask:")
        name, options = parts_of(method.removeprefix("mask:"))
        generator = named_generator(seed, "method")
        if name in STATES:
            self.rule = STATES[name](**options)
        else:
            self.rule = gs.rule(
                {"deep-all": "mean"}.get(name, name), generator=generator, **options
            )
        self.agreeing: float | None = None

    def __call__(self, gradients: Tensor) -> tuple[Tensor, Tensor]:
        """The update for one run's gradients [domains, params], and the components that agree."""
        if isinstance(self.rule, RememberingRule):
            update, agrees, zero, _ = self.rule.judge(gradients.clone(), torch.tensor(True))
        else:
            update, zero = self.rule(gradients), (gradients == 0).all(0)
            shown = gs.AgrSum()(gradients) if isinstance(self.rule, gs.AgrRand) else update
            agrees = shown != 0
        if self.rule.name not in ("sum", "mean", "pcgrad", "gradvac"):
            self.agreeing = agrees.sum().item() / max((~zero).sum().item(), 1)
        return gradients.mean(0) if self.masks_adam else update, agrees


class Adam:
    """Kingma & Ba 2015 with its default constants, for runs that each have a learning rate."""

    def __init__(self, weights: Tensor, rates: Tensor) -> None:
        self.weights, self.rates, self.steps = weights, rates, 0
        self.mean, self.square = torch.zeros_like(weights), torch.zeros_like(weights)

    def step(self, gradients: Tensor, masks: list[Tensor] | None) -> None:
        """One step, of the components in `masks` alone where there are any."""
        self.steps += 1
        self.mean.lerp_(gradients, 0.1)
        self.square.mul_(0.999).addcmul_(gradients, gradients, value=0.001)
        root = (self.square / (1 - 0.999**self.steps)).sqrt_().add_(1e-8)
        step = self.mean / root * (self.rates / (1 - 0.9**self.steps))
        self.weights.sub_(step if masks is None else step * torch.stack(masks))


def _note(
    curves: list[Curve],
    logits: dict[str, Tensor],
    labels: dict[str, Tensor],
    agreeing: list[list[float]],
) -> None:
    """Add a point to each curve, and forget what agreed so far."""
    for i, (curve, noted) in enumerate(zip(curves, agreeing, strict=True)):
        for name in ("validation", "target"):
            right = logits[name][i].argmax(1) == labels[name][i]
            curve[name].append(right.double().mean().item())
        curve["loss"].append(cross_entropy(logits["validation"][i], labels["validation"][i]).item())
        curve["agreeing"].append(sum(noted) / len(noted) if noted else -1)
        noted.clear()


class Run(NamedTuple):
    """A row of the table."""

    setting: str
    method: str
    rate: float
    seed: int
    held_out: str
    every: int
    curves: dict[str, list[float]]

    @property
    def key(self) -> tuple[str, str, float, int, str]:
        """What no two rows share."""
        return self.setting, self.method, self.rate, self.seed, self.held_out


def read(path: Path = TABLE) -> list[Run]:
    """The runs of the table."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [_run(row) for row in csv.DictReader(file)]


def _run(row: dict[str, str]) -> Run:
    values = {name: [int(value) / SCALES[name] for value in row[name].split()] for name in CURVES}
    return Run(
        row["setting"],
        row["method"],
        float(row["rate"]),
        int(row["seed"]),
        row["held_out"],
        int(row["every"]),
        values,
    )


def append(run: Run, path: Path = TABLE) -> None:
    """Add a row."""
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if new:
            writer.writerow([*COLUMNS, *CURVES])
        text = [
            " ".join(str(round(value * SCALES[name])) for value in run.curves[name])
            for name in CURVES
        ]
        writer.writerow(
            [run.setting, run.method, f"{run.rate:g}", run.seed, run.held_out, run.every, *text]
        )


def run_missing(arguments: argparse.Namespace) -> None:
    """Train what the table lacks."""
    torch.set_num_threads(1)
    setting = SETTINGS[arguments.setting]
    done = {run.key for run in read(arguments.table)}
    first, _, last = arguments.seeds.partition("-")
    seeds = range(int(first), int(last or first) + 1)
    sets = {seed: Data.of(setting, seed, arguments.cache) for seed in seeds}
    domains = sets[seeds[0]].images.domains
    for method in arguments.methods.split(","):
        for held_out in _held_out(arguments, setting, domains):
            rates = [float(rate) for rate in arguments.rates.split(",")]
            jobs = [Job(rate, seed, held_out, sets[seed]) for seed in seeds for rate in rates]
            keys = [(arguments.setting, method, j.rate, j.seed, held_out[-1]) for j in jobs]
            missing = [job for job, key in zip(jobs, keys, strict=True) if key not in done]
            for job, curve in _trained(setting, method, missing):
                key = arguments.setting, method, job.rate, job.seed, held_out[-1]
                append(Run(*key, setting.every, curve), arguments.table)
                print(*key, f"{curve['validation'][-1]:.3f} {curve['target'][-1]:.3f}", flush=True)


def _trained(setting: Setting, method: str, jobs: list[Job]) -> Iterator[tuple[Job, Curve]]:
    alone = setting.network not in WIDTHS or method.partition(":")[0] == "fishr"
    if alone:
        yield from ((job, one_by_one(setting, method, job)) for job in jobs)
    elif jobs:
        yield from zip(jobs, together(setting, method, jobs), strict=True)


def _held_out(
    arguments: argparse.Namespace, setting: Setting, domains: tuple[str, ...]
) -> Iterator[tuple[str, ...]]:
    """The target, or else the target and one source after the other."""
    if not arguments.sources:
        yield (setting.target,)
        return
    for source in domains:
        if source != setting.target:
            yield setting.target, source


def main(given: list[str] | None = None) -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--table", type=Path, default=TABLE)
    commands: Any = parser.add_subparsers(required=True)
    running = commands.add_parser("run", help="train what the table lacks")
    running.add_argument("setting", choices=sorted(SETTINGS))
    running.add_argument("methods", help="agr-sum,agr-ema:beta=0.99,…")
    running.add_argument("--seeds", default="0-9")
    running.add_argument("--rates", default="1e-3")
    running.add_argument("--sources", action="store_true", help="hold out each source as well")
    running.add_argument("--cache", type=Path, default=None)
    running.set_defaults(do=run_missing)
    arguments = parser.parse_args(given)
    arguments.do(arguments)


if __name__ == "__main__":
    main()
