"""Sentences, tables and figures of a classifier, from counts that are worked out by hand."""

import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from gradsurgery.documents.deployment import DomainEvaluation, EvaluationFile
from gradsurgery.documents.record import Record
from gradsurgery.documents.tally import Tally
from gradsurgery.report import evaluation_text as text
from gradsurgery.report.figures.heat_maps import confusion_figure, reliability_figure
from gradsurgery.report.rendering import section_markdown
from gradsurgery.report.report import write_evaluation
from gradsurgery.report.run_text import (
    never_predicted,
    recall_table,
    recalls_section,
    run_blocks,
)
from gradsurgery.report.section import Block, Table
from gradsurgery.results.runs import runs_frame
from gradsurgery.results.tables import compare_runs

RECORD = Path(__file__).parent.parent / "documents" / "version1" / "runs" / "a" / "record.json"
SURE = Tally(confusion=["0:9 1:1", "1:5", ""], calibration=["14 15 14 0.98"], log_loss=0.25)
POOR = Tally(confusion=["0:1 1:3", "0:1", "0:5"])


def evaluation(**changed) -> EvaluationFile:
    domains = {"art": DomainEvaluation(tally=SURE), "photo": DomainEvaluation(tally=POOR)}
    about = {"model": "run/model.safetensors", "model_digest": "0", "classes": ["a", "b", "c"]}
    about |= {"trained_data": "shop", "trained_on": ["art"], "target": "photo", "data": "shop"}
    return EvaluationFile(**about | {"domains": domains} | changed)


def told(**changed) -> str:
    return " ".join(text.evaluation_sentences(evaluation(**changed)))


def test_names_show_as_they_are_in_markdown():
    names = ["*a*", "[b](http://c)", "<b>d</b>"]
    shown = MarkdownIt().render(
        section_markdown(text.evaluation_section(evaluation(classes=names)))
    )
    assert not re.search("<em>|<a |<b>", shown)
    assert "Never predicted on photo: &lt;b&gt;d&lt;/b&gt;." in shown


def test_classes_that_are_numbers_are_shown_by_their_value():
    names = ["1", "10", "2"]  # as a folder has them; SURE: 9 and 1 of the first, 5 of the second
    told = evaluation(classes=names, domains={"art": DomainEvaluation(tally=SURE)})
    *_, by_class, confusion = text.evaluation_tables(told)
    rows = [[entry.text for entry in row] for row in by_class.rows]
    assert [row[:3] for row in rows] == [["1", "10", "9"], ["2", "0", "0"], ["10", "5", "6"]]
    assert confusion.columns == ["class", "1", "2", "10"]
    rows = [[entry.text for entry in row] for row in confusion.rows]
    assert rows == [["1", "9", "–", "1"], ["2", "–", "–", "–"], ["10", "–", "–", "5"]]
    axes = confusion_figure(SURE, names, "shop").axes[0]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["1 (10)", "2 (0)", "10 (5)"]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["1", "2", "10"]


def test_a_log_loss_of_one_image_has_no_interval():
    one = Tally(confusion=["0:1", "", ""], log_loss=0.25, log_loss_deviation=0.0)
    _, confidence, *_ = text.evaluation_tables(
        evaluation(domains={"art": DomainEvaluation(tally=one)})
    )
    assert [entry.text for entry in confidence.rows[0]][2] == "0.250"


def test_what_came_out_is_said_with_the_worst_domain():
    said = told()
    assert "60.0 % [40.7, 76.6] of 25 images right" in said  # 15 of 25, Wilson
    assert "Worst domain: photo, 10.0 % [1.8, 40.4]." in said
    assert "It was trained on art of shop; photo was held out." in said
    assert "Never predicted on photo: c." in said
    assert "Of art most images may have been trained on" in said


def test_a_model_that_knows_no_more_than_the_largest_class_is_told():
    sure = told(domains={"art": DomainEvaluation(tally=SURE)})  # 14 of 15, [70.2, …]; 10 are of a
    assert "No better" not in sure
    chance = "No better than to name the most frequent class for every image (56.0% right), as far"
    assert f"{chance} as 25 images can tell." in told()  # 60 % [40.7, …], and 14 of 25 are of a


