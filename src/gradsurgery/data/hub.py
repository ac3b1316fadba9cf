"""Images from the Hugging Face Hub, through `datasets`."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from typing_extensions import override

from gradsurgery.data.tables import (
    COLUMNS,
    ROWS_AT_ONCE,
    TableSource,
    check_columns,
    column_names,
    file_name,
    image_bytes,
    image_kind,
    order_of_classes,
    stated,
)
from gradsurgery.errors import DataError, one_line


class HubSource(TableSource):
    """All splits of the data set `owner/name`, with the columns image, domain and label."""

    def __init__(self, repository: str) -> None:
        self.repository = repository
        self._dataset = _load(repository)
        features = self._dataset.features
        names = {column: getattr(features[column], "names", None) for column in ("domain", "label")}
        domains, classes = (
            column_names(list(self._dataset[column]), names[column], column, f"hf://{repository}")
            for column in ("domain", "label")
        )
        order = order_of_classes([names["label"]], set(classes))
        super().__init__(repository.rpartition("/")[2], domains, classes, self._files(), order)

    def _files(self) -> list[str | None]:
        return [
            file_name(path) for batch in self._batches() for path in batch.field("path").to_pylist()
        ]

    def _batches(self) -> Iterator[Any]:
        images = self._dataset.select_columns(["image"]).with_format("arrow")
        for table in images.iter(ROWS_AT_ONCE):
            yield table["image"].combine_chunks()

    @override
    def encoded(self) -> Iterator[bytes]:
        row = 0
        for batch in self._batches():
            for value in batch.to_pylist():
                place = f"hf://{self.repository}, row {row}"
                yield image_bytes(value, Path(), place)
                row += 1

    @override
    def signature(self) -> str | None:
        paths = sorted(file["filename"] for file in self._dataset.cache_files)
        return "hub/" + json.dumps([stated(Path(path)) for path in paths]) if paths else None

    @override
    def location(self, position: int) -> str:
        identity, row = self.listing.identities[position], self.listing.rows[position]
        return f"{identity} (hf://{self.repository}, row {row})"


@contextmanager
def _without_retries_told() -> Iterator[None]:
    """Without a word of each attempt to reach the Hub: what came of them is told in the end."""
    libraries = [logging.getLogger(name) for name in ("huggingface_hub", "datasets")]
    levels = [library.level for library in libraries]
    for library in libraries:
        library.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for library, level in zip(libraries, levels, strict=True):
            library.setLevel(level)


def _load(repository: str) -> Any:
    """All splits joined, images left encoded."""
    import datasets

    try:
        with _without_retries_told():
            splits = datasets.load_dataset(repository)
    # The network, the Hub and its clients raise exceptions of a dozen unrelated classes.
    except Exception as error:
        raise DataError(
            f"cannot load hf://{repository}: {one_line(error)}; check the name and the network, "
            "or give the path of a local copy (a folder domain/class/image, or Parquet files)"
        ) from error
    encoded = []
    for split in splits.values():
        check_columns(split.column_names, f"hf://{repository}")
        image_kind(split.features.arrow_schema.field("image").type, f"hf://{repository}")
        kept = split.select_columns(list(COLUMNS))
        encoded.append(kept.cast_column("image", datasets.Image(decode=False)))
    try:
        return datasets.concatenate_datasets(encoded)
    except ValueError as error:
        raise DataError(
            f"the splits of hf://{repository} have columns of different types: {one_line(error)}; "
            "give the path of a local copy in which they agree"
        ) from error
