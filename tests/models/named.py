"""The families by the names that people know them by: what serves each, and what tries it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from headstock.testing.oracle.case import ModelCase
from tests.models.cases import CASES
from tests.models.harness import REGISTRY

TEXT = "ForCausalLM"
SEEING = "ForConditionalGeneration"


@dataclass(frozen=True, slots=True)
class Named:
    """A family.

    Attributes:
        architectures: What its checkpoints name.
        tests: ``folder/file.py::function`` under ``tests``, in which it is held to an oracle; none:
            the cases of its architectures in ``models/test_families.py`` are.
    """

    architectures: tuple[str, ...]
    tests: tuple[str, ...] = ()


def _text(*stems: str) -> Named:
    return Named(tuple(f"{stem}{TEXT}" for stem in stems))


STILL = "vision/test_still.py::test_greedy_ids_are_those_of_transformers"
FILMS = "vision/test_films.py::test_a_video_draws_the_ids_of_transformers"
HYBRID = "vision/test_families.py::test_greedy_ids_are_those_of_transformers"
ORACLE = "vision/test_oracle.py::test_greedy_ids_are_those_of_transformers"
VIDEO = "vision/test_video.py::test_a_chat_with_a_video_draws_the_ids_of_transformers"
SENTENCE = "models/test_sentence.py::test_vectors_are_those_of_the_library"
ENCODERS = "models/test_pooled.py::test_vectors_of_an_encoder_are_those_of_transformers"
CROSS = "models/test_pooled.py::test_scores_of_cross_encoders_are_those_of_transformers"
REWARDS = "models/test_pooled.py::test_scores_of_reward_models_are_those_of_transformers"


def _seeing(*stems: str, tests: tuple[str, ...] = (STILL,)) -> Named:
    return Named(tuple(f"{stem}{SEEING}" for stem in stems), tests)


GENERATIVE: Mapping[str, Named] = {
    "Llama 3, SmolLM2, Yi, the distilled Llamas": _text("Llama"),
    "Llama 4": _text("Llama4"),
    "Mistral, Ministral 3": _text("Mistral", "Ministral3"),
    "Mistral 4": _text("Mistral4"),
    "Mixtral": _text("Mixtral"),
    "Qwen2, Qwen2.5": _text("Qwen2"),
    "Qwen2-MoE": _text("Qwen2Moe"),
    "Qwen3": _text("Qwen3"),
    "Qwen3-MoE": _text("Qwen3Moe"),
    "Qwen3-Next": _text("Qwen3Next"),
    "Qwen3.5 to 3.8": _text("Qwen3_5", "Qwen3_5Moe"),
    "DeepSeek V2": _text("DeepseekV2"),
    "DeepSeek V3, R1, Kimi K2": _text("DeepseekV3"),
    "DeepSeek V3.2": _text("DeepseekV32"),
    "DeepSeek V4": _text("DeepseekV4"),
    "Kimi K2.5 to K2.7": Named(
        (f"KimiK25{SEEING}", f"Kimi_K25{SEEING}"),
        ("models/test_families.py::test_claim", STILL),
    ),
    "Kimi Linear": _text("KimiLinear"),
    "GLM-4": _text("Glm", "Glm4"),
    "GLM-4.5, 4.6, 4.7": _text("Glm4Moe"),
    "GLM-4.7-Flash": _text("Glm4MoeLite"),
    "GLM-5": _text("GlmMoeDsa"),
    "gpt-oss": _text("GptOss"),
    "MiniMax M2": _text("MiniMaxM2"),
    "MiniMax M3": Named((f"MiniMaxM3VL{TEXT}", f"MiniMaxM3Sparse{SEEING}")),
    "Gemma 2": _text("Gemma2"),
    "Gemma 3": _text("Gemma3"),
    "Gemma 3n": _text("Gemma3n"),
    "Gemma 4": _text("Gemma4"),
    "Nemotron 3": _text("NemotronH"),
    "Granite 3 and 4, dense": _text("Granite"),
    "Granite 4, hybrid": _text("GraniteMoeHybrid"),
    "Falcon-H1": _text("FalconH1"),
    "LFM2": _text("Lfm2", "Lfm2Moe"),
    "Olmo 2": _text("Olmo2"),
    "Olmo 3": _text("Olmo3"),
    "Phi-3, Phi-4, Phi-4-mini": _text("Phi3"),
    "SmolLM3": _text("SmolLM3"),
    "ERNIE 4.5": _text("Ernie4_5", "Ernie4_5_Moe"),
    "Seed-OSS": _text("SeedOss"),
    "Exaone 4, K-Exaone": _text("Exaone4", "ExaoneMoe"),
    "Command R and A": _text("Cohere", "Cohere2"),
    "Hunyuan V1": _text("HunYuanDenseV1", "HunYuanMoEV1"),
    "Hy3": _text("HYV3"),
    "Step 3.5, 3.7": Named((f"Step3p5{TEXT}", f"Step3p7{SEEING}")),
    "MiMo-V2-Flash": _text("MiMoV2Flash"),
    "Trinity (AfMoE)": _text("Afmoe"),
    "GPT-2, StarCoder": Named(("GPT2LMHeadModel", f"GPTBigCode{TEXT}")),
    "StarCoder 2": _text("Starcoder2"),
    "Laguna": _text("Laguna"),
    "LongCat-Flash": _text("LongcatFlash"),
    "Mamba 2": _text("Mamba2"),
    "Bamba": _text("Bamba"),
    "Jamba": _text("Jamba"),
    "InternLM2": _text("InternLM2"),
    "Apertus, Dots1, Solar Open": _text("Apertus", "Dots1", "SolarOpen"),
}
VECTORS: Mapping[str, Named] = {
    "e5-mistral": Named((f"Mistral{TEXT}",), (SENTENCE,)),
    "gte-Qwen2": Named((f"Qwen2{TEXT}",), (SENTENCE,)),
    "Qwen3-Embedding": Named((f"Qwen3{TEXT}",), (SENTENCE,)),
    "EmbeddingGemma": Named((f"Gemma3{TEXT}",), (SENTENCE,)),
    "ModernBERT": Named(
        ("ModernBertModel", "ModernBertForSequenceClassification"),
        (SENTENCE, "models/test_sentence.py::test_scores_of_modernbert_are_those_of_transformers"),
    ),
    "BERT, all-MiniLM": Named(
        ("BertModel", "BertForSequenceClassification"),
        (
            ENCODERS,
            CROSS,
            "e2e/test_embeddings.py::test_twenty_sentences_have_the_vectors_of_transformers",
        ),
    ),
    "RoBERTa, XLM-R": Named(
        (
            "RobertaModel",
            "RobertaForSequenceClassification",
            "XLMRobertaModel",
            "XLMRobertaForSequenceClassification",
        ),
        (ENCODERS, CROSS),
    ),
    "BGE-M3, its sparse and multi-vector heads": Named(
        ("XLMRobertaModel",),
        ("models/test_token_vectors.py::test_texts_have_a_vector_tokens_have_weights_and_vectors",),
    ),
    "mcdse, DSE-Qwen2": Named(
        (f"Qwen2VL{SEEING}",),
        ("vision/test_embedded.py::test_the_vector_of_a_chat_is_that_of_transformers",),
    ),
    "Skywork rewards": Named((f"Llama{TEXT}", f"Gemma2{TEXT}", f"Qwen3{TEXT}"), (REWARDS,)),
    "InternLM2 rewards": Named(
        ("InternLM2ForRewardModel",),
        ("models/test_rewards.py::test_the_reward_of_an_internlm2_is_that_of_the_token_for_it",),
    ),
    "Qwen2.5-Math PRM and RM": Named(
        ("Qwen2ForProcessRewardModel", "Qwen2ForRewardModel"),
        (
            "models/test_rewards.py"
            "::test_each_step_of_an_answer_has_the_probabilities_that_the_authors_compute",
            "models/test_rewards.py::test_the_reward_of_an_answer_is_that_of_its_last_token",
        ),
    ),
    "Qwen3-Reranker": Named(
        (f"Qwen3{TEXT}",),
        ("models/test_rerankers.py::test_scores_of_a_saved_reranker_are_those_of_the_library",),
    ),
}
VISION: Mapping[str, Named] = {
    "Qwen2-VL, Qwen2.5-VL": _seeing("Qwen2VL", "Qwen2_5_VL"),
    "Qwen3-VL": _seeing("Qwen3VL", "Qwen3VLMoe", tests=(ORACLE, HYBRID, VIDEO)),
    "Qwen3.5 to 3.8": _seeing("Qwen3_5", "Qwen3_5Moe", tests=(HYBRID,)),
    "Gemma 3": _seeing(
        "Gemma3", tests=("vision/test_gemma3.py::test_greedy_ids_are_those_of_transformers",)
    ),
    "Gemma 3n": _seeing("Gemma3n"),
    "Gemma 4": _seeing(
        "Gemma4", tests=("vision/test_gemma4.py::test_greedy_ids_are_those_of_transformers",)
    ),
    "Mistral 3, Ministral 3, Mistral Small 4": _seeing("Mistral3"),
    "LLaVA 1.5, Pixtral": _seeing("Llava"),
    "LLaVA-Next": _seeing("LlavaNext"),
    "LLaVA-OneVision": _seeing("LlavaOnevision", tests=(STILL, FILMS)),
    "InternVL 3, 3.5": _seeing("InternVL", tests=(STILL, FILMS)),
    "Llama 4": _seeing("Llama4"),
    "GLM-4.1V, 4.5V, 4.6V": _seeing("Glm4v", "Glm4vMoe", "Glm46V", tests=(STILL, FILMS)),
    "Kimi K2.5 to K2.7": _seeing("KimiK25", "Kimi_K25"),
    "Idefics3, SmolVLM": _seeing("Idefics3", "SmolVLM", tests=(STILL, FILMS)),
    "GLM-OCR": _seeing("GlmOcr"),
}
GROUPS: Mapping[str, Mapping[str, Named]] = {
    "text": GENERATIVE,
    "vectors and scores": VECTORS,
    "images": VISION,
}


def cases_of(architecture: str) -> Sequence[ModelCase]:
    """Return the small configurations by which an architecture is held to its oracle."""
    model = REGISTRY.load(architecture)
    return [case for case in CASES if case.model is model]


def table() -> str:
    """Return the families as docs/models.md has them."""
    rows = ["| family | yields | architecture | held to its oracle in |", "|---" * 4 + "|"]
    for group, families in GROUPS.items():
        for name, family in families.items():
            named = ", ".join(f"`{architecture}`" for architecture in family.architectures)
            tests = family.tests or ("models/test_families.py",)
            files = dict.fromkeys(f"`tests/{test.partition('::')[0]}`" for test in tests)
            rows.append(f"| {name} | {group} | {named} | {', '.join(files)} |")
    return "\n".join(rows)


INTS, SCALED, LIBRARIES = (
    f"models/test_{file}.py"
    for file in ("int_checkpoints", "scaled_checkpoints", "format_libraries")
)
FORMATS: Mapping[str, tuple[str, ...]] = {
    "AWQ, by its old settings too": (
        f"{INTS}::test_a_checkpoint_has_the_logits_of_its_dequantised_weights",
        f"{INTS}::test_awq_s_old_names_of_settings_are_read",
    ),
    "GPTQ, with activation ordering too": (
        f"{INTS}::test_any_rows_are_exactly_what_the_file_stands_for",
        f"{INTS}::test_matrices_of_one_product_may_have_orders_of_their_own",
    ),
    "FP8 by tensor, channel and block, also where blocks are cut": (
        f"{SCALED}::test_a_checkpoint_gives_the_ids_of_its_dequantised_weights",
        "models/test_fp8_checkpoint.py::test_blocks_need_not_divide_the_features",
    ),
    "INT8 (W8A8); `compressed-tensors`": (
        f"{SCALED}::test_any_rows_are_exactly_what_the_file_stands_for",
        f"{LIBRARIES}::test_compressed_tensors_dequantises_to_the_same",
    ),
    "ModelOpt FP8 and NVFP4": (f"{LIBRARIES}::test_modelopt_dequantises_to_the_same",),
    "MXFP4": ("models/test_mxfp4.py::test_a_checkpoint_in_mxfp4_has_the_logits_of_its_values",),
    "`bitsandbytes`": (
        "models/test_bitsandbytes.py::test_four_bits_give_the_ids_of_the_dequantised_model",
        "models/test_bitsandbytes.py::test_eight_bits_give_the_ids_of_the_dequantised_model",
        f"{LIBRARIES}::test_bitsandbytes_dequantises_to_the_same_but_for_the_rounding",
    ),
    "GGUF: every kind of block": (
        "unit/test_gguf.py::test_blocks_become_canonical_exactly",
        "unit/test_gguf.py::test_five_bits_with_a_minimum_are_rounded_to_half_a_step_of_eight",
    ),
    "GGUF: experts": (
        "models/test_gguf_experts.py::test_experts_have_the_logits_of_their_dequantised_weights",
    ),
    "GGUF: files in parts": (
        "unit/test_gguf.py::test_a_split_model_is_read_whole_whichever_part_is_named",
    ),
    "GGUF: vocabularies": (
        "unit/test_text_gguf.py::test_digits_split_as_the_pre_tokenizer_says",
        "server/test_folder_tokenizers.py"
        "::test_a_gguf_vocabulary_of_sentencepiece_encodes_as_sentencepiece",
    ),
    "`--quantization`": (
        "models/test_quantization.py::test_quantised_logits_stay_close",
        "models/test_fp8_checkpoint.py::test_weights_made_fp8_at_load_stay_close_and_are_smaller",
    ),
    "memory while loading": (
        "models/test_loading_memory.py::test_loading_holds_the_quantised_weights_and_one_file",
    ),
    "reading by several threads": (
        "unit/test_checkpoint_read_ahead.py::test_several_threads_read_at_once",
    ),
}
"""What docs/quantization.md says, and the tests that hold it to another implementation."""


def formats() -> str:
    """Return them as docs/quantization.md has them."""
    rows = ["| what | held to its oracle in |", "|---|---|"]
    for what, tests in FORMATS.items():
        files = dict.fromkeys(f"`tests/{test.partition('::')[0]}`" for test in tests)
        rows.append(f"| {what} | {', '.join(files)} |")
    return "\n".join(rows)
