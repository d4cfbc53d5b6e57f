"""A completion's text does not depend on how its tokens come, and it ends once."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headstock.errors import RequestError
from headstock.requests import FinishReason, SamplingParams, TokenIds
from headstock.server.completion import Completion
from headstock.server.protocols.openai_answers import OutputDetails, usage_of
from headstock.server.speech import Answer
from headstock.text import Tokenizer
from headstock.wire.messages import Ended, Submit
from headstock.wire.requests import TokenLogprobs
from tests.server.toy_tokenizer import EOS, toy_backend

TOKENIZER = Tokenizer(toy_backend())


def completion(**params):
    submit = Submit(
        id="a",
        prompt_ids=TokenIds([5]),
        params=SamplingParams(**params),
        stop_ids=[EOS],
        logprobs=0,
    )
    return Completion(submit, 0, TOKENIZER)


def ended(made, kind="length"):
    return Ended(id="a", attempt=0, reason=FinishReason(kind=kind), num_outputs=made)


def run(one, token_ids, sizes):
    """Give ``token_ids`` in portions of ``sizes``, then the end; return all deltas."""
    deltas, at = [], 0
    for size in [*sizes, len(token_ids)]:
        part = token_ids[at : at + size]
        if not part or one.matched is not None:
            break
        deltas += one.take(at, part, TokenLogprobs("a", False, [-1.0] * len(part)))
        at += len(part)
    return [*deltas, one.finish(ended(at))]


@given(
    st.text(max_size=20),
    st.lists(st.text(min_size=1, max_size=4), max_size=3),
    st.lists(st.integers(1, 9), max_size=12),
)
def test_portions_do_not_change_the_text(text, stops, sizes):
    token_ids = TOKENIZER.encode(text)
    whole, parts = completion(stop=stops), completion(stop=stops)
    run(whole, token_ids, [])
    deltas = run(parts, token_ids, sizes)
    assert parts.text == whole.text == "".join(delta.text for delta in deltas)
    assert parts.output_ids == whole.output_ids
    assert len(parts.logprobs) == len(parts.output_ids)
    assert [delta.end is not None for delta in deltas] == [False] * (len(deltas) - 1) + [True]
    assert whole.matched is not None or whole.text == text


def test_a_stop_found_here_is_the_reason_whatever_the_engine_says():
    one = completion(stop=["b"])
    run(one, TOKENIZER.encode("abc"), [])
    assert one.end.reason == FinishReason(kind="stop", matched="b")
    assert one.output_ids == TOKENIZER.encode("ab")


def test_the_end_token_has_no_text_unless_kept():
    shown = completion(no_stop_trim=True, skip_special_tokens=False)
    hidden = completion(skip_special_tokens=False)
    for one in (shown, hidden):
        run(one, [*TOKENIZER.encode("a"), EOS], [])
    assert (shown.text, hidden.text) == ("a<|end|>", "a")


def test_tokens_that_were_lost_end_the_request():
    with pytest.raises(RequestError, match="out of order"):
        completion().take(3, [5], None)


def test_ending_twice_is_a_defect():
    one = completion()
    one.finish(ended(0))
    with pytest.raises(AssertionError):
        one.finish(ended(0))


def test_usage_tells_what_became_of_drafts():
    one, other = completion(), completion()
    for each, num_drafted in ((one, 9), (other, 0)):
        end = Ended(
            id="a", attempt=0, reason=FinishReason(kind="length"), num_outputs=0,
            num_drafted=num_drafted, num_accepted=num_drafted - num_drafted // 3,
        )  # fmt: skip
        each.finish(end)
    answers = [Answer(each, None, TOKENIZER) for each in (one, other)]
    details = usage_of(answers).completion_tokens_details
    assert details == OutputDetails(0, 6, 3)
    assert usage_of(answers[1:]).completion_tokens_details is msgspec.UNSET
