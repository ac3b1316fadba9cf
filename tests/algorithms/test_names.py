"""Names and hyperparameters: what is taken, what is refused, and in what words."""

from inspect import signature

import pytest

import gradsurgery as gs
from gradsurgery.algorithms import (
    METHODS,
    MLDG,
    OBJECTIVES,
    OTHER_METHODS,
    Fish,
    hyperparameter_names,
    method_parts,
    settings_of,
)
from gradsurgery.errors import ArgumentError
from gradsurgery.rules import RULES

# `hparams_registry.py` of DomainBed; its irm_lambda, vrex_lambda, mmd_gamma, sd_reg and the lambda
# of fishr and dann are penalties, as is ib_lambda of ib-erm, and eqrm's burn-in is an annealing;
# lr_d is dann's learning_rate.
DOMAINBED = {
    "irm": {"penalty": 100.0, "anneal": 500},
    "vrex": {"penalty": 10.0, "anneal": 500},
    "coral": {"penalty": 1.0},
    "mmd": {"penalty": 1.0},
    "fishr": {"penalty": 1000.0, "anneal": 1500, "ema": 0.95},
    "sd": {"penalty": 0.1},
    "ib-erm": {"penalty": 100.0, "anneal": 500},
    "ib-irm": {"penalty": 100.0, "anneal": 500, "ib_penalty": 100.0, "ib_anneal": 500},
    "dann": {"penalty": 1.0, "learning_rate": 5e-5, "width": 256, "depth": 3},
    "cdann": {"penalty": 1.0, "learning_rate": 5e-5, "width": 256, "depth": 3},
    "eqrm": {"quantile": 0.75, "anneal": 2500},
    "mldg": {"beta": 1.0},
    "mixup": {"alpha": 0.2},
    "group-dro": {"eta": 0.01},
    "fish": {"meta_lr": 0.5},
}


def test_the_papers_eight_come_first():
    eight = ["deep-all", "agr-sum", "agr-rand", "pcgrad", "irm", "mldg", "mixup", "group-dro"]
    assert list(METHODS) == eight
    assert not set(METHODS) & set(OTHER_METHODS)


@pytest.mark.parametrize("info", [*METHODS.values(), *OTHER_METHODS.values()], ids=str)
def test_a_listed_method_is_what_it_says(info, built):
    built(info.name)
    parts = method_parts(info.name)
    assert info.parts == ("fish" if parts is None else "+".join(parts))
    assert info.summary
    assert info.source


@pytest.mark.parametrize("objective", [*OBJECTIVES, "mldg"])
@pytest.mark.parametrize("rule", [*RULES, "torchjd:UPGrad"])
def test_any_objective_goes_with_any_rule(objective, rule, built):
    assert method_parts(f"{objective}+{rule}") == (objective, rule)
    algorithm = built(f"{objective}+{rule}")
    assert algorithm.rule.name == rule
    least = 2
    if objective != "mldg":  # whose inner steps make it an algorithm of its own
        assert algorithm.objective.name == objective
        least = algorithm.objective.minimum_domains
    assert algorithm.minimum_domains == max(least, algorithm.rule.minimum_domains)


@pytest.mark.parametrize(
    ("name", "parts"),
    [("irm", ("irm", "mean")), ("median", ("erm", "median")), ("erm", ("erm", "mean"))],
)
def test_half_a_name_has_the_plain_other_half(name, parts):
    assert method_parts(name) == parts


