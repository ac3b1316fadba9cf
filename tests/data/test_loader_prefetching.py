import threading

import pytest

from gradsurgery.data.loader import prefetched


@pytest.mark.parametrize("ahead", [0, 1, 3, 100])
@pytest.mark.parametrize(("first", "last"), [(1, 7), (5, 7), (7, 7), (8, 7)])
def test_every_step_gets_its_batch_whatever_is_prefetched(
    ahead: int, first: int, last: int
) -> None:
    found = list(prefetched(lambda step: step * 10, first, last, ahead=ahead))
    assert found == [(step, (step - 1) * 10) for step in range(first, last + 1)]


def test_an_error_of_the_thread_reaches_the_caller() -> None:
    def broken(step: int) -> int:
        if step == 2:
            raise ValueError("no batch")
        return step

    with pytest.raises(ValueError, match="no batch"):
        list(prefetched(broken, 1, 5))


def test_no_thread_is_left_when_the_caller_stops_early() -> None:
    before = threading.active_count()
    steps = prefetched(lambda step: step, 1, 100)
    next(steps)
    steps.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before
