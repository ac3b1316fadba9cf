"""Tables of paths as people have them."""

import json
import shutil

import pytest

from gradsurgery.data import open_source, prepare
from gradsurgery.errors import ArgumentError, DataError


@pytest.fixture
def photos(make_folder, tmp_path):
    """Folders art/cat, art/dog, photo/cat, photo/dog of three images each."""
    return make_folder(tmp_path / "photos")


def rows(photos, header=("path", "label", "domain"), split=None):
    """The cells of a table of all images, its header first."""
    cells = [list(header)]
    for path in sorted(photos.rglob("*.png")):
        cells.append([str(path.relative_to(photos)), path.parts[-2], path.parts[-3]])
        if split is not None:
            cells[-1].append(split(path))
    return cells


def text(cells, separator=",", end="\n"):
    return "".join(separator.join(row) + end for row in cells)


def write(photos, content, name="labels.csv"):
    path = photos / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def check(source):
    assert source.name == "labels"
    assert source.domains == ("art", "photo")
    assert source.classes == ("cat", "dog")
    assert source.counts().tolist() == [[3, 3], [3, 3]]
    assert source.listing.identities[0] == "art/cat/art/cat/0.png"


@pytest.mark.parametrize(
    ("separator", "end", "encoding", "name"),
    [
        (",", "\n", "utf-8", "labels.csv"),
        (",", "\r\n", "utf-8-sig", "labels.csv"),
        (";", "\r\n", "utf-16", "labels.csv"),
        (";", "\n", "utf-8", "labels.CSV"),
        ("\t", "\r\n", "utf-8", "labels.tsv"),
        ("\t", "\n", "utf-16", "labels.csv"),  # as Excel writes Unicode text
    ],
)
def test_separators_line_ends_and_encodings(photos, separator, end, encoding, name):
    content = text(rows(photos), separator, end).encode(encoding)
    check(open_source(write(photos, content, name)))


def test_lines_of_json(photos):
    header, *cells = rows(photos)
    lines = [json.dumps(dict(zip(header, row, strict=True))) for row in cells]
    check(open_source(write(photos, "\n\n".join(lines) + "\n", "labels.jsonl")))


def test_the_images_are_those_of_the_files(photos, tmp_path):
    table = open_source(write(photos, text(rows(photos))))
    images = prepare(table, 8, tmp_path / "cache")
    folder = prepare(open_source(str(photos)), 8, tmp_path / "cache")
    assert (images.images == folder.images).all()
    assert images.label.tolist() == folder.label.tolist()


def test_other_names_of_columns(photos):
    cells = rows(photos, header=("file", "animal species", "domain"))
    path = write(photos, text(cells))
    source = open_source(path, columns={"path": "file", "label": "animal species"})
    check(source)
    found = r"no column path and no column label, .*found file, animal species, domain.*--c"
    with pytest.raises(DataError, match=found):
        open_source(path)
    with pytest.raises(ArgumentError, match="unknown column 'lable'; there is label"):
        open_source(path, columns={"path": "file", "lable": "animal species"})


def test_a_quoted_cell_may_have_a_separator_and_a_line_end_in_it(photos):
    cells = rows(photos)
    for row in cells[1:]:
        row[1] = f'"{row[1]}, a\nbeast"'
    source = open_source(write(photos, text(cells)))
    assert [name.split(",")[0] for name in source.classes] == ["cat", "dog"]
    assert source.counts().tolist() == [[3, 3], [3, 3]]


def test_paths_of_windows_and_absolute_paths(photos):
    cells = rows(photos)
    cells[1][0] = cells[1][0].replace("/", "\\")
    cells[2][0] = str(photos / cells[2][0])
    assert open_source(write(photos, text(cells))).counts().tolist() == [[3, 3], [3, 3]]


