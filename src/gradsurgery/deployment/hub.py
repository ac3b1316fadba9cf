"""Model files on the Hugging Face Hub."""

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from gradsurgery.documents.deployment import ModelDescription
from gradsurgery.documents.record import Record, SplitFile
from gradsurgery.errors import ArgumentError, OutputError, WeightsError, one_line

PREFIX = "hf://"
_NAME = re.compile(r"hf://([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")
_CARD = "README.md"


def downloaded(place: str) -> Path:
    """The model file of `hf://owner/name`, or `hf://owner/name@revision`, in the Hub's cache.

    Raises `ArgumentError` for another form of name, `WeightsError` where it is not to be had.
    """
    from huggingface_hub import hf_hub_download

    repository, revision = _parsed(place)
    try:
        with _quietly():
            return Path(
                hf_hub_download(
                    repository, ModelDescription.file_name, revision=revision, endpoint=_endpoint()
                )
            )
    except Exception as error:  # the network and the Hub's client have errors of their own
        raise WeightsError(
            f"cannot get the model {place}: {one_line(error)}; check the name, the network, and "
            "that it holds a model.safetensors of gradsurgery"
        ) from error


def push(model: Path, place: str, also: tuple[Path, ...] = (), card: str = "") -> str:
    """Upload a model file to `hf://owner/name`, which is made where it is not there; its address.

    With it go the record, the split and the model card (README.md) beside it, and the files `also`;
    where no README.md is there, `card` is it.

    Raises `ArgumentError` for another form of name, `OutputError` where the Hub refuses.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    repository, revision = _parsed(place)
    beside = (Record.file_name, SplitFile.file_name, _CARD)
    files = [model, *(model.parent / name for name in beside), *also]
    operations = [
        CommitOperationAdd(ModelDescription.file_name if path == model else path.name, str(path))
        for path in files
        if path.is_file()
    ]
    if card and not (model.parent / _CARD).is_file():
        operations.append(CommitOperationAdd(_CARD, card.encode()))
    api = HfApi(endpoint=_endpoint())
    try:
        with _quietly():
            api.create_repo(repository, exist_ok=True)
            done = api.create_commit(
                repository,
                operations,
                commit_message="Model trained with gradsurgery",
                revision=revision,
            )
    except Exception as error:
        raise OutputError(
            f"cannot upload to {place}: {one_line(error)}; log in with `hf auth login`, and check "
            "that the name is yours"
        ) from error
    return str(done.commit_url)


def _parsed(place: str) -> tuple[str, str | None]:
    found = _NAME.fullmatch(place)
    if found is None:
        raise ArgumentError(f"{place!r:.200} is no model of the Hub, expected hf://owner/name")
    return found[1], found[2]


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT") or None


@contextmanager
def _quietly() -> Iterator[None]:
    """Without bars and warnings: what came of it is told in the end."""
    bars: Any = import_module("huggingface_hub.utils")
    library, shown = logging.getLogger("huggingface_hub"), not bars.are_progress_bars_disabled()
    level = library.level
    library.setLevel(logging.CRITICAL)
    bars.disable_progress_bars()
    try:
        yield
    finally:
        library.setLevel(level)
        if shown:
            bars.enable_progress_bars()
