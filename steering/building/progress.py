"""How a long computation tells how far it is."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

Item = TypeVar("Item")

# Called with the stage's name, how many steps are done, and how many there are.
Progress = Callable[[str, int, int], None]


def silent(_stage: str, _done: int, _total: int) -> None:
    pass


def tracked(items: Sequence[Item], stage: str, progress: Progress) -> Iterator[Item]:
    """Yield the items, reporting each as it is finished."""
    progress(stage, 0, len(items))
    for done, item in enumerate(items, start=1):
        yield item
        progress(stage, done, len(items))
