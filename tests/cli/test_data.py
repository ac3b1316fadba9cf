import json
import os
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from gradsurgery.cli.data import app
from gradsurgery.data import PRESETS, open_source, prepare
from gradsurgery.errors import DataError

runner = CliRunner()


def run(*arguments: str) -> str:
    result = runner.invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def photos(tmp_path):
    """A folder with one domain per name of PACS, an empty file per image."""
    for domain in ("art", "cartoon", "photo", "sketch"):
        for label in PRESETS["pacs"].classes:
            folder = tmp_path / "photos" / domain / label
            folder.mkdir(parents=True)
            (folder / "0.png").touch()
    return str(tmp_path / "photos")


def test_info_counts_domains_and_classes():
    output = run("info", "colored-digits")
    assert "1,797 images, 4 domains, 2 classes" in output
    assert "-90%" in output
    assert "pacs" not in output  # whose domains and classes these are not


def test_info_as_json():
    content = json.loads(run("info", "rotated-digits", "--json"))
    source = open_source("rotated-digits")
    assert content["domains"] == list(source.domains)
    assert content["images"] == 1797
    assert sum(sum(row.values()) for row in content["counts"].values()) == 1797
    assert content["preset"] is None
    assert content["paper_counts"] is None


def test_info_compares_with_the_paper(photos):
    output = run("info", photos)
    assert "those of pacs, but not the counts: art_painting 7 (paper 2,048)" in output
    content = json.loads(run("info", photos, "--json"))
    assert content["preset"] == "pacs"
    assert content["paper_counts"] is False


@pytest.mark.skipif("GRADSURGERY_PACS" not in os.environ, reason="GRADSURGERY_PACS is not set")
def test_info_of_pacs():
    output = run("info", os.environ["GRADSURGERY_PACS"])
    assert "9,991 images, 4 domains, 7 classes" in output
    assert "the paper's counts" in output


def test_prepare_says_where_the_cache_is(tmp_path):
    arguments = ("--image-size", "16", "--cache", str(tmp_path), "--workers", "2")
    output = run("prepare", "rotated-digits", *arguments)
    images = prepare(open_source("rotated-digits"), 16, tmp_path)
    assert f"1,797 images of 16x16 pixels, 1.4 MB, in {images.folder}" in output
    assert run("prepare", "rotated-digits", *arguments) == output


def test_prepare_names_bad_images(make_folder, tmp_path):
    root = make_folder(tmp_path / "set", each=2)
    (root / "art/cat/1.png").write_bytes(b"[bold]")
    arguments = ["prepare", str(root), "--cache", str(tmp_path / "cache")]
    result = runner.invoke(app, arguments)
    assert isinstance(result.exception, DataError)
    output = run(*arguments, "--skip-bad")
    assert "1 image skipped" in output
    assert "art/cat/1.png: it is not an image" in output


def test_what_is_left_out_is_shown_and_no_name_reaches_the_terminal_raw(make_folder, tmp_path):
    root = make_folder(tmp_path / "set", ("art\x1b[31m", "v1.0"), ("cat", "do\x9bg"), each=1)
    for folder in root.glob("*/*"):
        for i in range(4):
            (folder / f"{i}.psd").write_bytes(b"x")
    output = run("info", str(root))
    assert "16 files among the images are left out:" in output
    assert "v1.0/cat/2.psd" not in output  # the first ten
    assert r"art\x1b[31m/cat/0.psd: .psd is not read" in output
    assert "and 6 more: .psd is not read (6)" in output
    output += run("prepare", str(root), "--image-size", "8", "--cache", str(tmp_path / "c\x1b"))
    assert not {"\x1b", "\x9b"} & set(output)
    content = json.loads(run("info", str(root), "--json"))
    assert content["left_out"][0] == {
        "file": r"art\x1b[31m/cat/0.psd",
        "reason": ".psd is not read",
    }
    assert content["domains"] == [r"art\x1b[31m", "v1.0"]


