import importlib
import multiprocessing
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gradsurgery.data import ImageSet
from gradsurgery.documents.configuration import RunConfiguration
from gradsurgery.documents.record import Record
from gradsurgery.documents.studies import (
    SimilarityOptions,
    SimilarityStudy,
)
from gradsurgery.errors import ArgumentError, DataError
from gradsurgery.report.gradients_text import (
    similarity_csv,
    similarity_section,
    similarity_sentences,
    summarize_similarity,
)
from gradsurgery.report.rendering import section_markdown
from gradsurgery.studies.similarity import study_similarity
from gradsurgery.training import train
from tests.studies.image_sets import image_set

Configure = Callable[..., RunConfiguration]
OPTIONS = SimilarityOptions(every=3, samples_per_domain=3)


def test_classes_take_turns_and_every_pair_of_domains_counts(
    tmp_path: Path, digits: ImageSet, configured: Configure
) -> None:
    runs = [configured(seed=seed) for seed in (4, 2)]
    study = study_similarity(runs, OPTIONS, digits, tmp_path)
    assert SimilarityStudy.load(tmp_path) == study
    assert study.domains == ["0", "15", "30", "45", "60"]
    assert [run.seed for run in study.runs] == [4, 2]
    for run in study.runs:
        assert [(m.step, m.label) for m in run.measurements] == [
            (0, "0"),
            (3, "1"),
            (6, "2"),
            (9, "3"),
            (12, "4"),
        ]
        for m in run.measurements:
            cosines = np.array(m.cosines)
            assert (cosines == cosines.T).all()
            assert m.within == pytest.approx(cosines.diagonal().mean())
            assert m.across == pytest.approx(cosines[np.triu_indices(5, 1)].mean())
    plain = train(configured(seed=2), tmp_path / "plain", opened=digits)
    measured = (tmp_path / "seed-2" / "model.safetensors").read_bytes()
    assert measured == (tmp_path / "plain" / "model.safetensors").read_bytes()
    assert plain.configuration.seed == 2


def test_the_target_is_measured_on_request(
    tmp_path: Path, digits: ImageSet, configured: Configure
) -> None:
    options = SimilarityOptions(every=12, samples_per_domain=2, all_domains=True)
    study = study_similarity([configured()], options, digits, tmp_path)
    assert study.domains == list(digits.domains)
    assert study.runs[0].measurements[0].domains == list(digits.domains)


