"""llama-index with llms-openai-like."""

from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike
from steps import MODEL, URL, attempt

options = {"api_base": URL + "/v1", "api_key": "none", "model": MODEL, "max_tokens": 8}
chat = OpenAILike(**options, is_chat_model=True, context_window=2048, max_retries=0)
text = OpenAILike(**options, is_chat_model=False, context_window=2048, max_retries=0)


def complete():
    assert text.complete("One, two,").text


def stream():
    assert list(text.stream_complete("One, two,"))[-1].text


def answer():
    assert chat.chat([ChatMessage(role="user", content="Say hello.")]).message.content


def chat_stream():
    assert list(chat.stream_chat([ChatMessage(role="user", content="Hi.")]))[-1].message.content


attempt("complete", complete)
attempt("stream_complete", stream)
attempt("chat", answer)
attempt("stream_chat", chat_stream)