def test_a_method_says_what_it_is_made_of():
    assert repr(gs.method("agr-sum")) == "Combined(ERM(), AgrSum(reduction='sum'))"
    assert repr(gs.method("irm", settings={"irm.penalty": 3})).startswith("Combined(IRM(penalty=3")
    assert repr(gs.method("fish")).startswith("Fish(")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("agr-product", r"unknown method 'agr-product' \(.*\); the methods are deep-all, .*fish"),
        ("agrsum", r"unknown method 'agrsum' \(did you mean agr-sum\?\); the methods are deep"),
        ("", "unknown method ''; the methods are"),
        (
            "irn+agr-sum",
            r"objective 'irn' \(did you mean irm\?\); there are erm, irm, .*mldg",
        ),
        ("+agr-sum", "unknown objective ''"),
        (
            "irm+agr-some",
            r"'agr-some' \(.*agr-sum\?\); there are sum, mean, .*torchjd:NAME",
        ),
        ("irm+", "unknown rule ''"),
        ("irm+agr-sum+pcgrad", "unknown rule 'agr-sum\\+pcgrad'"),
        ("deep-all+agr-sum", "unknown objective 'deep-all'"),
        ("fish+agr-sum", "'fish\\+agr-sum': fish takes its steps one after the other.*use fish al"),
        ("irm+fish", "unknown rule 'fish'"),
        ("erm+torchjd:No", "unknown aggregator 'No'; torchjd.aggregation has .*UPGrad"),
    ],
)
def test_unknown_names_are_told_with_the_known_ones(name, words, built):
    with pytest.raises(ArgumentError, match=words) as caught:
        built(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", sorted(DOMAINBED))
def test_the_defaults_are_domainbeds(name, built):
    algorithm = built(name)
    values = algorithm.values if isinstance(algorithm, Fish | MLDG) else algorithm.objective.values
    assert values == DOMAINBED[name]
    assert [*map(type, values.values())] == [*map(type, DOMAINBED[name].values())]
    assert hyperparameter_names(name) == [f"{name}.{key}" for key in values]


def test_the_defaults_of_gradnorm_are_the_papers(built):
    assert built("gradnorm").objective.values == {"alpha": 1.5, "learning_rate": 0.025}


def test_settings_reach_their_owner(built):
    settings = {"irm.penalty": "2.5", "irm.anneal": "7", "gradvac.beta": "0.25"}
    algorithm = built("irm+gradvac", settings=settings)
    assert algorithm.objective.values == {"penalty": 2.5, "anneal": 7}
    assert algorithm.rule.values["beta"] == 0.25


NAMES = {
    "deep-all": "none",
    "irm": r"irm\.penalty, irm\.anneal",
    "fish": r"fish\.meta_lr",
    "mixup+gradvac": r"mixup\.alpha, gradvac\.beta, gradvac\.target",
}


@pytest.mark.parametrize("key", ["vrex.penalty", "penalty", ".penalty", "irm.penalty.more", ""])
@pytest.mark.parametrize("name", sorted(NAMES))
def test_settings_of_nothing_in_the_method_list_those_there_are(name, key, built):
    with pytest.raises(ArgumentError, match=rf"no hyperparameter '{key}'; it has: {NAMES[name]}$"):
        built(name, settings={key: 1.0})


@pytest.mark.parametrize(
    ("name", "key", "words"),
    [
        ("irm", "irm.lambda", r"irm has no hyperparameter 'lambda'; it has: penalty, anneal"),
        ("fish", "fish.eta", r"fish has no hyperparameter 'eta'; it has: meta_lr"),
        ("erm", "erm.eta", r"erm has no hyperparameter 'eta'; it has: none"),
        ("agr-sum", "agr-sum.tau", "agr-sum has no hyperparameter 'tau'; it has: reduction"),
        ("pcgrad", "pcgrad.generator", "pcgrad has no hyperparameter 'generator'; it has: none"),
        ("torchjd:Krum", "torchjd:Krum.no", "torchjd:Krum has no hyperparameter 'no'; it has"),
    ],
)
def test_unknown_settings_of_a_part_list_those_there_are(name, key, words, built):
    with pytest.raises(ArgumentError, match=words):
        built(name, settings={key: 1.0})


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("irm.penalty", -1, "irm.penalty is a number at least 0, found -1"),
        ("irm.penalty", "much", "irm.penalty is a number at least 0, found 'much'"),
        ("irm.penalty", "nan", "irm.penalty is a number at least 0, found 'nan'"),
        ("irm.penalty", "inf", "irm.penalty is a number at least 0, found 'inf'"),
        ("irm.anneal", 2.5, "irm.anneal is a whole number at least 0, found 2.5"),
        ("irm.anneal", float("inf"), "irm.anneal is a whole number at least 0, found inf"),
        ("irm.anneal", -1, "irm.anneal is a whole number at least 0, found -1"),
        ("irm.anneal", "soon", "irm.anneal is a whole number at least 0, found 'soon'"),
        ("vrex.penalty", -0.1, "vrex.penalty is a number at least 0, found -0.1"),
        ("fishr.ema", 1, "fishr.ema is a number at least 0 and at most 0.9999, found 1"),
        ("eqrm.quantile", 1, "eqrm.quantile is a number above 0 and below 1, found 1"),
        ("eqrm.quantile", 0, "eqrm.quantile is a number above 0 and below 1, found 0"),
        ("mldg.beta", -1, "mldg.beta is a number at least 0, found -1"),
        ("mixup.alpha", 0, "mixup.alpha is a number above 0, found 0"),
        ("group-dro.eta", -1, "group-dro.eta is a number at least 0, found -1"),
        ("gradnorm.alpha", -1, "gradnorm.alpha is a number at least 0, found -1"),
        ("fish.meta_lr", 0, "fish.meta_lr is a number above 0 and at most 1, found 0"),
        ("fish.meta_lr", 1.5, "fish.meta_lr is a number above 0 and at most 1, found 1.5"),
        ("agr-rand.zero_agrees", "maybe", "agr-rand.zero_agrees is true or false, found 'maybe'"),
        ("agr-sum.reduction", "max", "reduction is 'sum' or 'mean', found 'max'"),
        (
            "trimmed-mean.trim",
            "some",
            "trimmed-mean.trim is a whole number at least 0, found 's",
        ),
        ("trimmed-mean.trim", 1.5, "trimmed-mean.trim is a whole number at least 0, found 1.5"),
        (
            "trimmed-mean.trim",
            float("inf"),
            "trimmed-mean.trim is a whole number at least 0",
        ),
        ("gradvac.beta", "fast", "gradvac.beta is a number at least 0 and at most 1, found 'fast'"),
        ("gradvac.target", "up", "gradvac.target is a number above -1 and below 1, found 'up'"),
        ("gradvac.beta", 2.0, "gradvac.beta is a number at least 0 and at most 1, found 2"),
        ("torchjd:CAGrad.c", -1.0, "torchjd:CAGrad"),
    ],
)
def test_values_that_cannot_be_are_told_with_what_can(key, value, words, built):
    with pytest.raises(ArgumentError, match=words) as caught:
        built(key.rpartition(".")[0], settings={key: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "given", "value"),
    [
        ("agr-rand.zero_agrees", "false", False),
        ("agr-rand.zero_agrees", "No", False),
        ("agr-rand.zero_agrees", "0", False),
        ("agr-rand.zero_agrees", 0.0, False),  # as the command line and JSON read it
        ("agr-rand.zero_agrees", False, False),
        ("and-mask.rescale", "true", True),
        ("and-mask.rescale", 1.0, True),
        ("agr-sum.reduction", "mean", "mean"),
        ("trimmed-mean.trim", "2", 2),
        ("trimmed-mean.trim", 2.0, 2),
        ("gradvac.target", "0.5", 0.5),
        ("gradvac.beta", 1, 1.0),
        ("sand-mask.k", "3", 3.0),
    ],
)
def test_options_of_rules_come_from_text_in_their_types(key, given, value, built):
    name, _, option = key.rpartition(".")
    found = built(name, settings={key: given}).rule.values[option]
    assert found == value
    assert type(found) is type(value)