def test_a_study_killed_at_any_moment_ends_in_the_same_file(
    tmp_path: Path, digits: ImageSet, configured: Configure
) -> None:
    runs = [configured(iterations=8, validate_every=2, seed=seed) for seed in (0, 1)]
    options = SimilarityOptions(every=2, samples_per_domain=2)
    whole = study_similarity(runs, options, digits, tmp_path / "whole")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["gradsurgery.studies.similarity", "torchvision"])
    directory = tmp_path / "killed"
    kills = 0
    while kills < 2 and not (directory / "similarity.json").exists():
        arguments = (runs, options, digits, directory)
        child = context.Process(target=study_similarity, args=arguments)
        child.start()
        begun = directory / "seed-0" / ("similarity.json" if kills % 2 else "checkpoint.pt")
        while child.is_alive() and not begun.exists():
            time.sleep(0.001)
        child.join(0.05 * kills)
        child.kill()
        child.join()
        kills += child.exitcode == -9
    assert kills
    resumed = study_similarity(runs, options, digits, directory)
    assert resumed == whole
    for name in ("similarity.json", "seed-0/similarity.json", "seed-1/similarity.json"):
        assert (directory / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    left = {path.name for path in (directory / "seed-0").iterdir()}
    assert left == {path.name for path in (tmp_path / "whole" / "seed-0").iterdir()}


def test_a_run_that_was_killed_after_its_last_measurement_is_finished(
    tmp_path: Path, digits: ImageSet, configured: Configure
) -> None:
    study_similarity([configured()], OPTIONS, digits, tmp_path)
    folder = tmp_path / "seed-0"
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    for name in ("record.json", "model.safetensors"):
        (folder / name).unlink()
    study_similarity([configured()], OPTIONS, digits, tmp_path)
    assert {path.name for path in folder.iterdir()} == set(files)
    assert (folder / "model.safetensors").read_bytes() == files["model.safetensors"]


def test_a_finished_study_is_read_and_not_repeated(
    tmp_path: Path, digits: ImageSet, configured: Configure
) -> None:
    first = study_similarity([configured()], OPTIONS, digits, tmp_path)
    written = (tmp_path / "seed-0" / Record.file_name).stat().st_mtime_ns
    assert study_similarity([configured()], OPTIONS, digits, tmp_path) == first
    assert (tmp_path / "seed-0" / Record.file_name).stat().st_mtime_ns == written


def test_code_that_changes_after_a_study_was_finished_is_told(
    tmp_path: Path, digits: ImageSet, configured: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    notes: list[str | None] = []
    for factor in (1, 2):
        (tmp_path / "studied.py").write_text(f"def mine(g):\n    return {factor} * g.mean(0)\n")
        monkeypatch.delitem(sys.modules, "studied", raising=False)
        importlib.invalidate_caches()
        of = configured(method="erm+studied:mine")
        study_similarity([of], OPTIONS, digits, tmp_path / "study", lambda p: notes.append(p.note))
    (told,) = filter(None, notes)
    assert told.startswith("the code of studied:mine has changed since this run was finished")
    monkeypatch.delitem(sys.modules, "studied")


def test_other_options_in_the_same_folder_are_an_error(
    tmp_path: Path, digits: ImageSet, configured: Configure
) -> None:
    study_similarity([configured()], OPTIONS, digits, tmp_path)
    with pytest.raises(ArgumentError, match="every: 3 there, 4 here"):
        study_similarity([configured()], OPTIONS.model_copy(update={"every": 4}), digits, tmp_path)
    with pytest.raises(ArgumentError, match="batch_size: 8 there, 9 here"):
        study_similarity([configured(batch_size=9)], OPTIONS, digits, tmp_path)


def test_a_run_that_was_trained_without_measuring_is_an_error(
    tmp_path: Path, digits: ImageSet, configured: Configure
) -> None:
    train(configured(), tmp_path / "seed-0", opened=digits)
    with pytest.raises(DataError, match="finished run that was not measured at step 0"):
        study_similarity([configured()], OPTIONS, digits, tmp_path)


def test_runs_differ_in_their_seed_alone(
    tmp_path: Path, digits: ImageSet, configured: Configure
) -> None:
    runs = [configured(), configured(seed=1, batch_size=4)]
    with pytest.raises(ArgumentError, match="differ in their seed alone, found others in batch"):
        study_similarity(runs, OPTIONS, digits, tmp_path)


def few_of_one_class() -> ImageSet:
    """Three domains of 20 images a class; the class c1 has 5 in d1."""
    label = [[0] * 20 + [1] * 20, [0] * 20 + [1] * 5, [0] * 20 + [1] * 20]
    domain = [d for d, labels in enumerate(label) for _ in labels]
    return image_set(domain, [c for labels in label for c in labels], side=8)


def test_a_domain_without_enough_images_of_the_class_is_left_out(
    tmp_path: Path, configured: Configure
) -> None:
    options = SimilarityOptions(every=1, samples_per_domain=5, all_domains=True)
    configuration = configured(
        data="made", target="d2", backbone="small-cnn", weights="none", iterations=1, image_size=8
    )
    study = study_similarity([configuration], options, few_of_one_class(), tmp_path)
    first, second = study.runs[0].measurements
    assert (first.domains, first.skipped) == (["d0", "d1", "d2"], {})
    # 70 % of 5 are 3 or 4 images
    reason = {"d1": f"{second.skipped['d1'][0]} training images of class c1, 5 needed"}
    assert (second.domains, second.skipped) == (["d0", "d2"], reason)
    sentences = similarity_sentences(study)
    assert sentences[-1] == f"d1 was left out 1 time: {reason['d1']}."


def test_a_measurement_with_one_domain_left_says_so(tmp_path: Path, configured: Configure) -> None:
    options = SimilarityOptions(every=1, samples_per_domain=5)
    configuration = configured(
        data="made", target="d2", backbone="small-cnn", weights="none", iterations=1, image_size=8
    )
    study = study_similarity([configuration], options, few_of_one_class(), tmp_path)
    _, second = study.runs[0].measurements
    assert (second.domains, second.within, second.across) == ([], None, None)
    summary = summarize_similarity(study)
    assert summary.measurements == 1


def test_no_class_with_enough_images_is_an_error_before_training(
    tmp_path: Path, configured: Configure
) -> None:
    options = SimilarityOptions(every=1, samples_per_domain=15)
    configuration = configured(data="made", target="d2", backbone="small-cnn", image_size=8)
    with pytest.raises(DataError, match="no class of made has 15 training images in two of"):
        study_similarity([configuration], options, few_of_one_class(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def made_study(configured: Configure) -> SimilarityStudy:
    """Two runs with two measurements each, written down."""

    def measurement(step: int, within: list[float], across: float) -> dict[str, object]:
        cosines = [[within[0], across], [across, within[1]]]
        mean = sum(within) / 2
        about = {"step": step, "label": f"c{step}", "domains": ["a", "b"], "cosines": cosines}
        return {**about, "within": mean, "across": across}

    runs = [
        {
            "seed": 0,
            "measurements": [measurement(0, [0.4, 0.6], 0.1), measurement(1, [0.2] * 2, 0.3)],
        },
        {
            "seed": 1,
            "measurements": [measurement(0, [0.6, 0.6], 0.2), measurement(1, [0.4] * 2, 0.2)],
        },
    ]
    return SimilarityStudy.model_validate(
        {
            "data": "made",
            "domains": ["a", "b"],
            "classes": ["c0", "c1"],
            "configuration": configured(),
            "options": {"every": 1},
            "runs": runs,
        }
    )


def test_the_summary_is_over_runs_of_means_over_measurements(configured: Configure) -> None:
    summary = summarize_similarity(made_study(configured))
    assert summary.within.mean == pytest.approx((0.35 + 0.5) / 2)
    assert summary.across.mean == pytest.approx(0.2)
    assert summary.difference.mean == pytest.approx((0.15 + 0.3) / 2)
    # two runs: mean ± 12.7062 |x - y| / 2
    assert summary.difference.low == pytest.approx(0.225 - 12.7062 * 0.075, abs=1e-4)
    assert (summary.higher, summary.measurements) == (3, 4)
    assert summary.pairs == [
        [pytest.approx(0.4), pytest.approx(0.2)],
        [pytest.approx(0.2), pytest.approx(0.45)],
    ]
    assert [(p.step, p.label) for p in summary.curve] == [(0, "c0"), (1, "c1")]
    assert summary.curve[0].within.mean == pytest.approx(0.55)


def test_tables_of_a_study(configured: Configure) -> None:
    study = made_study(configured)
    lines = similarity_csv(study).splitlines()
    assert lines[:4] == [
        "seed,step,class,domain,other,cosine",
        "0,0,c0,a,a,0.400000",
        "0,0,c0,a,b,0.100000",
        "0,0,c0,b,b,0.600000",
    ]
    assert len(lines) == 1 + 2 * 2 * 3
    text = re.sub(" +", " ", section_markdown(similarity_section(study)))
    assert "| within − across | 0.2250 |" in text
    assert "| a | 0.400 | 0.200 |" in text
    assert "| 0 | c0 | 0.5500 | 0.1500 |" in text
    assert "agree more within a domain (mean cosine 0.425) than across domains (0.200)" in text


def test_a_damaged_file_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "similarity.json"
    for content, words in (
        ("{", "is not JSON"),
        ('{"version": 2}', "of version 2, expected 1"),
        ('{"version": 1, "runs": 3}', "no record of gradient similarity: configuration is missing"),
    ):
        path.write_text(content)
        with pytest.raises(DataError, match=words) as caught:
            SimilarityStudy.load(tmp_path)
        assert "\n" not in str(caught.value)
