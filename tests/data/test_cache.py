import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gradsurgery.data import (
    SkippedImage,
    cache_folder,
    decode_image,
    digest_of,
    open_source,
    prepare,
)
from gradsurgery.data.tables import file_state
from gradsurgery.errors import ArgumentError, DataError, OutputError


@pytest.fixture
def root(make_folder, tmp_path):
    return make_folder(tmp_path / "set")


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


class Decoded(list):
    """A progress callback that remembers its calls."""

    def __call__(self, done: int, total: int) -> None:
        self.append((done, total))


def leftovers(cache: Path) -> list[Path]:
    return [path for path in cache.rglob("*") if path.name.endswith(".tmp")]


def test_pixels_are_the_decoded_images(root, cache):
    images = prepare(open_source(str(root)), 8, cache)
    assert images.images.shape == (12, 8, 8, 3)
    assert images.images.dtype == np.uint8
    assert not images.images.flags.writeable
    for i, identity in enumerate(images.identities):
        domain, label, _ = identity.split("/")
        assert images.domains[images.domain[i]] == domain
        assert images.classes[images.label[i]] == label
        expected = decode_image((root / identity).read_bytes(), 8)
        assert np.array_equal(images.images[i], expected)
    assert images.domain.dtype == images.label.dtype == np.int64
    assert images.counts().tolist() == [[3, 3], [3, 3]]


def test_a_second_opening_reads_no_image(root, cache, monkeypatch):
    first = prepare(open_source(str(root)), 8, cache)
    source = open_source(str(root))
    monkeypatch.setattr(source, "contents", lambda: pytest.fail("read the images again"))
    second = prepare(source, 8, cache)
    assert second.digest == first.digest
    assert np.array_equal(second.images, first.images)


def test_a_set_that_moved_or_was_touched_is_not_decoded_again(root, cache, tmp_path):
    first = prepare(open_source(str(root)), 8, cache)
    os.utime(root / "art/cat/0.png", (1, 1))
    decoded = Decoded()
    assert prepare(open_source(str(root)), 8, cache, progress=decoded).digest == first.digest
    shutil.move(root, tmp_path / "moved")
    moved = open_source(str(tmp_path / "moved"))
    assert prepare(moved, 8, cache, progress=decoded).digest == first.digest
    assert decoded == []


def test_the_digest_alone_is_read_once_after_the_files_were_touched(root, cache, monkeypatch):
    expected = prepare(open_source(str(root)), 8, cache).digest
    os.utime(root / "art/cat/0.png", (1, 1))
    assert digest_of(open_source(str(root)), 8, cache) == expected
    source = open_source(str(root))
    monkeypatch.setattr(source, "contents", lambda: pytest.fail("read the images again"))
    assert digest_of(source, 8, cache) == expected
    assert digest_of(open_source(str(root)), 8, cache / "none") == expected
    assert not (cache / "none").exists()


def test_other_contents_of_the_same_size_and_time_are_seen(root, cache):
    path, stats = root / "art/cat/0.bmp", []
    for shade in (10, 200):
        Image.new("RGB", (8, 8), (shade,) * 3).save(path)
        os.utime(path, (1, 1))
        stats.append(file_state(path))
        images = prepare(open_source(str(root)), 8, cache)
        position = images.identities.index("art/cat/0.bmp")
        assert images.images[position].flatten().tolist() == [shade] * 192
    before, after = stats
    assert after[:3] == before[:3]
    assert after[3] != before[3]


def test_other_contents_names_or_sizes_have_another_digest(root, cache):
    digests = {prepare(open_source(str(root)), size, cache).digest for size in (8, 9)}
    (root / "art/cat/0.png").rename(root / "art/cat/9.png")
    digests.add(prepare(open_source(str(root)), 8, cache).digest)
    shutil.copy(root / "art/cat/1.png", root / "art/cat/9.png")
    digests.add(prepare(open_source(str(root)), 8, cache).digest)
    assert len(digests) == 4


def test_progress_counts_every_image(root, cache):
    decoded = Decoded()
    prepare(open_source(str(root)), 8, cache, progress=decoded)
    assert decoded == [(i, 12) for i in range(1, 13)]


def test_the_number_of_workers_does_not_matter(make_folder, tmp_path):
    root = make_folder(tmp_path / "set", each=20)
    (root / "art/dog/7.png").write_bytes(b"bad")
    written = set()
    for workers in (1, 2, 7):
        images = prepare(open_source(str(root)), 8, tmp_path / str(workers), workers, skip_bad=True)
        files = [(images.folder / name).read_bytes() for name in ("images.bin", "meta.json")]
        written.add((images.digest, *files))
    assert len(written) == 1


@pytest.mark.parametrize("workers", [1, 3])
def test_the_first_bad_image_is_named(root, cache, workers):
    for name in ("art/dog/2.png", "photo/cat/1.png", "photo/dog/0.png"):
        (root / name).write_bytes((root / name).read_bytes()[:60])
    with pytest.raises(DataError, match=r"art/dog/2\.png: it is damaged.*--skip-bad") as caught:
        prepare(open_source(str(root)), 8, cache, workers)
    assert "\n" not in str(caught.value)
    assert leftovers(cache) == []
    assert list(cache.glob("*/images.bin")) == []


