"""A byte-level tokenizer of 256 bytes and a few special tokens: id b + 3 is byte b."""

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from headstock.text.pieces import byte_characters

EOS = 1
SPECIAL = ["<|begin|>", "<|end|>", "<|turn|>"]
TEMPLATE = (
    "{% for message in messages %}{{ '<|turn|>' + message.role + ':' + message.content }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|turn|>assistant:' }}{% endif %}"
)

SPEAKING_TEMPLATE = (
    "{% if tools %}<|turn|>tools:{% for tool in tools %}{{ tool.function.name }} {% endfor %}"
    "{% endif %}{% for message in messages %}{{ '<|turn|>' + message.role + ':' }}"
    "{% if message.reasoning_content %}<think>{{ message.reasoning_content }}</think>{% endif %}"
    "{{ message.content }}{% for call in message.tool_calls or [] %}"
    "<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant:{% if enable_thinking %}<think>"
    "{% endif %}{% endif %}"
)
"""Shows tools, calls and thoughts, in the form of Hermes and Qwen."""


def toy_backend():
    characters = {byte: char for char, byte in byte_characters().items()}
    vocab = {text: index for index, text in enumerate(SPECIAL)}
    vocab |= {characters[byte]: byte + len(SPECIAL) for byte in range(256)}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(text, special=True) for text in SPECIAL])
    return backend
