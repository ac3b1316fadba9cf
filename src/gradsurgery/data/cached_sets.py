"""The folders of decoded images in a cache: which there are, and the removal of some."""

import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import Timeout

from gradsurgery.data.cache import folder_lock
from gradsurgery.data.image_set import ImageSetFile
from gradsurgery.errors import DataError, OutputError

_DAY = 86_400.0


@dataclass(frozen=True)
class CachedSet:
    """A folder of decoded images.

    size: side of the images in pixels; 0 where the folder is damaged.
    last_used: seconds since 1970, when a run last opened it.
    """

    folder: Path
    size: int
    images: int
    domains: tuple[str, ...]
    bytes: int
    last_used: float

    @property
    def days_unused(self) -> float:
        """Since it was last opened."""
        return max(0.0, (time.time() - self.last_used) / _DAY)


def cached_sets(cache: Path) -> list[CachedSet]:
    """The folders in `cache`, the one that was used last at the front."""
    found = []
    for folder in cache.glob("[0-9a-f]*"):
        if len(folder.name) != 64 or not folder.is_dir():
            continue
        size, images = 0, 0
        domains: tuple[str, ...] = ()
        with suppress(DataError):
            file = ImageSetFile.load(folder)
            size, images, domains = file.size, len(file.identities), tuple(file.domains)
        with suppress(OSError):  # another process may be removing it
            files = [path.stat() for path in folder.iterdir()]
            used = folder.stat().st_mtime
            total = sum(stat.st_size for stat in files)
            found.append(CachedSet(folder, size, images, domains, total, used))
    return sorted(found, key=lambda each: -each.last_used)


def remove_cached(cache: Path, chosen: CachedSet) -> bool:
    """Remove a folder; False where another process is writing it.

    Raises `OutputError` where it cannot be removed.
    """
    try:
        with folder_lock(cache, chosen.folder.name, timeout=0.0):
            shutil.rmtree(chosen.folder)
    except Timeout:
        return False
    except OSError as error:
        raise OutputError(
            f"cannot remove {chosen.folder}: {error.strerror}; check its permissions"
        ) from error
    return True
