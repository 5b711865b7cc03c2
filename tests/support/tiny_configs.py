"""A small configuration of any type that transformers knows: the default one with every size made small."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig

VOCABULARY = 512
SPECIAL_TOKENS = 64  # for images and other things that random text must not contain
HIDDEN, INTERMEDIATE, MOE_INTERMEDIATE = 256, 384, 128
HEADS, KV_HEADS, HEAD_DIM = 4, 2, 64
EXPERTS, EXPERTS_PER_TOKEN = 4, 2
POSITIONS = 256

# The small size of a setting, for each name that a configuration may have for it.
SIZES: dict[str, int] = {
    name: size
    for size, names in (
        (
            VOCABULARY + SPECIAL_TOKENS,
            "vocab_size decoder_vocab_size vocab_size_per_layer_input unpadded_vocab_size",
        ),
        (
            HIDDEN,
            """hidden_size d_model n_embd emb_dim embed_dim embedding_dim embedding_size dim out_hidden_size
            word_embed_proj_dim backbone_hidden_size lru_width decoder_hidden_size output_dim
            projection_dim cross_attention_hidden_size input_embedding_size output_embedding_size
            decoder_output_dim""",
        ),
        (
            INTERMEDIATE,
            """intermediate_size ffn_dim decoder_ffn_dim encoder_ffn_dim n_inner dim_ff dff ffn_hidden_size
            feed_forward_size shared_intermediate_size intermediate_size_mlp prefix_dense_intermediate_size
            dense_intermediate_size mlp_dim d_inner""",
        ),
        (
            MOE_INTERMEDIATE,
            """moe_intermediate_size shared_expert_intermediate_size moe_shared_expert_intermediate_size
            shared_experts_intermediate_size expert_ffn_hidden_size moe_latent_size hidden_size_per_layer_input""",
        ),
        (
            HEADS,
            """num_attention_heads n_head n_heads num_heads attention_heads decoder_attention_heads
            encoder_attention_heads num_encoder_attention_heads num_decoder_attention_heads
            swa_num_attention_heads index_n_heads linear_num_heads""",
        ),
        (KV_HEADS, "num_key_value_heads num_kv_heads swa_num_key_value_heads num_query_groups"),
        (
            HEAD_DIM,
            """head_dim swa_head_dim qk_head_dim v_head_dim dim_head d_head d_kv kv_channels attention_head_size
            swa_v_head_dim global_head_dim index_head_dim attention_head_dim linear_head_dim""",
        ),
        (
            EXPERTS,
            """num_experts n_routed_experts num_local_experts moe_num_experts zero_expert_num""",
        ),
        (
            EXPERTS_PER_TOKEN,
            """num_experts_per_tok num_experts_per_token moe_topk moe_k moe_top_k top_k_experts""",
        ),
        (1, "n_group num_expert_group topk_group n_shared_experts num_shared_experts moe_num_shared_experts"),
        (
            POSITIONS,
            """max_position_embeddings n_positions n_ctx max_seq_len model_max_length max_source_positions
            max_target_positions context_length index_topk original_max_position_embeddings""",
        ),
        (32, "sliding_window sliding_window_size attention_window_size local_attention attention_chunk_size"),
        (128, "q_lora_rank kv_lora_rank o_lora_rank"),
        (32, "qk_nope_head_dim qk_rope_head_dim rotary_dim"),
        (1, "first_k_dense_replace num_dense_layers moe_layer_start_index"),
        # State-space and linear-attention layers: heads times head size is twice the hidden size.
        (32, "mamba_d_state state_size ssm_state_size time_step_rank mamba_dt_rank mamba_chunk_size chunk_size"),
        (8, "mamba_n_heads mamba_num_heads n_mamba_heads"),
        (64, "mamba_d_head mamba_head_dim mamba_headdim"),
        (512, "mamba_d_ssm mamba_intermediate"),
        (2, "n_groups mamba_n_groups mamba_ngroups"),
        (2, "linear_num_key_heads"),
        (4, "linear_num_value_heads"),
        (64, "linear_key_head_dim linear_value_head_dim"),
    )
    for name in names.split()
}
LAYER_COUNTS = frozenset(
    [
        "num_hidden_layers",
        "n_layer",
        "n_layers",
        "num_layers",
        "depth",
        "decoder_layers",
        "encoder_layers",
        "num_encoder_layers",
        "num_decoder_layers",
        "num_blocks",
    ]
)
TOKENS = {"pad": 0, "bos": 1, "eos": 2, "decoder_start": 1, "forced_eos": 2, "forced_bos": 1}

# Vision-language types to build beside those that have a causal language model.
VISION_LANGUAGE = (
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen3_vl",
    "qwen3_vl_moe",
    "qwen3_5",
    "qwen3_5_moe",
    "gemma3",
    "gemma4",
    "gemma3n",
    "mistral3",
    "llama4",
    "internvl",
    "glm4v",
    "glm4v_moe",
    "llava",
    "llava_next",
    "paligemma",
    "idefics3",
    "smolvlm",
    "aya_vision",
    "ernie4_5_vl_moe",
)

# Types of which no tiny model runs on text alone, and why.
NOT_TRIED: dict[str, str] = {
    "gemma3n": "its vision tower needs the timm library",
    "gemma4_assistant": "it reads the hidden states and the keys of another model",
    "gemma4_unified_assistant": "it reads the hidden states and the keys of another model",
    "musicgen": "it predicts codes of sound, and has another configuration than its causal language model",
    "musicgen_melody": "it predicts codes of sound, and has another configuration than its causal language model",
}

# A type whose default configuration is not valid starts from another.
STARTING_POINTS: dict[str, dict[str, Any]] = {
    "dbrx": {"attn_config": {"rope_theta": 500000.0}},
}


def _mrope(*sections: int, **settings: object) -> dict[str, Any]:
    """Rotary positions of text, height and width, each with a section of half the rotated part of a head."""
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": list(sections)} | settings
    return {"rope_parameters": rope}


GEMMA_SHARED_KEYS = {
    "num_hidden_layers": 4,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "num_kv_shared_layers": 2,
}
GEMMA3N = GEMMA_SHARED_KEYS | {
    "intermediate_size": [INTERMEDIATE] * 4,
    "activation_sparsity_pattern": [0.95, 0.95, 0.0, 0.0],
    "vocab_size_per_layer_input": VOCABULARY,
}
# As gemma-4-E2B has it: inputs for each layer, and keys that the last layers share.
GEMMA4 = GEMMA_SHARED_KEYS | {"global_head_dim": 128}
# As gemma-4-26B-A4B has it: experts beside the MLP, and global keys that are also the values.
GEMMA4_MOE = {
    "global_head_dim": 128,
    "num_global_key_value_heads": 1,
    "attention_k_eq_v": True,
    "hidden_size_per_layer_input": 0,
    "enable_moe_block": True,
    "num_experts": EXPERTS,
    "top_k_experts": EXPERTS_PER_TOKEN,
    "moe_intermediate_size": MOE_INTERMEDIATE,
}
# A transformer block with the same weights before two of the layers.
TWO_SHARED_BLOCKS = {
    "num_hidden_layers": 4,
    "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
}
FULL_AND_SLIDING = {"layer_types": ["full_attention", "sliding_attention"]}
DOTS3_SLIDING = {
    "swa_num_key_value_heads": HEADS,
    "swa_q_lora_rank": 128,
    "swa_kv_lora_rank": 128,
    "swa_head_dim": 64,
    "swa_qk_nope_head_dim": 32,
    "swa_v_head_dim": 64,
    "swa_num_attention_heads": HEADS,
}
QWEN4 = {
    "eos_token_id": 2,
    "indexer_n_heads": HEADS,
    "indexer_kv_heads": 1,
    "indexer_head_dim": HEAD_DIM,
    "indexer_budget": POSITIONS,
    "indexer_compress_ratio": 4,
    "hc_lowrank": 64,
    "ple_layer_ids": [1],
    "ple_embed_dim": HIDDEN,
    "ngram_vocab_size_base": 512,
    "split_ngram_parts": 2,
}

# What the rules do not get right, or what the default configuration leaves out.
OVERRIDES: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "blt": {
        "use_cache": False,
        "encoder_hash_byte_group_vocab": 1024,
        "global_config": {"hidden_size": 512, "num_attention_heads": 8, "num_key_value_heads": 8},
        "decoder_config": {"hidden_size_global": 512},
    },
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}},
    },
    "dbrx": {
        "attn_config": {"kv_n_heads": KV_HEADS, "clip_qkv": 8.0},
        "ffn_config": {"moe_top_k": EXPERTS_PER_TOKEN, "moe_num_experts": EXPERTS},
    },
    "cpmant": {"init_std": 0.02},
    "deepseek_v4": {
        "compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 16},
    },
    "dots1": {"n_shared_experts": 1, "first_k_dense_replace": 1},
    "dots3_note": {
        "text_config": DOTS3_SLIDING,
        "vision_config": {"adapter_in_dim": HIDDEN, "adapter_out_dim": HIDDEN},
        "audio_config": {"adapter_input_size": HIDDEN, "adapter_out_dim": HIDDEN},
    },
    "dots3_note_text": DOTS3_SLIDING,
    "electra": {"embedding_size": 128},
    "emu3": {
        "vocabulary_map": {"<image>": VOCABULARY, "<|extra_200|>": VOCABULARY + 1}
        | {f"<|visual token {i:06}|>": VOCABULARY + 2 + i for i in range(32)},
        "vq_config": {"codebook_size": 32, "base_channels": 32, "embed_dim": 4},
    },
    "ernie4_5_vl_moe": {
        "text_config": _mrope(11, 11, 10) | {"moe_intermediate_size": [MOE_INTERMEDIATE, MOE_INTERMEDIATE]},
    },
    "flint": {"mlp_only_layers": [0]},
    "gemma3n_text": GEMMA3N,
    "gemma4": {
        "text_config": GEMMA4_MOE,
        "vision_config": {
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "position_embedding_size": 64,
        },
    },
    "gemma4_text": GEMMA4,
    "gemma4_unified": {"text_config": {"global_head_dim": 128}},
    "gemma4_unified_text": {"global_head_dim": 128},
    "glm4v": {"text_config": _mrope(8, 12, 12)},
    "glm4v_moe": {"text_config": _mrope(4, 6, 6, partial_rotary_factor=0.5)},
    "got_ocr2": {"vision_config": {"global_attn_indexes": [1]}},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"]},
    "jamba": {
        "mamba_expand": 1,  # experts outweigh the mixers, as in the released models
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
    },
    "laguna": FULL_AND_SLIDING,
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "llama4": {
        "vision_config": {
            "vision_output_dim": HIDDEN,
            "projector_input_dim": HIDDEN,
            "projector_output_dim": HIDDEN,
        },
    },
    "mamba2": {"num_heads": 8},
    "mellum": FULL_AND_SLIDING,
    "minimax_m3_vl_text": {
        "layer_types": ["full_attention", "minimax_m3_sparse"],
        "mlp_layer_types": ["dense", "sparse"],
        "index_block_size": 16,
    },
    "mllama": {
        "text_config": {"num_hidden_layers": 3, "cross_attention_layers": [1]},
        "vision_config": {"image_size": 56, "intermediate_layers_indices": [1]},
    },
    "phi4_multimodal": {
        "audio_config": {
            "ext_pw_out_channel": HIDDEN,
            "depthwise_separable_out_channel": HIDDEN,
            "nemo_conv_channels": HIDDEN,
        },
    },
    "qwen2_vl": {"text_config": _mrope(8, 12, 12)},
    "qwen2_5_vl": {"text_config": _mrope(8, 12, 12), "vision_config": {"fullatt_block_indexes": [1]}},
    "qwen3_vl": {"text_config": _mrope(12, 10, 10), "vision_config": {"deepstack_visual_indexes": [1]}},
    "qwen3_vl_moe": {"text_config": _mrope(12, 10, 10), "vision_config": {"deepstack_visual_indexes": [1]}},
    "qwen4_exp": {"text_config": QWEN4},
    "qwen4_exp_text": QWEN4,
    "recurrent_gemma": {"num_hidden_layers": 3},
    "roc_bert": {"shape_vocab_size": 64, "pronunciation_vocab_size": 64},
    "xlm": {"causal": True},
    "xmod": {"default_language": "en_XX"},
    "zamba": TWO_SHARED_BLOCKS,
    "zamba2": TWO_SHARED_BLOCKS,
    "zaya": {"num_experts_per_tok": 1},
}
# Without a value these are a number that follows from the others, but not everywhere.
FILLED = frozenset({"head_dim", "num_key_value_heads", "n_routed_experts", "num_experts_per_tok"})
# Not to be carried over from a default configuration.
NOT_OURS = frozenset({"transformers_version", "per_layer_config", "number_of_conv_states"})


def tiny_settings(model_type: str) -> dict[str, Any]:
    """What to change in this type's default configuration to make it small."""
    overrides = OVERRIDES.get(model_type, {})
    default = CONFIG_MAPPING[model_type](**STARTING_POINTS.get(model_type, {}))
    return merged(_shrunk(default), overrides)


