"""The slow and obviously right versions: equations written out component by component."""

from collections.abc import Callable
from itertools import permutations, product
from math import sqrt, tanh
from statistics import variance

import numpy as np
from scipy.optimize import minimize

Matrix = list[list[float]]


def sign(value: float) -> int:
    return (value > 0) - (value < 0)


def agreement(gradients: Matrix) -> list[bool]:
    """Equation 2."""
    columns = zip(*gradients, strict=True)
    return [len({sign(value) for value in column}) == 1 for column in columns]


def agreeing_and_zero(gradients: Matrix) -> tuple[int, int]:
    """How many components agree and are not zero in every domain, and how many are zero."""
    columns = list(zip(*gradients, strict=True))
    zeros = [not any(column) for column in columns]
    pairs = zip(agreement(gradients), zeros, strict=True)
    return sum(agrees and not zero for agrees, zero in pairs), sum(zeros)


def agreeing_fraction(gradients: Matrix) -> float:
    """Agreement among the components that are not zero in every domain."""
    agreeing, zeros = agreeing_and_zero(gradients)
    return agreeing / (len(gradients[0]) - zeros)


def agr_sum(gradients: Matrix) -> list[float]:
    """Equation 3."""
    columns = list(zip(*gradients, strict=True))
    return [
        sum(column) if agrees else 0.0
        for column, agrees in zip(columns, agreement(gradients), strict=True)
    ]


def agr_ema(steps: list[Matrix], beta: float) -> tuple[list[float], list[bool], Matrix]:
    """The last step's update, its Φ, and the bias-corrected running means that decide it."""
    last, weights = steps[-1], [(1 - beta) * beta**age for age in reversed(range(len(steps)))]
    means = [
        [
            sum(w * step[domain][n] for w, step in zip(weights, steps, strict=True))
            / (1 - beta ** len(steps))
            for n in range(len(last[0]))
        ]
        for domain in range(len(last))
    ]
    agrees = [
        agree and column[0] != 0
        for agree, column in zip(agreement(means), zip(*means, strict=True), strict=True)
    ]
    columns = zip(*last, strict=True)
    return [sum(c) if a else 0.0 for c, a in zip(columns, agrees, strict=True)], agrees, means


def agr_ema_counts(steps: list[Matrix], limit: int) -> tuple[list[float], Matrix]:
    """The last step's update where signs are counted, and the counts that decide it."""
    counts = [[0] * len(steps[0][0]) for _ in steps[0]]
    for step in steps:
        for domain, row in enumerate(step):
            for n, value in enumerate(row):
                counts[domain][n] = max(-limit, min(limit, counts[domain][n] + sign(value)))
    update = []
    for n, column in enumerate(zip(*steps[-1], strict=True)):
        signs = {sign(row[n]) for row in counts}
        update.append(sum(column) if signs in ({1}, {-1}) else 0.0)
    return update, counts


def agr_rand_sigma(gradients: Matrix) -> float:
    """σ of equation 4."""
    kept = [
        abs(value)
        for value, agrees in zip(agr_sum(gradients), agreement(gradients), strict=True)
        if agrees
    ]
    return sum(kept) / len(kept) if kept else 0.0


def dot(left: list[float], right: list[float]) -> float:
    return sum(a * b for a, b in zip(left, right, strict=True))


def pcgrad(gradients: Matrix, orders: list[tuple[int, ...]]) -> list[float]:
    """Algorithm 1 of Yu et al. 2020 with the order of the other domains given for each domain."""
    projected = []
    for gradient, order in zip(gradients, orders, strict=True):
        v = list(gradient)
        for other in order:
            inner = dot(v, gradients[other])
            if inner < 0:
                scale = inner / dot(gradients[other], gradients[other])
                v = [a - scale * b for a, b in zip(v, gradients[other], strict=True)]
        projected.append(v)
    return [sum(column) for column in zip(*projected, strict=True)]


def pcgrad_results(gradients: Matrix) -> list[list[float]]:
    """The results of PCGrad for every choice of orders."""
    domains = range(len(gradients))
    choices = [list(permutations([j for j in domains if j != d])) for d in domains]
    return [pcgrad(gradients, list(orders)) for orders in product(*choices)]


