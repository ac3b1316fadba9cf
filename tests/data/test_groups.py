"""Images of one patient, say, stay in one part of a split."""

from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradsurgery.data import draw_split, open_source, prepare, split_of
from gradsurgery.documents.configuration import RunConfiguration
from gradsurgery.errors import DataError
from gradsurgery.training.images_used import ImagesUsed, check_divided

LAYOUT = "{domain}/{class}/{group}_{id}.png"


@pytest.fixture
def root(make_folder, tmp_path):
    """Ten images a class and domain: p0_0, p0_1, p1_2, …, of five patients each."""
    root = make_folder(tmp_path / "set", each=10)
    for path in root.rglob("*.png"):
        path.rename(path.with_name(f"p{int(path.stem) // 2}_{path.stem}.png"))
    return root


def table(root, name="t.csv", group="patient"):
    lines = [f"path,label,domain,{group}"]
    for path in sorted(root.rglob("*.png")):
        patient = path.stem.partition("_")[0]
        lines.append(f"{path.relative_to(root)},{path.parts[-2]},{path.parts[-3]},{patient}")
    (root / name).write_text("\n".join(lines))
    return str(root / name)


def parts_of_groups(images, split):
    """The parts in which each (domain, group) has images."""
    found = defaultdict(set)
    for part in ("train", "validation", "test"):
        for domain, positions in getattr(split, part).items():
            for i in positions.tolist():
                found[domain, images.groups[i]].add(part)
    return found


def options(**given):
    return RunConfiguration(**{"data": "x", "target": "photo"} | given)


@pytest.mark.parametrize("way", ["layout", "table", "parquet"])
def test_no_group_is_divided(root, tmp_path, way):
    if way == "layout":
        source = open_source(str(root), layout=LAYOUT)
    else:
        place = table(root)
        if way == "parquet":
            rows = [line.split(",") for line in (root / "t.csv").read_text().split("\n")]
            place = str(root / "t.parquet")
            cells = {name: list(cells) for name, *cells in zip(*rows, strict=True)}
            pq.write_table(pa.table(cells), place)
        source = open_source(place, columns={"group": "patient", "path": "path"})
    images = prepare(source, 8, tmp_path / "cache")
    split = split_of(options(), images, seed=3)
    found = parts_of_groups(images, split)
    assert len(found) == 10  # a patient has cats and dogs
    assert all(len(parts) == 1 for parts in found.values())
    # 20 images of five patients of four: 14, 2 and 4 are nearest to 12, 4 and 4.
    assert split.sizes()["art"] == {"train": 12, "validation": 4, "test": 4}
    again = prepare(source, 8, tmp_path / "cache")  # out of the cache
    assert split_of(options(), again, seed=3).identities == split.identities
    others = {split_of(options(), images, seed=seed).digest for seed in range(6)}
    assert len(others) > 1


def test_a_column_is_for_groups_only_where_it_is_named(root):
    place = table(root, group="group")
    assert open_source(place).groups is None
    named = RunConfiguration(data="x", target="y", columns="group=group")
    assert open_source(place, **named.reading).groups is not None
    with pytest.raises(DataError, match=r"has no column ward.*--columns, as group=group"):
        open_source(place, columns={"group": "ward"})


def test_a_split_of_ones_own_divides_no_group_either(root, tmp_path):
    place = table(root)
    lines = (root / "t.csv").read_text().split("\n")
    said = [f"{line},{'test' if 'art/cat/p0_1' in line else 'train'}" for line in lines[1:]]
    (root / "t.csv").write_text("\n".join([lines[0] + ",split", *said]))
    columns = {"group": "patient"}
    images = prepare(open_source(place, columns=columns), 8, tmp_path / "cache")
    with pytest.raises(
        DataError, match=r"group p0 of art is divided: .* is a t\w+ image and .* a t\w+"
    ):
        split_of(options(split="column"), images, 0)
    whole = replace(images, groups=None)
    assert len(split_of(options(split="column"), whole, 0).test["art"]) == 1


def test_images_without_a_group_are_one_each(root, tmp_path):
    place = table(root)
    text = (root / "t.csv").read_text()
    (root / "t.csv").write_text(text.replace(",p0", ","))
    images = prepare(open_source(place, columns={"group": "patient"}), 8, tmp_path / "cache")
    assert images.groups.count(None) == 8
    split = draw_split(images)
    assert sum(split.sizes()["art"].values()) == 20