def changed(row, column, value):
    def change(cells):
        cells[row][column] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed(2, 0, "gone.png"), r"line 3: gone\.png is no file; paths are relative to"),
        (changed(2, 1, " "), r"line 3: label is empty"),
        (changed(4, 2, ""), r"line 5: domain is empty"),
        (lambda cells: cells.append(list(cells[1])), r"line 14 names .* again, as line 2 does;"),
        (
            lambda cells: cells.append([cells[1][0], "dog", cells[1][2]]),
            r"line 14 names .* as line 2 does, with the label 'dog' instead of 'cat'",
        ),
        (lambda cells: cells[3].append("x"), r"line 4 has 4 cells, expected 3"),
        (
            lambda cells: [row.append(row[1]) for row in cells],
            r"labels\.csv has 2 columns label, expected one",
        ),
        (
            lambda cells: [row.extend(["split", "split"]) for row in cells],
            r"labels\.csv has 2 columns split, expected one",
        ),
        (
            lambda cells: cells.append(["art/../" + cells[1][0], "dog", cells[1][2]]),
            r"line 14 names art/\.\./.* as line 2 does, with the label 'dog' instead of 'cat'",
        ),
        (lambda cells: cells.__delitem__(slice(1, None)), "has no rows"),
        (lambda cells: cells.clear(), "no column path and .* found none"),
    ],
)
def test_what_is_wrong_with_a_row_is_said_in_a_line(photos, change, message):
    cells = rows(photos)
    change(cells)
    with pytest.raises(DataError, match=message) as caught:
        open_source(write(photos, text(cells)))
    assert "\n" not in str(caught.value)


def test_several_missing_files_are_counted(photos):
    cells = rows(photos)
    for row in cells[1:4]:
        row[0] = "no/" + row[0]
    with pytest.raises(DataError, match=r"line 2: .* is no file \(and 2 more files\)"):
        open_source(write(photos, text(cells)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"path,label,domain\n\xff\xfe\xfa", r"line 2 is not in UTF-8; save the table as UTF-8"),
        (b'path,label,domain\n"a.png,cat,art\n', "unexpected end of data"),
        (b"\x00\x01\x02", "no column path"),
    ],
)
def test_what_is_no_table(photos, content, message):
    with pytest.raises(DataError, match=message):
        open_source(write(photos, content))


@pytest.mark.parametrize(
    ("label", "message"),
    [("NaN", "label is empty"), ("null", "label is empty"), ('{"name": "cat"}', "label is {'name")],
)
def test_a_label_is_text_or_a_number(photos, label, message):
    lines = [f'{{"path": "{p}", "label": 1, "domain": "{d}"}}' for p, _, d in rows(photos)[1:]]
    assert open_source(write(photos, "\n".join(lines), "labels.jsonl")).classes == ("1",)
    lines[2] = f'{{"path": "art/cat/2.png", "boxes": [1, 2], "label": {label}, "domain": "art"}}'
    with pytest.raises(DataError, match=f"line 3: {message}"):
        open_source(write(photos, "\n".join(lines), "labels.jsonl"))


@pytest.mark.parametrize("line", ["[1, 2]", "{", '"path"', "[" * 100_000])
def test_what_is_no_line_of_json(photos, line):
    with pytest.raises(DataError, match=r"labels\.jsonl, line 1 is no"):
        open_source(write(photos, line, "labels.jsonl"))


def test_columns_and_layout_where_there_are_none(photos):
    with pytest.raises(ArgumentError, match="no table of images"):
        open_source(str(photos), columns={"label": "species"})
    with pytest.raises(ArgumentError, match="no folder of images"):
        open_source(write(photos, text(rows(photos))), layout="{domain}/{class}/{name}")


def test_a_moved_table_has_the_same_decoded_images(photos, tmp_path):
    first = prepare(open_source(write(photos, text(rows(photos)))), 8, tmp_path / "cache")
    shutil.copytree(photos, tmp_path / "elsewhere")
    second = prepare(open_source(str(tmp_path / "elsewhere/labels.csv")), 8, tmp_path / "cache")
    assert first.digest == second.digest


def test_a_label_that_is_corrected_in_the_table_counts_from_then_on(photos, tmp_path):
    cells = rows(photos)
    images = prepare(open_source(write(photos, text(cells))), 8, tmp_path / "cache")
    assert images.label.tolist() == [0, 0, 0, 1, 1, 1] * 2
    cells[3][1] = "dog"  # art/cat/2.png, which stays between the same two
    corrected = prepare(open_source(write(photos, text(cells))), 8, tmp_path / "cache")
    assert corrected.label.tolist() == [0, 0, 1, 1, 1, 1, 0, 0, 0, 1, 1, 1]
    assert corrected.identities[2] == "art/dog/art/cat/2.png"
    assert (corrected.images == images.images).all()
    again = prepare(open_source(write(photos, text(cells))), 8, tmp_path / "cache")
    assert again.digest == corrected.digest != images.digest
