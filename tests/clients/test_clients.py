"""Clients that know nothing of this server work with it as they are, each in an environment of its own."""

import json
from pathlib import Path

import pytest

from server.engine.byte_tokenizer import byte_tokenizer
from tests.clients.environments import HERE, run_node, run_python
from tests.server.running import Running

pytestmark = pytest.mark.clients

QUESTIONS = [
    {"question": "Snow is", "choices": ["white", "green as grass"], "answer": 0},
    {"question": "Grass is", "choices": ["white as snow", "green"], "answer": 1},
]
TASK = {
    "dataset_path": "json",
    "test_split": "test",
    "doc_to_text": "{{question}}",
}
CHOOSING = {
    "output_type": "multiple_choice",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "{{answer}}",
    "metric_list": [{"metric": "acc"}],
}
WRITING = {
    "output_type": "generate_until",
    "doc_to_target": "{{question}}",
    "generation_kwargs": {"until": ["\n"], "max_gen_toks": 32},
    "metric_list": [{"metric": "exact_match"}],
}


@pytest.mark.parametrize("script", ["with_openai.mjs", "with_ai_sdk.mjs"])
def test_a_client_for_node_works(server: Running, tmp_path: Path, script: str) -> None:
    assert run_node(script, tmp_path, server.url) == "done\n"


def test_litellm_works(server: Running, tmp_path: Path) -> None:
    run_python(
        "litellm", tmp_path, str(HERE / "with_litellm.py"), server.url, LITELLM_LOCAL_MODEL_COST_MAP="True"
    )


def test_llama_index_works(server: Running, tmp_path: Path) -> None:
    run_python("llama-index", tmp_path, str(HERE / "with_llama_index.py"), server.url)


@pytest.mark.parametrize(("api", "passed"), [({}, 44), ({"RESPONSES": "1"}, 42)])
def test_langchains_own_tests_pass(server: Running, tmp_path: Path, api: dict[str, str], passed: int) -> None:
    options = ["-c", "/dev/null", "--noconftest", "-p", "no:cacheprovider", "--benchmark-skip", "-q"]
    loops = ["-o", "asyncio_mode=auto", "-o", "asyncio_default_test_loop_scope=session"]
    script = str(HERE / "with_langchain.py")
    told = run_python(
        "langchain", tmp_path, "-m", "pytest", *options, *loops, script, SERVER=server.url, **api
    )
    assert f"{passed} passed" in told


def test_lm_eval_measures_by_probabilities_and_by_text(server: Running, tmp_path: Path) -> None:
    """The scripted model gives every token the same probability: short answers are the likely ones."""
    lines = "".join(json.dumps(question) + "\n" for question in QUESTIONS)
    (tmp_path / "questions.jsonl").write_text(lines, "utf-8")
    files = {"dataset_kwargs": {"data_files": {"test": str(tmp_path / "questions.jsonl")}}}
    for name, task in (("choosing", CHOOSING), ("writing", WRITING)):
        (tmp_path / f"{name}.yaml").write_text(json.dumps({"task": name, **TASK, **files, **task}), "utf-8")
    byte_tokenizer().save_pretrained(tmp_path / "tokenizer")
    model = {
        "model": "scripted",
        "base_url": f"{server.url}/v1/completions",
        "tokenizer": str(tmp_path / "tokenizer"),
        "num_concurrent": "2",
        "max_length": "2048",
    }
    run_python(
        "lm-eval",
        tmp_path,
        "-m",
        "lm_eval",
        "--model=local-completions",
        "--model_args=" + ",".join(f"{name}={value}" for name, value in model.items()),
        "--tasks=choosing,writing",
        f"--include_path={tmp_path}",
        f"--output_path={tmp_path}",
        HF_HUB_OFFLINE="1",
        HF_HOME=str(tmp_path),
    )
    (found,) = tmp_path.glob("scripted/results_*.json")
    results = json.loads(found.read_text("utf-8"))["results"]
    assert results["choosing"]["acc,none"] == 1.0
    assert results["writing"]["exact_match,none"] == 1.0
