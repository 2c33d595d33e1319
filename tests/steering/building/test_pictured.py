"""Building from pairs with images: words and pieces of images are one sequence, as the model has it."""

import base64
import json
import re
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize
from typer.testing import CliRunner

from server.explain_cli import explain
from steering.building.ablation import embed, embed_ablated, mean_embedding, standing_in
from steering.building.activations import mean_activations
from steering.building.attribution import AttributionOptions, attribute_context
from steering.building.building import BuildOptions, build_vectors
from steering.building.generation import generate_answers
from steering.building.grains_options import GrainsOptions
from steering.building.highlighting import PIECE
from steering.building.overlay import SIDE, overlay
from steering.building.pairs import Pair, TokenSequence, tokenise_pair, tokenise_prompt
from steering.building.questions import read_neutral
from steering.building.readers import read_pairs, read_prompts
from steering.building.report_page import report_page
from steering.building.scoring import Scorer
from steering.building.token_texts import token_texts
from steering.errors import InvalidPairs, InvalidRequest
from steering.image_tokens import pieces
from steering.loading import LoadedModel
from steering.picturing import Pictured
from tests.server.engine.test_seeing import noise
from tests.tiny_vlms import save_tiny_vlm

MANIFEST = {
    "name": "seen",
    "version": 1,
    "description": "",
    "method": "grains",
    "parameters": {},
    "calibration": {},
    "evidence": {},
    "model": {"id": "tiny", "architecture": "Llava", "fingerprint": "0" * 64},
}

Loader = Callable[[str], LoadedModel]


def png(seed: int, size: tuple[int, int] = (24, 20)) -> bytes:
    file = BytesIO()
    noise(size, seed).save(file, "PNG")
    return file.getvalue()


def url(seed: int, size: tuple[int, int] = (24, 20)) -> str:
    return f"data:image/png;base64,{base64.b64encode(png(seed, size)).decode()}"


def asked(seed: int, words: str = "what is it") -> list[dict[str, Any]]:
    return [{"role": "user", "content": words, "images": (url(seed),)}]


def as_the_model_has_it(loaded: LoadedModel, seed: int, words: str = "what is it") -> dict[str, Tensor]:
    """Return the model's own inputs for the same conversation."""
    assert loaded.image_token is not None
    pictured = Pictured(loaded.processor, loaded.image_token)
    parts = [{"type": "image"}, {"type": "text", "text": words}]
    text = pictured.render([{"role": "user", "content": parts}])
    prompt, images = pictured.prompt(text, [noise((24, 20), seed)])
    assert images is not None
    return {"input_ids": torch.tensor([prompt]), **images.tensors}


@pytest.fixture
def llava(tiny_vlm: Loader) -> LoadedModel:
    return tiny_vlm("llava")


def test_answers_are_those_of_generate(llava: LoadedModel) -> None:
    prompts = [tokenise_prompt(llava, asked(seed, "what is it" * seed)) for seed in (1, 2)]
    prompts.append(tokenise_prompt(llava, [{"role": "user", "content": "no image"}]))
    answered = generate_answers(llava, prompts, {}, 6)
    for seed, sequence in zip((1, 2), answered, strict=False):
        own = as_the_model_has_it(llava, seed, "what is it" * seed)
        expected = llava.model.generate(**own, max_new_tokens=6, do_sample=False, pad_token_id=0)
        length = own["input_ids"].shape[1]
        assert sequence.ids[sequence.start :] == tuple(
            token for token in expected[0, length:].tolist() if token != llava.tokenizer.eos_token_id
        )


def test_an_image_is_seen_once_and_keeps_its_ids(llava: LoadedModel) -> None:
    first, again = tokenise_prompt(llava, asked(5)), tokenise_prompt(llava, asked(5))
    assert first == again
    assert len(pieces(first)) == 4
    assert token_texts(llava, first).count(PIECE) == 4


def test_a_piece_that_is_taken_out_gives_way_to_the_mean_piece(llava: LoadedModel) -> None:
    prompt = tokenise_prompt(llava, asked(6))
    place = pieces(prompt)[0]
    whole = embed(llava, prompt)
    left = embed_ablated(llava, TokenSequence(prompt, 0, (place, len(prompt) - 2)), mean_embedding(llava))
    assert torch.equal(left[place], llava.image_tokens.mean())
    assert torch.allclose(left[-2], mean_embedding(llava))
    untouched = [p for p in range(len(prompt)) if p not in (place, len(prompt) - 2)]
    assert torch.equal(left[untouched], whole[untouched])


