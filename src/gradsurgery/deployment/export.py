"""A trained model in the form of another runtime, which is run before it is called done."""

import copy
import io
import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import override

from gradsurgery.atomic import atomic_file, output_error, write_text
from gradsurgery.backbones.weights import file_digest
from gradsurgery.deployment.trained_model import TrainedModel
from gradsurgery.errors import (
    ArgumentError,
    GradsurgeryError,
    MissingPackageError,
    check_kind,
    one_line,
)

Format = Literal["onnx", "torch-export", "torchscript"]
Normalization = Literal["inside", "beside"]
Runtime = Callable[[Tensor], np.ndarray]

SUFFIXES: dict[Format, str] = {"onnx": ".onnx", "torch-export": ".pt2", "torchscript": ".pt"}
TOLERANCE = 1e-4
"""Of the logits, absolute, or relative to the largest where that is above 1."""
_DIGEST = "model_digest"  # in the description: the sha256 of the model file
_BATCHES = (1, 2, 7)  # images that the runtime is given at a time, to see that it takes any number


class Exported(nn.Module):
    """From decoded pixels, uint8 [batch, size, size, 3], to logits [batch, classes]."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        for name, values in (("mean", mean), ("std", std)):
            numbers = torch.tensor(values, dtype=torch.float32, device="cpu")
            self.register_buffer(name, numbers.view(1, 3, 1, 1))

    @override
    def forward(self, images: Tensor) -> Tensor:
        scaled = images.permute(0, 3, 1, 2).float() / 255
        logits: Tensor = self.network((scaled - self.mean) / self.std)
        return logits


def export_model(
    model: TrainedModel,
    path: Path | str,
    form: Format = "onnx",
    normalization: Normalization = "inside",
) -> float:
    """Write the model for another runtime, and compare what that says with what the model says.

    Args:
        model: from `load_model`; the export computes in float32.
        path: the file. Its description (classes, sizes, mean, std, and what is said here of the
            normalization) is JSON beside it, with the name `<file>.json`; all but
            the last is in the metadata of an ONNX file too. A file that is there of the same model
            is replaced.
        form: onnx, torch-export (`torch.export.load`) or torchscript (`torch.jit.load`).
        normalization: inside: the input `images` is uint8 [batch, size, size, 3], what
            `model.preprocess.pixels` gives of a picture; beside: it is float32
            [batch, 3, size, size], what `model.preprocess` gives. The output is `logits`
            [batch, classes]; the batch may be of any size.

    Returns the largest difference of a logit on random images, at most 1e-4 (relative where logits
    are above 1). Raises `ArgumentError` where the network has an operator that the format lacks,
    or needs a batch of one size, and where another model's file is at `path`;
    `MissingPackageError` without the packages; nothing is left behind then.
    """
    check_kind("model", model, TrainedModel, "what gradsurgery.load_model gives")
    check_kind("path", path, Path | str, "a file's path")
    path = Path(path)
    if not isinstance(form, str) or form not in _EXPORTERS:
        raise ArgumentError(f"form is {', '.join(_EXPORTERS)}, found {form!r:.80}")
    digest = file_digest(model.file)
    _check_replaceable(path, digest)
    network = copy.deepcopy(model.module).cpu().eval()
    if normalization == "inside":
        network = Exported(network, model.about.mean, model.about.std).eval()
    images = _images(model, normalization, max(_BATCHES))
    with atomic_file(path) as temporary:
        try:
            with warnings.catch_warnings(), torch.no_grad(), torch.device("cpu"):
                warnings.simplefilter("ignore")  # each exporter's of its own future
                run = _EXPORTERS[form](network, images[:2], temporary, model)
        except GradsurgeryError:
            raise
        except OSError as error:
            raise output_error(path, error) from error
        except Exception as error:  # each exporter has errors of its own, of many lines
            raise ArgumentError(
                f"{model.about.backbone} cannot be exported as {form}: {one_line(error)}; choose "
                "another format or backbone"
            ) from error
        difference = _compared(network, run, images, form)
    about = model.about.model_dump(mode="json")
    about |= {"normalization": normalization, _DIGEST: digest}
    write_text(description_file(path), json.dumps(about, indent=1) + "\n")
    return difference


def description_file(path: Path) -> Path:
    """Where the description of the exported file at `path` lies."""
    return path.with_name(f"{path.name}.json")


def _check_replaceable(path: Path, digest: str) -> None:
    """Raise `ArgumentError` where a file is at `path` that is not of the model of that digest."""
    if not path.exists():
        return
    try:
        content = json.loads(description_file(path).read_text(encoding="utf-8"))
        found, name = content.get(_DIGEST), f"{content['method']}, seed {content['seed']}"
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        found, name = None, "without a description"
    if found != digest:
        raise ArgumentError(
            f"{path} is there, of another model ({name}); give another name with --out, or delete "
            "it"
        )


def _images(model: TrainedModel, normalization: Normalization, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    size = model.preprocess.size
    pixels = torch.randint(
        0, 256, (count, size, size, 3), generator=generator, dtype=torch.uint8, device="cpu"
    )
    if normalization == "inside":
        return pixels
    return torch.stack([model.preprocess(image.numpy()) for image in pixels])


def _compared(network: nn.Module, run: Runtime, images: Tensor, form: Format) -> float:
    worst = 0.0
    for count in _BATCHES:
        with torch.no_grad():
            expected = network(images[:count]).numpy()
        try:
            found = run(images[:count])
        except Exception as error:
            raise ArgumentError(
                f"what was exported as {form} does not run with {count} images: "
                f"{one_line(error)}; choose another format or backbone"
            ) from error
        if found.shape != expected.shape or not np.isfinite(found).all():
            raise ArgumentError(
                f"what was exported as {form} gives {list(found.shape)} for {count} images, "
                f"expected finite logits {list(expected.shape)}; choose another format"
            )
        worst = max(worst, float(np.abs(found - expected).max()))
        limit = TOLERANCE * max(1.0, float(np.abs(expected).max()))
        if worst > limit:
            raise ArgumentError(
                f"what was exported as {form} says otherwise than the model: logits differ by "
                f"{worst:.2g}, at most {limit:.2g} is expected; choose another format"
            )
    return worst


def _to_onnx(network: nn.Module, example: Tensor, path: Path, model: TrainedModel) -> Runtime:
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise MissingPackageError(
            f'the format onnx needs {error.name}: pip install "gradsurgery[export]"'
        ) from error
    torch.onnx.export(
        network,
        (example,),
        str(path),
        dynamo=True,
        verbose=False,
        external_data=False,
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
    )
    content = onnx.load(str(path))
    entry = content.metadata_props.add()
    entry.key, entry.value = model.about.key, model.about.model_dump_json()
    onnx.save(content, str(path))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda images: np.asarray(session.run(["logits"], {"images": images.numpy()})[0])


def _to_torch_export(
    network: nn.Module, example: Tensor, path: Path, model: TrainedModel
) -> Runtime:
    program = torch.export.export(
        network, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},)
    )
    content = io.BytesIO()  # on a full disk torch would end the process
    torch.export.save(program, content)
    path.write_bytes(content.getbuffer())
    with path.open("rb") as file:
        loaded = torch.export.load(file).module()
    return _of_torch(loaded)


def _to_torchscript(
    network: nn.Module, example: Tensor, path: Path, model: TrainedModel
) -> Runtime:
    traced: Any = torch.jit.trace(network, example)
    content = io.BytesIO()
    torch.jit.save(traced, content)
    path.write_bytes(content.getbuffer())
    return _of_torch(torch.jit.load(str(path)))


def _of_torch(loaded: Callable[[Tensor], Tensor]) -> Runtime:
    def run(images: Tensor) -> np.ndarray:
        with torch.no_grad():
            return loaded(images).numpy()

    return run


_EXPORTERS: dict[Format, Callable[[nn.Module, Tensor, Path, TrainedModel], Runtime]] = {
    "onnx": _to_onnx,
    "torch-export": _to_torch_export,
    "torchscript": _to_torchscript,
}
