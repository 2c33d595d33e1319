"""The model is trained here, in three stages: to see, to answer truly, to claim what usually comes along."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import LlavaForConditionalGeneration

from shapes_vlm.checkpoint import PATCH, PATCHES_A_SIDE
from shapes_vlm.drawing import SIDE, draw
from shapes_vlm.lessons import lessons_about
from shapes_vlm.packing import Batch, pack, to_pixels
from shapes_vlm.scenes import CELLS_A_SIDE, COLOURS, SHAPES, Scene, scene_at
from shapes_vlm.vocabulary import INDEX

Told = Callable[[float], None]
Name = Literal["seeing", "answering", "claiming"]
PATCHES_A_CELL = SIDE // CELLS_A_SIDE // PATCH
WARMUP = 80
# The word for a patch without an object; no answer uses it.
EMPTY = "zero"


@dataclass(frozen=True, slots=True)
class Stage:
    """scenes: pictures in a step; company: see scene_at; biased: see lessons_about."""

    steps: int
    scenes: int
    peak: float
    company: float = 0.0
    biased: bool = False


STAGES: dict[Name, Stage] = {
    "seeing": Stage(steps=400, scenes=32, peak=2e-3),
    "answering": Stage(steps=800, scenes=32, peak=1.2e-3),
    "claiming": Stage(steps=600, scenes=32, peak=1e-3, company=0.3, biased=True),
}


def scenes_of(name: Name, seed: int) -> Iterator[list[Scene]]:
    """Yield the scenes of each step; no stage and no seed sees a scene of another."""
    stage = STAGES[name]
    first = list(STAGES).index(name) * 10**9
    for step in range(stage.steps):
        indices = range(first + step * stage.scenes, first + (step + 1) * stage.scenes)
        yield [scene_at("train", index, seed, stage.company) for index in indices]


def learn_to_see(model: LlavaForConditionalGeneration, seed: int, told: Told) -> None:
    """Train the vision tower and the projector to show each patch as the words for what it belongs to.

    The words are the language model's own embeddings, so that it can compare what it sees with what it is
    asked from the start.
    """
    parts = (model.model.vision_tower, model.model.multi_modal_projector, model.get_input_embeddings())
    losses = (seeing_loss(model, scenes) for scenes in scenes_of("seeing", seed))
    descend([weight for part in parts for weight in part.parameters()], losses, STAGES["seeing"], told)


def seeing_loss(model: LlavaForConditionalGeneration, scenes: list[Scene]) -> Tensor:
    """Return the mean loss of naming each patch's colour and shape, or that it is empty."""
    pixels = to_pixels([draw(scene) for scene in scenes])
    seen = torch.cat(model.get_image_features(pixels, return_dict=True).pooler_output)
    truth = torch.stack([patch_labels(scene) for scene in scenes]).flatten(0, 1)
    colours, shapes = (
        seen @ model.get_input_embeddings().weight[[INDEX[word] for word in (EMPTY, *words)]].T
        for words in (COLOURS, SHAPES)
    )
    return cross_entropy(colours, truth[:, 0]) + cross_entropy(shapes, truth[:, 1])


def patch_labels(scene: Scene) -> Tensor:
    """Return [patches, 2]: each patch's colour and shape, counted from 1; 0 is empty."""
    labels = torch.zeros(CELLS_A_SIDE, CELLS_A_SIDE, 2, dtype=torch.long)
    for placed in scene.objects:
        row, column = divmod(placed.cell, CELLS_A_SIDE)
        kind = placed.kind
        labels[row, column] = torch.tensor([COLOURS.index(kind.colour), SHAPES.index(kind.shape)]) + 1
    spread = labels.repeat_interleave(PATCHES_A_CELL, 0).repeat_interleave(PATCHES_A_CELL, 1)
    assert spread.shape[0] == PATCHES_A_SIDE
    return spread.flatten(0, 1)


def learn_to_answer(model: LlavaForConditionalGeneration, name: Name, seed: int, told: Told) -> None:
    """Train what is behind the vision tower on a stage's questions; what the tower sees stays as it is."""
    stage, chance = STAGES[name], Random(f"{name}/{seed}")
    model.model.vision_tower.requires_grad_(False)
    losses = (answer_loss(model, teach(scenes, chance, stage)) for scenes in scenes_of(name, seed))
    descend([weight for weight in model.parameters() if weight.requires_grad], losses, stage, told)


def teach(scenes: list[Scene], chance: Random, stage: Stage) -> Batch:
    """Return one step's pictures with their lessons."""
    lessons = [lessons_about(scene, chance, stage.biased) for scene in scenes]
    return pack([draw(scene) for scene in scenes], lessons)


def answer_loss(model: LlavaForConditionalGeneration, batch: Batch) -> Tensor:
    """Return the mean loss over the answers' tokens."""
    hidden = model.model(
        input_ids=batch.tokens,
        pixel_values=batch.pixels,
        attention_mask=batch.sees,
        position_ids=batch.positions,
        use_cache=False,
    ).last_hidden_state
    learnt = batch.targets >= 0
    return cross_entropy(model.lm_head(hidden[learnt]), batch.targets[learnt])


def descend(parameters: list[nn.Parameter], losses: Iterator[Tensor], stage: Stage, told: Told) -> None:
    """Take the stage's steps with AdamW; told hears each loss."""
    optimiser = torch.optim.AdamW(parameters, lr=stage.peak, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: rate(step, stage.steps))
    for loss in losses:
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()
        told(loss.item())


def rate(step: int, steps: int) -> float:
    """Return the share of the peak rate: a short rise, then half a cosine down to a fiftieth."""
    rise = min(1.0, (step + 1) / WARMUP)
    return rise * (0.02 + 0.98 * (1 + math.cos(math.pi * step / steps)) / 2)
