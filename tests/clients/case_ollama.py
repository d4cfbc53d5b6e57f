"""The ollama package."""

import ollama
from steps import MODEL, URL, attempt

client = ollama.Client(host=URL)
SAY = [{"role": "user", "content": "Say hello."}]
FEW = {"num_predict": 8}


def chat():
    assert client.chat(model=MODEL, messages=SAY, options=FEW).message.content


def stream():
    lines = list(client.generate(model=MODEL, prompt="Say hello.", options=FEW, stream=True))
    assert lines[-1].done
    assert "".join(line.response for line in lines)


def formats():
    schema = {
        "type": "object",
        "properties": {"colour": {"enum": ["red", "blue"]}},
        "required": ["colour"],
    }
    answer = client.chat(model=MODEL, messages=SAY, format=schema, options={"num_predict": 40})
    assert "colour" in answer.message.content


def lists():
    assert client.list().models[0].model.startswith(MODEL)
    assert client.ps().models
    assert client.show(MODEL).capabilities


attempt("chat", chat)
attempt("generate stream", stream)
attempt("format: a schema", formats)
attempt("list, ps, show", lists)
