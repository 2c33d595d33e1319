"""`grainserve explain` prints and draws a pair's scores, and says what is wrong before any work is done."""

import io
import json
from pathlib import Path

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner, Result

from server.explain_cli import explain
from server.explain_pair import coloured, warn
from steering.building.explaining import Explanation, explain_pair
from steering.building.grains_options import GrainsOptions
from steering.building.highlighting import ScoredTokens, highlighted
from steering.building.pairs import Pair, tokenise_pair, tokenise_text
from steering.building.token_texts import token_texts
from steering.loading import LoadedModel, load_model
from tests.tiny_models import save_tiny

TYPED = ("--prompt", "say it", "--preferred", "yes, thin ice", "--dispreferred", "no")
GAPS = {"prompt": 0.5, "preferred": 0.01}

app = typer.Typer()
app.command()(explain)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with a tiny model and a file of pairs on lines 1 and 3."""
    folder = tmp_path_factory.mktemp("explain")
    save_tiny("llama", folder / "model")
    records = [{"prompt": f"say {i}", "preferred": f"yes {i}", "dispreferred": f"no {i}"} for i in range(2)]
    (folder / "pairs.jsonl").write_text("\n\n".join(map(json.dumps, records)))
    return folder


@pytest.fixture(scope="module")
def loaded(workplace: Path) -> LoadedModel:
    return load_model(str(workplace / "model"), workplace, device="cpu")


def run(workplace: Path, *arguments: str) -> Result:
    fixed = ["--model", str(workplace / "model"), "--cache-dir", str(workplace), "--device", "cpu"]
    return CliRunner().invoke(app, [*arguments, *fixed])


def test_lines_hold_every_token_with_its_score(workplace: Path, loaded: LoadedModel) -> None:
    result = run(workplace, *TYPED)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    heads = [line for line in lines if "\t" not in line]
    assert [head.split(":")[0] for head in heads] == ["# prompt", "# preferred", "# dispreferred"]
    assert all("log p(" in head and "completeness gap" in head for head in heads)
    answer = [line.split("\t") for line in lines[lines.index(heads[1]) + 1 : lines.index(heads[2])]]
    assert "".join(token for token, _ in answer) == "yes, thin ice"
    assert all(float(score) == float(score) for _, score in answer)


def test_json_scores_add_up_to_the_change_but_for_the_gap(workplace: Path) -> None:
    told = json.loads(run(workplace, *TYPED, "--json", "--steps", "24").stdout)
    assert told["messages"] == [{"role": "user", "content": "say it"}]
    for part in told["parts"]:
        assert len(part["tokens"]) == len(part["scores"])
        missed = abs(sum(part["scores"]) - part["change"]) / abs(part["change"])
        assert missed == pytest.approx(part["gap"], abs=1e-4)


def test_a_line_of_a_file_is_explained_as_if_it_were_typed(workplace: Path) -> None:
    typed = run(workplace, "--prompt", "say 1", "--preferred", "yes 1", "--dispreferred", "no 1", "--json")
    read = run(workplace, str(workplace / "pairs.jsonl"), "--line", "3", "--json")
    assert json.loads(read.stdout) == json.loads(typed.stdout)


def test_a_system_message_comes_before_the_prompt(workplace: Path) -> None:
    told = json.loads(run(workplace, *TYPED, "--system", "be kind", "--json").stdout)
    assert told["messages"][0] == {"role": "system", "content": "be kind"}
    assert "be kind" in "".join(told["parts"][0]["tokens"])


def test_a_picture_is_drawn_where_it_is_asked_for(workplace: Path, tmp_path: Path) -> None:
    result = run(workplace, *TYPED, "--png", str(tmp_path / "pair.png"))
    assert result.exit_code == 0, result.output
    assert (tmp_path / "pair.png").read_bytes().startswith(b"\x89PNG")


def test_only_scores_that_do_not_add_up_are_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    warn([Explanation("log p", ScoredTokens(part, (), ()), 1.0, gap, 16) for part, gap in GAPS.items()], 64)
    warned = capsys.readouterr().err
    assert "--steps 256" in warned
    assert "the prompt's scores" in warned
    assert "preferred" not in warned


def test_allowing_more_gradients_narrows_the_gap(workplace: Path) -> None:
    few, many = (
        json.loads(run(workplace, *TYPED, "--json", "--steps", steps).stdout)["parts"]
        for steps in ("2", "256")
    )
    assert sum(part["steps"] for part in few) < sum(part["steps"] for part in many)
    assert max(part["gap"] for part in many) < max(part["gap"] for part in few)


def test_answers_of_one_token_leave_the_prompt_to_explain(workplace: Path) -> None:
    typed = ["--prompt", "Is it good?", "--preferred", "A", "--dispreferred", "B"]
    result = run(workplace, *typed, "--json")
    prompt, *answers = json.loads(result.stdout)["parts"]
    assert any(prompt["scores"])
    assert [answer["scores"] for answer in answers] == [[0.0], [0.0]]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "a pair needs --prompt, --preferred and --dispreferred"),
        (["--prompt", "a", "--preferred", " ", "--dispreferred", "b"], "a pair needs"),
        ([*TYPED, "--line", "3"], "--line needs a file"),
        (["PAIRS"], "say which pair with --line of"),
        (["PAIRS", "--line", "2"], "no pair begins on line 2"),
        (["PAIRS", "--line", "1", "--prompt", "a"], "not both"),
        (["absent.jsonl", "--line", "1"], "cannot be read"),
        ([*TYPED, "--png", "/absent/a.png"], "no directory /absent"),
        ([*TYPED, "--png", "/"], "it is a directory"),
        (["--prompt", "a", "--preferred", "b", "--dispreferred", "b"], "are the same"),
        (["--prompt", "a" * 300, "--preferred", "b", "--dispreferred", "c"], "the model reads 256"),
    ],
)
def test_a_mistake_ends_with_its_reason(workplace: Path, arguments: list[str], reason: str) -> None:
    pairs = str(workplace / "pairs.jsonl")
    result = run(workplace, *(pairs if argument == "PAIRS" else argument for argument in arguments))
    assert result.exit_code == 1
    assert reason in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.parametrize("text", ["thé thin", "a 👍 in it", "", "日本\n\nin"])
def test_token_texts_join_to_the_text(loaded: LoadedModel, text: str) -> None:
    ids = tokenise_text(loaded, text)
    texts = token_texts(loaded, ids)
    assert len(texts) == len(ids)
    assert "".join(texts) == text


def test_what_is_underlined_speaks_for_its_answer(loaded: LoadedModel) -> None:
    pair = Pair(1, ({"role": "user", "content": "say it"},), "yes, thin ice", "no")
    for part in explain_pair(loaded, tokenise_pair(loaded, pair), GrainsOptions()):
        assert part.scored.ablated
        assert all(part.scored.scores[place] > 0 for place in part.scored.ablated)


def test_a_terminal_gets_the_tokens_in_colours() -> None:
    [tokens] = highlighted([ScoredTokens("preferred", ("ay", "e"), (1.0, -1.0), frozenset({0}))])
    output = io.StringIO()
    Console(file=output, force_terminal=True, color_system="truecolor").print(coloured(tokens))
    blue, red = "48;2;67;147;195", "48;2;214;96;77"
    assert f"\x1b[4;30;{blue}may" in output.getvalue()
    assert f"\x1b[30;{red}me" in output.getvalue()
