"""Propose several ways, look at each, take the best: one request, three levels of forks.

python examples/programs/tree_of_thought.py [URL] [TRACE.svg]
"""

from __future__ import annotations

import sys
from pathlib import Path

import headstock as hs

BRANCHES = 3


@hs.function
def solve(s, problem):
    s += hs.user(f"{problem}\nThink of one way to do it, in a sentence.")
    ways = s.fork(BRANCHES)
    for number, way in enumerate(ways):
        way += hs.assistant(f"Way {number + 1}: ", hs.gen("way", max_tokens=32, seed=number))
        way += hs.user("Is that practical?")
        way += hs.assistant(hs.select("verdict", ["Yes", "No"]))
        looks = way.fork(2)
        for word, look in zip(("gain", "risk"), looks, strict=True):
            look += hs.user(f"Name its main {word} in a few words.")
            look += hs.assistant(hs.gen(word, max_tokens=16))
        looks.join()
    ways.join()


def main() -> None:
    hs.set_default_backend(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:30000")
    state = solve.run(problem="How could a village save water?", temperature=0.8)
    columns = (state["way"], state["verdict"], state["gain"], state["risk"])
    for way, verdict, gain, risk in zip(*columns, strict=True):
        print(f"[{verdict}] {way.strip()}\n   gain: {gain[0].strip()}\n   risk: {risk[0].strip()}")
    if len(sys.argv) > 2:
        Path(sys.argv[2]).write_text(state.trace().to_svg(), encoding="utf-8")


if __name__ == "__main__":
    main()
