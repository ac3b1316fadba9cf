"""A model file, on the disk or the Hub: its header is checked before anything is allocated."""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from gradsurgery.backbones.weights import State
from gradsurgery.data import PRESETS
from gradsurgery.data.tables import silenced
from gradsurgery.documents.deployment import MODEL_FOLDER, ModelDescription
from gradsurgery.documents.record import Record, SplitFile
from gradsurgery.errors import ArgumentError, OutputError, WeightsError, one_line

_CURE = "give a run's folder, or the model.safetensors in one"


@dataclass(frozen=True)
class ModelFile:
    """What the header says, and what reads the rest.

    shapes: of the weights by name. assumed: what the file does not say and was concluded.
    """

    path: Path
    description: ModelDescription
    shapes: dict[str, tuple[int, ...]]
    read: Callable[[], State]
    assumed: tuple[str, ...] = ()


def open_model_file(place: Path) -> ModelFile:
    """The model file `place`, or that of the run or the deployment in the folder `place`.

    Reads its header alone.

    Raises `DataError` or `WeightsError`, one line, where it is none, damaged or of a later version.
    """
    try:
        name = ModelDescription.file_name
        path = place / name if place.is_dir() else place
        if not (found := path.exists()) and (deployed := place / MODEL_FOLDER / name).exists():
            path, found = deployed, True
    except (OSError, ValueError) as error:  # a name that is too long
        raise WeightsError(f"cannot read {str(place)!r}: {one_line(error)}; {_CURE}") from error
    if not found:
        there = "the run is not finished, or it is no run" if place.is_dir() else "no such file"
        raise WeightsError(f"there is no model {str(path)!r}: {there}; {_CURE}")
    metadata, shapes = _header(path)
    if ModelDescription.key not in metadata:
        raise WeightsError(
            f"{path} says nothing of its backbone and classes, as model files of gradsurgery do; "
            f"{_CURE}"
        )
    description = ModelDescription.parsed(metadata[ModelDescription.key], path)
    file = ModelFile(path, description, shapes, partial(_tensors, path))
    return _completed(file) if description.version < 2 else file


def _header(path: Path) -> tuple[dict[str, str], dict[str, tuple[int, ...]]]:
    from safetensors import safe_open

    try:
        with safe_open(path, "pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            return file.metadata() or {}, shapes
    except Exception as error:  # damaged bytes, a folder, no permission
        raise _no_model(path, error) from error


def _tensors(path: Path) -> State:
    from safetensors.torch import load_file

    try:
        state: State = load_file(path)
    except Exception as error:
        raise _no_model(path, error) from error
    return state


def _no_model(path: Path, error: Exception) -> WeightsError:
    return WeightsError(f"{path} is no whole model file: {one_line(error)}; {_CURE}")


def _completed(file: ModelFile) -> ModelFile:
    """A file of version 1 with what the record beside it, or the name of its data set, says."""
    description, record = file.description, None
    if (file.path.parent / Record.file_name).exists():
        record = Record.load(file.path.parent)
    data = description.data if record is None else record.configuration.data.partition(":")[0]
    preset = data in PRESETS
    added: dict[str, Any] = {"resize_first": 227 if preset else None}
    assumed = []
    if record is not None:
        configuration = record.configuration
        added["domains"] = configuration.sources(record.data.domains)
        added["precision"] = configuration.precision
        added["split_seed"] = configuration.seed_of_split
    elif preset:
        assumed.append(
            f"{file.path} does not say how its images were resized; taken is 227 pixels first, as "
            f"for the data set {data}"
        )
    return replace(file, description=description.model_copy(update=added), assumed=tuple(assumed))


PREFIX = "hf://"
_NAME = re.compile(r"hf://([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")
_CARD = "README.md"


def downloaded(place: str) -> Path:
    """The model file of `hf://owner/name`, or `hf://owner/name@revision`, in the Hub's cache.

    Raises `ArgumentError` for another form of name, `WeightsError` where it is not to be had.
    """
    from huggingface_hub import hf_hub_download

    repository, revision = named_on_hub(place)
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

    repository, revision = named_on_hub(place)
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


def named_on_hub(place: str) -> tuple[str, str | None]:
    """Owner/name and revision in `hf://owner/name@revision`; raises `ArgumentError`."""
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
    shown = not bars.are_progress_bars_disabled()
    bars.disable_progress_bars()
    try:
        with silenced("huggingface_hub"):
            yield
    finally:
        if shown:
            bars.enable_progress_bars()
