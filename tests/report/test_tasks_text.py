"""What a study of tasks against domains comes to, on runs whose figures are known."""

import json
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from gradsurgery.documents.tasks_vs_domains import (
    LayerCosines,
    Measured,
    RuleEffect,
    TasksOptions,
    TasksRun,
    TasksStudy,
)
from gradsurgery.errors import DataError
from gradsurgery.report.report import write_tasks_study
from gradsurgery.report.section import Table
from gradsurgery.report.tasks_text import (
    gradient_frame,
    outcomes,
    over_seeds,
    tasks_section,
    tasks_sentences,
)

SEEDS = 6


def measured(step: int, negative: float, cosine: float, bend: float) -> Measured:
    layer = LayerCosines(
        name="l", components=7, within=0.5, across=0.25, expected=0.75, negative=negative
    )
    effect = RuleEffect(
        rule="pcgrad", length=1.1, cosine=cosine, removed=0.2, alike=0.4, curvature=bend
    )
    return Measured(
        step=step,
        shared=layer,
        within_deciles=[0.1, 0.5, 0.8],
        across_deciles=[-0.3, 0.25, 0.6],
        layers=[layer],
        effects=[effect],
        curvature_sum=2.0,
        curvature_random=0.1,
    )


def run(rule: str, seed: int, *, dial: str | None = None, value: float | None = None) -> TasksRun:
    """By PCGrad the loss is lower by 1/10 + seed/100, and unseen by 1 point; held out the same."""
    surgery = rule == "pcgrad"
    turned = dial is not None
    looks = [measured(0, 0.5, 0.9, 6.0), measured(4, 0.25 * turned, 0.7, 1.0)]
    return TasksRun(
        grouping="domains",
        rule=rule,
        dial=dial,
        value=value,
        seed=seed,
        losses=[2.0, 1.0 - surgery * (0.1 + seed / 100)],
        held_out={"class": 0.8, "size": 0.6},
        unseen={"class": 0.5 + 0.02 * surgery},
        measured=[] if surgery else looks,
    )


def study(runs: list[TasksRun]) -> TasksStudy:
    options = TasksOptions(groupings=["tasks", "domains"], rules=["sum", "pcgrad"])
    return TasksStudy(
        options=options,
        seeds=list(range(SEEDS)),
        dials={"noise": [2.0]},
        dial_seeds=[0],
        name="made",
        digest="made",
        domains=["a", "b"],
        tasks=["class"],
        runs=runs,
    )


RULES = ("sum", "pcgrad")
PLAIN = [run(rule, seed) for seed in range(SEEDS) for rule in RULES]
TURNED = [run(rule, 0, dial="noise", value=2.0) for rule in RULES]
WHOLE = study(PLAIN + TURNED)


def test_outcomes_are_paired_by_seed() -> None:
    found = {(each.rule, each.name): each for each in outcomes(WHOLE)}
    loss = found["pcgrad", "loss"].versus
    assert loss is not None
    assert loss.difference == pytest.approx(-0.1 - 0.025)  # the mean of 0 … 5 hundredths
    assert (loss.p, loss.n) == (2 / 2**SEEDS, SEEDS)
    unseen = found["pcgrad", "unseen"]
    assert unseen.values == pytest.approx([52.0] * SEEDS)
    assert unseen.versus is not None
    assert unseen.versus.p_holm == pytest.approx(3 * 2 / 2**SEEDS)
    assert found["sum", "held_out"].values == pytest.approx([70.0] * SEEDS)
    assert found["sum", "held_out"].versus is None
    held_out = found["pcgrad", "held_out"].versus
    assert held_out is not None
    assert (held_out.difference, held_out.p, held_out.zeros) == (0.0, 1.0, SEEDS)


def test_a_seed_that_one_rule_lacks_is_in_no_pair() -> None:
    found = outcomes(study(PLAIN[:-1]))
    assert {len(each.values) for each in found if each.rule == "pcgrad"} == {SEEDS - 1}
    assert {len(each.values) for each in found if each.rule == "sum"} == {SEEDS}


def test_a_dial_is_apart_from_the_rest() -> None:
    frame = gradient_frame(WHOLE)
    assert len(frame) == 2 * SEEDS + 2
    plain = frame[frame["dial"].isna()]
    assert over_seeds(plain, "negative") == "0.25 ± 0.00"  # of 0.5 and 0
    assert over_seeds(plain, "pcgrad.bend") == "1.75 ± 0.00"  # of 3 and 0.5
    assert "agr-sum.bend" not in plain
    assert [len(each.values) for each in outcomes(WHOLE, "noise", 2.0)] == [1] * 6
    assert outcomes(WHOLE, "noise", 7.0) == []


