"""Registers the architectures of this package, as any other package registers its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headstock.plugins.hooks import hookimpl

if TYPE_CHECKING:
    from headstock.plugins.models import ModelRegistry

HOOK_API = (2, 1)

CLASSES = {
    "afmoe": ("AfmoeForCausalLM",),
    "apertus": ("ApertusForCausalLM",),
    "bamba": ("BambaForCausalLM",),
    "bert": (
        "BertForSequenceClassification",
        "BertModel",
        "RobertaForSequenceClassification",
        "RobertaModel",
    ),
    "cohere2": ("CohereForCausalLM", "Cohere2ForCausalLM"),
    "deepseek_v2": ("DeepseekV2ForCausalLM",),
    "deepseek_v3": ("DeepseekV3ForCausalLM",),
    "deepseek_v32": ("DeepseekV32ForCausalLM",),
    "deepseek_v4": ("DeepseekV4ForCausalLM",),
    "dots1": ("Dots1ForCausalLM",),
    "exaone4": ("Exaone4ForCausalLM",),
    "exaone_moe": ("ExaoneMoeForCausalLM",),
    "falcon_h1": ("FalconH1ForCausalLM",),
    "gemma2": ("Gemma2ForCausalLM",),
    "gemma3": ("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"),
    "gemma3n": ("Gemma3nForCausalLM",),
    "gemma3n_vision": ("Gemma3nForConditionalGeneration",),
    "gemma4": ("Gemma4ForCausalLM",),
    "gemma4_vision": ("Gemma4ForConditionalGeneration",),
    "glm4": ("GlmForCausalLM", "Glm4ForCausalLM"),
    "glm4v": (
        "Glm4vForConditionalGeneration",
        "Glm4vMoeForConditionalGeneration",
        "Glm46VForConditionalGeneration",
    ),
    "glm4_moe": ("Glm4MoeForCausalLM",),
    "glm4_moe_lite": ("Glm4MoeLiteForCausalLM",),
    "glm_ocr": ("GlmOcrForConditionalGeneration",),
    "glm_moe_dsa": ("GlmMoeDsaForCausalLM",),
    "gpt2": ("GPT2LMHeadModel", "GPTBigCodeForCausalLM"),
    "gpt_oss": ("GptOssForCausalLM",),
    "granite": ("GraniteForCausalLM",),
    "granite_hybrid": ("GraniteMoeHybridForCausalLM",),
    "hunyuan": ("HunYuanDenseV1ForCausalLM", "HunYuanMoEV1ForCausalLM"),
    "hy_v3": ("HYV3ForCausalLM",),
    "idefics3": ("Idefics3ForConditionalGeneration",),
    "internvl": ("InternVLForConditionalGeneration",),
    "internlm2": ("InternLM2ForCausalLM", "InternLM2ForRewardModel"),
    "jamba": ("JambaForCausalLM",),
    "kimi_k25": ("KimiK25ForConditionalGeneration",),
    "kimi_linear": ("KimiLinearForCausalLM",),
    "lfm2": ("Lfm2ForCausalLM", "Lfm2MoeForCausalLM"),
    "laguna": ("LagunaForCausalLM",),
    "llama": ("LlamaForCausalLM",),
    "llava": ("LlavaForConditionalGeneration",),
    "llava_next": (
        "LlavaNextForConditionalGeneration",
        "LlavaOnevisionForConditionalGeneration",
    ),
    "llama4": ("Llama4ForCausalLM",),
    "llama4_vision": ("Llama4ForConditionalGeneration",),
    "longcat_flash": ("LongcatFlashForCausalLM",),
    "mamba2": ("Mamba2ForCausalLM",),
    "mimo_v2_flash": ("MiMoV2FlashForCausalLM",),
    "minimax_m2": ("MiniMaxM2ForCausalLM",),
    "minimax_m3": ("MiniMaxM3SparseForConditionalGeneration", "MiniMaxM3VLForCausalLM"),
    "mistral": ("MistralForCausalLM", "Ministral3ForCausalLM"),
    "mistral3": ("Mistral3ForConditionalGeneration",),
    "mistral4": ("Mistral4ForCausalLM",),
    "mixtral": ("MixtralForCausalLM",),
    "modernbert": ("ModernBertForSequenceClassification", "ModernBertModel"),
    "nemotron_h": ("NemotronHForCausalLM",),
    "olmo2": ("Olmo2ForCausalLM",),
    "olmo3": ("Olmo3ForCausalLM",),
    "phi3": ("Phi3ForCausalLM",),
    "qwen2": ("Qwen2ForCausalLM",),
    "qwen2_moe": ("Qwen2MoeForCausalLM",),
    "qwen2_reward": ("Qwen2ForProcessRewardModel", "Qwen2ForRewardModel"),
    "qwen2_vl": ("Qwen2VLForConditionalGeneration",),
    "qwen3": ("Qwen3ForCausalLM",),
    "qwen3_moe": ("Qwen3MoeForCausalLM",),
    "qwen3_vl": ("Qwen3VLForConditionalGeneration", "Qwen3VLMoeForConditionalGeneration"),
    "qwen3_next": ("Qwen3NextForCausalLM",),
    "seed_oss": ("SeedOssForCausalLM",),
    "smollm3": ("SmolLM3ForCausalLM",),
    "solar_open": ("SolarOpenForCausalLM",),
    "step3p5": ("Step3p5ForCausalLM", "Step3p7ForConditionalGeneration"),
    "starcoder2": ("Starcoder2ForCausalLM",),
}
"""Classes by module; each is named as the architecture that it serves."""
OTHER_NAMES = {
    "XLMRobertaForSequenceClassification": "bert:RobertaForSequenceClassification",
    "XLMRobertaModel": "bert:RobertaModel",
    "Kimi_K25ForConditionalGeneration": "kimi_k25:KimiK25ForConditionalGeneration",
    "Ernie4_5ForCausalLM": "ernie4_5:Ernie45ForCausalLM",
    "Ernie4_5_MoeForCausalLM": "ernie4_5:Ernie45MoeForCausalLM",
    "SmolVLMForConditionalGeneration": "idefics3:Idefics3ForConditionalGeneration",
    "Qwen2_5_VLForConditionalGeneration": "qwen2_vl:Qwen25VLForConditionalGeneration",
    "Qwen3_5ForCausalLM": "qwen3_5:Qwen35ForCausalLM",
    "Qwen3_5MoeForCausalLM": "qwen3_5:Qwen35ForCausalLM",
    "Qwen3_5ForConditionalGeneration": "qwen3_5:Qwen35ForConditionalGeneration",
    "Qwen3_5MoeForConditionalGeneration": "qwen3_5:Qwen35ForConditionalGeneration",
}
"""Architectures whose class is named otherwise."""


@hookimpl
def headstock_register_models(registry: ModelRegistry) -> None:
    """Name the class of each architecture."""
    named = {name: f"{module}:{name}" for module, names in CLASSES.items() for name in names}
    for architecture, target in sorted((named | OTHER_NAMES).items()):
        registry.add(architecture, f"{__package__}.{target}")
    registry.add_fallback(f"{__package__}.fallback.model:TransformersForCausalLM")
