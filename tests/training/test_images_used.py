"""What a run makes of its data set, from its options to its record."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from gradsurgery.algorithms.methods import build_method
from gradsurgery.data import open_source
from gradsurgery.documents.configuration import RunConfiguration
from gradsurgery.documents.plan import Plan
from gradsurgery.documents.record import Record
from gradsurgery.errors import ArgumentError, DataError
from gradsurgery.report.page_sections import repeat_command
from gradsurgery.sweep.runs import opened_sources, planned
from gradsurgery.training import train
from gradsurgery.training.images_used import check_gaps


@pytest.fixture
def root(tmp_path):
    """a, b and c with ten cats, cows and dogs each; b has no cow."""
    random = np.random.default_rng(0)
    for domain in "abc":
        for label in ("cat", "cow", "dog"):
            folder = tmp_path / "set" / domain / label
            folder.mkdir(parents=True)
            for i in range(10):
                pixels = random.integers(0, 256, (20, 26, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    shutil.rmtree(tmp_path / "set/b/cow")
    return tmp_path / "set"


def run(root, notes=None, target="c", **options):
    configuration = RunConfiguration(
        **{
            "data": str(root),
            "target": target,
            "backbone": "small-cnn",
            "iterations": 2,
            "batch_size": 4,
            "image_size": 32,
            "device": "cpu",
            "threads": 1,
            "method": "deep-all",
            **options,
        }
    )
    report = None if notes is None else lambda p: notes.append(p.note) if p.note else None
    folder = root.parent / "runs" / str(len(list(root.parent.glob("runs/*"))))
    return train(configuration, folder, report, root.parent / "cache"), folder


def test_gaps_are_refused_left_out_or_trained_around(root):
    with pytest.raises(DataError, match="cow has no image in domain b"):
        run(root)
    record, folder = run(root, classes="common")
    assert record.data.classes == ["cat", "dog"]
    assert [file.identity for file in record.data.left_out] == ["class cow"]
    record, _ = run(root, classes="all")
    assert record.data.classes == ["cat", "cow", "dog"]
    assert record.data.class_images["b"] == [10, 0, 10]
    assert record.split.sizes["c"].test == 6
    assert Record.load(folder).configuration.classes == "common"


def test_black_images_and_groups_in_several_domains_are_told_and_recorded(root):
    """12 bits in a file of 16 are 4,095 / 257, gray 15; one bright pixel is enough to be seen."""
    for name, bright in (("0", 4095), ("1", 65535)):
        gray = np.full((64, 64), 4095, dtype=np.uint16)
        gray[20:30, 20:30] = bright
        Image.fromarray(gray).save(root / f"a/cat/{name}.png")
    notes = []
    record, _ = run(root, notes, classes="common", layout="{domain}/{class}/{group}.png")
    dark, shared = record.data.doubts
    assert dark.startswith("1 image is nearly black all over, as a/cat/a/cat/0.png; values of 12")
    assert shared.startswith("10 groups are in several domains by name, as 0 in a and b and c:")
    assert {dark.removesuffix("."), shared.removesuffix(".")} <= set(notes)
    assert run(root, classes="common", data=str(root), image_size=8)[0].data.doubts == []


@pytest.mark.parametrize("method", ["agr-sum", "agr-rand", "agr-ema", "erm+and-mask"])
def test_a_class_that_one_source_lacks_moves_by_the_others(root, method):
    """Plain SGD from known weights: without a say of b, cow's row moves in the first step."""
    learned = []
    options = {"classes": "all", "method": method, "optimizer": "sgd", "iterations": 1}
    for rate in (1e-30, 1.0):
        _, folder = run(root, learning_rate=rate, weight_decay=0.0, **options)
        learned.append(load_file(folder / "model.safetensors"))
    before, after = (weights["classifier.weight"] for weights in learned)
    assert (before != after).any(1).tolist() == [True, True, True]


def test_only_rules_that_ask_all_domains_need_to_know_the_last_layer(root, monkeypatch):
    monkeypatch.setattr("gradsurgery.training.images_used._rows_of_classes", lambda *_: [])
    for method in ("deep-all", "pcgrad"):
        record, _ = run(root, classes="all", method=method)
        assert record.data.classes == ["cat", "cow", "dog"]
    with pytest.raises(ArgumentError, match="the last layer of small-cnn is not known"):
        run(root, classes="all", method="agr-sum")


@pytest.mark.parametrize(
    ("method", "settings"), [("erm+sand-mask", {}), ("erm+and-mask", {"and-mask.tau": 0.3})]
)
def test_rules_that_weigh_votes_refuse_a_gap_before_any_run(root, method, settings):
    with pytest.raises(ArgumentError, match="some have none on class cow, which domain b lacks"):
        run(root, classes="all", method=method, settings=settings)
    plan = Plan(
        data=[str(root)],
        methods=["deep-all", method],
        seeds=[0],
        options={"classes": "all"} | ({"settings": settings} if settings else {}),
    )
    with pytest.raises(ArgumentError, match="some have none on class cow"):
        planned(plan, opened_sources(plan))


