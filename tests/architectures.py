"""Tiny models of many architectures, each with a batch and its losses: random, seeded, in float64.

`ARCHITECTURES` maps a name to the function that builds a `Subject`. One layer each, or two where layers differ or hand
something on, and as narrow as the architecture allows: every parameter is there, and none is zero or one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from quantascope.attribution.losses import TokenBatch, token_losses

NUM_WORDS = 20
NUM_EXAMPLES, LENGTH = 3, 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A model with a batch of examples, and losses of them."""

    model: nn.Module
    batch: Any
    losses: Callable[[nn.Module, Any], torch.Tensor]
    """One loss per unit."""
    example: torch.Tensor
    """Which example each unit belongs to; every example has one at least, in no order."""
    num_positions: int | None = None
    """The padded length, for models that have one."""
    choice: str = "all"

    @property
    def num_examples(self) -> int:
        return int(self.example.max()) + 1

    def mean(self, model: nn.Module, batch: Any) -> torch.Tensor:
        """One loss per example: the mean of its units'."""
        values = self.losses(model, batch)
        count = torch.bincount(self.example, minlength=self.num_examples)
        return values.new_zeros(self.num_examples).index_add(0, self.example, values) / count


def ids_of(num_examples: int, length: int, seed: int = 1) -> torch.Tensor:
    """Token ids from 1 on: 0 is padding where a model knows any."""
    return torch.randint(1, NUM_WORDS, (num_examples, length), generator=torch.Generator().manual_seed(seed))


def units_of(num_examples: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Examples and positions (from 1 on) of a few tokens: two of the last example and of the first, one of others."""
    examples = [num_examples - 1, *range(num_examples), 0]
    positions = [1 + (3 * i + 2) % (length - 1) for i in range(len(examples))]
    return torch.tensor(examples), torch.tensor(positions)


def causal(model: nn.Module, num_examples: int = NUM_EXAMPLES, length: int = LENGTH) -> Subject:
    """Token losses of a causal language model."""
    example, position = units_of(num_examples, length)
    batch = TokenBatch(ids=ids_of(num_examples, length), example=example, position=position)
    return Subject(model=model, batch=batch, losses=token_losses, example=example, num_positions=length)


def _made(build: Callable[[], nn.Module], scale: float = 0.1) -> nn.Module:
    """The model in float64 with noise on every parameter; the caller's random state is kept."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build().double().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * scale)
    return model


_SIZES = {
    "vocab_size": NUM_WORDS,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "max_position_embeddings": 16,
}
_GROUPED = _SIZES | {"num_key_value_heads": 1, "head_dim": 4}
_TWO = {"num_hidden_layers": 2}


def _transformer(name: str, **options: Any) -> nn.Module:
    """`NameForX` of transformers, by the name of its model class."""
    import transformers

    cls = getattr(transformers, name)
    config = cls.config_class(**options)
    config._experts_implementation = "eager"  # the only one in float64
    return _made(lambda: cls(config))


def gpt2() -> nn.Module:
    return _transformer("GPT2LMHeadModel", vocab_size=NUM_WORDS, n_embd=8, n_layer=2, n_head=2, n_positions=16)


def neox() -> nn.Module:
    return _transformer("GPTNeoXForCausalLM", **_SIZES | _TWO, tie_word_embeddings=False)


def neox_tied() -> nn.Module:
    return _transformer("GPTNeoXForCausalLM", **_SIZES, tie_word_embeddings=True)


def llama() -> nn.Module:
    return _transformer("LlamaForCausalLM", **_GROUPED)


def qwen3() -> nn.Module:
    return _transformer("Qwen3ForCausalLM", **_GROUPED)


def gemma() -> nn.Module:
    return _transformer("GemmaForCausalLM", **_GROUPED)


def olmo() -> nn.Module:
    return _transformer("OlmoForCausalLM", **_SIZES)


def opt() -> nn.Module:
    sizes = {k: v for k, v in _SIZES.items() if k != "intermediate_size"}
    return _transformer("OPTForCausalLM", **sizes | _TWO, ffn_dim=12, word_embed_proj_dim=6, do_layer_norm_before=False)


def mixtral() -> nn.Module:
    return _transformer("MixtralForCausalLM", **_GROUPED | _TWO, num_local_experts=4, num_experts_per_tok=2)


def qwen3_moe() -> nn.Module:
    options = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 6, "decoder_sparse_step": 1}
    return _transformer("Qwen3MoeForCausalLM", **_GROUPED, **options)


def gpt_oss() -> nn.Module:
    return _transformer("GptOssForCausalLM", **_GROUPED | _TWO, num_local_experts=4, num_experts_per_tok=2)


def mamba() -> nn.Module:
    sizes = {"vocab_size": NUM_WORDS, "hidden_size": 8, "num_hidden_layers": 2}
    return _transformer("MambaForCausalLM", **sizes, state_size=3, time_step_rank=2)


def mamba2() -> nn.Module:
    sizes = {"vocab_size": NUM_WORDS, "hidden_size": 8, "num_hidden_layers": 2}
    heads = {"num_heads": 4, "head_dim": 4, "n_groups": 2, "expand": 2}
    return _transformer("Mamba2ForCausalLM", **sizes, **heads, state_size=3, chunk_size=4)


def rwkv() -> nn.Module:
    sizes = {"vocab_size": NUM_WORDS, "hidden_size": 8, "num_hidden_layers": 2}
    return _transformer("RwkvForCausalLM", **sizes, attention_hidden_size=8, context_length=16)


