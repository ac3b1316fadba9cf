"""The cache over time: one image more, what nobody uses."""

import os
import time

import numpy as np
import pytest

from gradsurgery.data import decode_image, open_source, prepare
from gradsurgery.data.image_set import cached_sets, remove_cached


def folders(cache):
    return sorted(path.name for path in cache.iterdir() if len(path.name) == 64)


def test_one_image_more_does_not_double_the_cache(make_folder, tmp_path, monkeypatch):
    root, cache = make_folder(tmp_path / "set"), tmp_path / "cache"
    before = prepare(open_source(str(root)), 8, cache)
    (root / "art/cat/new.png").write_bytes((root / "photo/dog/0.png").read_bytes() + b"\0")
    decoded = []

    def counted(content, *how):
        decoded.append(content)
        return decode_image(content, *how)

    monkeypatch.setattr("gradsurgery.data.decode.decode_image", counted)
    after = prepare(open_source(str(root)), 8, cache)
    assert decoded == [(root / "art/cat/new.png").read_bytes()]
    assert folders(cache) == [after.digest]
    kept = [i for i, name in enumerate(after.identities) if name != "art/cat/new.png"]
    assert np.array_equal(after.images[kept], before.images)  # which is still open
    fresh = prepare(open_source(str(root)), 8, tmp_path / "other")
    assert np.array_equal(fresh.images, after.images)


def test_what_another_place_has_too_stays(make_folder, tmp_path):
    first, second = make_folder(tmp_path / "one"), make_folder(tmp_path / "two")
    cache = tmp_path / "cache"
    same = {prepare(open_source(str(root)), 8, cache).digest for root in (first, second)}
    assert len(same) == 1
    (first / "art/cat/0.png").unlink()
    changed = prepare(open_source(str(first)), 8, cache).digest
    assert folders(cache) == sorted([*same, changed])
    other_size = prepare(open_source(str(first)), 9, cache).digest
    assert folders(cache) == sorted([*same, changed, other_size])


def test_a_bad_image_that_came_is_found(make_folder, tmp_path):
    root, cache = make_folder(tmp_path / "set"), tmp_path / "cache"
    prepare(open_source(str(root)), 8, cache)
    (root / "art/cat/new.png").write_bytes(b"no image")
    images = prepare(open_source(str(root)), 8, cache, skip_bad=True)
    assert [image.identity for image in images.skipped] == ["art/cat/new.png"]
    assert len(images.identities) == 12


def test_hashes_are_added_to_images_decoded_before_there_were_any(make_folder, tmp_path):
    root, cache = make_folder(tmp_path / "set"), tmp_path / "cache"
    images = prepare(open_source(str(root)), 8, cache)
    meta = images.folder / "meta.json"
    meta.write_text(meta.read_text().replace('"hashes"', '"forgotten"'))
    again = prepare(open_source(str(root)), 8, cache)
    assert again.hashes == images.hashes
    assert '"hashes"' in meta.read_text()


def test_what_there_is_and_when_it_was_used(make_folder, tmp_path):
    root, cache = make_folder(tmp_path / "set"), tmp_path / "cache"
    assert cached_sets(cache) == []
    small, large = (prepare(open_source(str(root)), size, cache) for size in (8, 16))
    month_ago = time.time() - 31 * 86_400
    os.utime(small.folder, (month_ago, month_ago))
    first, second = cached_sets(cache)
    assert (first.folder, first.size, first.images) == (large.folder, 16, 12)
    assert first.domains == ("art", "photo")
    assert first.bytes > 12 * 16 * 16 * 3
    assert second.days_unused == pytest.approx(31, abs=0.01)
    prepare(open_source(str(root)), 8, cache)  # uses it
    assert max(each.days_unused for each in cached_sets(cache)) < 0.01
    assert remove_cached(cache, second)
    assert folders(cache) == [large.digest]
    assert prepare(open_source(str(root)), 8, cache).digest == small.digest
