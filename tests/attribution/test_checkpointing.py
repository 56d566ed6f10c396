"""Rows under activation checkpointing are the same rows, and activations are really not kept."""

import pytest
import torch
import torch.utils.checkpoint
from torch import nn
from torch.utils.checkpoint import checkpoint

from quantascope.attribution.blocks import find_blocks
from quantascope.attribution.engine import GradientEngine
from quantascope.attribution.losses import TokenBatch, token_losses
from quantascope.attribution.projection import Identity, TensorSketch
from quantascope.attribution.taps.checkpoint import layers_of
from quantascope.errors import ConfigurationError
from tests.architectures import ARCHITECTURES, NO_POSITIONS
from tests.attribution.test_architectures import InDouble, in_double, looped, rows_of  # noqa: F401 - a fixture
from tests.plain_loop import assert_equal_rows, plain_rows
from tests.tiny import tiny_neox

pytestmark = [
    pytest.mark.filterwarnings("ignore:There is a performance drop"),
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]
QUICK = ("gpt2", "t5", "mixtral", "mamba", "lora")
WITHOUT_LAYERS = ("image_net", "volume_net", "plain_modules")


def always_in_double(model):
    """Layers compute in float64 in the recomputation too, which no mode around the whole call reaches."""
    for name in layers_of(model):
        layer = model.get_submodule(name)

        def forward(*args, original=layer.forward, **kwargs):
            with InDouble():
                return original(*args, **kwargs)

        layer.forward = forward


def engine_of(subject, projection=None, **options):
    blocks = find_blocks(subject.model, subject.choice).blocks
    return GradientEngine(subject.model, projection or TensorSketch(dim_per_block=16), blocks, **options)


@pytest.mark.parametrize(
    "architecture",
    [pytest.param(a, marks=() if a in QUICK else pytest.mark.slow) for a in ARCHITECTURES if a not in WITHOUT_LAYERS],
)
def test_rows_are_autograds_own_and_the_bytes_of_those_without(architecture):
    subject = ARCHITECTURES[architecture]()
    always_in_double(subject.model)
    plain, engine = engine_of(subject), engine_of(subject, checkpoint_activations=True)
    assert engine.passes.layers
    for unit in ("token loss",) if architecture in NO_POSITIONS else ("token loss", "contributions"):
        rows, losses = rows_of(engine, subject, unit)
        assert_equal_rows(rows, plain_rows(engine, subject.batch, losses))
        assert torch.equal(rows, rows_of(plain, subject, unit)[0])
    assert looped(engine) == looped(plain)


def test_the_layers_are_the_items_of_the_outermost_lists():
    assert layers_of(ARCHITECTURES["gpt2"]().model) == ("transformer.h.0", "transformer.h.1")
    assert layers_of(ARCHITECTURES["t5"]().model) == ("encoder.block.0", "decoder.block.0", "decoder.block.1")
    assert layers_of(ARCHITECTURES["mamba"]().model) == ("backbone.layers.0", "backbone.layers.1")
    assert layers_of(nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2)))) == ("1",)


@pytest.mark.parametrize("architecture", WITHOUT_LAYERS)
def test_a_model_without_layers_is_refused(architecture):
    with pytest.raises(ConfigurationError, match="has no layers"):
        engine_of(ARCHITECTURES[architecture](), checkpoint_activations=True)


def kept_bytes(model, *, layers):
    """What the graph of a forward pass holds outside recomputed layers, their inputs included."""
    batch = TokenBatch(
        ids=torch.arange(64).reshape(2, 32) % 50, example=torch.tensor([0, 1]), position=torch.tensor([31, 31])
    )
    engine = GradientEngine(
        model, TensorSketch(dim_per_block=8), find_blocks(model).blocks, prove=False, checkpoint_activations=layers
    )
    parameters = {p.data_ptr() for p in model.parameters()}
    kept = {}

    def pack(tensor):
        if tensor.data_ptr() not in parameters:
            kept[tensor.data_ptr()] = tensor.untyped_storage()
        return tensor

    with engine.passes.forward(2), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        values = token_losses(model, batch)
        assert values.requires_grad
        return sum(storage.nbytes() for storage in kept.values())


def test_activations_inside_layers_are_not_kept():
    model = tiny_neox(vocab_size=50, width=32, layers=8)
    assert kept_bytes(model, layers=True) < kept_bytes(model, layers=False) / 4


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_models_own_switch_changes_nothing(reentrant):
    """transformers heeds it in training mode alone; rows are taken in evaluation mode."""
    subject = ARCHITECTURES["gpt2"]()
    wanted, _ = rows_of(engine_of(subject), subject, "token loss")
    subject.model.activation_checkpointing_enable({"use_reentrant": reentrant})
    for options in ({}, {"checkpoint_activations": True}):
        assert torch.equal(rows_of(engine_of(subject, **options), subject, "token loss")[0], wanted)


class Own(nn.Module):
    """Checkpoints a layer by itself, whatever the mode."""

    def __init__(self, *, reentrant):
        super().__init__()
        self.first, self.last, self.reentrant = nn.Linear(3, 5), nn.Linear(5, 2), reentrant

    def forward(self, x):
        return self.last(checkpoint(lambda x: torch.tanh(self.first(x)), x, use_reentrant=self.reentrant))


def squares(model, x):
    return model(x).square().flatten(1).sum(1)


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_model_that_checkpoints_by_itself_has_exact_rows(reentrant):
    """With re-entry a layer runs without a graph, and taps would hear nothing of it."""
    x = torch.randn(4, 6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    model, other = Own(reentrant=reentrant).double(), Own(reentrant=False).double()
    other.load_state_dict(model.state_dict())
    engine, oracle = (GradientEngine(m, Identity(), find_blocks(m, "all").blocks) for m in (model, other))
    assert_equal_rows(engine.rows(x, squares, num_examples=4).rows, plain_rows(oracle, x, squares))
    assert [engine.route.way(i) for i in range(2)] == ["tap", "tap"]
    kept = torch.utils.checkpoint.CheckpointFunction
    assert issubclass(kept, torch.autograd.Function)


def test_what_a_loss_runs_without_a_graph_is_no_part_of_its_rows():
    """As a frozen reference that preferences are taken against."""
    x = torch.randn(4, 6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Bilinear(4, 4, 2)).double()
    model.forward = lambda x: model[2](*(model[1](model[0](x)),) * 2)

    def against_reference(model, x):
        with torch.no_grad():
            reference = model(2 * x)
        return (model(x) - reference).square().sum((1, 2))

    engine = GradientEngine(model, Identity(), find_blocks(model, "all").blocks)
    rows = engine.rows(x, against_reference, num_examples=4).rows
    assert_equal_rows(rows, plain_rows(engine, x, against_reference))
    assert [engine.route.way(i) for i in range(3)] == ["tap", "tap", "copies"]
