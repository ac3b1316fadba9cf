"""What the losses of the domains are, one objective a file."""

from gradsurgery.algorithms.objectives.base import Batch, Forward, Objective
from gradsurgery.algorithms.objectives.erm import ERM
from gradsurgery.algorithms.objectives.fishr import Fishr
from gradsurgery.algorithms.objectives.grad_norm import GradNorm
from gradsurgery.algorithms.objectives.group_dro import GroupDRO
from gradsurgery.algorithms.objectives.irm import IRM
from gradsurgery.algorithms.objectives.mixup import Mixup
from gradsurgery.algorithms.objectives.mldg import MLDG
from gradsurgery.algorithms.objectives.vrex import VREx

__all__ = [
    "ERM",
    "IRM",
    "MLDG",
    "OBJECTIVES",
    "Batch",
    "Fishr",
    "Forward",
    "GradNorm",
    "GroupDRO",
    "Mixup",
    "Objective",
    "VREx",
]

OBJECTIVES: dict[str, type[Objective]] = {
    objective.name: objective
    for objective in (ERM, IRM, MLDG, Mixup, GroupDRO, VREx, Fishr, GradNorm)
}
