import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import gradsurgery
from gradsurgery.data import ImageSet
from gradsurgery.documents.configuration import RunConfiguration
from gradsurgery.training import train
from gradsurgery.training.learner import Learner

PACKAGE = Path(str(gradsurgery.__file__)).parent
PAGE = Path(__file__).parents[2] / "docs" / "architecture.md"


def test_a_step_enters_no_file_that_the_page_on_the_house_does_not_name(
    tmp_path: Path,
    images: ImageSet,
    configured: Callable[..., RunConfiguration],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    entered: set[Path] = set()
    take = Learner.take

    def note(frame: FrameType, event: str, argument: Any) -> None:
        entered.add(Path(frame.f_code.co_filename))

    def traced(learner: Learner, *arguments: Any) -> Any:
        sys.setprofile(note)
        try:
            return take(learner, *arguments)
        finally:
            sys.setprofile(None)

    monkeypatch.setattr(Learner, "take", traced)
    train(configured(method="agr-sum", iterations=2), tmp_path / "run", opened=images)
    files = {str(file.relative_to(PACKAGE)) for file in entered if file.is_relative_to(PACKAGE)}
    trip = PAGE.read_text(encoding="utf-8").split("## A gradient's trip")[1].split("\n## ")[0]
    named = set(re.findall(r"[`(]([\w/]+\.py)", trip)) | {"errors.py"}
    assert {"engine/backward.py", "rules/agreement.py"} < files
    assert files - {"backbones/networks.py"} <= named
