"""Models of random weights that benchmarks run on."""

from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
)


def neox(width: int, layers: int, vocabulary: int, *, context: int = 256) -> PreTrainedModel:
    config = GPTNeoXConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=max(1, width // 64),
        intermediate_size=4 * width,
        max_position_embeddings=context,
        attention_dropout=0.0,
        hidden_dropout=0.0,
    )
    return GPTNeoXForCausalLM(config).eval().requires_grad_(False)


def mixtral(quick: bool) -> PreTrainedModel:
    width = 128 if quick else 512
    config = MixtralConfig(
        vocab_size=4096,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=4,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 64,
        num_local_experts=8,
        num_experts_per_tok=2,
    )
    return MixtralForCausalLM(config).eval().requires_grad_(False)


def mamba(quick: bool) -> PreTrainedModel:
    config = MambaConfig(vocab_size=4096, hidden_size=128 if quick else 256, num_hidden_layers=4, state_size=16)
    return MambaForCausalLM(config).eval().requires_grad_(False)
