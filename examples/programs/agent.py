"""A conversation in which the model picks a tool and Python runs it.

python examples/programs/agent.py [URL]
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import UTC, datetime

import headstock as hs

TOOLS: dict[str, Callable[[], str]] = {
    "clock": lambda: datetime.now(UTC).strftime("It is %H:%M in UTC."),
    "weather": lambda: "It rains, 12 degrees.",
    "none": lambda: "",
}
QUESTIONS = ["What time is it?", "Do I need an umbrella?"]


@hs.function
def agent(s, questions):
    s += hs.system(f"You have tools: {', '.join(TOOLS)}. Answer in one sentence.")
    answers = []
    for question in questions:
        s += hs.user(f"{question} Which tool do you need?")
        s += hs.assistant(hs.select("tool", list(TOOLS)))
        found = TOOLS[s["tool"]]()  # ordinary Python between two steps
        s += hs.user(f"The tool says: {found} {question}" if found else question)
        s += hs.assistant(hs.gen("answer", max_tokens=32, stop="\n"))
        answers.append((question, s["tool"], s["answer"].strip()))
    return answers


def main() -> None:
    hs.set_default_backend(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:30000")
    state = agent.run(QUESTIONS, temperature=0)
    for question, tool, answer in state.ret_value:
        print(f"{question} [{tool}] {answer}")


if __name__ == "__main__":
    main()