def cells(table: object) -> list[list[str]]:
    assert isinstance(table, Table)
    return [[entry.text for entry in row] for row in table.rows]


def test_tables_say_what_was_measured() -> None:
    _, cosines, layers, effects, results, dial = tasks_section(WHOLE).blocks
    within, across = ["0.50 ± 0.00", "0.10 to 0.80"], ["0.25 ± 0.00", "-0.30 to 0.60"]
    assert cells(cosines) == [["domains", *within, *across, "0.75", "0.25 ± 0.00"]]
    assert cells(layers) == [["domains", "l", "0.50", "0.25", "0.75", "0.25"]]
    about = ["1.100 ± 0.000", "0.800 ± 0.000", "0.200 ± 0.000", "0.400 ± 0.000"]
    assert cells(effects) == [["domains", "pcgrad", *about, "1.75", "50 %"]]
    assert cells(results)[0] == ["domains", "sum", "1.000", "70.0", "50.0"]
    assert cells(results)[1][2].startswith("0.875* (-0.125; ")
    assert cells(results)[1][3:] == ["70.0 (+0.0; +0.0 to +0.0)", "52.0* (+2.0; +2.0 to +2.0)"]
    assert [row[:5] for row in cells(dial)] == [
        ["0", "domains", "0.75", "25 %", "0.800"],
        ["2", "domains", "0.75", "38 %", "0.800"],
    ]
    assert cells(dial)[1][5:] == ["-0.100 (-0.100 to -0.100)", "+2.0 (+2.0 to +2.0)", "–", "–"]


def test_sentences_say_what_came_out() -> None:
    first, gradients, pcgrad = tasks_sentences(WHOLE)
    assert first.endswith("4 groups of 12 images a step, 150 steps, 6 seeds, 75 unseen.")
    assert gradients == ("domains: expected cosine across groups 0.75, 25 % of the pairs negative.")
    assert pcgrad == (
        "domains, pcgrad: cosine with the sum 0.800; training loss -0.125 (p = 0.031), held out "
        "+0.0 points (p = 1), unseen +2.0 points (p = 0.031)."
    )


def test_a_grouping_with_fewer_seeds_says_so_and_a_zero_has_no_minus() -> None:
    few = [each.model_copy(update={"grouping": "tasks"}) for each in PLAIN[:4]]
    lower = [
        each.model_copy(update={"held_out": {"class": 0.6999}}) if each.rule == "pcgrad" else each
        for each in few
    ]
    _, tasks, pcgrad, domains, _ = tasks_sentences(study(PLAIN + lower))
    assert tasks.startswith("tasks (2 seeds): expected")
    assert domains.startswith("domains: expected")
    assert "held out +0.0 points" in pcgrad  # -0.01


def test_the_markdown_has_every_sentence_that_is_printed(tmp_path: Path) -> None:
    *said, where = write_tasks_study(WHOLE, tmp_path)
    assert said == tasks_sentences(WHOLE)
    assert where == f"tables and figures: {tmp_path} (tasks-vs-domains.png)"
    page = MarkdownIt().parse((tmp_path / "tasks-vs-domains.md").read_text())
    shown = [each.content for each in page if each.type == "inline"]
    assert shown[1 : 1 + len(said)] == said


def test_files_are_the_same_each_time(tmp_path: Path) -> None:
    WHOLE.save(tmp_path / "kept")
    kept = TasksStudy.load(tmp_path / "kept")
    assert kept == WHOLE
    write_tasks_study(WHOLE, tmp_path / "first")
    write_tasks_study(kept, tmp_path / "second")
    first, second = (sorted((tmp_path / name).iterdir()) for name in ("first", "second"))
    assert len(first) == 7
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_a_study_without_a_run_and_a_damaged_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="made: no run of the study is finished"):
        write_tasks_study(study([]), tmp_path)
    WHOLE.save(tmp_path)
    file = tmp_path / TasksStudy.file_name
    content = json.loads(file.read_text())
    content["runs"][0]["grouping"] = "halves"
    file.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"no study of tasks against domains: runs\.0\.grouping"):
        TasksStudy.load(tmp_path)
