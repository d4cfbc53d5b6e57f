"""Texts to records: the form is the program's, the model fills in the values.

An endpoint that constrains its output gives the whole record by `gen(type=Person)`; everywhere else
the braces and names are written by the program, and cost no generated token.

python examples/programs/extract.py [URL]
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import Literal

import headstock as hs

TEXTS = [
    "Maria Silva is a nurse from Porto.",
    "The painter Jan Novak lives in Prague.",
    "Aiko Tanaka teaches physics in Osaka.",
]
Job = Literal["nurse", "painter", "teacher", "other"]


@dataclass
class Person:
    name: str
    city: str
    job: str


@hs.function
def extract(s, text):
    s += "Text: Ann Lee, a painter, works in Leeds.\n"
    s += 'Record: {"name": "Ann Lee", "city": "Leeds", "job": "painter"}\n\n'
    s += f"Text: {text}\n"
    s += 'Record: {"name": "' + hs.gen("name", max_tokens=12, stop='"')
    s += '", "city": "' + hs.gen("city", max_tokens=8, stop='"')
    s += '", "job": "' + hs.gen("job", type=Job) + '"}'


@hs.function
def extract_constrained(s, text):
    s += hs.user(f"Extract the person: {text}")
    s += hs.assistant(hs.gen("person", type=Person, max_tokens=64))


def main() -> None:
    hs.set_default_backend(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:30000")
    for state in extract.run_batch([{"text": text} for text in TEXTS], temperature=0):
        record = Person(state["name"], state["city"], state["job"])
        print(json.dumps(record.__dict__, ensure_ascii=False))
    print(extract_constrained.run(text=TEXTS[0], temperature=0)["person"])


if __name__ == "__main__":
    main()