def merged(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """settings with changes; a sub-configuration keeps what its changes do not name."""
    both = dict(settings) | dict(changes)
    for name, value in changes.items():
        if isinstance(value, Mapping) and isinstance(settings.get(name), Mapping) and name.endswith("_config"):
            both[name] = merged(settings[name], value)
    return both


def _shrunk(config: PreTrainedConfig) -> dict[str, Any]:
    small: dict[str, Any] = {}
    kept = _layers_to_keep(config)
    specials = VOCABULARY
    for name, value in vars(config).items():
        if isinstance(value, PreTrainedConfig):
            small[name] = _differing(value) | {"model_type": value.model_type} | _shrunk(value)
        elif name in LAYER_COUNTS and type(value) is int:
            small[name] = len(kept)
        elif _is_per_layer(value, config):
            small[name] = _of_layers(value, kept, SIZES.get(name))
        elif name.endswith(("_token_id", "_token_index")) and value is not None:
            role = name.removesuffix("_token_id").removesuffix("_token_index")
            specials += role not in TOKENS
            small[name] = TOKENS.get(role, specials)
        elif name in SIZES and ((type(value) is int and value > 0) or (value is None and name in FILLED)):
            small[name] = SIZES[name]
        elif name == "is_decoder":
            small[name] = True
    if "kv_lora_rank" in small and "num_key_value_heads" in small:
        small["num_key_value_heads"] = small["num_attention_heads"]
    # Where keys are compressed, head_dim may be another name for the part that has positions.
    if "qk_rope_head_dim" in small and getattr(config, "head_dim", None) == config.qk_rope_head_dim:
        small["head_dim"] = SIZES["qk_rope_head_dim"]
    return small


def _differing(config: PreTrainedConfig) -> dict[str, Any]:
    """What distinguishes a sub-configuration from the default one of its type."""
    return {name: value for name, value in config.to_diff_dict().items() if name not in NOT_OURS}


def _layer_count(config: PreTrainedConfig) -> int:
    counts = [value for name, value in vars(config).items() if name in LAYER_COUNTS and type(value) is int]
    return counts[0] if counts else getattr(config, "num_hidden_layers", 0) or 0


def _is_per_layer(value: object, config: PreTrainedConfig) -> bool:
    return isinstance(value, list) and len(value) > 1 and len(value) == _layer_count(config)


def _layers_to_keep(config: PreTrainedConfig) -> list[int]:
    """The first layer of each kind, and at least two layers."""
    count = _layer_count(config)
    lists = [value for value in vars(config).values() if _is_per_layer(value, config) and not _is_range(value)]
    first = {(i, str(kind)): values.index(kind) for i, values in enumerate(lists) for kind in values}
    kept = set(first.values())
    for layer in range(count):
        if len(kept) < 2:
            kept.add(layer)
    return sorted(kept)


def _is_range(values: Sequence[object]) -> bool:
    """Whether these are the numbers of the layers themselves."""
    return list(values) in (list(range(len(values))), list(range(1, len(values) + 1)))


def _of_layers(values: Sequence[Any], kept: Sequence[int], size: int | None) -> list[Any]:
    if size is not None:
        return [size] * len(kept)
    return list(values[: len(kept)]) if _is_range(values) else [values[layer] for layer in kept]
