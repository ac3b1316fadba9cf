"""A model file: its header is read and checked before anything is built or allocated."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from gradsurgery.backbones.weights import State
from gradsurgery.data import PRESETS
from gradsurgery.documents.deployment import ModelDescription
from gradsurgery.documents.record import Record
from gradsurgery.errors import WeightsError, one_line

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
    """The model file `place`, or that of the run in the folder `place`; reads its header alone.

    Raises `DataError` or `WeightsError`, one line, where it is none, damaged or of a later version.
    """
    try:
        path = place / ModelDescription.file_name if place.is_dir() else place
        found = path.exists()
    except (OSError, ValueError) as error:  # a name that is too long
        raise WeightsError(f"cannot read {str(place)!r}: {one_line(error)}; {_CURE}") from error
    if not found:
        there = "the run is not finished, or it is no run" if place.is_dir() else "no such file"
        raise WeightsError(f"there is no model {path}: {there}; {_CURE}")
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
