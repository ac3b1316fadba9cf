from pathlib import Path

import pytest

from gradsurgery.documents.configuration import RunConfiguration
from gradsurgery.documents.studies import SeedMeasurements, SimilarityOptions, SimilarityStudy
from gradsurgery.report.page_sections import (
    absent_section,
    configuration_section,
    relative_link,
    runs_section,
    statistics_section,
    study_sections,
    with_figures,
)
from gradsurgery.report.section import Details, Listing, Section, Table, plain_table
from gradsurgery.report.tables import comparison_table, paper_figures
from gradsurgery.results import compare_runs, take_inventory
from gradsurgery.results.tables import batches_pairs
from tests.results.records import write_failure, write_plan


@pytest.fixture
def inventory(tmp_path):
    return lambda: take_inventory([tmp_path])


def compared(inventory, model="best"):
    return compare_runs(inventory.runs, model)


def tables(section):
    """The tables of a section by caption, those that are folded away too."""
    found = {}
    waiting = list(section.blocks)
    for block in waiting:
        if isinstance(block, Details):
            waiting += block.blocks
        elif isinstance(block, Table):
            found[block.caption] = block
    return found


def texts(table):
    return [[entry.text for entry in row] for row in table.rows]


def test_a_results_table_is_sorted_by_means(written, inventory):
    for seed in range(2):
        written("deep-all", "sketch", seed, best=0.5)
        written("agr-sum", "sketch", seed, best=0.6)
    written("deep-all", "photo", 0, best=0.9)
    (table,) = compared(inventory())
    table = comparison_table(table, paper=False)
    assert list(table.columns) == ["method", "photo", "sketch", "average"]
    deep_all, agr_sum = table.rows
    assert [entry.key for entry in deep_all[1:]] == ["90.0", "50.0", None]
    assert (deep_all[1].text, deep_all[1].marks) == ("90.00", " (n=1 of 2)")
    assert [entry.strong for entry in agr_sum] == [False, False, True, False]
    assert agr_sum[1].key is None


def test_the_papers_figures_stand_below_ours(written, inventory):
    written("agr-sum", "sketch")
    (table,) = compared(inventory())
    ((_, cell),) = comparison_table(table, paper=True).rows
    paper = paper_figures()["pacs", "sketch", "agr-sum"]
    assert cell.below == f"{paper.mean:.2f} ± {paper.std:.2f}*"
    assert comparison_table(table, paper=False).rows[0][1].below == ""


def test_every_test_has_a_row(written, inventory):
    for seed in range(6):
        written("deep-all", seed=seed, best=0.5)
        written("agr-sum", seed=seed, best=0.52 + seed / 1000)
    section = statistics_section(compared(inventory()), [])
    ((caption, table),) = tables(section).items()
    assert caption == "pacs: differences from deep-all on the same seeds"
    (row,) = texts(table)
    # differences 2.0 … 2.5 points; p = 2 / 2⁶
    assert row[:3] == ["sketch", "agr-sum", "+2.25"]
    assert row[4:] == ["0.031", "0.031", "+1.00", "6", "0"]
    assert [entry.marks for entry in table.rows[0]][4:6] == ["*", "†"]
    assert not table.notes


def test_an_interval_that_contradicts_its_test_is_named(written, inventory):
    for seed in range(3):  # p = 2 / 2³, and no resample has a mean of zero or less
        written("deep-all", seed=seed, best=0.5)
        written("agr-sum", seed=seed, best=0.52 + seed / 1000)
    section = statistics_section(compared(inventory()), [])
    (table,) = tables(section).values()
    assert texts(table)[0][4] == "0.25"
    assert any("too narrow; trust p" in note for note in table.notes)


def test_what_runs_share_and_where_they_differ(written, inventory):
    written(seed=0, environment__device="cpu")
    written(seed=1, environment__device="cuda")
    found = tables(configuration_section(list(inventory().records.values())))
    assert texts(found["Environment in which the runs differ"]) == [
        ["device", "cpu (1 run), cuda (1 run)"]
    ]
    assert ["torch", "2.9.0"] in texts(found["Environment that all runs share"])
    assert ["learning rate", "1e-05"] in texts(found["Options that all runs share"])
    assert "Options in which the runs differ" not in found
    (data,) = texts(found["Data"])
    assert data == [
        "pacs",
        "art_painting (20), photo (20), sketch (20)",
        "2",
        "60",
        "0",
        "d1",
        "s1",
    ]


