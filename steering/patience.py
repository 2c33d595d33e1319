"""A bound on the time of Python code that came with a model, such as its chat template."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class OutOfPatience(Exception):
    """The code ran for longer than it may."""


@contextmanager
def patient(seconds: float) -> Iterator[None]:
    """Raise OutOfPatience where a function called in the block begins another line after so many seconds.

    No thread can be ended from outside; this looks at the clock before each line of this one. A single
    call into C is not interrupted.
    """
    deadline = time.monotonic() + seconds
    before = sys.gettrace()

    def look(_frame: FrameType, _event: str, _argument: Any) -> Any:
        if time.monotonic() > deadline:
            raise OutOfPatience(f"it took longer than {seconds:g} s")
        return look

    sys.settrace(look)
    try:
        yield
    finally:
        sys.settrace(before)
