"""The names of methods: the eight of the paper, others of the field, and any objective+rule."""

from typing import NamedTuple

from gradsurgery.algorithms.meta_learning import MLDG, Fish
from gradsurgery.algorithms.objectives import OBJECTIVES
from gradsurgery.doors import entry_names, is_door
from gradsurgery.errors import ArgumentError, meant
from gradsurgery.rules import RULES, is_rule_name, unknown_rule
from gradsurgery.rules.torchjd import PREFIX


class MethodParts(NamedTuple):
    """What a method's name stands for."""

    objective: str
    rule: str


class MethodInfo(NamedTuple):
    """A method as users see it."""

    name: str
    parts: str
    summary: str
    source: str


_MANSILLA = "Mansilla et al. 2021"

METHODS: dict[str, MethodInfo] = {
    info.name: info
    for info in (
        MethodInfo("deep-all", "erm+mean", "one gradient of the pooled domains", _MANSILLA),
        MethodInfo("agr-sum", "erm+agr-sum", "sum where domains agree in sign, else 0", _MANSILLA),
        MethodInfo("agr-rand", "erm+agr-rand", "the same, noise where they conflict", _MANSILLA),
        MethodInfo("pcgrad", "erm+pcgrad", "project conflicting gradients", "Yu et al. 2020"),
        MethodInfo("irm", "irm+mean", "penalise what is not invariant", "Arjovsky et al. 2019"),
        MethodInfo("mldg", "mldg+mean", "a step on one domain helps another", "Li et al. 2018"),
        MethodInfo("mixup", "mixup+mean", "mix images of two domains", "Yan et al. 2020"),
        MethodInfo("group-dro", "group-dro+mean", "weigh the worst domain", "Sagawa et al. 2020"),
    )
}
"""The methods of the paper's Table 1. `OTHER_METHODS` are the field's other ones."""

OTHER_METHODS: dict[str, MethodInfo] = {
    info.name: info
    for info in (
        MethodInfo("vrex", "vrex+mean", "penalise unequal risks", "Krueger et al. 2021"),
        MethodInfo("coral", "coral+mean", "align features' moments", "Sun & Saenko 2016"),
        MethodInfo("mmd", "mmd+mean", "align features' distributions", "Li et al. 2018"),
        MethodInfo("dann", "dann+mean", "features that hide the domain", "Ganin et al. 2016"),
        MethodInfo("cdann", "cdann+mean", "the same within the classes", "Li et al. 2018"),
        MethodInfo("fishr", "fishr+mean", "match gradient variances", "Rame et al. 2022"),
        MethodInfo("ib-erm", "ib-erm+mean", "penalise features' variance", "Ahuja et al. 2021"),
        MethodInfo("ib-irm", "ib-irm+mean", "the same, and irm's penalty", "Ahuja et al. 2021"),
        MethodInfo("sd", "sd+mean", "penalise large logits", "Pezeshki et al. 2021"),
        MethodInfo("eqrm", "eqrm+mean", "minimise the risks' quantile", "Eastwood et al. 2022"),
        MethodInfo("fish", "fish", "match gradients by steps in turn", "Shi et al. 2022"),
        MethodInfo("gradnorm", "gradnorm+mean", "equalise training rates", "Chen et al. 2018"),
        MethodInfo("agr-ema", "erm+agr-ema", "agr-sum judged on running means", "this project"),
        MethodInfo("gradvac", "erm+gradvac", "raise low cosines", "Wang et al. 2021"),
        MethodInfo("cagrad", "erm+cagrad", "near the mean, help the worst", "Liu et al. 2021"),
        MethodInfo("mgda", "erm+mgda", "shortest convex combination", "Sener & Koltun 2018"),
        MethodInfo("and-mask", "erm+and-mask", "keep what τ agree on", "Parascandolo et al. 2021"),
        MethodInfo("sand-mask", "erm+sand-mask", "a smooth AND-mask", "Shahtalebi et al. 2021"),
        MethodInfo("graddrop", "erm+graddrop", "keep one sign, at random", "Chen et al. 2020"),
        MethodInfo("median", "erm+median", "median of each component", "Yin et al. 2018"),
        MethodInfo("trimmed-mean", "erm+trimmed-mean", "mean without extremes", "Yin et al. 2018"),
    )
}


def method_parts(name: str) -> MethodParts | None:
    """The objective and the rule that `name` stands for; None for fish, which has neither.

    A name is one of the lists above, `objective+rule`, an objective alone (with the rule `mean`)
    or a rule alone (with the objective `erm`). Each may also be `package.module:Name`, or a name
    that an installed package registers. Nothing is imported to find out; one `package.module:Name`
    alone is taken for a rule here, and may turn out to be an objective when the method is built.

    Raises `ArgumentError` for any other name.
    """
    if name == Fish.name:
        return None
    if name in METHODS:
        name = METHODS[name].parts
    objective, plus, combining = name.partition("+")
    if not plus:
        if is_objective_name(name) and not is_foreign(name):
            return MethodParts(name, "mean")
        objective, combining = "erm", name
    if objective == Fish.name:
        raise ArgumentError(
            f"{name!r}: fish takes its steps one after the other, so there are no domain gradients "
            "at one point for a rule to combine; use fish alone"
        )
    if not plus and not is_rule_name(name):
        methods = [*METHODS, *OTHER_METHODS]
        raise ArgumentError(
            f"unknown method {name!r}{meant(name, [*methods, *OBJECTIVES, *RULES])}; the methods "
            f"are {', '.join(methods)}, objective+rule, and package.module:Name"
        )
    if not is_objective_name(objective):
        known = [*OBJECTIVES, MLDG.name, *entry_names("objective")]
        raise ArgumentError(
            f"unknown objective {objective!r}{meant(objective, known)}; there are "
            f"{', '.join(known)}, and package.module:Name"
        )
    if not is_rule_name(combining):
        raise unknown_rule(combining)
    return MethodParts(objective, combining)


def is_foreign(name: str) -> bool:
    """Whether it is somebody's `package.module:Name`."""
    return is_door(name) and not name.startswith(PREFIX)


def is_built_in(part: str) -> bool:
    """Whether a part of a method is this software's own, or TorchJD's."""
    return part in (*OBJECTIVES, *RULES, MLDG.name, Fish.name) or part.startswith(PREFIX)


def is_objective_name(name: str) -> bool:
    """Whether an objective is called so, or may be."""
    return (
        name in OBJECTIVES
        or name == MLDG.name
        or is_foreign(name)
        or name in entry_names("objective")
    )
