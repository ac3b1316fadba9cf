"""What a model file says of itself: all that its use needs beside the weights."""

import math
from typing import Annotated, ClassVar

from pydantic import Field, model_validator

from gradsurgery.documents.configuration import Precision
from gradsurgery.documents.data_options import Resize
from gradsurgery.documents.document import Document

Name = Annotated[str, Field(min_length=1, max_length=1000)]
Triple = Annotated[list[float], Field(min_length=3, max_length=3)]
Side = Annotated[int, Field(ge=1, le=4096)]


class ModelDescription(Document):
    """JSON under the key "gradsurgery" in the header of a `model.safetensors`.

    backbone: its name, for `build_backbone`.
    own_backbone: where its code comes from, None for torchvision's, timm's and ours. It is said
        and never imported.
    classes: their names, in the order of the logits.
    mean, std: of the red, green and blue channel, for `normalize`.
    image_size, resize_first: sides in pixels, for `decode_image`, as `resize` is.
    decoder: who decoded the training's images, None for `decode_image`.
    precision: of the forward passes in training and tests.
    data, domains: the data set, and those of its domains that the model was trained on.
    target: the domain held out.
    method, average, seed, step: of the run.
    split_seed: the seed of the split into training, validation and test images.

    Version 1 said neither `resize_first` nor `domains`.
    """

    file_name: ClassVar[str] = "model.safetensors"
    title: ClassVar[str] = "model of gradsurgery"
    cure: ClassVar[str] = "train it again, or copy it again"
    unnumbered = True
    key: ClassVar[str] = "gradsurgery"

    version: int = 2
    backbone: Name
    own_backbone: dict[str, str | None] | None = None
    classes: Annotated[list[Name], Field(min_length=1, max_length=100_000)]
    mean: Triple
    std: Triple
    image_size: Annotated[int, Field(ge=1, le=2048)]
    resize_first: Side | None = None
    resize: Resize = "squash"
    decoder: str | None = None
    precision: Precision = "float32"
    data: str
    domains: list[str] | None = None
    target: str | None
    method: str
    average: str
    seed: int
    split_seed: int | None = None
    step: Annotated[int, Field(ge=0)]
    written_by: str = ""

    @model_validator(mode="after")
    def _is_usable(self) -> "ModelDescription":
        if len(set(self.classes)) < len(self.classes):
            raise ValueError("classes has a name twice")
        if not min(self.std) > 0 or not all(math.isfinite(1 / value) for value in self.std):
            raise ValueError(f"std must be above 0, found {self.std}")
        return self
