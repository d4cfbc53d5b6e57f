"""cohere, against a model that generates: what it asks for is refused by name."""

import cohere
from steps import URL, attempt

client = cohere.ClientV2(api_key="none", base_url=URL)


def refused():
    try:
        client.rerank(model="any", query="cats", documents=["A cat sits."])
    except cohere.core.ApiError as error:
        assert error.status_code in (400, 404), error
    else:
        raise AssertionError("a model that generates has reranked")


attempt("rerank is refused by a model that generates", refused)
