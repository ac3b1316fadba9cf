"""Splits that are not the paper's."""

import json

import pytest

from gradsurgery.data import draw_split, open_source, prepare, split_of
from gradsurgery.documents.configuration import RunConfiguration
from gradsurgery.errors import ArgumentError, DataError

PARTS = ("train", "validation", "test")


@pytest.fixture
def root(make_folder, tmp_path):
    return make_folder(tmp_path / "set", each=10)


@pytest.fixture
def images(root, tmp_path):
    return prepare(open_source(str(root)), 8, tmp_path / "cache")


def split(images, **options):
    return split_of(RunConfiguration(data="x", target="photo", **options), images, seed=3)


def test_by_default_it_is_the_papers(images):
    assert split(images).identities == draw_split(images, 3, (0.7, 0.1, 0.2)).identities


def test_percentages(images):
    assert split(images, split="50/30/20").sizes() == {
        domain: {"train": 10, "validation": 6, "test": 4} for domain in ("art", "photo")
    }
    assert split(images, split="80/20/0").sizes()["art"]["test"] == 0


def test_all_images_of_the_target_are_tested_on(images):
    found, plain = split(images, test_on="all"), split(images)
    assert len(found.test["photo"]) == 20
    assert found.sizes()["art"] == plain.sizes()["art"]
    assert found.train["photo"].tolist() == plain.train["photo"].tolist()
    assert found.digest == plain.digest  # the same for all targets


def table(root, said):
    lines = ["path,label,domain,split"]
    for path in sorted(root.rglob("*.png")):
        word = said(int(path.stem))
        lines.append(f"{path.relative_to(root)},{path.parts[-2]},{path.parts[-3]},{word}")
    (root / "t.csv").write_text("\n".join(lines))
    return str(root / "t.csv")


def test_a_column_of_the_table(root, tmp_path):
    words = ["train"] * 5 + ["Val"] * 2 + ["testing"] * 2 + [""]
    images = prepare(open_source(table(root, lambda i: words[i])), 8, tmp_path / "cache")
    found = split(images, split="column")
    assert found.sizes()["art"] == {"train": 10, "validation": 4, "test": 4}
    assert [name.split("/")[-1] for name in found.identities["art"]["validation"]] == [
        "5.png", "6.png", "5.png", "6.png",
    ]  # fmt: skip
    assert [name.split("/")[-1] for name in found.unused] == ["9.png"] * 4
    assert split(images, split="column", test_on="all").sizes()["photo"]["test"] == 20
    wrong = prepare(open_source(table(root, lambda i: "third")), 8, tmp_path / "cache")
    with pytest.raises(DataError, match="split is 'third', expected train, validation"):
        split(wrong, split="column")


def test_a_column_that_is_not_there(images):
    with pytest.raises(ArgumentError, match="set has no column split"):
        split(images, split="column")


def write(folder, **lists):
    folder.mkdir(exist_ok=True)
    for name, lines in lists.items():
        (folder / f"{name}.txt").write_text("".join(f"{line}\n" for line in lines))
    return str(folder)


def test_lists_of_files(images, tmp_path):
    names = [
        f"{d}/{c}/{i}.png" for d in ("art", "photo") for c in ("cat", "dog") for i in range(10)
    ]
    folder = write(
        tmp_path / "lists",
        train=["# a comment", "", *(n for n in names if n[-5] < "6")],
        val=[f"./some/where/{n} 3" for n in names if n[-5] in "67"],
        test=[n.replace("/", "\\") for n in names if n[-5] in "89"],
    )
    found = split(images, split=folder)
    assert found.sizes()["art"] == {"train": 12, "validation": 4, "test": 4}
    assert found.identities["photo"]["test"] == [
        n for n in names if n[:5] == "photo" and n[-5] > "7"
    ]
    assert not found.unused


def test_the_lists_that_pacs_comes_with(images, tmp_path):
    """Training and validation divide a domain, and its test list has all of it."""
    lists = {}
    for domain in ("art", "photo"):
        names = [
            f"{domain}/{c}/{i}.png {k}" for k, c in enumerate(("cat", "dog"), 1) for i in range(10)
        ]
        lists[f"{domain}_train_kfold"] = [name for name in names if "/9" not in name]
        lists[f"{domain}_crossval_kfold"] = [name for name in names if "/9" in name]
        lists[f"{domain}_test_kfold"] = names
    folder = write(tmp_path / "kfold", **lists)
    assert split(images, split=folder).sizes() == {
        domain: {"train": 18, "validation": 2, "test": 0} for domain in ("art", "photo")
    }
    assert split(images, split=folder, test_on="all").sizes()["photo"]["test"] == 20


def test_the_split_of_another_run(images, tmp_path):
    drawn = draw_split(images, seed=8)
    drawn.save(tmp_path)
    found = split(images, split=str(tmp_path / "split.json"))
    assert found.identities == drawn.identities
    assert found.digest == drawn.digest


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ({"train": ["art/cat/0.png"], "val": ["art/cat/0.png"]},
         r"0\.png is a train and a validation image, in .*train\.txt, line 1 and .*val\.txt"),
        ({"train": ["art/cat/0.png", "art/dog/0.png"], "test": ["art/cat/0.png"]},
         "is a train and a test image"),
        ({"train": ["art/cat/0.png", "art/cat/77.png", "gone"]},
         r"train\.txt, line 2: art/cat/77\.png is no image of set \(and 1 more lines\)"),
        ({"first": ["art/cat/0.png"]}, "says no part, expected one of train"),
        ({"train_or_test": []}, "says test and train, expected one"),
        ({}, "holds no lists"),
        ({"train": []}, "lists no image"),
    ],
)  # fmt: skip
def test_lists_with_faults(images, tmp_path, lists, message):
    with pytest.raises(DataError, match=message) as caught:
        split(images, split=write(tmp_path / "lists", **lists))
    assert "\n" not in str(caught.value)


def test_what_is_no_split(images, tmp_path):
    with pytest.raises(ArgumentError, match="is no percentages"):
        split(images, split=str(tmp_path / "nowhere"))
    with pytest.raises(ArgumentError, match="sum to 100, as 70/10/20, found '80/10/5'"):
        split(images, split="80/10/5")
    with pytest.raises(ArgumentError, match="leave --split-per-run out"):
        split(images, split="column", split_per_run=True)
    (tmp_path / "x.json").write_text(json.dumps({"version": 1}))
    with pytest.raises(DataError, match="is no split"):
        split(images, split=str(tmp_path / "x.json"))
