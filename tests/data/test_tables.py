import base64
import hashlib
import logging
import random
from collections import Counter

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gradsurgery.data import open_source, prepare, split_of
from gradsurgery.documents.configuration import RunConfiguration
from gradsurgery.errors import ArgumentError, DataError, printable

NAMES = ["dog", "cat"]


def as_numbers(rows, names=NAMES):
    return [(image, domain, names.index(label)) for image, domain, label in rows]


@pytest.fixture
def rows(make_folder, rows_of, tmp_path):
    return rows_of(make_folder(tmp_path / "folder"))


def test_a_table_has_the_folders_identities_and_pixels(rows, write_parquet, tmp_path):
    folder = open_source(str(tmp_path / "folder"))
    table = open_source(str(write_parquet(tmp_path / "table.parquet", rows)))
    assert table.name == "table"
    assert table.classes == folder.classes
    assert table.listing.identities == folder.listing.identities
    a, b = (prepare(source, 8, tmp_path / "cache") for source in (folder, table))
    assert a.digest == b.digest
    assert dict(table.contents()) == dict(folder.contents())


@pytest.mark.parametrize("binary", [False, True])
def test_the_order_of_rows_and_files_does_not_matter(rows, write_parquet, tmp_path, binary):
    if binary:
        rows = [(image["bytes"], domain, label) for image, domain, label in rows]
    write_parquet(tmp_path / "a/data.parquet", rows)
    random.Random(0).shuffle(rows)
    write_parquet(tmp_path / "b/deep/x.parquet", rows[:5])
    write_parquet(tmp_path / "b/y.parquet", rows[5:])
    a, b = (open_source(str(tmp_path / name)) for name in "ab")
    assert a.listing.identities == b.listing.identities
    assert dict(a.contents()) == dict(b.contents())
    assert len(set(a.listing.identities)) == len(rows)


def test_images_of_one_name_get_a_suffix_that_ignores_the_order(rows, write_parquet, tmp_path):
    rows = [({"bytes": image["bytes"], "path": "x.png"}, d, label) for image, d, label in rows]
    a = open_source(str(write_parquet(tmp_path / "a.parquet", rows)))
    b = open_source(str(write_parquet(tmp_path / "b.parquet", rows[::-1])))
    assert a.listing.identities[:3] == ("art/cat/x.png", "art/cat/x.png#2", "art/cat/x.png#3")
    assert a.listing.identities == b.listing.identities
    assert dict(a.contents()) == dict(b.contents())


def test_identical_images_and_names_that_look_like_a_suffix(rows, write_parquet, tmp_path):
    rows += [rows[0], ({"bytes": b"other", "path": "0.png#2"}, *rows[0][1:])]
    source = open_source(str(write_parquet(tmp_path / "a.parquet", rows)))
    cats = {i for i in source.listing.identities if i.startswith("art/cat/0")}
    assert cats == {"art/cat/0.png", "art/cat/0.png#2", "art/cat/0.png#3"}


def test_class_labels_keep_their_order(rows, write_parquet, tmp_path):
    path = write_parquet(tmp_path / "a.parquet", as_numbers(rows), label_names=NAMES)
    source = open_source(str(path))
    assert source.classes == ("dog", "cat")
    assert source.listing.identities[0] == "art/dog/0.png"
    assert source.listing.label[source.listing.identities.index("art/cat/0.png")] == 1


def test_domains_may_be_class_labels_or_numbers(rows, write_parquet, tmp_path):
    numbered = [(i, ["art", "photo"].index(d), label) for i, d, label in rows]
    named = write_parquet(tmp_path / "a.parquet", numbered, domain_names=["art", "photo"])
    assert open_source(str(named)).domains == ("art", "photo")
    bare = write_parquet(tmp_path / "b.parquet", numbered)
    assert open_source(str(bare)).domains == ("0", "1")


def test_numbers_without_names_are_classes_in_numeric_order(rows, write_parquet, tmp_path):
    numbered = [(i, d, {"cat": 10, "dog": 9}[label]) for i, d, label in rows]
    assert open_source(str(write_parquet(tmp_path / "a.parquet", numbered))).classes == ("9", "10")


