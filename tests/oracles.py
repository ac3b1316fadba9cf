"""The slow and obviously right versions: equations written out component by component."""

from itertools import permutations, product
from math import sqrt

Matrix = list[list[float]]


def sign(value: float) -> int:
    return (value > 0) - (value < 0)


def agreement(gradients: Matrix) -> list[bool]:
    """Equation 2."""
    columns = zip(*gradients, strict=True)
    return [len({sign(value) for value in column}) == 1 for column in columns]


def agr_sum(gradients: Matrix) -> list[float]:
    """Equation 3."""
    columns = list(zip(*gradients, strict=True))
    return [
        sum(column) if agrees else 0.0
        for column, agrees in zip(columns, agreement(gradients), strict=True)
    ]


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
