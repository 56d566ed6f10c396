import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from quantascope.attribution.change.lesions import lesioned, num_layers
from quantascope.errors import ConfigurationError
from tests.tiny import tiny_neox

IDS = torch.tensor([[5, 1, 7, 3, 2, 8]])


def llama():
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=32, num_key_value_heads=2, **size)).eval()


def gpt2():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=32, n_embd=16, n_layer=2, n_head=4, n_positions=16)).eval()


def neox():
    return tiny_neox(width=16, heads=4, layers=2, vocab_size=32)


OUTPUTS = {
    neox: lambda m: m.gpt_neox.layers[1].attention.dense.weight,
    llama: lambda m: m.model.layers[1].self_attn.o_proj.weight,
    gpt2: lambda m: m.transformer.h[1].attn.c_proj.weight.T,
}


@torch.no_grad()
def logits(model):
    return model(input_ids=IDS, use_cache=False).logits


@pytest.mark.parametrize("make", OUTPUTS)
def test_a_head_is_left_out_as_if_its_columns_of_the_output_were_zero(make):
    model = make()
    whole = logits(model)
    with lesioned(model, "layers.1.heads.2"):
        damaged = logits(model)
    assert torch.equal(logits(model), whole)
    weight = OUTPUTS[make](model)
    with torch.no_grad():
        weight[:, 8:12] = 0
    torch.testing.assert_close(damaged, logits(model))
    assert (damaged - whole).abs().max() > 1e-4


@pytest.mark.parametrize("make", OUTPUTS)
def test_a_layer_is_left_out_as_if_it_were_not_in_the_list(make):
    model = make()
    assert num_layers(model) == 2
    whole = logits(model)
    with lesioned(model, "layers.0"):
        damaged = logits(model)
    layers = next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList))
    del layers[0]
    model.config.num_hidden_layers = 1
    torch.testing.assert_close(damaged, logits(model))
    assert (damaged - whole).abs().max() > 1e-4


@pytest.mark.parametrize("make", OUTPUTS)
def test_without_attention_and_feed_forward_part_a_layer_passes_the_stream_by(make):
    model = make()
    with lesioned(model, "layers.1"):
        expected = logits(model)
    with lesioned(model, "layers.1.attention"), lesioned(model, "layers.1.mlp"):
        found = logits(model)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("layer.1", "accepted are layers.N, layers.N.heads.M"),
        ("layers.2", "has 2 layers, counted from 0"),
        ("layers.1.heads.4", "has 4 heads, counted from 0"),
    ],
)
def test_parts_that_a_model_does_not_have_are_refused(part, message):
    with pytest.raises(ConfigurationError, match=message), lesioned(neox(), part):
        pass


def test_a_model_without_layers_or_heads_is_refused_by_name():
    with pytest.raises(ConfigurationError, match="Sequential has no list of layers"):
        num_layers(torch.nn.Sequential(torch.nn.Linear(2, 2)))
    model = neox()
    model.config.num_attention_heads = 0
    with pytest.raises(ConfigurationError, match="leave out the whole attention"), lesioned(model, "layers.1.heads.0"):
        pass
