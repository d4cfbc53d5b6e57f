"""The states of a request, what may happen to it in each, and what then becomes of it.

The declared table of R26: ``test_request_states.py`` brings about every pair of it, and
docs/reliability.md shows it. Data only.
"""

from __future__ import annotations

STATES = {
    "reading": "its prompt is being turned into tokens",
    "sent": "on its way to the engine",
    "adapter": "its LoRA adapter is being read",
    "grammar": "its grammar is being compiled",
    "queued": "waits for a slot",
    "sharing": "waits for a prefix that another request computes",
    "prefill": "a part of its prompt is computed, no token is drawn",
    "undrawn": "its step is launched, and waits for its mask",
    "decoding": "draws tokens",
    "retracted": "its pages were taken, it waits again",
    "paused": "the engine is paused",
    "cut": "its text met a stop, the engine does not know yet",
    "untold": "the engine has ended it, its last words are on their way",
    "orphaned": "its engine is dead, the next one is not there",
    "suspected": "two engines died with it, the next one has others first",
    "over": "its last token is delivered",
}

EVENTS = {
    "leaves": "its client leaves",
    "stays away": "the client of a kept stream leaves and does not come back in time",
    "abort": "it is aborted by its name",
    "abort all": "all requests are aborted",
    "kill": "the engine is killed, and started again",
    "drain": "the server drains, with time enough",
    "deadline": "the server drains, and its deadline passes",
}

OUTCOMES = {
    "whole": "ends whole, each token once, the same ones as undisturbed",
    "ended": "ends as aborted; what it drew until then is right",
    "drained": "ends with `server_draining`; what it drew until then is right",
    "refused": "is refused with `server_draining`, the engine never hears of it",
    "forgotten": "the engine never hears of it",
}

_RUNNING = {
    "leaves": "ended",
    "stays away": "ended",
    "abort": "ended",
    "abort all": "ended",
    "kill": "whole",
    "drain": "whole",
    "deadline": "drained",
}
_READING = {
    "leaves": "forgotten",
    "stays away": "forgotten",
    "abort": "whole",  # nobody can know its name yet
    "abort all": "whole",
    "kill": "whole",
    "drain": "refused",
    "deadline": "refused",
}
# Its client has all of its text: what ends it now ends nothing but the engine's share.
_CUT = {**_RUNNING, "abort": "whole", "abort all": "whole"}
_UNTOLD = {**_RUNNING, "abort": "whole", "abort all": "whole"}

TABLE: dict[str, dict[str, str]] = {
    **dict.fromkeys(STATES, _RUNNING),
    "reading": _READING,
    "cut": _CUT,
    "untold": _UNTOLD,
    "over": dict.fromkeys(EVENTS, "whole"),
}
"""By state and event, the outcome."""
