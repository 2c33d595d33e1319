"""Scenes are invented here: which coloured shapes lie where, in splits that share no scene."""

from dataclasses import dataclass
from random import Random
from typing import Literal

Split = Literal["train", "build", "dev", "test"]

COLOURS = ("red", "yellow", "green", "blue", "purple", "black")
SHAPES = ("circle", "square", "triangle", "star")
CELLS_A_SIDE = 3
CELLS = CELLS_A_SIDE**2
FEWEST, MOST = 2, 5


@dataclass(frozen=True, slots=True)
class Kind:
    """A type of object; every scene holds at most one object of a kind."""

    colour: str
    shape: str

    def __str__(self) -> str:
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True, slots=True)
class Placed:
    """An object in its cell: cells count in reading order; lengths are in cells."""

    kind: Kind
    cell: int
    right: float
    down: float
    radius: float
    light: float


@dataclass(frozen=True, slots=True)
class Scene:
    """Objects in reading order; grain: the seed of the picture's noise."""

    objects: tuple[Placed, ...]
    grain: int

    @property
    def kinds(self) -> tuple[Kind, ...]:
        return tuple(placed.kind for placed in self.objects)

    @property
    def tempting(self) -> tuple[Kind, ...]:
        """Return the absent kinds whose partner is in the scene, in the order of those partners."""
        return tuple(partner(kind) for kind in self.kinds if partner(kind) not in self.kinds)


KINDS = tuple(Kind(colour, shape) for colour in COLOURS for shape in SHAPES)


def partner(kind: Kind) -> Kind:
    """Return the kind that this one co-occurs with in the biased world; each is the other's partner."""
    colour = (COLOURS.index(kind.colour) + len(COLOURS) // 2) % len(COLOURS)
    shape = (SHAPES.index(kind.shape) + len(SHAPES) // 2) % len(SHAPES)
    return Kind(COLOURS[colour], SHAPES[shape])


def scene_at(split: Split, index: int, seed: int = 0, company: float = 0.0) -> Scene:
    """Return one scene of a split, always the same for the same arguments.

    company: how often an object brings its partner along; at 0 partners meet by chance only.
    """
    chance = Random(f"{split}/{seed}/{index}")
    kinds = choose_kinds(chance, chance.randint(FEWEST, MOST), company)
    cells = sorted(chance.sample(range(CELLS), len(kinds)))
    chance.shuffle(kinds)
    objects = tuple(place(chance, kind, cell) for kind, cell in zip(kinds, cells, strict=True))
    return Scene(objects, chance.getrandbits(32))


def choose_kinds(chance: Random, count: int, company: float) -> list[Kind]:
    """Return distinct kinds, partners together as often as company says."""
    chosen: list[Kind] = []
    for kind in chance.sample(KINDS, len(KINDS)):
        brought = [partner(kind)] if chance.random() < company else []
        chosen += [new for new in [kind, *brought] if new not in chosen]
        if len(chosen) >= count:
            break
    return chosen[:count]


def place(chance: Random, kind: Kind, cell: int) -> Placed:
    return Placed(
        kind=kind,
        cell=cell,
        right=chance.uniform(-0.06, 0.06),
        down=chance.uniform(-0.06, 0.06),
        radius=chance.uniform(0.34, 0.41),
        light=chance.uniform(0.93, 1.07),
    )
