import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gradsurgery.backbones import build_backbone
from gradsurgery.data import ImageSet, draw_split
from gradsurgery.documents.tasks_vs_domains import TasksOptions, TasksRun, TasksStudy
from gradsurgery.errors import ArgumentError
from gradsurgery.rules import rule
from gradsurgery.studies.groupings import Groups, find_tasks
from gradsurgery.studies.removals import Surgery, measure
from gradsurgery.studies.tasks_vs_domains import (
    Cell,
    StudyProgress,
    planned,
    run_cell,
    spread_sources,
    study_tasks,
)

SMALL: dict[str, Any] = {
    "image_size": 12,
    "iterations": 3,
    "batch_size": 4,
    "groups": 3,
    "measure_at": [0],
    "repeats": 2,
    "evaluated": 20,
}
OPTIONS = TasksOptions(**SMALL)


def made(cell: Cell, digits: ImageSet, **options: Any) -> TasksRun:
    return run_cell(cell, TasksOptions(**SMALL | options), digits, draw_split(digits))


def test_the_sum_is_plain_training_on_the_sum_of_the_losses(digits: ImageSet) -> None:
    """The slow and obviously right version: add the losses up, and let torch do the rest."""
    sources = spread_sources(digits, OPTIONS)
    assert sources == ["0", "30", "60"]
    tasks = find_tasks(digits, OPTIONS.tasks, sources)
    for grouping in ("tasks", "domains"):
        backbone = build_backbone(
            "small-cnn", classes=10 + 2 + 2 + 3 + 2, weights="none", seed=1, image_size=12
        )
        groups = Groups(
            grouping,  # type: ignore[arg-type]
            digits,
            draw_split(digits),
            OPTIONS,
            sources=sources,
            tasks=tasks,
            seed=1,
        )
        optimizer = torch.optim.Adam(backbone.model.parameters(), lr=OPTIONS.learning_rate)
        for step in range(3):
            optimizer.zero_grad()
            torch.stack(list(groups.losses(backbone, groups.at(step)))).sum().backward()
            optimizer.step()
        with torch.no_grad():
            whole = torch.stack(list(groups.losses(backbone, groups.whole(20))))
        run = made(Cell(grouping, "sum", None, None, 1), digits)  # type: ignore[arg-type]
        assert run.losses[-1] == pytest.approx(float(whole.mean()), rel=1e-4)


def test_surgery_is_on_what_is_shared() -> None:
    g = torch.tensor([[1.0, -1.0, 5.0, 0.0], [2.0, 1.0, 0.0, 7.0]])
    surgery = Surgery(rule("agr-sum"), own=2, noise=0.0, generator=torch.Generator())
    assert surgery(g).tolist() == [3.0, 0.0, 5.0, 7.0]


def test_noise_has_the_length_that_it_is_asked_for() -> None:
    generator = torch.Generator().manual_seed(0)
    surgery = Surgery(rule("sum"), own=0, noise=2.0, generator=generator)
    g = torch.cat([torch.full((1, 10_000), 0.03), torch.full((1, 10_000), 3.0)])
    added = surgery.noisy(g) - g
    assert (added.norm(dim=1) / g.norm(dim=1)).tolist() == pytest.approx([2.0, 2.0], rel=0.03)


def test_a_measurement_against_gradients_one_by_one(digits: ImageSet) -> None:
    sources = spread_sources(digits, OPTIONS)
    tasks = find_tasks(digits, OPTIONS.tasks, sources)
    backbone = build_backbone("small-cnn", classes=19, weights="none", seed=3, image_size=12)
    about: dict[str, Any] = {"sources": sources, "tasks": tasks, "seed": 3}
    groups = Groups("tasks", digits, draw_split(digits), OPTIONS, **about)
    named = list(backbone.model.named_parameters())
    own = 64 * 19 + 19
    found = measure(backbone, groups, named, own, OPTIONS, step=0, by_layer=True)
    rows: list[Tensor] = []
    for k in range(2):
        for position in range(3):
            backbone.model.zero_grad()
            losses = list(groups.losses(backbone, groups.at(k, measured=True)))
            losses[position].backward()
            trunk = [p.grad for name, p in named if "classifier" not in name]
            rows.append(torch.cat([g.flatten() for g in trunk if g is not None]))
    g = torch.stack(rows).double().view(2, 3, -1)
    pairs = [(k, d, e) for k in range(2) for d in range(3) for e in range(d)]
    cosines = [float(torch.cosine_similarity(g[k, d], g[k, e], dim=0)) for k, d, e in pairs]
    assert found.shared.components == g.shape[2]
    assert found.shared.across == pytest.approx(sum(cosines) / 6, rel=1e-3)
    assert found.shared.negative == pytest.approx(sum(c < 0 for c in cosines) / 6, rel=1e-3)
    assert found.across_deciles[1] == pytest.approx(sorted(cosines)[2:4][0], abs=0.5)
    assert sum(layer.components for layer in found.layers) == g.shape[2]
    effect = next(each for each in found.effects if each.rule == "agr-sum")
    signs = g.sign()
    same = (signs[:, :1] == signs).all(1)
    total = g.sum(1)
    taken = [total[k] * ~same[k] for k in range(2)]
    lengths = [float((total[k] * same[k]).norm() / total[k].norm()) for k in range(2)]
    assert effect.length == pytest.approx(sum(lengths) / 2, rel=1e-3)
    alike = float(torch.cosine_similarity(taken[0], taken[1], dim=0))
    assert effect.alike == pytest.approx(alike, abs=2e-3)