def bert(num_examples: int = NUM_EXAMPLES, length: int = LENGTH) -> Subject:
    """Masked words; the decoder is tied to the embedding and has a bias of its own."""
    example, position = units_of(num_examples, length)
    words = ids_of(num_examples, length, seed=2)

    def losses(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
        logits = model(input_ids=ids).logits
        return cross_entropy(logits[example, position], words[example, position], reduction="none")

    return Subject(
        model=_transformer("BertForMaskedLM", **_SIZES),
        batch=ids_of(num_examples, length),
        losses=losses,
        example=example,
        num_positions=length,
    )


def t5(num_examples: int = NUM_EXAMPLES, length: int = LENGTH, source_length: int = LENGTH + 2) -> Subject:
    """Encoder and decoder of different lengths; the relative bias has no example axis."""
    example, position = units_of(num_examples, length)
    words = ids_of(num_examples, length, seed=2)

    def losses(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
        logits = model(input_ids=ids, decoder_input_ids=words, use_cache=False).logits
        return cross_entropy(logits[example, position - 1], words[example, position], reduction="none")

    model = _transformer(
        "T5ForConditionalGeneration",
        vocab_size=NUM_WORDS,
        d_model=8,
        d_kv=4,
        d_ff=12,
        num_layers=1,
        num_decoder_layers=2,
        num_heads=2,
        relative_attention_num_buckets=8,
        decoder_start_token_id=0,
        pad_token_id=0,
    )
    batch = ids_of(num_examples, source_length)
    return Subject(model=model, batch=batch, losses=losses, example=example, num_positions=length)


def _classified(model: nn.Module, inputs: torch.Tensor) -> Subject:
    """Two or one label for each example; the model gives logits, or an object that has them."""
    example, label = units_of(len(inputs), 4)

    def losses(model: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
        made = model(inputs)
        return cross_entropy(getattr(made, "logits", made)[example], label, reduction="none")

    return Subject(model=model, batch=inputs, losses=losses, example=example)


def _noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def vit() -> Subject:
    """A class token, position embeddings, and a convolution that makes patches."""
    sizes = {k: v for k, v in _SIZES.items() if k not in ("vocab_size", "max_position_embeddings")}
    model = _transformer("ViTForImageClassification", **sizes, image_size=6, patch_size=3, num_labels=4)
    return _classified(model, _noise(NUM_EXAMPLES, 3, 6, 6))


def image_net() -> Subject:
    """Stride, padding, 'same', dilation, groups, circular padding; norms over a batch, a group; one map in place."""

    def build() -> nn.Module:
        norm = nn.BatchNorm2d(4)
        norm.running_mean, norm.running_var = torch.randn(4), torch.rand(4) + 0.5
        return nn.Sequential(
            *(nn.Conv2d(2, 4, 3, stride=2, padding=1), norm, nn.ReLU(inplace=True)),
            *(nn.Conv2d(4, 4, 3, padding="same", dilation=2, groups=2), nn.GroupNorm(2, 4), nn.SiLU()),
            *(nn.Conv2d(4, 3, (1, 3), padding=(0, 1), padding_mode="circular", bias=False), nn.InstanceNorm2d(3)),
            *(nn.Conv2d(3, 3, 2, padding="same"), nn.Flatten(), nn.Linear(3 * 4 * 4, 4)),
        )

    return _classified(_made(build), _noise(NUM_EXAMPLES, 2, 8, 8))


def volume_net() -> Subject:
    """One and three dimensions, and transposed convolutions."""

    def build() -> nn.Module:
        return nn.Sequential(
            *(nn.Conv1d(2, 4, 3, stride=2, dilation=2), nn.Tanh(), nn.ConvTranspose1d(4, 3, 2, stride=2), nn.Tanh()),
            *(nn.Unflatten(2, (2, 2, 2)), nn.Conv3d(3, 4, (2, 1, 2), padding=(1, 0, 1)), nn.Tanh()),
            *(nn.ConvTranspose3d(4, 2, 1), nn.Flatten(), nn.Linear(2 * 3 * 2 * 3, 4)),
        )

    return _classified(_made(build), _noise(NUM_EXAMPLES, 2, 11))


class _Plain(nn.Module):
    """What torch itself offers, and a bare parameter in the root module."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))
        self.cell = nn.LSTM(3, 4, batch_first=True)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.norm = nn.LayerNorm(4)
        self.pair, self.last = nn.Bilinear(4, 4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seen = self.cell(x)[0]
        seen = self.norm(seen + self.attention(seen, seen, seen, need_weights=False)[0] * self.scale)
        return self.last(self.pair(seen, seen.flip(1))).mean(1)


def plain_modules() -> Subject:
    return _classified(_made(_Plain), _noise(NUM_EXAMPLES, LENGTH, 3))


def lora() -> Subject:
    """Rows of the adapter alone; the model below it is frozen."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    with torch.random.fork_rng(devices=[]):
        model = _made(lambda: peft.get_peft_model(llama(), config))
    made = causal(model)
    return Subject(
        model=model,
        batch=made.batch,
        losses=made.losses,
        example=made.example,
        num_positions=made.num_positions,
        choice="*lora_*",
    )


_CAUSAL = (gpt2, neox, neox_tied, llama, qwen3, gemma, olmo, opt, mixtral, qwen3_moe, gpt_oss, mamba, mamba2, rwkv)
_OTHERS = (bert, t5, vit, image_net, volume_net, plain_modules, lora)

ARCHITECTURES: dict[str, Callable[[], Subject]] = {
    **{build.__name__: (lambda build=build: causal(build())) for build in _CAUSAL},
    **{build.__name__: build for build in _OTHERS},
}
NO_POSITIONS = ("vit", "image_net", "volume_net", "plain_modules")
"""Those whose units have no positions to keep apart."""