@pytest.mark.parametrize(
    ("label", "reason"),
    [(2, "label is 2, expected a number from 0 to 1"), (-1, "label is -1"), (None, "null")],
)
def test_a_label_out_of_range_or_null_is_an_error(rows, write_parquet, tmp_path, label, reason):
    rows = as_numbers(rows)
    rows[4] = (*rows[4][:2], label)
    path = write_parquet(tmp_path / "a.parquet", rows, label_names=NAMES)
    with pytest.raises(DataError, match=f"a.parquet, row 4: .*{reason}"):
        open_source(str(path))


def test_a_null_domain_and_a_number_that_is_none_are_errors(rows, write_parquet, tmp_path):
    without = [(*rows[0][:1], None, "cat"), *rows[1:]]
    with pytest.raises(DataError, match="row 0: domain is null"):
        open_source(str(write_parquet(tmp_path / "a.parquet", without)))
    floats = [(i, d, 0.5) for i, d, _ in rows]
    with pytest.raises(DataError, match=r"row 0: label is 0\.5"):
        open_source(str(write_parquet(tmp_path / "b.parquet", floats)))


def test_a_declared_class_without_images_is_an_error(rows, write_parquet, tmp_path):
    path = write_parquet(tmp_path / "a.parquet", as_numbers(rows), label_names=[*NAMES, "owl"])
    with pytest.raises(DataError, match=r"class owl has no image in domain art, .*1 more"):
        open_source(str(path))


def test_missing_columns_are_an_error_that_lists_those_found(tmp_path):
    pq.write_table(pa.table({"image": [b"x"], "style": ["art"]}), tmp_path / "a.parquet")
    with pytest.raises(
        DataError, match=r"no column domain and no column label.*found image, style"
    ):
        open_source(str(tmp_path / "a.parquet"))


def test_a_damaged_parquet_file_is_an_error(rows, write_parquet, tmp_path):
    path = write_parquet(tmp_path / "a.parquet", rows)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"cannot read .*a\.parquet as Parquet"):
        open_source(str(path))