def test_groups_are_counted_and_widen_the_intervals():
    groups = ["0>0@14:9", "0>1@14:1", "1>1@14:5"]
    found = evaluation(domains={"art": DomainEvaluation(tally=in_groups(SURE, groups))})
    said = " ".join(text.evaluation_sentences(found))
    assert "The images are of 3 groups, and those of a group are not independent" in said
    assert "[70.2" not in text.evaluation_sentences(found)[0]  # Wilson's of 15 images
    domains, confidence, *_ = text.evaluation_tables(found)
    assert domains.columns[:3] == ["domain", "images", "groups"]
    assert [each.text for each in domains.rows[0][:3]] == ["art", "15", "3"]
    assert "Rao & Scott" in confidence.notes[0]
    alone = evaluation(domains={"art": DomainEvaluation(tally=in_groups(SURE, [" ".join(groups)]))})
    sentences = text.evaluation_sentences(alone)
    assert "93.3 % [0.0, 100.0] of 15 images right" in sentences[0]
    assert "All images are of one group: what they say of others is not known." in sentences
    assert "(66.7% right), as far as 15 images of 1 group can tell" in sentences[1]
    assert not any("group" in line for line in text.evaluation_sentences(evaluation()))


def in_groups(tally: Tally, groups: list[str]) -> Tally:
    return Tally.model_validate(tally.model_dump() | {"groups": groups, "log_loss": None})


def test_what_was_trained_on_and_is_unknown_is_said():
    seen = DomainEvaluation(tally=SURE, seen=7, unknown={"d": 2, "e": 1})
    said = told(domains={"art": seen})
    assert "7 images of these were trained on" in said
    assert "ATTENTION" not in said
    many = DomainEvaluation(tally=SURE, seen=8)  # of 15
    assert "ATTENTION: 8 images of these were trained on" in told(domains={"art": many})
    assert "in art: 3 images, d (2) and e (1)" in said
    assert "does not say which domains" in told(trained_on=None)


def test_a_domain_that_the_initial_weights_knew_is_no_unseen_one():
    known = {"trained_before": ["art", "photo"]}
    attention = "ATTENTION: the initial weights had been trained on photo, so that the accuracy"
    said = told(**known)
    assert attention in said
    assert "Of art most images may have been trained on" in said
    counted = {
        "art": DomainEvaluation(tally=SURE, seen=0),
        "photo": DomainEvaluation(tally=POOR, seen=0),  # by the split of the last run
    }
    assert attention in told(domains=counted, **known)
    assert "ATTENTION" not in told(domains={"art": DomainEvaluation(tally=SURE)}, **known)
    assert "ATTENTION" not in told(data="other", **known)


def test_tables_have_the_figures_of_every_domain_and_class():
    domains, confidence, classes, confusion = text.evaluation_tables(evaluation())
    assert [row[0].text for row in domains.rows] == ["art", "photo", "all domains"]
    assert domains.rows[0][2].text.startswith("93.3 [")
    assert [row[1].text for row in confidence.rows] == ["yes", "no", "–"]
    assert classes.rows[0][3].text.startswith("71.4 [")  # 10 of 14
    assert classes.rows[2][3].text.startswith("0.0 [")
    assert classes.rows[2][4].text == "–"
    assert [entry.text for entry in confusion.rows[0]] == ["a", "10", "4", "–"]


def test_a_domain_without_an_image_of_a_known_class_has_no_figures():
    empty = DomainEvaluation(tally=Tally(confusion=["", "", ""]), unknown={"z": 4})
    domains = {"art": DomainEvaluation(tally=SURE), "none": empty}
    tables = text.evaluation_tables(evaluation(domains=domains))
    assert [row[0].text for row in tables[0].rows] == ["art"]


def test_a_run_that_names_one_class_for_all_is_told(record):
    classes, target = len(record.data.classes), record.configuration.target
    assert text.chance_sentences(record) == []
    record.result.best.tests[target] = Tally(confusion=["0:4"] * classes)
    share, images = f"{1 / classes:.1%}", 4 * classes
    (said,) = text.chance_sentences(record)
    assert said == (
        f"No better on {target} than to name the most frequent class for every image ({share} "
        f"right), as far as {images} images can tell."
    )
    record.configuration = record.configuration.model_copy(update={"target": "none"})
    assert text.chance_sentences(record) == []  # of all domains
    record.result.best.tests = {target: Tally(confusion=["0:4"] * classes)}
    (said,) = text.chance_sentences(record)
    assert said.startswith("No better than to name")


def recalls_of(*found: Record) -> Sequence[Block]:
    records = {Path(f"{i}/record.json"): record for i, record in enumerate(found)}
    return recalls_section(compare_runs(runs_frame(records)), records).blocks


@pytest.fixture
def record() -> Record:
    record = Record.load(RECORD)
    classes = len(record.data.classes)
    rows = [f"{k}:3 0:1" if k else "0:4" for k in range(classes)]
    rows[-1] = "0:5"
    for model, last in ((record.result.best, rows[-1]), (record.result.last, f"{classes - 1}:5")):
        tally = Tally(confusion=[*rows[:-1], last])
        model.tests = dict.fromkeys(record.data.domains, tally)
    return record