def test_a_gap_of_the_target_is_no_gap_in_training(root):
    record, _ = run(root, classes="all", method="agr-sum", target="b")
    assert record.result.last.test_accuracy.keys() == {"a", "b", "c"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_smoothing": 0.1}, "label smoothing would raise class cow"),
        ({"batches": "single"}, "batches single is for domains with the same classes"),
    ],
)
def test_what_does_not_go_with_a_gap(root, options, message):
    with pytest.raises(ArgumentError, match=message):
        run(root, classes="all", **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "irm", "class_weights": "balanced"}, "irm has losses that weights"),
        ({"batches": "single", "balance": "classes"}, "leave balance out"),
        ({"split": "80/10/5"}, "sum to 100"),
        ({"layout": "{domain}/{name}"}, "does not say the class"),
    ],
)
def test_options_that_mean_nothing_together(root, options, message):
    with pytest.raises(ArgumentError, match=message):
        run(root, classes="common", **options)


def test_a_copy_of_a_source_as_target_is_said_loudly(root):
    shutil.rmtree(root / "c")
    shutil.copytree(root / "a", root / "c")
    notes = []
    record, _ = run(root, notes, classes="common", test_on="all")
    assert record.data.identical.of_target == 14  # 70 % of the 20 of two classes
    assert record.data.identical.across_domains == {"a and c": 20}
    assert notes[0].startswith("14 of the 20 test images of c are identical to images that are")
    assert "THE ACCURACY SAYS NOTHING" in notes[0]
    with pytest.raises(DataError, match="no image of c is left for testing"):
        run(root, classes="common", test_on="all", drop_duplicates=True)


def test_contradictory_copies_and_images_in_no_part_are_said(root):
    shutil.copy(root / "a/cat/0.png", root / "a/dog/x.png")
    notes = []
    run(root, notes, classes="common")
    assert "a picture is used under two classes, as a/cat/0.png and a/dog/x.png" in notes
    notes.clear()
    record, _ = run(root, notes, classes="common", drop_duplicates=True)
    assert record.split.unused == 2
    assert any(note.startswith("2 images are in no part of the split") for note in notes)


def test_a_class_that_only_the_target_has_is_said(root):
    shutil.rmtree(root / "a/cow")
    notes = []
    record, _ = run(root, notes, classes="all")
    assert notes == ["no source domain has training images of cow: that is not learned"]
    assert record.data.class_images["a"] == [10, 0, 10]


def test_test_images_of_a_source_may_be_missing(root):
    record, _ = run(root, classes="common", split="80/20/0", test_on="all")
    assert record.result.best.test_accuracy.keys() == {"c"}
    assert record.split.sizes["c"].test == 20
    with pytest.raises(DataError, match=r"80/20/0 .* no test images of c; give .* above 0.* all"):
        run(root, classes="common", split="80/20/0")


def test_a_split_without_validation_images_is_told_by_its_percentages(root):
    with pytest.raises(DataError, match=r"the split 60/0/40 .* validation .* percentage above 0"):
        run(root, classes="common", split="60/0/40")


def test_lists_that_lack_a_part_are_refused_before_an_image_is_decoded(root):
    """DomainNet comes with lists of training and of test images alone."""
    names = sorted(path.relative_to(root).as_posix() for path in root.glob("*/[cd]*[tg]/*.png"))
    lists = root.parent / "lists"
    lists.mkdir()
    for domain in "abc":
        own = [name for name in names if name.startswith(domain)]
        (lists / f"{domain}_train.txt").write_text("".join(f"{name} 0\n" for name in own[::2]))
        (lists / f"{domain}_test.txt").write_text("".join(f"{name} 0\n" for name in own[1::2]))
    for options in ({}, {"drop_duplicates": True}):
        with pytest.raises(DataError, match="has no validation images of the source domains"):
            run(root, classes="common", split=str(lists), **options)
    (lists / "a_train.txt").rename(lists / "a_val.txt")
    with pytest.raises(DataError, match="no image of domain a is for training"):
        run(root, classes="common", split=str(lists))
    (lists / "a_val.txt").rename(lists / "a_train.txt")
    (lists / "b_test.txt").rename(lists / "b_val.txt")
    (lists / "c_test.txt").unlink()
    with pytest.raises(DataError, match="has no test images of c; name some, or test on all"):
        run(root, classes="common", split=str(lists))
    assert not (root.parent / "cache").exists()
    record, _ = run(root, classes="common", split=str(lists), test_on="all")
    assert record.split.sizes["c"].test == 20


def test_balance_and_weights_change_the_run_and_are_continued(root):
    plain, balanced, weighted = (
        run(root, classes="all", **options)[0].curves.train_loss
        for options in ({}, {"balance": "classes"}, {"class_weights": "balanced"})
    )
    assert plain != balanced
    again = run(root, classes="all", balance="classes")[0]
    assert again.curves.train_loss == balanced
    assert len(weighted) == 1


