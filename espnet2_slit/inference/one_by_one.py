"""Many files at once, and one by one where something is wrong with one of them.

Whatever a decoder, a resampler or a model raises for one file, the others are served
and this one is named. Only a request that no file can serve ends it all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from espnet2_slit.data.audio import AudioError
from espnet2_slit.inference.requests import InferenceError

Item = TypeVar("Item")
Result = TypeVar("Result")


def each(
    files: Sequence[Item], work: Callable[[Sequence[Item]], Sequence[Result]]
) -> Iterator[tuple[Item, Result | Exception]]:
    """The result of each file, or what was raised for it.

    Args:
        files: their names, or whatever stands for them.
        work: files -> their results, in order.

    Yields:
        (file, result or exception).

    Raises:
        InferenceError: the request itself is wrong, whatever the file.
    """
    try:
        yield from list(zip(files, work(files), strict=True))
        return
    except InferenceError:
        raise
    except Exception as error:  # of a file in here, or of all of them together
        if len(files) == 1:
            yield files[0], error
            return
    for file in files:
        yield from each([file], work)


def fault_of(file: str, error: Exception) -> str:
    """What was wrong with a file, in one line that names it."""
    if isinstance(error, AudioError):
        return str(error)
    text = " ".join(str(error).split()) or type(error).__name__
    return f"{file}: could not be used ({type(error).__name__}: {text})"
