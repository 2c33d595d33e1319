"""Measure what a model makes up about scenes, with greedy answers: loaded here, or asked over HTTP.

Run: .venv/bin/python examples/shapes_vlm/evaluate.py --model examples/shapes_vlm/model --scenes 500
or, with `make serve-vlm PORT=8001` running:
     .venv/bin/python examples/shapes_vlm/evaluate.py --url http://localhost:8001/v1 --steering 'honest*1'
"""

import argparse
import json
import sys
from base64 import b64encode
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from random import Random
from typing import Any

import httpx
import torch
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table

if __name__ == "__main__":
    # As a script it is started beside its siblings, and is to see them as the package that they are.
    sys.path[0] = str(Path(__file__).parents[1])

from shapes_vlm.checkpoint import load
from shapes_vlm.drawing import draw
from shapes_vlm.measures import TITLES, Asked, Measure, measure
from shapes_vlm.questions import questions_about
from shapes_vlm.scenes import Split, scene_at

Answer = Callable[[Sequence[tuple[Image.Image, str]]], list[str]]
AT_ONCE = 100


def main() -> None:
    asked = arguments()
    if asked.model is not None and not asked.model.is_dir():
        raise SystemExit(f"no directory {asked.model}; train.py writes one, and two ship beside this script")
    torch.set_num_threads(asked.threads)
    answer = over_http(asked.url, asked.steering) if asked.url else answerer(*load(asked.model))
    result = measure(ask(answer, asked.split, asked.scenes, asked.seed))
    who = f"{asked.url} {asked.steering or 'unsteered'}" if asked.url else asked.model
    Console().print(table(result, f"{who}: {asked.scenes} {asked.split} scenes"))
    if asked.json:
        asked.json.write_text(json.dumps({name: asdict(found) for name, found in result.items()}, indent=2))


def ask(answer: Answer, split: Split = "test", count: int = 500, seed: int = 0) -> list[Asked]:
    """Return the answers to one question of each purpose about each of count scenes.

    answer: takes (picture, question) pairs, all at once, and returns as many answers.
    """
    chance = Random(f"questions/{split}/{seed}")
    scenes = [scene_at(split, index, seed) for index in range(count)]
    questions = [(scene, question) for scene in scenes for question in questions_about(scene, chance)]
    answers = answer([(draw(scene), question.text) for scene, question in questions])
    return [Asked(*pair, given) for pair, given in zip(questions, answers, strict=True)]


def over_http(url: str, steering: str | None) -> Answer:
    """Return what answers by asking a server, eight questions at a time, steered as the string says."""
    client = httpx.Client(base_url=url.rstrip("/"), timeout=60)
    model = client.get("/models").raise_for_status().json()["data"][0]["id"]

    def one(asked: tuple[Image.Image, str]) -> str:
        picture, question = asked
        file = BytesIO()
        picture.save(file, "PNG")
        address = f"data:image/png;base64,{b64encode(file.getvalue()).decode()}"
        content = [
            {"type": "image_url", "image_url": {"url": address}},
            {"type": "text", "text": question},
        ]
        body = {"model": model, "messages": [{"role": "user", "content": content}], "temperature": 0}
        body |= {"max_tokens": 64} | ({"steering": steering} if steering else {})
        reply = client.post("/chat/completions", json=body).raise_for_status().json()
        if steering and not reply["steering"][0]["steered_tokens"]:
            raise RuntimeError("the answer does not prove its steering")
        text: str = reply["choices"][0]["message"]["content"]
        return text

    def answer(asked: Sequence[tuple[Image.Image, str]]) -> list[str]:
        with ThreadPoolExecutor(8) as pool:
            return list(track(pool.map(one, asked), "asking", total=len(asked), transient=True))

    return answer


def answerer(model: Any, processor: Any) -> Answer:
    """Return what answers by greedy generation with a model and its processor."""

    def answer(asked: Sequence[tuple[Image.Image, str]]) -> list[str]:
        starts = track(range(0, len(asked), AT_ONCE), "answering", transient=True)
        return [
            text for start in starts for text in generate(model, processor, asked[start : start + AT_ONCE])
        ]

    return answer


@torch.inference_mode()
def generate(model: Any, processor: Any, asked: Sequence[tuple[Image.Image, str]]) -> list[str]:
    """Return greedy answers to a batch of (picture, question) pairs."""
    inputs = processor(
        text=[prompt(processor, question) for _, question in asked],
        images=[picture for picture, _ in asked],
        padding=True,
        return_tensors="pt",
    ).to(model.device)
    tokens = model.generate(**inputs, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    answers: list[str] = processor.batch_decode(tokens, skip_special_tokens=True)
    return answers


def prompt(processor: Any, question: str) -> str:
    """Return the chat prompt of one picture and a question about it."""
    content = [{"type": "image"}, {"type": "text", "text": question}]
    text: str = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    return text


def table(result: dict[str, Measure], title: str) -> Table:
    """Return the measures in percent, each with its interval and number of answers."""
    drawn = Table("measure", "%", "95% interval", "n", title=title)
    for name, found in result.items():
        interval = f"{100 * found.low:.1f} to {100 * found.high:.1f}"
        drawn.add_row(TITLES[name], f"{100 * found.share:.1f}", interval, str(found.n))
    return drawn


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", type=Path, help="a directory that train.py wrote")
    source.add_argument("--url", help="a server's, up to /v1")
    parser.add_argument("--steering", help="for --url: as in requests, such as honest*1")
    parser.add_argument("--split", choices=("build", "dev", "test"), default="test")
    parser.add_argument("--scenes", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0, help="another seed, other scenes")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the measures to this file too")
    return parser.parse_args()


if __name__ == "__main__":
    main()
