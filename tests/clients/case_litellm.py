"""litellm."""

import litellm
from steps import MODEL, URL, attempt

SAY = [{"role": "user", "content": "Say hello."}]
HOSTED = {"model": f"hosted_vllm/{MODEL}", "api_base": URL + "/v1", "max_tokens": 8}
PLAIN = {**HOSTED, "model": f"openai/{MODEL}", "api_key": "none"}
litellm.num_retries = 0


def hosted():
    assert litellm.completion(messages=SAY, **HOSTED).choices[0].message.content


def stream():
    events = litellm.completion(messages=SAY, stream=True, **PLAIN)
    assert "".join(event.choices[0].delta.content or "" for event in events)


def text():
    found = litellm.text_completion(
        model=f"text-completion-openai/{MODEL}",
        prompt="One, two,",
        api_base=URL + "/v1",
        api_key="none",
        max_tokens=4,
    )
    assert found.choices[0].text


def anthropic():
    found = litellm.completion(
        messages=SAY, model=f"anthropic/{MODEL}", api_base=URL, api_key="none", max_tokens=8
    )
    assert found.choices[0].message.content


def ollama():
    found = litellm.completion(
        messages=SAY, model=f"ollama_chat/{MODEL}", api_base=URL, max_tokens=8
    )
    assert found.choices[0].message.content


attempt("hosted_vllm/", hosted)
attempt("openai/ stream", stream)
attempt("text-completion-openai/", text)
attempt("anthropic/", anthropic)
attempt("ollama_chat/", ollama)