def cosine(left: list[float], right: list[float]) -> float:
    norm = sqrt(dot(left, left) * dot(right, right))
    return dot(left, right) / norm if norm else 0.0


def and_mask(gradients: Matrix, tau: float) -> list[float]:
    """Section 3 of Parascandolo et al. 2021."""
    return [
        sum(column) / len(column)
        if abs(sum(map(sign, column))) / len(column) >= tau - 1e-12
        else 0.0
        for column in zip(*gradients, strict=True)
    ]


def sand_mask(gradients: Matrix, tau: float, k: float) -> list[float]:
    """Section 3 of Shahtalebi et al. 2021."""
    update = []
    for column in zip(*gradients, strict=True):
        margin = abs(sum(map(sign, column))) / len(column) - tau
        spread = variance(column)
        if abs(margin) < 1e-12:
            mask = 0.0
        elif spread == 0:
            mask = float(margin > 0)
        else:
            mask = max(0.0, tanh(k * margin / spread))
        update.append(mask * sum(column) / len(column))
    return update


def graddrop(gradients: Matrix, draws: list[float], leak: float) -> list[float]:
    """Lines 10 to 15 of algorithm 1 of Chen et al. 2020, with one leak for all tasks."""
    update = []
    for column, draw in zip(zip(*gradients, strict=True), draws, strict=True):
        size = sum(map(abs, column))
        purity = 0.5 * (1 + sum(column) / size) if size else 0.0
        kept = [g for g in column if (g > 0 if purity > draw else g < 0)]
        update.append(leak * sum(column) + (1 - leak) * sum(kept))
    return update


def trimmed_mean(gradients: Matrix, trim: int) -> list[float]:
    """Definition 2 of Yin et al. 2018."""
    columns = [sorted(column)[trim : len(column) - trim] for column in zip(*gradients, strict=True)]
    return [sum(column) / len(column) for column in columns]


def gradvac(
    gradients: Matrix, order: list[list[int]], targets: Matrix, beta: float
) -> tuple[list[float], Matrix]:
    """Algorithm 1 of Wang et al. 2021 for gradients that are not zero: the update, new targets."""
    targets = [list(row) for row in targets]
    pulled = []
    for domain, gradient in enumerate(gradients):
        v = list(gradient)
        for other in order[domain]:
            cos, target = cosine(v, gradients[other]), targets[domain][other]
            if cos < target:
                share = target * sqrt(1 - cos**2) - cos * sqrt(1 - target**2)
                norms = sqrt(dot(v, v)), sqrt(dot(gradients[other], gradients[other]))
                scale = norms[0] * share / (norms[1] * sqrt(1 - target**2))
                v = [a + scale * b for a, b in zip(v, gradients[other], strict=True)]
            targets[domain][other] = (1 - beta) * target + beta * cos
        pulled.append(v)
    return [sum(column) for column in zip(*pulled, strict=True)], targets


def minimum_over_simplex(function: Callable[[np.ndarray], float], dimensions: int) -> float:
    """The smallest value of a convex function over w ≥ 0, Σ w = 1, by a general solver."""
    corners = [*np.eye(dimensions), np.full(dimensions, 1 / dimensions)]
    found = [
        minimize(
            function,
            start,
            method="SLSQP",
            bounds=[(0, 1)] * dimensions,
            constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
            options={"ftol": 1e-14, "maxiter": 500},
        ).x.clip(0)
        for start in corners
    ]
    return min(function(w) for w in [*corners, *(w / w.sum() for w in found)])


def shortest_in_hull(gradients: np.ndarray) -> float:
    """The length of MGDA's update."""
    return sqrt(
        max(minimum_over_simplex(lambda w: w @ gradients @ gradients.T @ w, len(gradients)), 0)
    )


def cagrad_worst(gradients: np.ndarray, c: float) -> float:
    """min_d g_d·g* of CAGrad, which by duality is the minimum of F in algorithm 1."""
    mean = gradients.mean(0)
    radius = c * np.linalg.norm(mean)
    return minimum_over_simplex(
        lambda w: w @ gradients @ mean + radius * np.linalg.norm(w @ gradients), len(gradients)
    )
