import json
import os

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
    assert "no preset" in output


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


def test_prepare_names_bad_images(tmp_path):
    root = tmp_path / "set"
    for i in range(8):
        folder = root / ("art", "photo")[i % 2] / ("cat", "dog")[i // 2 % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9)).save(folder / f"{i // 4}.png")
    (root / "art/cat/1.png").write_bytes(b"[bold]")
    arguments = ["prepare", str(root), "--cache", str(tmp_path / "cache")]
    result = runner.invoke(app, arguments)
    assert isinstance(result.exception, DataError)
    output = run(*arguments, "--skip-bad")
    assert "1 images skipped" in output
    assert "art/cat/1.png: it is not an image" in output


def test_what_is_left_out_is_shown_and_no_name_reaches_the_terminal_raw(tmp_path):
    root = tmp_path / "set"
    for domain in ("art\x1b[31m", "v1.0"):
        for label in ("cat", "do\x9bg"):
            (root / domain / label).mkdir(parents=True)
            Image.new("RGB", (9, 9)).save(root / domain / label / "0.png")
            for i in range(4):
                (root / domain / label / f"{i}.psd").write_bytes(b"x")
    output = run("info", str(root))
    assert "16 files among the images, or classes, are left out:" in output
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