def test_every_run_has_its_link_and_command(written, inventory, tmp_path):
    path = written("agr-sum", seed=3, best=0.5, last=0.25)
    ((row,),) = (table.rows for table in tables(runs_section(inventory(), tmp_path)).values())
    entries = {entry.text: entry for entry in row}
    assert entries["record"].link == path.relative_to(tmp_path).as_posix()
    assert {"pacs", "sketch", "agr-sum", "3", "50.00", "25.00", "75.00", "20", "12.5"} <= set(
        entries
    )
    command = next(entry for entry in row if entry.code)
    assert command.text.startswith(
        "gradsurgery train pacs:somewhere --target=sketch --method=agr-sum --"
    )
    assert "--seed=3" in command.text.split()
    assert "--learning-rate=1e-05" in command.text


def test_links_are_addresses(tmp_path):
    page = tmp_path / "report"
    assert relative_link(tmp_path / "a b" / "100%" / "record.json", page) == (
        "../a%20b/100%25/record.json"
    )
    assert (
        relative_link(page / "javascript:x" / "record.json", page) == "javascript%3Ax/record.json"
    )


def test_nothing_failed_and_nothing_is_missing(written, inventory):
    written()
    assert absent_section(inventory()).blocks == []


def test_pairs_of_batches_need_all_else_equal(written, inventory):
    written(folder="a", configuration__batches="multi")
    written(folder="b", configuration__batches="single")
    written(folder="c", configuration__batches="single", configuration__iterations=7)
    ((multi, single),) = batches_pairs(compared(inventory()))
    assert multi.protocol["batches"] == "multi"
    assert (single.protocol["batches"], single.protocol["iterations"]) == ("single", 40)


def test_failed_and_missing_runs(written, inventory, tmp_path):
    written()
    write_plan(tmp_path, [{"directory": "runs/sketch/agr-sum/seed-0"}, {"directory": "b"}])
    write_failure(tmp_path / "c", "the loss is nan", "Traceback of it", target="photo", seed=7)
    found = tables(absent_section(inventory()))
    assert texts(found["Runs that failed"]) == [
        ["pacs:somewhere", "photo", "agr-sum", "7", "2", "the loss is nan"]
    ]
    assert texts(found["Runs that are planned and not done"]) == [
        ["pacs", "sketch", "agr-sum", "0"]
    ]


def test_what_each_of_several_sweeps_lacks(written, tmp_path, monkeypatch):
    for sweep, seed in (("one", 4), ("two", 5)):
        place = written(folder=f"all/{sweep}").parent.relative_to(tmp_path / "all" / sweep)
        runs = [{"directory": place.as_posix()}, {"directory": "pacs/lost", "seed": seed}]
        write_plan(tmp_path / "all" / sweep, runs)
    monkeypatch.chdir(tmp_path)
    found = tables(absent_section(take_inventory([Path("all")])))
    assert texts(found["Runs that are planned and not done"]) == [
        ["pacs", "sketch", "agr-sum", "4", "all/one/pacs/lost"],
        ["pacs", "sketch", "agr-sum", "5", "all/two/pacs/lost"],
    ]


def test_the_measurements_of_a_single_run_are_no_study(written, tmp_path):
    configuration = RunConfiguration(data="made", target="c")
    run = SimilarityStudy(
        configuration=configuration,
        options=SimilarityOptions(),
        data="made",
        domains=["a", "b"],
        classes=["0"],
        part=True,
        runs=[SeedMeasurements(seed=0, measurements=[])],
    )
    run.save(written().parent)
    assert study_sections([tmp_path]) == []


def test_a_study_becomes_a_section_with_its_figures(tmp_path):
    means = plain_table("Means", ["domain", "mean", "of"], [["within", "0.97", "photo"]])
    study = Section("similarity", "Similarity", [Listing(["within is above across"]), means])
    for kind in ("svg", "png"):
        content = b'<svg height="10pt" version="1" width="144pt">'
        (tmp_path / f"similarity-steps.{kind}").write_bytes(content)
    section = with_figures(study, "study-1", tmp_path / "similarity.json")
    sentences, figure, table = section.blocks
    assert (section.identity, section.title) == ("study-1", "Similarity")
    assert list(sentences.items) == ["within is above across"]
    assert figure.caption == "Similarity: steps."
    assert figure.width == 250  # two inches of 125 pixels
    assert [i for i, side in enumerate(table.alignment) if side == "left"] == [0, 2]