def test_words_and_pieces_are_attributed_together_and_add_up(llava: LoadedModel) -> None:
    pair = Pair(1, tuple(asked(7)), "yes it is", "no it is not")
    options = GrainsOptions(
        reading="shared", attribution=AttributionOptions(tolerance=0.05, most_steps=2048), tokens=4
    )
    contrast = Scorer(llava, [pair], options).contrast(0)
    prompt = tokenise_pair(llava, pair).prompt
    seen = pieces(prompt)
    assert len(contrast.towards.scores) == len(prompt)
    assert all(contrast.towards.scores[place] for place in seen)
    assert contrast.towards.gap < 0.05
    assert set(contrast.towards.taken + contrast.away.taken) & set(seen)


def test_masked_pieces_are_not_attended_to(llava: LoadedModel) -> None:
    prompt = tokenise_prompt(llava, asked(8))
    masked = TokenSequence(prompt, len(prompt) - 1, tuple(pieces(prompt)))
    other = tokenise_prompt(llava, asked(9))
    elsewhere = TokenSequence(other, len(other) - 1, tuple(pieces(other)))
    found = mean_activations(llava, [masked, elsewhere], None)
    assert torch.allclose(found[:, 0], found[:, 1], atol=1e-5)


def write(folder: Path, name: str, records: list[dict[str, Any]]) -> Path:
    path = folder / name
    path.write_text("\n".join(map(json.dumps, records)))
    return path


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "qwen3_vl", "gemma3"])
def test_pairs_and_neutral_answers_with_images_make_a_profile(
    family: str, tiny_vlm: Loader, tmp_path: Path
) -> None:
    loaded = tiny_vlm(family)
    for seed in range(10):
        (tmp_path / f"{seed}.png").write_bytes(png(seed))
    pairs = write(
        tmp_path,
        "pairs.jsonl",
        [
            {"image": f"{n}.png", "prompt": f"is it {n}?", "preferred": "no", "dispreferred": "yes it is"}
            for n in range(10)
        ],
    )
    neutral = write(
        tmp_path,
        "neutral.jsonl",
        [
            {"question": "how many?", "options": ["one", "two"], "answer": 0, "image": "1.png"},
            {"prompt": "what is there?", "answer": "a thing", "images": ["2.png"]},
        ],
    )
    options = BuildOptions(
        grains=GrainsOptions(reading="shared", tokens=3), layers=((1,),), doses=(0.02,), max_tokens=4
    )
    built = build_vectors(loaded, read_pairs(pairs), None, (), options, neutral=read_neutral(neutral))
    assert set(built.deltas) == {1}
    assert built.evidence["items"] == 4
    told = built.report["attributions"][0]
    assert told["preferred"]["tokens"].count(PIECE) == len(told["image"]["scores"]) > 1
    assert 0 < built.parameters["image_share"] <= 1
    page = report_page({**MANIFEST, "layers": [1]}, built.report, {})
    assert page.count("its pieces coloured") == len(built.report["attributions"])


def test_openai_parts_and_a_path_mean_the_same_image(llava: LoadedModel, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(1))
    content = [{"type": "text", "text": "what?"}, {"type": "image_url", "image_url": {"url": url(1)}}]
    message = {"role": "user", "content": content}
    answers = {"preferred": "a", "dispreferred": "b"}
    (by_parts,) = read_pairs(write(tmp_path, "a.jsonl", [{"prompt": [message], **answers}])).pairs
    record = {"prompt": "what?", "image": "a.png", **answers}
    (by_path,) = read_pairs(write(tmp_path, "b.jsonl", [record])).pairs
    first, second = tokenise_prompt(llava, by_parts.messages), tokenise_prompt(llava, by_path.messages)
    assert torch.equal(embed(llava, first), embed(llava, second))


def test_the_digest_covers_the_images_beside_the_file(tmp_path: Path) -> None:
    record = {"prompt": "what?", "image": "a.png", "preferred": "a", "dispreferred": "b"}
    path = write(tmp_path, "pairs.jsonl", [record])
    digests = set()
    for seed in (1, 2):
        (tmp_path / "a.png").write_bytes(png(seed))
        digests.add(read_pairs(path).digest)
    assert len(digests) == 2


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"image": "absent.png"}, "cannot be read"),
        ({"image": "data:image/png;base64,AAAA"}, "not an image"),
        ({"images": [7]}, "must be a data URL or a path"),
        ({"image": "https://example.org/a.png"}, "fetches no images"),
        ({"prompt": [{"role": "user", "content": [{"type": "audio"}]}]}, "a part must be"),
    ],
)
def test_a_bad_image_is_named_with_its_line(tmp_path: Path, fields: dict[str, Any], reason: str) -> None:
    record = {"prompt": "what?", "preferred": "a", "dispreferred": "b", **fields}
    with pytest.raises(InvalidPairs, match=reason) as refused:
        read_pairs(write(tmp_path, "pairs.jsonl", [record]))
    assert "line 1" in refused.value.message