def test_an_image_without_bytes_is_read_from_its_path_or_is_bad(rows, write_parquet, tmp_path):
    first = tmp_path / "folder/art/cat/0.png"
    outside = {"bytes": None, "path": str(first.relative_to(tmp_path))}
    rows[0] = (outside, *rows[0][1:])
    source = open_source(str(write_parquet(tmp_path / "a.parquet", rows)))
    assert dict(source.contents())[0] == first.read_bytes()
    rows[0] = (None, *rows[0][1:])
    source = open_source(str(write_parquet(tmp_path / "b.parquet", rows)))
    with pytest.raises(
        DataError, match=r"cannot decode art/cat/.*b\.parquet, row 0\): it is empty"
    ):
        prepare(source, 8, tmp_path / "cache")
    outside["path"] = "gone.png"
    rows[0] = (outside, *rows[0][1:])
    source = open_source(str(write_parquet(tmp_path / "c.parquet", rows)))
    with pytest.raises(DataError, match=r"row 0: cannot read .*gone\.png"):
        prepare(source, 8, tmp_path / "cache")


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """`datasets` takes a local folder owner/name for the repository of that name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub-cache")
    return tmp_path / "owner/name/data"


def test_the_hub_joins_all_splits(rows, write_parquet, hub, tmp_path):
    numbered = as_numbers(rows)
    write_parquet(hub / "train-00000.parquet", numbered[:7], label_names=NAMES)
    write_parquet(hub / "test-00000.parquet", numbered[7:], label_names=NAMES)
    source = open_source("hf://owner/name")
    local = open_source("owner/name")
    assert source.name == "name"
    assert source.classes == ("dog", "cat")
    assert source.listing.identities == local.listing.identities
    assert dict(source.contents()) == dict(local.contents())
    first = prepare(source, 8, tmp_path / "cache")
    assert np.array_equal(first.images, prepare(local, 8, tmp_path / "cache").images)
    assert source.signature() == open_source("hf://owner/name").signature() is not None
    assert "hf://owner/name, row" in source.location(0)


PLACES = {
    "train": "train-00000-of-00002.parquet",
    "validation": "val/0000.parquet",
    "test": "default/test/0000.parquet",
}


def test_files_called_as_parts_are_a_split(rows, write_parquet, tmp_path):
    for number, place in enumerate(PLACES.values()):
        path = tmp_path / "set" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        write_parquet(path, rows[number::3])
    source = open_source(str(tmp_path / "set"))
    expected = [next(p for p, f in PLACES.items() if f in source.location(i)) for i in range(12)]
    assert len(rows) == 12
    images = prepare(source, 8, tmp_path / "cache")
    run = RunConfiguration(data="set", target="photo", split="column")
    split = split_of(run, images, 0)
    for part, place in PLACES.items():
        for positions in getattr(split, part).values():
            assert {expected[i] for i in positions} <= {part}, place
    assert not split.unused
    sizes = Counter(expected)
    assert {part: sum(map(len, getattr(split, part).values())) for part in PLACES} == sizes


def test_files_of_one_part_or_with_a_column_are_none(rows, write_parquet, tmp_path):
    for number in range(2):
        path = tmp_path / "one" / f"train-{number}.parquet"
        path.parent.mkdir(exist_ok=True)
        write_parquet(path, rows[number::2])
    source = open_source(str(tmp_path / "one"))
    assert source.parts is None
    with pytest.raises(ArgumentError, match="nor Parquet files called train, validation and test"):
        split_of(
            RunConfiguration(data="one", target="photo", split="column"),
            prepare(source, 8, tmp_path / "cache"),
            0,
        )
    table = pq.read_table(tmp_path / "one/train-0.parquet")
    pq.write_table(
        table.append_column("split", pa.array(["test"] * len(table))),
        tmp_path / "one/train-0.parquet",
    )
    (tmp_path / "one/train-1.parquet").rename(tmp_path / "one/val.parquet")
    assert Counter(open_source(str(tmp_path / "one")).parts) == {"test": 6, None: 6}


def test_the_hub_s_splits_are_the_parts(rows, write_parquet, hub, tmp_path):
    write_parquet(hub / "train-00000.parquet", rows[:7])
    write_parquet(hub / "test-00000.parquet", rows[7:])
    source, local = open_source("hf://owner/name"), open_source("owner/name")
    assert Counter(source.parts) == {"train": 7, "test": 5}
    assert source.parts == local.parts


def test_the_hub_names_missing_columns(hub):
    hub.mkdir(parents=True)
    pq.write_table(pa.table({"image": [b"x"], "label": [0]}), hub / "train.parquet")
    with pytest.raises(
        DataError, match=r"hf://owner/name has no column domain.*found image, label"
    ):
        open_source("hf://owner/name")


def test_a_network_failure_is_one_line_with_a_cure(monkeypatch, caplog):
    def fail(name):
        logging.getLogger("huggingface_hub.utils._http").warning("Retrying in 1s [Retry 1/5].")
        raise ConnectionError(f"cannot reach {name}\nTraceback ...")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(
        DataError, match=r"hf://a/b: cannot reach a/b Traceback .* local copy"
    ) as caught:
        open_source("hf://a/b")
    assert "\n" not in str(caught.value)
    assert not caplog.records
    with pytest.raises(DataError, match="hf://flwrlabs/pacs"):
        open_source("pacs")


def test_a_malformed_hub_name_is_an_error():
    with pytest.raises(ArgumentError, match="expected hf://owner/name"):
        open_source("hf://pacs")


def replace_image(path, array):
    """Write the table again with another column of images."""
    table = pq.read_table(path)
    pq.write_table(table.set_column(table.schema.get_field_index("image"), "image", array), path)
    return path


def test_a_column_of_paths_is_read_relative_to_the_table(rows, write_parquet, tmp_path):
    path = write_parquet(tmp_path / "folder/tables/a.parquet", rows)
    paths = [f"../{d}/{label}/{image['path']}" for image, d, label in rows]
    replace_image(path, pa.array(paths))
    source = open_source(str(path))
    assert len(source.listing.identities) == len(rows)
    for position, content in source.contents():
        name = source.listing.identities[position]
        assert content == (tmp_path / "folder" / name).read_bytes()


def test_images_beside_a_table_that_change_are_decoded_again(rows, write_parquet, tmp_path):
    for kind in ("paths", "struct"):
        path = write_parquet(tmp_path / f"{kind}.parquet", rows)
        paths = [f"folder/{d}/{label}/{image['path']}" for image, d, label in rows]
        both = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        structs = pa.array([{"bytes": None, "path": text} for text in paths], both)
        replace_image(path, pa.array(paths) if kind == "paths" else structs)
        first = prepare(open_source(str(path)), 8, tmp_path / "cache").digest
        kept = (tmp_path / paths[0]).read_bytes()
        (tmp_path / paths[0]).write_bytes((tmp_path / paths[5]).read_bytes())
        assert prepare(open_source(str(path)), 8, tmp_path / "cache").digest != first
        (tmp_path / paths[0]).write_bytes(kept)


def test_a_table_that_is_replaced_after_it_was_listed_is_not_read(rows, write_parquet, tmp_path):
    path = write_parquet(tmp_path / "set.parquet", rows)
    listed = open_source(str(path))
    swapped = [(image, d, "dog" if label == "cat" else "cat") for image, d, label in rows]
    write_parquet(path, swapped)
    with pytest.raises(DataError, match=r"set\.parquet has changed since its rows were listed"):
        prepare(listed, 8, tmp_path / "cache")
    images = prepare(open_source(str(path)), 8, tmp_path / "cache")
    files = {image["bytes"]: label for image, _, label in swapped}
    for content, label in files.items():
        position = images.hashes.index(hashlib.sha256(content).hexdigest())
        assert images.classes[images.label[position]] == label


def test_paths_in_structs_whose_bytes_are_all_absent(rows, write_parquet, tmp_path):
    (tmp_path / "images").mkdir()
    for number, (image, *_) in enumerate(rows):
        (tmp_path / f"images/{number}.png").write_bytes(image["bytes"])
    cells = [{"bytes": None, "path": f"images/{i}.png"} for i in range(len(rows))]
    path = replace_image(write_parquet(tmp_path / "a.parquet", rows), pa.array(cells))
    images = prepare(open_source(str(path)), 8, tmp_path / "cache")
    expected = prepare(open_source(str(write_parquet(tmp_path / "b.parquet", rows))), 8, tmp_path)
    assert sorted(images.hashes) == sorted(expected.hashes)
    (tmp_path / "images/0.png").write_bytes(rows[1][0]["bytes"])
    changed = prepare(open_source(str(path)), 8, tmp_path / "cache")
    assert len(set(changed.hashes)) == len(set(images.hashes)) - 1


COUNT = 12


@pytest.mark.parametrize(
    ("array", "kind"),
    [
        (pa.array([400_000_000] * COUNT), "int64"),
        (pa.array([[[1, 2], [3, 4]]] * COUNT), "list"),
        (pa.array([0.5] * COUNT), "double"),
        (pa.nulls(COUNT), "null"),
        (pa.array([True] * COUNT), "bool"),
        (pa.array([{"bytes": 400_000_000, "path": "a.png"}] * COUNT), "struct<bytes: int64"),
        (pa.array([{"path": "a.png"}] * COUNT), "struct<path"),
        (pa.array([{str(i): i for i in range(99)}] * COUNT), "…"),
    ],
)
def test_a_column_of_no_images_is_told_by_its_type(rows, write_parquet, tmp_path, array, kind):
    path = replace_image(write_parquet(tmp_path / "a.parquet", rows), array)
    with pytest.raises(
        DataError, match=r"column image has the type .*, expected the bytes"
    ) as caught:
        open_source(str(path))
    assert kind in str(caught.value)


@pytest.mark.parametrize("column", ["image", "domain", "label"])
def test_two_columns_of_one_name_are_an_error(rows, write_parquet, tmp_path, column):
    path = write_parquet(tmp_path / "a.parquet", rows)
    table = pq.read_table(path)
    pq.write_table(table.append_column(column, table[column]), path)
    with pytest.raises(DataError, match=f"a.parquet has 2 columns {column}, expected one"):
        open_source(str(path))


@pytest.mark.parametrize(
    "text",
    [
        b"{",
        b"[]",
        b"\xff",
        b'{"info": 3}',
        b'{"info": {"features": []}}',
        b'{"info": {"features": {"label": {"names": [1, 2]}}}}',
    ],
)
def test_metadata_that_do_not_describe_the_columns(rows, write_parquet, tmp_path, text):
    path = write_parquet(tmp_path / "a.parquet", rows)
    pq.write_table(pq.read_table(path).replace_schema_metadata({b"huggingface": text}), path)
    with pytest.raises(DataError, match=r"a\.parquet: its metadata 'huggingface' does not"):
        open_source(str(path))


def test_a_long_value_of_a_label_is_cut(rows, write_parquet, tmp_path):
    long = [(image, domain, list(range(1000))) for image, domain, _ in rows]
    with pytest.raises(DataError, match="row 0: label is ") as caught:
        open_source(str(write_parquet(tmp_path / "a.parquet", long)))
    assert len(str(caught.value)) < 300


@given(st.integers(0, 1 << 30), st.binary(min_size=1, max_size=9))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_bytes_of_a_table_are_one_line(rows, write_parquet, tmp_path, place, damage):
    content = write_parquet(tmp_path / "a.parquet", rows).read_bytes()
    place %= len(content)
    damaged = content[:place] + damage + content[place + len(damage) :]
    (tmp_path / "b.parquet").write_bytes(damaged)
    complaint = ""
    try:
        source = open_source(str(tmp_path / "b.parquet"))
        assert len(list(source.contents())) == len(source.listing.identities)
    except DataError as error:
        complaint = str(error)
    assert printable(complaint) == complaint
    assert len(complaint) < 1000


def test_a_column_of_base64_text_is_not_quoted_whole(rows, write_parquet, tmp_path):
    encoded = base64.b64encode(bytes(900)).decode()
    rows = [(encoded, domain, label) for _, domain, label in rows]
    write_parquet(tmp_path / "table.parquet", rows)
    words = r"row 0: column image holds text of 1200 characters, 'A{20}'…, .* base64, decode it"
    with pytest.raises(DataError, match=words) as caught:
        prepare(open_source(str(tmp_path / "table.parquet")), 8, tmp_path / "cache")
    assert len(str(caught.value).replace(str(tmp_path), "")) < 330


@pytest.mark.parametrize("several", [False, True])
def test_what_datasets_has_saved_to_disk_is_named_with_a_cure_that_works(
    rows, several, tmp_path, monkeypatch
):
    images, domains, labels = zip(*rows, strict=True)
    columns = {"image": list(images), "domain": list(domains), "label": list(labels)}
    whole = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    monkeypatch.chdir(tmp_path)
    (datasets.DatasetDict({"train": whole}) if several else whole).save_to_disk("saved")
    with pytest.raises(DataError, match="saved is what save_to_disk of the library dat") as caught:
        open_source("saved")
    cure = str(caught.value).split("write Parquet files, ")[1].removesuffix(", and give FOLDER")
    (tmp_path / "FOLDER").mkdir()
    exec(cure, {"load_from_disk": datasets.load_from_disk})
    expected = open_source(str(tmp_path / "folder"))
    assert open_source("FOLDER").listing.identities == expected.listing.identities
    if several:
        with pytest.raises(DataError, match=r"saved/train is what .*\.to_parquet"):
            open_source("saved/train")