def test_bad_images_are_skipped_on_request_only(root, cache):
    (root / "art/dog/1.png").write_bytes(b"bad")
    (root / "photo/cat/0.png").write_bytes(b"")
    images = prepare(open_source(str(root)), 8, cache, skip_bad=True)
    assert images.skipped == (
        SkippedImage("art/dog/1.png", "it is not an image in a known format"),
        SkippedImage("photo/cat/0.png", "it is empty (0 bytes)"),
    )
    assert images.counts().tolist() == [[3, 2], [2, 3]]
    for i, identity in enumerate(images.identities):
        assert np.array_equal(images.images[i], decode_image((root / identity).read_bytes(), 8))
    again = prepare(open_source(str(root)), 8, cache, skip_bad=True)
    assert again.skipped == images.skipped
    with pytest.raises(DataError, match=r"art/dog/1\.png: it is not an image"):
        prepare(open_source(str(root)), 8, cache)


def test_a_class_of_bad_images_only_is_an_error(root, cache):
    for i in range(3):
        (root / f"photo/dog/{i}.png").write_bytes(b"bad")
    with pytest.raises(DataError, match=r"without 3 bad images: class dog .* domain photo"):
        prepare(open_source(str(root)), 8, cache, skip_bad=True)
    assert leftovers(cache) == []


@pytest.mark.parametrize(
    "damage", ["short", "no pixels", "no meta", "bad meta", "other meta", "list", "index"]
)
def test_a_damaged_entry_is_made_anew(root, cache, damage):
    first = prepare(open_source(str(root)), 8, cache)
    expected = np.array(first.images)
    pixels, meta = first.folder / "images.bin", first.folder / "meta.json"
    if damage == "short":
        os.truncate(pixels, 100)
    elif damage == "no pixels":
        pixels.unlink()
    elif damage == "no meta":
        meta.unlink()
    elif damage == "index":
        next((cache / "index").iterdir()).write_text('{"digest": "../../etc"}')
    else:
        text = meta.read_text()
        meta.write_text({"bad meta": text[:-9], "other meta": "{}", "list": "[]"}[damage])
    again = prepare(open_source(str(root)), 8, cache)
    assert again.digest == first.digest
    assert np.array_equal(again.images, expected)
    assert prepare(open_source(str(root)), 8, cache).digest == first.digest


def test_what_killed_processes_left_is_removed(root, cache):
    cache.mkdir()
    for name in (f".{'a' * 64}.123.tmp", f".{'b' * 64}.9.tmp"):
        (cache / name).mkdir()
        (cache / name / "images.bin").write_bytes(b"half")
    (cache / "index").mkdir()
    (cache / "index/.x.json.1.tmp").write_text("half")
    prepare(open_source(str(root)), 8, cache)
    assert leftovers(cache) == []


def test_an_image_that_changes_while_it_is_read_is_an_error(root, cache, monkeypatch):
    source = open_source(str(root))
    contents = source.contents
    passes = iter([contents(), ((i, content + b"x") for i, content in contents())])
    monkeypatch.setattr(source, "contents", passes.__next__)
    with pytest.raises(DataError, match="changed while it was read"):
        prepare(source, 8, cache)


def test_an_image_that_cannot_be_read_is_not_skipped(root, cache):
    source = open_source(str(root))
    (root / "art/cat/0.png").unlink()
    with pytest.raises(DataError, match=r"cannot read .*art/cat/0\.png: No such file"):
        prepare(source, 8, cache, skip_bad=True)


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.setenv("GRADSURGERY_CACHE", "/a")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    monkeypatch.setenv("HOME", "/c")
    assert cache_folder(tmp_path) == tmp_path
    assert cache_folder() == Path("/a")
    monkeypatch.delenv("GRADSURGERY_CACHE")
    assert cache_folder() == Path("/b/gradsurgery")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path("/c/.cache/gradsurgery")


def test_a_cache_that_cannot_be_written_is_an_output_error(root, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match=r"cannot write .*--cache or \$GRADSURGERY_CACHE$"):
        prepare(open_source(str(root)), 8, tmp_path / "file/cache")


@pytest.mark.parametrize("kilobytes", [64, 400])
def test_a_full_disk_leaves_nothing(root, tmp_path, kilobytes):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(disk)]
    if os.name != "posix" or os.geteuid() != 0 or subprocess.run(mount, check=False).returncode:
        pytest.skip("cannot mount a small disk: not root")
    try:
        with pytest.raises(OutputError, match="the disk is full") as caught:
            prepare(open_source(str(root)), 120, disk)  # 12 * 120 * 120 * 3 = 518,400 bytes
        assert "\n" not in str(caught.value)
        assert [path for path in disk.rglob("*") if path.is_file() and path.stat().st_size] == []
        assert leftovers(disk) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize(("size", "workers"), [(0, None), (8, 0)])
def test_impossible_numbers_are_refused(root, cache, size, workers):
    with pytest.raises(ArgumentError, match="is 0, expected"):
        prepare(open_source(str(root)), size, cache, workers)


def test_decoded_images_do_for_a_copy_of_their_files_where_the_cache_cannot_be_written(
    root, cache, tmp_path
):
    first = prepare(open_source(str(root)), 8, cache)
    shutil.rmtree(cache / "locks")
    (cache / "locks").touch()  # no lock can be taken, whoever runs this
    copied = shutil.copytree(root, tmp_path / "copied")
    decoded = Decoded()
    images = prepare(open_source(str(copied)), 8, cache, progress=decoded)
    assert (images.digest, decoded) == (first.digest, [])
    assert (images.images == first.images).all()
    with pytest.raises(OutputError, match="cannot write"):
        prepare(open_source(str(copied)), 9, cache)
