"""What is left of explaining a model's answers: `explanation.json`."""

from typing import ClassVar, Literal

from pydantic import Field

from gradsurgery.documents.document import Choices, Document, Part


class ExplanationOptions(Choices):
    """How answers are explained."""

    part = "option"

    by: Literal["auto", "grad-cam", "integrated-gradients"] = Field(
        "auto",
        description="How: grad-cam, integrated-gradients, or auto (Grad-CAM where the network has "
        "convolutions).",
    )
    per_domain: int = Field(
        6, ge=1, le=50, description="Images shown per domain; half of them wrong where there are."
    )
    points: int = Field(
        1000, ge=10, le=20_000, description="Images in the map of features, over all domains."
    )
    seed: int = Field(0, ge=0, le=2**63 - 1, description="Of the choice of images and the map.")


class Answer(Part):
    """What the model says of an image.

    identity: "domain/class/file", or its path.
    domain, label: None where they are not known.
    predicted: the class of the highest probability.
    """

    identity: str
    domain: str | None = None
    label: str | None = None
    predicted: str
    probability: float


class Place(Part):
    """Where an image's features lie on the map."""

    domain: str
    label: str
    predicted: str
    x: float
    y: float


class Explanation(Document):
    """Images with what their answers rest on (the figure beside has the pictures), and a map.

    model: what the model is called; data: the images' set; target: the domain held out, if any.
    by: how answers were explained.
    """

    file_name: ClassVar[str] = "explanation.json"
    title: ClassVar[str] = "explanation of a model"
    cure: ClassVar[str] = "make it again with `gradsurgery explain`"

    model: str
    data: str
    target: str | None = None
    by: str
    classes: list[str]
    domains: list[str]
    shown: list[Answer]
    places: list[Place] = []
