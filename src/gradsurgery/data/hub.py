"""Images from the Hugging Face Hub, through `datasets`."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gradsurgery.data.table import (
    TableSource,
    check_columns,
    column_names,
    file_name,
    image_bytes,
    order_of_classes,
)
from gradsurgery.errors import DataError

ROWS_AT_ONCE = 64


class HubSource(TableSource):
    """All splits of the data set `owner/name`, with the columns image, domain and label."""

    def __init__(self, repository: str) -> None:
        self.repository = repository
        self._dataset = _load(repository)
        features = self._dataset.features
        names = {column: getattr(features[column], "names", None) for column in ("domain", "label")}
        where = f"hf://{repository}"
        domains, classes = (
            column_names(list(self._dataset[column]), names[column], column, where)
            for column in ("domain", "label")
        )
        order = order_of_classes([names["label"]], set(classes))
        super().__init__(repository.rpartition("/")[2], domains, classes, self._files(), order)

    def _files(self) -> list[str | None]:
        files: list[str | None] = []
        for batch in self._batches():
            paths = batch.type.get_field_index("path")
            values = batch.field(paths).to_pylist() if paths >= 0 else [None] * len(batch)
            files += [file_name(path) for path in values]
        return files

    def _batches(self) -> Iterator[Any]:
        images = self._dataset.select_columns(["image"]).with_format("arrow")
        for table in images.iter(ROWS_AT_ONCE):
            yield table["image"].combine_chunks()

    def rows(self) -> Iterator[tuple[int, bytes]]:
        """Yield (row, encoded image) of every split after the other."""
        row = 0
        for batch in self._batches():
            for value in batch.to_pylist():
                yield row, image_bytes(value, Path(), f"hf://{self.repository}, row {row}")
                row += 1

    def signature(self) -> str | None:
        """The downloaded files' paths, sizes and times of modification."""
        paths = sorted(file["filename"] for file in self._dataset.cache_files)
        stats = [(path, Path(path).stat()) for path in paths]
        if not stats:
            return None
        return "hub/" + json.dumps([(p, s.st_size, s.st_mtime_ns) for p, s in stats])

    def location(self, position: int) -> str:
        """The image's identity and row."""
        identity, row = self.listing.identities[position], self.listing.rows[position]
        return f"{identity} (hf://{self.repository}, row {row})"


def _load(repository: str) -> Any:
    """All splits joined, images left encoded."""
    import datasets

    try:
        splits = datasets.load_dataset(repository)
    # The network, the Hub and its clients raise exceptions of a dozen unrelated classes.
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(
            f"cannot load hf://{repository}: {reason}; check the name and the network, or give the "
            "path of a local copy (a folder domain/class/image, or Parquet files) instead"
        ) from error
    for split in splits.values():
        check_columns(split.column_names, f"hf://{repository}")
    encoded = [
        split.select_columns(["image", "domain", "label"]).cast_column(
            "image", datasets.Image(decode=False)
        )
        for split in splits.values()
    ]
    return datasets.concatenate_datasets(encoded)