@given(st.lists(st.integers(1, 40), min_size=2, max_size=2), st.integers(0, 5))
def test_groups_of_one_image_leave_the_sizes_as_they_are(make_images, counts, seed):
    images = make_images({"art": counts, "photo": counts})
    grouped = replace(images, groups=tuple(images.identities))
    plain, found = draw_split(images, seed), draw_split(grouped, seed)
    for part in ("train", "validation", "test"):
        for domain in images.domains:
            sizes = [
                Counter(images.label[getattr(s, part)[domain]].tolist()) for s in (plain, found)
            ]
            assert sizes[0] == sizes[1]


def test_no_part_is_empty_from_three_groups_on(make_images):
    images = make_images({"art": [30, 30], "photo": [30, 30]})
    groups = [f"p{i % 3}" for i in range(len(images.identities))]  # a third of every class each
    assert draw_split(replace(images, groups=tuple(groups))).sizes() == {
        domain: {"train": 20, "validation": 20, "test": 20} for domain in images.domains
    }


@given(st.data())
def test_every_image_is_in_one_part(make_images, data):
    counts = data.draw(st.lists(st.integers(1, 12), min_size=3, max_size=3))
    images = make_images({"art": counts, "photo": counts})
    names = st.sampled_from(["a", "b", "c", "d", None])
    n = len(images.identities)
    grouped = replace(images, groups=tuple(data.draw(st.lists(names, min_size=n, max_size=n))))
    split = draw_split(grouped)
    for d, domain in enumerate(images.domains):
        used = np.concatenate([split.train[domain], split.validation[domain], split.test[domain]])
        assert sorted(used.tolist()) == np.flatnonzero(images.domain == d).tolist()
    named = {key: parts for key, parts in parts_of_groups(grouped, split).items() if key[1]}
    assert all(len(parts) == 1 for parts in named.values())


def test_a_rare_class_is_trained_on_even_in_a_large_group(make_images):
    images = make_images({"art": [200, 2], "photo": [200, 2]})
    groups = [f"p{i // 20}" for i in range(len(images.identities))]
    for d in range(2):  # both images of the rare class are of a patient with 20 others
        for i in np.flatnonzero((images.domain == d) & (images.label == 1)):
            groups[i] = groups[np.flatnonzero(images.domain == d)[0]]
    split = draw_split(replace(images, groups=tuple(groups)))
    for domain in images.domains:
        assert (images.label[split.train[domain]] == 1).sum() == 2


def of_classes(images, sizes):
    """Groups of so many images within each class of each domain, as of plants of a species."""
    names = [number for number, size in enumerate(sizes) for _ in range(size)]
    seen = Counter()
    groups = []
    for d, label in zip(images.domain.tolist(), images.label.tolist(), strict=True):
        groups.append(f"{label}-{names[seen[d, label]]}")
        seen[d, label] += 1
    return replace(images, groups=tuple(groups))


def test_groups_of_one_class_each_leave_the_parts_near_the_fractions(make_images):
    counts = {"art": [10] * 10, "photo": [10] * 10}
    pairs = of_classes(make_images(counts), [2] * 5)
    # 7 : 1 : 2 of a class cannot be had of pairs, but of the domain: 35, 5 and 10 pairs
    assert draw_split(pairs).sizes()["art"] == {"train": 70, "validation": 10, "test": 20}
    uneven = draw_split(of_classes(make_images(counts), [8, 2]), 0, (0.6, 0.2, 0.2))
    assert uneven.sizes()["art"] == {"train": 80, "validation": 10, "test": 10}


def test_large_groups_of_a_class_each_leave_the_domain_near_the_fractions(make_images):
    images = make_images({"art": [20] * 10, "photo": [20] * 10})
    fours = of_classes(images, [5] * 4)
    sizes = draw_split(fours).sizes()["art"]
    # asked are 140, 20 and 40: class by class 15, 0 and 5 are nearest, which come to 150, 0 and 50
    asked = {"train": 140, "validation": 20, "test": 40}
    assert all(abs(sizes[part] - asked[part]) <= 0.03 * 200 for part in asked)
    trained = images.label[draw_split(fours).train["art"]]
    assert set(trained.tolist()) == set(range(10))