def test_runs_of_a_seed_begin_alike_and_controls_are_what_they_say(digits: ImageSet) -> None:
    runs = {
        (grouping, name): made(Cell(grouping, name, None, None, 2), digits)  # type: ignore[arg-type]
        for grouping in ("tasks", "domains")
        for name in ("sum", "pcgrad")
    }
    for grouping in ("tasks", "domains"):
        first, other = runs[grouping, "sum"], runs[grouping, "pcgrad"]
        assert first.losses[0] == other.losses[0]
        assert first.losses[1] != other.losses[1]
        assert [m.step for m in first.measured] == [0, 3]
        assert other.measured == []
    assert set(runs["tasks", "sum"].held_out) == {"class", "parity", "size"}
    assert set(runs["domains", "sum"].held_out) == {"class"}
    layers = [layer.name for layer in runs["domains", "sum"].measured[0].layers]
    assert layers[-1] == "classifier"
    assert "classifier" not in [m.name for m in runs["tasks", "sum"].measured[0].layers]


def test_the_dial_turns(digits: ImageSet) -> None:
    run = made(Cell("domains", "sum", "groups", 2.0, 0), digits)
    assert run.cell == ("domains", "sum", "groups", 2.0, 0)
    assert run.measured[0].layers == []
    two = made(Cell("domains", "sum", None, None, 0), digits, groups=2)
    assert run.losses == two.losses
    with pytest.raises(ArgumentError, match=r"groups is a whole number, found 2\.5"):
        OPTIONS.turned("groups", 2.5)
    with pytest.raises(ArgumentError, match="unknown dial 'rules'; there are groups, batch_size"):
        OPTIONS.turned("rules", 1)
    with pytest.raises(ArgumentError, match="contradiction must be less than or equal to 1"):
        OPTIONS.turned("contradiction", 1.5)


def test_the_plan_is_paired_and_turns_dials_in_two_groupings() -> None:
    cells = list(planned(OPTIONS, [0, 1], {"noise": [1.0]}, [4]))
    assert len(cells) == 2 * 4 * 3 + 2 * 3
    assert {cell.grouping for cell in cells if cell.dial} == {"tasks", "domains"}
    assert {cell.seed for cell in cells[:12]} == {0}
    assert {cell.seed for cell in cells if cell.dial} == {4}


SHORT = OPTIONS.model_copy(update={"groupings": ["tasks", "domains"], "rules": ["sum", "pcgrad"]})


def test_a_study_that_was_interrupted_goes_on_to_the_same_file(
    tmp_path: Path, digits: ImageSet
) -> None:
    def studied(folder: str, **about: Any) -> TasksStudy:
        given = {"seeds": [0], "dials": {"noise": [1.0]}, "dial_seeds": [7], **about}
        return study_tasks(SHORT, digits, tmp_path / folder, **given)

    seen: list[StudyProgress] = []

    def stop(progress: StudyProgress) -> None:
        seen.append(progress)
        if progress.runs == 3:
            raise KeyboardInterrupt

    whole = studied("whole")
    assert len(whole.runs) == 8
    with pytest.raises(KeyboardInterrupt):
        studied("parts", report=stop)
    assert len(TasksStudy.load(tmp_path / "parts").runs) == 3
    assert (seen[-1].all_runs, seen[-1].steps, seen[-1].all_steps) == (8, 9, 24)
    (tmp_path / "parts" / ".tasks-vs-domains.json.77.tmp").write_text("of a killed process")
    assert studied("parts") == whole
    assert [path.name for path in (tmp_path / "parts").iterdir()] == [TasksStudy.file_name]
    file = TasksStudy.file_name
    assert (tmp_path / "parts" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    more = studied("parts", seeds=[1], dials={}, dial_seeds=[])
    assert (more.seeds, more.dials, len(more.runs)) == ([0, 1], {"noise": [1.0]}, 12)
    assert [run for run in more.runs if run.seed != 1] == whole.runs
    changed = replace(digits, digest="of another release")
    with pytest.raises(ArgumentError, match="a study of other images than rotated-digits has now"):
        study_tasks(SHORT, changed, tmp_path / "parts", seeds=[0])
    other = SHORT.model_copy(update={"learning_rate": 0.1, "batch_size": 2})
    words = r"\(batch_size: 4 there, 2 here, learning_rate: 0.003 there, 0.1 here\); choose"
    with pytest.raises(ArgumentError, match=words):
        study_tasks(other, digits, tmp_path / "parts", seeds=[0])


def test_runs_of_version_1_are_made_anew(tmp_path: Path, digits: ImageSet) -> None:
    options = SHORT.model_copy(update={"rules": ["sum"], "groupings": ["domains"]})
    whole = study_tasks(options, digits, tmp_path, seeds=[0])
    content = json.loads((tmp_path / TasksStudy.file_name).read_text())
    del content["digest"]
    before = content | {"version": 1}  # its batches of a measurement shared no image
    (tmp_path / TasksStudy.file_name).write_text(json.dumps(before))
    assert TasksStudy.load(tmp_path).runs == []
    assert study_tasks(options, digits, tmp_path, seeds=[0]) == whole


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"target": "90"}, "has no domain '90'; its domains are 0, 15"),
        ({"groups": 6, "tasks": list("abcdef")}, "leaves 5 source domains beside '75', and 6"),
        ({"groups": 3, "tasks": ["class", "size"]}, "3 groups need as many tasks, found 2"),
        ({"tasks": ["class", "size", "hue"]}, "unknown task 'hue'"),
        ({"rules": ["mean-ish"]}, "unknown rule 'mean-ish'"),
    ],
)
def test_what_cannot_be_studied(
    options: dict[str, Any], words: str, tmp_path: Path, digits: ImageSet
) -> None:
    with pytest.raises(ArgumentError, match=words):
        study_tasks(TasksOptions(**SMALL | options), digits, tmp_path / "out", seeds=[0])
    assert not (tmp_path / "out").exists()