def test_prompts_may_have_images(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(1))
    (prompt,) = read_prompts(write(tmp_path, "test.jsonl", [{"prompt": "what?", "image": "a.png"}]))
    assert len(prompt[0]["images"]) == 1


def test_images_for_a_model_that_takes_none_are_refused(tiny_model: Loader) -> None:
    with pytest.raises(InvalidPairs, match="takes none"):
        tokenise_prompt(tiny_model("llama"), asked(1))


def test_neutral_text_without_questions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="must hold some questions"):
        read_neutral(write(tmp_path, "neutral.jsonl", [{"text": "a quiet day"}]))


def test_the_overlay_is_blue_where_pieces_speak_for_and_red_where_against() -> None:
    drawn = overlay(Image.new("RGB", (8, 8), "white"), [1.0, 0.0, 0.0, -1.0], {3})
    assert drawn is not None
    image = Image.open(BytesIO(drawn))
    quarter = SIDE // 4
    places = ((quarter, quarter), (3 * quarter, quarter), (3 * quarter, 3 * quarter))
    blue, white, red = (np.asarray(image)[down, right].tolist() for right, down in places)
    assert blue[2] > blue[0]
    assert white == [255, 255, 255]
    assert red[0] > red[2]


def test_pieces_that_are_no_square_are_not_drawn() -> None:
    assert overlay(Image.new("RGB", (8, 8)), [1.0, 0.0, 0.5]) is None


@pytest.mark.parametrize(
    ("family", "grid"), [("llava", (2, 2)), ("qwen2_5_vl", (3, 2)), ("qwen3_vl", (3, 2)), ("gemma3", (4, 4))]
)
def test_explain_draws_the_prompts_scores_over_the_image(
    family: str, grid: tuple[int, int], tmp_path: Path
) -> None:
    save_tiny_vlm(family, tmp_path / "model")
    (tmp_path / "a.png").write_bytes(png(1))
    record = {"image": "a.png", "prompt": "what?", "preferred": "yes it is", "dispreferred": "no"}
    pairs = write(tmp_path, "pairs.jsonl", [record])
    arguments = [str(pairs), "--line", "1", "--model", str(tmp_path / "model"), "--steps", "8"]
    app = typer.Typer()
    app.command()(explain)
    result = CliRunner().invoke(app, [*arguments, "--device", "cpu", "--overlay", str(tmp_path / "o.png")])
    assert result.exit_code == 0, result.output
    across, down = grid
    [line] = [line for line in result.stdout.splitlines() if line.startswith("[image: ")]
    told, total, strongest = line.split("\t")
    assert told == f"[image: {across * down} pieces]"
    places = re.findall(r"(\d+),(\d+) [+-]", strongest)
    assert len(places) == min(5, across * down)
    assert all(1 <= int(row) <= down and 1 <= int(column) <= across for row, column in places)
    part = json.loads(CliRunner().invoke(app, [*arguments, "--device", "cpu", "--json"]).stdout)["parts"][0]
    scores = [score for text, score in zip(part["tokens"], part["scores"], strict=True) if text == PIECE]
    assert float(total) == pytest.approx(sum(scores), abs=1e-3)
    assert f"wrote {tmp_path / 'o.png'}" in result.stderr
    with Image.open(tmp_path / "o.png") as drawn:
        assert drawn.size[0] == SIDE
        assert drawn.size[1] > SIDE * down // across


def test_context_scores_a_piece_by_what_taking_it_out_does_to_the_answer(llava: LoadedModel) -> None:
    pair = Pair(1, tuple(asked(7)), "yes it is", "no it is not")
    sequence = tokenise_pair(llava, pair).preferred
    baseline, direction = mean_embedding(llava), torch.randn(32, generator=torch.Generator().manual_seed(0))
    absent = standing_in(llava, sequence.ids[: sequence.start], baseline)
    ablations = AttributionOptions(method="ablation")
    found = attribute_context(llava, sequence, 2, direction, absent, ablations)
    place = pieces(sequence.ids)[1]
    left = replace(sequence, ablated=(place,))
    whole, without = mean_activations(llava, [sequence, left], baseline)[2] @ normalize(direction, dim=0)
    assert float(found.scores[place]) == pytest.approx(float(whole - without), abs=1e-4)


def test_context_takes_words_and_pieces_out_of_the_prompt_alone(llava: LoadedModel) -> None:
    pairs = [Pair(n, tuple(asked(n)), "yes it is", "no it is not") for n in (1, 2, 3)]
    contrast = Scorer(llava, pairs, GrainsOptions(reading="context", tokens=3, block=1)).contrast(0)
    prompt = tokenise_pair(llava, pairs[0]).prompt
    assert len(contrast.towards.scores) == len(prompt)
    assert set(contrast.towards.taken + contrast.away.taken) <= set(range(1, len(prompt) - 1))
    assert contrast.away.sequence.ids != contrast.towards.sequence.ids
