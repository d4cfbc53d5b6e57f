"""guidellm."""

import tempfile

from commands import run
from steps import MODEL, TOKENIZER, URL, attempt


def profile():
    found = run(
        "guidellm", "run", "--backend", f"kind=openai_http,target={URL},model={MODEL}",
        "--profile", "kind=concurrent,streams=2", "--constraint", "kind=max_requests,count=6",
        "--tokenizer", f"kind=hf_auto,model={TOKENIZER}",
        "--data", "kind=synthetic_text,prompt_tokens=16,output_tokens=8",
        cwd=tempfile.mkdtemp(),
    )  # fmt: skip
    assert "Traceback" not in found


attempt("concurrent profile of 6 requests", profile)
