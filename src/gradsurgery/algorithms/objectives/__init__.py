"""What the losses of the domains are."""

from gradsurgery.algorithms.objectives.adversarial import CDANN, DANN
from gradsurgery.algorithms.objectives.alignment import CORAL, IBERM, IBIRM, MMD
from gradsurgery.algorithms.objectives.base import ERM, Batch, Objective
from gradsurgery.algorithms.objectives.mixup import Mixup
from gradsurgery.algorithms.objectives.penalties import IRM, SD, Fishr, VREx
from gradsurgery.algorithms.objectives.weighted_risks import EQRM, GradNorm, GroupDRO

__all__ = [
    "CDANN",
    "CORAL",
    "DANN",
    "EQRM",
    "ERM",
    "IBERM",
    "IBIRM",
    "IRM",
    "MMD",
    "OBJECTIVES",
    "SD",
    "Batch",
    "Fishr",
    "GradNorm",
    "GroupDRO",
    "Mixup",
    "Objective",
    "VREx",
]

OBJECTIVES: dict[str, type[Objective]] = {
    objective.name: objective
    for objective in (
        *(ERM, IRM, Mixup, GroupDRO, VREx, CORAL, MMD, Fishr, GradNorm),
        *(SD, EQRM, IBERM, IBIRM, DANN, CDANN),
    )
}
