import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gradsurgery.errors import (
    ArgumentError,
    GradsurgeryError,
    is_out_of_memory,
    one_line,
    printable,
    suppress_out_of_memory,
)


@given(st.text(st.characters(codec=None)))
def test_nothing_that_a_terminal_obeys_is_left(text):
    shown = printable(text)
    assert not any(ord(c) < 32 or 127 <= ord(c) < 160 or 0xD800 <= ord(c) < 0xE000 for c in shown)
    assert not set("\u202e\u2066\u2028") & set(shown)
    shown.encode()
    assert printable(shown) == shown


@pytest.mark.parametrize("text", ['Käse, "x"=y', "日本", "a\u0301", "👩\u200d🔬", "[red]", "C:\\x"])
def test_printable_text_stays_as_it_is(text):
    assert printable(text) == text


def test_an_error_is_one_line_whatever_name_is_in_it():
    error = ArgumentError("no domain 'a\x1b[2J\nb'")
    assert str(error) == r"no domain 'a\x1b[2J\nb'"
    assert isinstance(error, GradsurgeryError | ValueError)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)  # noqa: S301


def test_of_a_message_of_any_length_beginning_and_end_are_kept():
    name = "a" * 100_000
    message = str(ArgumentError(f"photos has no domain {name!r}; its domains are b, c"))
    assert len(message) < 2000
    assert message.startswith("photos has no domain 'aaa")
    assert message.endswith("aaa'; its domains are b, c")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (FileNotFoundError(2, "No such file", "x"), "No such file"),
        (ValueError("two\n  lines"), "two lines"),
        (SystemExit(0), "it ends the program (sys.exit)"),
        (RuntimeError(), "RuntimeError"),
    ],
)
def test_what_other_libraries_say_is_one_line(error, line):
    assert one_line(error) == line
    assert len(one_line(ValueError("x" * 500))) == 200


@pytest.mark.parametrize(
    "allocate",
    [
        lambda: torch.empty(2**60, dtype=torch.uint8),
        lambda: np.empty(2**60, np.uint8),
        lambda: bytearray(2**62),
    ],
)
def test_memory_that_there_is_not_is_known(allocate):
    with pytest.raises((MemoryError, RuntimeError)) as caught:
        allocate()
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(RuntimeError("a bug"))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        # a graph's own memory, pinned memory, a stream's workspace; none is an OutOfMemoryError
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("Triton Error [CUDA]: out of memory"),
        RuntimeError("MPS backend out of memory (MPS allocated: 9.05 GB)"),
    ],
)
def test_memory_that_an_accelerator_has_not_is_known(error):
    assert is_out_of_memory(error)
    with suppress_out_of_memory():
        raise error


def test_only_a_lack_of_memory_is_suppressed():
    with pytest.raises(RuntimeError, match="a bug"), suppress_out_of_memory():
        raise RuntimeError("a bug")


def test_of_a_long_name_the_middle_is_left_out_and_the_rest_of_the_message_stays():
    error = ArgumentError(f"cannot read {'a' * 150}/{'b' * 150}: no such file; look for it")
    assert str(error) == f"cannot read {'a' * 54} … {'b' * 25}: no such file; look for it"


def test_of_a_long_quotation_the_middle_is_left_out_and_nothing_between_apostrophes():
    prose = "torch's words, " + 30 * "which are many, " + "and a user's"
    name = " ".join(["long"] * 90)
    error = str(ArgumentError(f"unknown rule '{name}'; there are sum and mean"))
    assert error == f"unknown rule '{name[:53]} … {name[-25:]}'; there are sum and mean"
    assert str(ArgumentError(prose)) == prose
