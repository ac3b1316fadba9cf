"""Which images are for training, validation and test: `split.json`."""

from typing import ClassVar

from gradsurgery.documents.document import Document


class SplitFile(Document):
    """The identities of the images of each domain and part, and the seed that drew them."""

    file_name: ClassVar[str] = "split.json"
    title: ClassVar[str] = "split"
    cure: ClassVar[str] = "draw it anew"

    seed: int
    digest: str
    domains: dict[str, dict[str, list[str]]]