def test_a_run_s_recalls_are_those_of_both_models(record):
    table = recall_table(record)
    assert [row[1].text for row in table.rows[:2]] == ["100.0 / 100.0", "75.0 / 75.0"]
    assert table.rows[-1][1].text == "0.0 / 100.0"
    assert table.columns[-1].endswith("(held out)") or "(held out)" in " ".join(table.columns)
    assert never_predicted(record) == [record.data.classes[-1]]


def test_recalls_of_classes_that_are_numbers_are_by_their_value(record):
    before = recall_table(record)
    count = len(record.data.classes)
    record.data.classes = [str(count - k) for k in range(count)]
    after = recall_table(record)
    assert [row[0].text for row in after.rows] == [str(1 + k) for k in range(count)]
    assert [row[1:] for row in after.rows] == [row[1:] for row in reversed(before.rows)]


def test_the_report_has_the_mean_recall_over_the_runs(record):
    other = record.model_copy(deep=True)
    other.result.best.tests = dict(other.result.last.tests)
    other.configuration = other.configuration.model_copy(update={"seed": 99})
    listing, table = recalls_of(record, other)
    target = record.configuration.target
    assert f"never predicted on {target}" in listing.items[0]
    assert "in 1 of 2 runs" in listing.items[0]
    assert table.rows[-1][1].text == "50.0 / 100.0"


def test_runs_with_other_classes_are_in_a_table_of_their_own(record):
    fewer = record.model_copy(deep=True)
    fewer.configuration = fewer.configuration.model_copy(update={"classes": "common"})
    fewer.data.digest = "0" * 64
    fewer.data.classes = record.data.classes[:2]
    fewer.data.class_images = {}
    for model in (fewer.result.best, fewer.result.last):
        model.tests = dict.fromkeys(fewer.data.domains, Tally(confusion=["0:4", "0:1 1:1"]))
    *_, common, whole = recalls_of(record, fewer)
    assert [row[0].text for row in whole.rows] == record.data.classes
    assert "classes common" in common.caption
    shown = [[entry.text for entry in row] for row in common.rows]
    first, second = record.data.classes[:2]
    assert shown == [[first, "100.0 / 100.0"], [second, "50.0 / 50.0"]]


def test_a_record_of_before_has_no_recalls():
    record = Record.load(RECORD)
    assert recall_table(record) is None
    assert never_predicted(record) == []
    assert recalls_of(record) == []