def picture(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.effect_noise((24, 16), 50 + seed).save(path)


@pytest.fixture
def doubtful(tmp_path):
    """a and b with cats and dogs; b lacks cows, and has a copy of a's first cat as a dog."""
    for number, name in enumerate(("a/cat/0", "a/cow/0", "a/dog/0", "b/cat/0", "b/dog/0")):
        picture(tmp_path / f"set/{name}.png", number)
    (tmp_path / "set/b/dog/x.png").write_bytes((tmp_path / "set/a/cat/0.png").read_bytes())
    (tmp_path / "set/b/dog/bad.png").write_bytes(b"no image")
    return tmp_path / "set"


def test_info_names_the_files_of_a_table_of_paths_and_the_rows_of_parquet(doubtful):
    files = [path.relative_to(doubtful.parent) for path in sorted(doubtful.rglob("*.png"))]
    lines = ["path,domain,label", *(f"{path},{path.parts[1]},{path.parts[2]}" for path in files)]
    table = doubtful.parent / "table.csv"
    table.write_text("\n".join(lines))
    output = run("info", str(table))
    assert f"For example {doubtful}/a/cat/0.png and {doubtful}/b/dog/x.png." in output
    assert f"{doubtful}/b/dog/bad.png: it is not an image" in output
    parts = [path.parts for path in files]
    images = [{"bytes": (doubtful.parent / path).read_bytes(), "path": path.name} for path in files]
    columns = {"image": images, "domain": [p[1] for p in parts], "label": [p[2] for p in parts]}
    rows = doubtful.parent / "rows.parquet"
    pq.write_table(pa.table(columns), rows)
    number = next(row for row, path in enumerate(files) if path.name == "bad.png")
    assert f"b/dog/bad.png ({rows}, row {number}): it is not an image" in run("info", str(rows))


def test_info_names_classes_that_hospitals_spell_in_their_own_way(tmp_path):
    for number, name in enumerate(("a/Normal/0", "b/NORMAL/0", "c/normal/0", "a/ill/0", "b/ill/0")):
        picture(tmp_path / f"set/{name}.png", number)
    alike = "Classes NORMAL and Normal and normal differ in spelling alone: if they are one"
    assert alike in run("info", str(tmp_path / "set"), "--quick")


def test_info_counts_classes_that_are_numbers_by_their_value(tmp_path):
    for number, name in enumerate(("a/10/0", "b/10/0", "a/9/0", "b/9/0", "b/9/1", "a/1/0")):
        picture(tmp_path / f"set/{name}.png", number)
    rows = re.findall(
        r"│ *(\d+) +│ +(\d+) │ +(\d+) │", run("info", str(tmp_path / "set"), "--quick")
    )
    assert rows[:3] == [("1", "1", "0"), ("9", "1", "2"), ("10", "1", "1")]


def test_info_names_parts_of_a_split_that_stand_where_domains_do(tmp_path):
    for number, name in enumerate(("train/cat/0", "val/cat/0", "test/cat/0")):
        picture(tmp_path / f"set/{name}.png", number)
    said = "Domains test, train, val are called as parts of a split, which are no domains."
    assert said in run("info", str(tmp_path / "set"), "--quick")


def test_info_names_numbers_that_are_one_and_none_that_differ(tmp_path):
    rows = []
    for number, label in enumerate(["0", "0.0", "1.5", "15", "-15", '"odd"', '"Odd"'] * 2):
        picture(tmp_path / f"{number}.png", number)
        domain = "ab"[number // 7]
        rows.append(f'{{"path": "{number}.png", "domain": "{domain}", "label": {label}}}')
    (tmp_path / "table.jsonl").write_text("\n".join(rows))
    output = run("info", str(tmp_path / "table.jsonl"), "--quick")
    said = [line for line in output.splitlines() if "differ in spelling" in line]
    assert [line.split(" differ")[0] for line in said] == [
        "Classes 0 and 0.0",
        "Classes Odd and odd",
    ]
    assert "--classes common" not in output  # every class is in both domains


def test_info_shows_gaps_copies_and_bad_images_and_never_refuses(doubtful):
    output = run("info", str(doubtful))
    assert "Domain b has no image of cow." in output
    assert "--classes common" in output
    assert "2 images are one of several identical files." in output
    assert "The domains a and b share 1 picture." in output
    assert "Pictures with more than one class, of which one at least is wrong: 1." in output
    assert f"For example {doubtful}/a/cat/0.png and {doubtful}/b/dog/x.png." in output
    assert "1 image cannot be decoded" in output
    quick = run("info", str(doubtful), "--quick")
    assert "no image of cow" in quick
    assert "identical" not in quick
    content = json.loads(run("info", str(doubtful), "--json"))
    assert content["gaps"] == [{"domain": "b", "class": "cow"}]
    assert content["identical"]["across_domains"] == {"a and b": 1}
    assert [file["file"] for file in content["bad"]] == [f"{doubtful}/b/dog/bad.png"]
    common = json.loads(run("info", str(doubtful), "--classes", "common", "--json"))
    assert common["classes"] == ["cat", "dog"]
    assert common["left_out"] == [{"file": "class cow", "reason": "1 image, none in b"}]


def test_many_domains_stand_below_one_another(make_folder, tmp_path):
    domains = [f"domain-{domain:02}" for domain in range(13)]
    folder = make_folder(tmp_path / "many", domains, ["cat"], each=1) / "domain-12" / "cat"
    frames = [Image.new("L", (9, 9), shade) for shade in (10, 200)]
    frames[0].save(folder / "1.gif", save_all=True, append_images=frames[1:])
    out = run("info", str(tmp_path / "many"))
    lines = out.splitlines()
    assert any(line.split() == ["│", "domain-12", "│", "2", "│", "2", "│"] for line in lines)
    assert "1 file has several pictures (an animation, pages), of which the first is used" in out
    assert "domain-12/cat/1.gif" in out


def test_images_of_12_bits_in_files_of_16_are_told(tmp_path):
    """They end at 4,095 of 65,535, which is 16 of 255; at 14 bits it is 64."""
    for domain, bits in (("a", 12), ("b", 14)):
        (tmp_path / domain / "cat").mkdir(parents=True)
        gray = np.linspace(0, 2**bits - 1, 64 * 64, dtype=np.uint16).reshape(64, 64)
        Image.fromarray(gray).save(tmp_path / domain / "cat" / "0.png")
    said = " ".join(run("info", str(tmp_path)).split())
    assert f"1 image is nearly black all over, as {tmp_path}/a/cat/0.png. Of these 1 file" in said
    assert f"1 file has 16 bits, as {tmp_path}/a/cat/0.png: values of 12 bits" in said
    dark = json.loads(run("info", str(tmp_path), "--json"))["dark"]
    assert dark == [f"{tmp_path}/a/cat/0.png"]


def test_images_of_8_bits_that_are_dark_are_not_taken_for_12(make_folder, tmp_path):
    folder = make_folder(tmp_path / "photos", each=1)
    Image.new("RGB", (9, 9), (3, 4, 5)).save(folder / "art" / "cat" / "night.png")
    said = " ".join(run("info", str(folder)).split())
    assert f"1 image is nearly black all over, as {folder}/art/cat/night.png." in said
    assert "16 bits" not in said


def test_info_of_a_table_and_of_a_layout(doubtful):
    (doubtful / "b/dog/bad.png").unlink()
    lines = ["file;what;where"]
    for path in sorted(doubtful.rglob("*.png")):
        lines.append(f"{path.relative_to(doubtful)};{path.parts[-2]};{path.parts[-3]}")
    table = doubtful / "t.csv"
    table.write_text("\r\n".join(lines))
    columns = "path=file,label=what,domain=where"
    content = json.loads(run("info", str(table), "--columns", columns, "--json"))
    assert content["images"] == 6
    turned = run("info", str(doubtful), "--layout", "{class}/{domain}/{name}", "--json", "--quick")
    assert json.loads(turned)["domains"] == ["cat", "cow", "dog"]


def test_the_cache_is_listed_and_pruned(doubtful, tmp_path):
    cache = str(tmp_path / "cache")
    assert "0 decoded data sets, 0.0 MB" in run("cache", "list", "--cache", cache)
    for size in ("8", "16"):
        run("prepare", str(doubtful), "--image-size", size, "--classes", "all", "--skip-bad",
            "--cache", cache)  # fmt: skip
    listed = run("cache", "list", "--cache", cache)
    assert "2 decoded data sets" in listed
    assert "a, b" in listed
    assert "removed 0 of 2" in run("cache", "prune", "--cache", cache)
    folder = min(path.name for path in (tmp_path / "cache").iterdir() if len(path.name) == 64)
    named = ("cache", "prune", folder[:12], "--cache", cache)
    assert "would remove 1 of 2" in run(*named, "--dry-run")
    assert "removed 1 of 2" in run(*named)
    assert "removed 1 of 1" in run("cache", "prune", "--unused", "0", "--cache", cache)
    result = runner.invoke(app, ["cache", "prune", "abc", "--cache", cache])
    assert "no decoded data set 'abc'" in str(result.exception)


def test_of_hundreds_of_domains_and_classes_the_counts_fit_on_a_screen_or_three(tmp_path):
    """60 cameras, camera d with d + 1 images, each of one of 60 species: 3,540 gaps."""
    for d in range(60):
        for i in range(d + 1):
            place = tmp_path / f"camera {d:02d}" / f"species {(d + i) % 60:02d}"
            place.mkdir(parents=True)
            (place / "0.png").touch()
    lines = run("info", str(tmp_path), "--quick").splitlines()
    assert len(lines) < 120
    assert any(line.split() == ["camera", "59", "60", "60"] for line in lines)  # of all species
    assert any(line.split() == ["camera", "00", "1", "1"] for line in lines)
    assert not any(line.startswith("camera 30") for line in lines)  # neither large nor small
    lacking = [line for line in lines if "has no image of" in line]
    assert len(lacking) == 10
    assert "And 49 more domains lack classes." in lines
    counts = json.loads(run("info", str(tmp_path), "--quick", "--json"))["counts"]
    assert counts["camera 30"]["species 30"] == 1
