"""What a run logged of the conflict between its domains, by groups of layers."""

from gradsurgery.documents.diagnosis import LoggedConflict, Numbers, Snapshot
from gradsurgery.documents.record import ConflictLog, Record
from gradsurgery.gradients.gradient_gram import block_of


def logged_conflict(record: Record, snapshot: Snapshot) -> LoggedConflict:
    """The run's log (`log_conflict`) in the groups of layers of `snapshot`, or else its curves."""
    log = record.conflict
    if log is None or not log.step:
        curves = record.curves
        return LoggedConflict(step=curves.step, agreeing=curves.agreeing, cosine=curves.cosine)
    return LoggedConflict(
        step=log.step,
        agreeing=log.agreeing,
        cosine=[None if matrix is None else _mean_pair(matrix) for matrix in log.cosines],
        groups=_by_group(log, [group.name for group in snapshot.groups]),
    )


def _by_group(log: ConflictLog, groups: list[str]) -> dict[str, Numbers]:
    """The layers' fractions, weighted by their sizes."""
    if all(layers is None for layers in log.layers):
        return {}
    members = {name: group for group in groups for name in group.split(", ")}
    fractions: dict[str, Numbers] = {}
    for group in groups:
        names = [n for n in log.sizes if members.get(n, members.get(block_of(n))) == group]
        size = sum(log.sizes[name] for name in names)
        if size:
            fractions[group] = [
                None
                if layers is None
                else sum(layers.get(name, 0.0) * log.sizes[name] for name in names) / size
                for layers in log.layers
            ]
    return fractions


def _mean_pair(matrix: list[Numbers]) -> float | None:
    """Mean over the pairs of different domains."""
    pairs = [value for d, row in enumerate(matrix) for value in row[:d] if value is not None]
    return sum(pairs) / len(pairs) if pairs else None
