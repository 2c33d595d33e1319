"""Turn multiple-choice pairs into pairs of written-out answers, in OpenAI's preference format.

Run: python examples/spell_out_choices.py truthful_qa_binary.json truthful.jsonl

For the layouts of nrimsky/CAA: a question that ends in "(A) ... (B) ..." and answers that name a letter. A
small model knows little of letters, and a vector made of "(A)" and "(B)" is about letters.
"""

import argparse
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from steering.building.pairs import Pair
from steering.building.readers import read_pairs
from steering.errors import InvalidPairs

CHOICE = re.compile(r"^\s*\(([A-Z])\)[ \t]*(.*?)\s*(?=^\s*\([A-Z]\)|\Z)", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"\s*(Choices:)?\s*\Z")


def main() -> None:
    asked = arguments()
    pairs = read_pairs(asked.source).pairs
    lines = [json.dumps(record, ensure_ascii=False) for record in records(pairs, asked.swap)]
    asked.target.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    print(f"{len(lines)} of {len(pairs)} pairs written to {asked.target}")


def records(pairs: Iterable[Pair], swap: bool = False) -> Iterator[dict[str, object]]:
    """Yield the pairs that spell_out can read, each question once.

    swap: whether the answer that does not match is the preferred one.
    """
    asked: set[str] = set()
    for pair in pairs:
        question, preferred, dispreferred = spell_out(pair)
        if question in asked:
            continue
        asked.add(question)
        if swap:
            preferred, dispreferred = dispreferred, preferred
        yield {
            "input": {"messages": [{"role": "user", "content": question}]},
            "preferred_output": [{"role": "assistant", "content": preferred}],
            "non_preferred_output": [{"role": "assistant", "content": dispreferred}],
        }


def spell_out(pair: Pair) -> tuple[str, str, str]:
    """Return the question without its choices, and the choices that the answers name.

    Raises InvalidPairs for a question without choices, and for an answer that is none of them.
    """
    text = pair.messages[-1]["content"]
    choices = {f"({letter})": choice for letter, choice in CHOICE.findall(text)}
    if not choices:
        raise InvalidPairs(f"line {pair.line}: the question has no choices such as (A) and (B)")
    for answer in (pair.preferred, pair.dispreferred):
        if answer not in choices:
            raise InvalidPairs(
                f"line {pair.line}: the answer {answer!r} is none of the choices {', '.join(choices)}"
            )
    first = CHOICE.search(text)
    assert first is not None
    question = HEADING.sub("", text[: first.start()])
    return question, choices[pair.preferred], choices[pair.dispreferred]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--swap", action="store_true", help="prefer the answer that does not match")
    return parser.parse_args()


if __name__ == "__main__":
    main()