def test_figures_and_tables_are_written(tmp_path):
    write_evaluation(evaluation(), tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {
        "evaluation.json",
        "evaluation.md",
        "evaluation-confusion.pdf",
        "evaluation-confusion.png",
        "evaluation-confusion.svg",
    }  # calibration is not known of one of the domains
    assert "Worst domain: photo" in (tmp_path / "evaluation.md").read_text()
    write_evaluation(evaluation(domains={"art": DomainEvaluation(tally=SURE)}), tmp_path / "art")
    assert (tmp_path / "art" / "evaluation-reliability.svg").exists()


def test_the_picture_of_the_matrix_has_the_per_cent_of_each_class():
    figure = confusion_figure(SURE, ["a", "b", "c"], "shop")
    texts = [each.get_text() for each in figure.axes[0].texts]
    assert texts == ["90", "10", "–", "–", "100", "–", "–", "–", "–"]


def test_the_diagram_has_accuracy_over_confidence():
    figure = reliability_figure(SURE, "shop")
    points = figure.axes[0].lines[1].get_xydata()
    assert points[0].tolist() == pytest.approx([0.98, 14 / 15])


def against(**changed) -> EvaluationFile:
    """Of 400 images of art the model has 24 right that the other has not, and lacks 8; of photo
    it has none more and lacks 9 of 100.
    """  # fmt: skip
    art, photo = Tally(confusion=["0:30 1:24", "0:8 1:338"]), Tally(confusion=["0:11", "0:9 1:80"])
    domains = {
        "art": DomainEvaluation(tally=SURE, seen=0, paired=art),
        "photo": DomainEvaluation(tally=POOR, seen=0, paired=photo),
    }
    return evaluation(**{"domains": domains, "against": other()} | changed)


def other(**changed) -> EvaluationFile:
    domains = {name: DomainEvaluation(tally=POOR, seen=0) for name in ("art", "photo")}
    return evaluation(model="old/model.safetensors", **{"domains": domains} | changed)


def test_which_of_two_models_is_better_is_said_first_on_all_and_by_domain():
    said = text.evaluation_section(against()).sentences
    # 362 + 80 and 346 + 89 of 500; 25 / 502 - 18 / 502 +- 1.96 sqrt((43 / 502 - (7 / 502)^2) / 502)
    assert said[0].startswith(
        "run/model.safetensors and old/model.safetensors are not told apart: 88.4 % against 87.0 % "
        "of 500 images right, +1.4 points [-1.2, +4.0]; 24 only the first has right, 17 only the "
        "second."
    )
    assert said[1] == "By domain: better on art; worse on photo."
    assert said[2].startswith("old/model.safetensors was trained on art of shop; photo was held")
    table, domains, *_ = text.evaluation_tables(against())
    assert table.caption == "Against old/model.safetensors, by domain"
    shown = [[entry.text for entry in row] for row in table.rows]
    assert [row[:4] for row in shown] == [
        ["art", "400", "90.5", "86.5"],
        ["photo", "100", "80.0", "89.0"],
        ["all domains", "500", "88.4", "87.0"],
    ]
    assert [row[5:] for row in shown] == [
        ["24 / 8", "better"],
        ["0 / 9", "worse"],
        ["24 / 17", "–"],
    ]
    assert shown[1][4].startswith("-9.0 [-1")
    assert domains.caption == "By domain"


def test_a_better_and_a_worse_model_are_said_so():
    paired = Tally(confusion=["0:30 1:24", "0:8 1:338"])
    art = {"art": DomainEvaluation(tally=SURE, seen=0, paired=paired)}
    said = text.evaluation_section(against(domains=art)).sentences
    assert said[0].startswith("run/model.safetensors is better than old/model.safetensors: 90.5 %")
    assert not any(sentence.startswith("By domain") for sentence in said)
    assert len(text.evaluation_tables(against(domains=art))[0].rows) == 1
    paired = Tally(confusion=["0:30 1:8", "0:24 1:338"])
    art = {"art": DomainEvaluation(tally=SURE, seen=0, paired=paired)}
    (told, *_) = text.against_sentences(against(domains=art))
    assert told.startswith("run/model.safetensors is worse than old/model.safetensors: 86.5 %")
    assert "-4.0 points [-6" in told


def test_images_that_one_of_two_models_knows_are_said_to_be_left_out():
    paired = Tally(confusion=["0:2 1:3", "0:1 1:4"])
    half = {"art": DomainEvaluation(tally=SURE, seen=5, paired=paired)}  # of 15
    said = text.against_sentences(against(domains=half))
    assert "Left out of the comparison: 5 images that one of the two was trained on." in said
    every = {"art": DomainEvaluation(tally=SURE, seen=15, paired=Tally(confusion=["", ""]))}
    said = text.against_sentences(against(domains=every))
    none = "Not compared with old/model.safetensors, for want of images that are new to both: give"
    assert said[0] == f"{none} others than these 15 images that one of the two was trained on."
    assert text.evaluation_tables(against(domains=every))[0].caption == "By domain"
    unknown = other(domains={"art": DomainEvaluation(tally=POOR)})
    said = " ".join(text.against_sentences(against(against=unknown)))
    assert "Whether old/model.safetensors was trained on some of these images is not known" in said
    assert "Whether run" not in said


def test_of_many_domains_the_first_are_named():
    domains = {f"camera {n}": evaluation().domains["photo"] for n in range(40)}
    said = text.evaluation_sentences(evaluation(domains=domains, trained_on=list(domains)))
    assert len(said) < 20
    assert any("camera 19 and 20 more of" in sentence for sentence in said)


def test_a_run_on_many_domains_is_shown_by_its_target_and_the_worst_sources(record):
    target = record.configuration.target
    record.data.domains = [target, *(f"camera {n}" for n in range(30))]
    for model in (record.result.best, record.result.last):
        model.test_accuracy = {d: n / 100 for n, d in enumerate(record.data.domains)}
        model.tests = dict.fromkeys(record.data.domains, model.tests[target])
    tables = [block for block in run_blocks(record) if isinstance(block, Table)]
    accuracies = next(table for table in tables if "best" in table.columns)
    named = [row[0].text for row in accuracies.rows if row[0].text.startswith("test ")]
    assert named == [f"test camera {n}" for n in range(10)]
    assert accuracies.notes == [
        "Of the 30 source domains the 10 with the lowest accuracies; record.json has all."
    ]
    recalls = recall_table(record)
    assert recalls.columns == ["class", f"{target} (held out)"]
    assert "all 31 domains" in recalls.notes[0]