@pytest.mark.parametrize("classes", [[20], [10, 10]])
def test_two_groups_are_for_training_and_tests(make_images, classes):
    images = make_images({"art": classes, "photo": classes})
    halves = replace(images, groups=tuple(f"p{i % 2}" for i in range(len(images.identities))))
    for fractions in ((0.2, 0.4, 0.4), (0.1, 0.5, 0.4), (0.1, 0.4, 0.5)):
        sizes = draw_split(halves, 0, fractions).sizes()["art"]
        assert sizes == {"train": 10, "validation": 0, "test": 10}


@given(st.lists(st.integers(1, 15), min_size=1, max_size=8), st.integers(0, 5), st.data())
def test_training_has_images_of_every_domain(make_images, sizes, seed, data):
    classes = data.draw(st.integers(1, 3))
    images = make_images({"art": [sum(sizes)] * classes, "photo": [sum(sizes)] * classes})
    fractions = data.draw(st.sampled_from([(0.7, 0.1, 0.2), (0.2, 0.4, 0.4), (0.5, 0.5, 0.0)]))
    split = draw_split(of_classes(images, sizes), seed, fractions)
    again = draw_split(of_classes(images, sizes), seed, fractions)
    assert split.identities == again.identities
    for domain in images.domains:
        assert len(split.train[domain])
        assert fractions[2] or not len(split.test[domain])


def test_what_another_part_can_spare_fills_an_empty_one(make_images):
    images = of_classes(make_images({"art": [10] * 4, "photo": [10] * 4}), [8, 2])
    # the pair of each class is a test image's (2 of 10); no class of training can spare a group
    assert draw_split(images).sizes()["art"] == {"train": 32, "validation": 2, "test": 6}


def test_too_few_groups_are_told_of_as_groups(make_images):
    images = make_images({"art": [30, 30], "photo": [30, 30]})
    images = replace(images, groups=("p0",) * len(images.identities))
    with pytest.raises(DataError, match="left for validation; have 3 groups or more in every"):
        check_divided(options(), images)


def test_a_domain_of_which_no_image_is_left_has_no_parts(make_images):
    images = make_images({"art": [4, 4], "photo": [4, 4]})
    grouped = replace(images, groups=tuple(f"p{i // 2}" for i in range(len(images.identities))))
    without = np.flatnonzero(images.domain == 0).tolist()
    assert draw_split(grouped, without=without).sizes()["art"] == {
        "train": 0,
        "validation": 0,
        "test": 0,
    }


def test_a_split_far_from_the_percentages_is_told_of(make_images):
    images = make_images({"art": [20, 20], "photo": [20, 20]})
    halves = of_classes(images, [10, 10])
    target = options(split="40/20/40")
    used = ImagesUsed.of(target, halves)
    said = [line for line in used.notes("photo", "40/20/40") if "no group is divided" in line]
    assert said == ["art is split 50/25/25 (and 1 more), not 40/20/40, for no group is divided"]
    assert not [line for line in used.notes("photo", "50/25/25") if "divided" in line]
    alone = ImagesUsed.of(options(split="40/20/40", test_on="all"), halves)
    (said,) = (line for line in alone.notes("photo", "40/20/40") if "no group is divided" in line)
    assert "more" not in said  # all of photo are tests
    plain = ImagesUsed.of(target, images)
    assert not [line for line in plain.notes("photo", "40/20/40") if "divided" in line]


def test_rows_without_a_group_are_one_each_in_parquet_too(root):
    cells = [
        {"image": str(path), "domain": path.parts[-3], "label": path.parts[-2], "patient": group}
        for path, group in zip(
            sorted(root.rglob("*.png")), ["", None, "p0", "p0"] * 10, strict=True
        )
    ]
    pq.write_table(pa.Table.from_pylist(cells), root / "t.parquet")
    groups = open_source(str(root / "t.parquet"), columns={"group": "patient"}).groups
    assert Counter(groups) == {None: 20, "p0": 20}
    numbers = pa.array([float("nan"), None, 7.0, 7.0] * 10)
    pq.write_table(pa.Table.from_pylist(cells).append_column("n", numbers), root / "t.parquet")
    groups = open_source(str(root / "t.parquet"), columns={"group": "n"}).groups
    assert Counter(groups) == {None: 20, "7.0": 20}


def test_data_info_counts_groups(root):
    from typer.testing import CliRunner

    from gradsurgery.cli.data import app

    said = CliRunner().invoke(app, ["info", str(root), "--layout", LAYOUT, "--quick"]).output
    assert "The images are of 10 groups, of up to 4 images each; a split divides none" in said
    assert "5 groups are in several domains by name, as p0 in art and photo" in said
