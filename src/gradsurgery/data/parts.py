"""Which part of a split an image belongs to, where a table or lists of files say so."""

from gradsurgery.errors import DataError

PARTS = ("train", "validation", "test")
_OTHER_NAMES = {
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "dev": "validation",
    "crossval": "validation",
    "testing": "test",
}


def part_name(text: str, where: str) -> str:
    """The part that `text` means; raises `DataError` for what is none."""
    plain = text.strip().lower()
    part = _OTHER_NAMES.get(plain, plain)
    if part not in PARTS:
        raise DataError(
            f"{where}: the split is {text!r:.60}, expected train, validation (val) or test; mend it"
        )
    return part