def test_options_of_torchjds_aggregators_are_numbers_where_they_are(built):
    half = built("torchjd:CAGrad", settings={"torchjd:CAGrad.c": 0.5}).rule.aggregator
    assert "0.5" in repr(half)
    for count in ("2", 2.0):
        settings = {"torchjd:Krum.n_byzantine": count}
        assert "n_byzantine=2," in repr(built("torchjd:Krum", settings=settings).rule.aggregator)


def test_settings_of_keeps_those_of_the_parts():
    settings = {"irm.penalty": 1.0, "agr-sum.reduction": "mean", "fish.meta_lr": 0.5, "x": 1.0}
    assert settings_of("irm", settings) == {"irm.penalty": 1.0}
    assert settings_of("irm+agr-sum", settings) == {"irm.penalty": 1.0, "agr-sum.reduction": "mean"}
    assert settings_of("agr-sum", settings) == {"agr-sum.reduction": "mean"}
    assert settings_of("fish", settings) == {"fish.meta_lr": 0.5}
    assert settings_of("deep-all", settings) == {}


def test_every_option_of_a_rule_is_a_hyperparameter():
    for name, rule in RULES.items():
        options = set(signature(rule).parameters) - {"generator"}
        assert set(hyperparameter_names(name)) == {f"{name}.{option}" for option in options}