def test_a_plan_reads_its_data_as_its_options_say(root, tmp_path):
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in root.rglob("*.png"):
        shutil.copy(path, flat / f"{path.parts[-2]}-{path.parts[-3]}-{path.stem}.png")
    options = {"layout": "{class}-{domain}-{id}.png", "classes": "common"}
    plan = Plan(data=[str(flat)], methods=["deep-all"], seeds=[0], options=options)
    sources = opened_sources(plan)
    assert sources[str(flat)].classes == ("cat", "dog")
    runs = planned(plan, sources)
    assert {run.configuration.target for run in runs} == {"a", "b", "c"}
    assert all(run.configuration.layout == options["layout"] for run in runs)
    other = plan.model_copy(update={"options": {**options, "classes": "all"}})
    elsewhere = {run.directory for run in planned(other, opened_sources(other))}
    assert not elsewhere & {run.directory for run in runs}


def test_a_grid_may_vary_what_becomes_of_gaps(root):
    def classes_of(method, *ways):
        plan = Plan(
            data=[str(root)],
            methods=[method],
            targets=["c"],
            seeds=[0],
            grid={"classes": list(ways)},
        )
        return [run.configuration.classes for run in planned(plan, opened_sources(plan))]

    assert classes_of("deep-all", "common", "all") == ["common", "all"]
    assert classes_of("erm+sand-mask", "common") == ["common"]
    with pytest.raises(ArgumentError, match="some have none on class cow"):
        classes_of("erm+sand-mask", "common", "all")
    with pytest.raises(DataError, match="cow has no image in domain b"):
        classes_of("deep-all", "common", "same")


def test_the_command_of_a_run_repeats_how_its_data_is_read():
    configuration = RunConfiguration(
        data="t.csv", target="c", columns="label=the species,domain=camera", split="column"
    )
    command = repeat_command(configuration)
    assert "'--columns=domain=camera,label=the species'" in command
    assert "--split=column" in command
    assert "--layout" not in command


def test_what_a_model_file_says_of_resizing(root):
    from gradsurgery import load_model

    _, folder = run(root, classes="common", resize="crop")
    model = load_model(folder)
    assert model.about.resize == "crop"
    picture = root / "c/cat/0.png"
    source = open_source(str(root), classes="common", resize="crop")
    expected = source.decode(0, picture.read_bytes(), 32)
    assert np.array_equal(model.preprocess.pixels(picture), expected)


def test_without_a_target_all_domains_are_used(root):
    shutil.copy(root / "a/cat/0.png", root / "c/cat/x.png")
    notes = []
    record, _ = run(root, notes, target="none", classes="common")
    assert record.result.best.target_accuracy is None
    assert record.data.identical.of_target == 0
    assert record.data.identical.across_domains == {"a and c": 1}
    gap, _ = run(root, target="none", classes="all", method="pcgrad", test_on="all")
    assert gap.result.best.test_accuracy.keys() == {"a", "b", "c"}


def test_a_picture_that_cannot_be_decoded_is_said(root):
    (root / "a/dog/3.png").write_bytes(b"no picture")
    notes = []
    run(root, notes, skip_bad=True, classes="all")
    said = "1 image is left out that cannot be decoded, as a/dog/3.png: it is not an image"
    assert any(note.startswith(said) for note in notes)


def test_classes_that_domains_spell_in_their_own_way_are_said(root):
    (root / "a/cow").rename(root / "a/Cow")
    notes = []
    run(root, notes, classes="all")
    assert "classes Cow and cow differ in spelling alone: if they are one, rename them" in notes


def test_parts_of_a_split_that_stand_where_domains_do_are_said(root):
    said = "domains Val, test are called as parts of a split, which are no domains"
    notes = []
    (root / "a").rename(root / "test")
    run(root, notes, target="c", classes="all")
    assert said not in notes  # one such name may well be that of a place
    (root / "b").rename(root / "Val")
    run(root, notes, target="c", classes="all")
    assert said in notes


def test_gaps_are_not_gone_through_for_a_rule_that_bears_them():
    """A sweep asks for each of its runs, and domains and classes have many gaps between them."""

    class Untouched(list):
        def __iter__(self):
            raise AssertionError("went through the gaps")

    algorithm = build_method("agr-sum", generator=torch.Generator(), make_optimizer=torch.optim.SGD)
    plain = RunConfiguration(data="set", target="c", method="agr-sum", classes="all")
    check_gaps(algorithm, plain, ("a", "b", "c"), Untouched())
    smooth = plain.model_copy(update={"label_smoothing": 0.1})
    gaps = [("a", "dog"), ("b", "dog"), ("c", "cow"), ("b", "cat")]  # c is held out, no dog at all
    with pytest.raises(ArgumentError, match="raise class cat, which domain b lacks; choose"):
        check_gaps(algorithm, smooth, ("a", "b", "c"), gaps)
    check_gaps(algorithm, smooth, ("a", "b", "c"), gaps[:3])


def test_it_is_said_how_many_domains_leave_nothing_to_test_on(root):
    """A plan with hundreds of targets is not to be mended one by one."""
    for domain in "ab":
        for label in ("cat", "dog"):
            for file in sorted((root / domain / label).iterdir())[1:]:
                file.unlink()
    shutil.rmtree(root / "a/cow")
    with pytest.raises(DataError, match=r"no image of a is left for testing \(nor of 1 more"):
        run(root, classes="common", target="a")
