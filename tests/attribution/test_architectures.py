"""Rows of many architectures equal autograd's own, whatever the unit and the projection; and by which way they come.

The quick suite has every pair of (architecture, unit), (architecture, projection) and (unit, projection); the whole
matrix is the same test, marked slow.
"""

import copy
import re
from contextlib import nullcontext
from dataclasses import replace
from functools import cache
from itertools import cycle, islice, product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.overrides import TorchFunctionMode

from quantascope.attribution.blocks import find_blocks
from quantascope.attribution.engine import GradientEngine
from quantascope.attribution.losses import TokenBatch, mean_losses, token_losses
from quantascope.attribution.projection import Dense, Identity, Pair, SparseJL, TensorSketch, TwoSided, Wide
from quantascope.errors import CoverageError
from tests.architectures import ARCHITECTURES, NO_POSITIONS, causal, ids_of, t5
from tests.plain_loop import assert_equal_rows, plain_rows

pytestmark = [
    pytest.mark.filterwarnings("ignore:There is a performance drop"),  # torch.vmap of nn.Bilinear
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel"),  # on purpose: it pads unevenly
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),  # peft's own call
]

UNITS = ("token loss", "mean", "contributions")
PROJECTIONS = {
    "tensor sketch": lambda num_blocks: TensorSketch(dim_per_block=8),
    "tensor sketch of uneven dims": lambda num_blocks: TensorSketch(dim_per_block=uneven(num_blocks)),
    "two-sided": lambda num_blocks: TwoSided(dim_per_block=9),
    "identity": lambda num_blocks: Identity(),
    "sparse": lambda num_blocks: SparseJL(dim_per_block=8, nonzeros=2),
    "dense": lambda num_blocks: Dense(dim_per_block=8),
    "wide": lambda num_blocks: Wide(dim_per_block=uneven(num_blocks)),
    "pair": lambda num_blocks: Pair(
        members=(TensorSketch(dim_per_block=uneven(num_blocks)), SparseJL(dim_per_block=uneven(num_blocks), seed=1))
    ),
}


def uneven(num_blocks):
    """A dim for each block, some odd, some even, and some larger than small blocks."""
    return tuple(islice(cycle((5, 16, 8, 33)), num_blocks))


def units_of(architecture):
    return UNITS[:2] if architecture in NO_POSITIONS else UNITS


QUICK = [
    (architecture, units_of(architecture)[(a + p) % len(units_of(architecture))], projection)
    for (a, architecture), (p, projection) in product(enumerate(ARCHITECTURES), enumerate(PROJECTIONS))
]
"""One case for each architecture and projection, the least that can be, with the units taken in turn."""
EVERY = [(a, u, p) for a in ARCHITECTURES for u in units_of(a) for p in PROJECTIONS]


class InDouble(TorchFunctionMode):
    """Computes in float64 where a model asks for float32."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        del types
        if func is torch.Tensor.float:
            return args[0].double()
        if any(a is torch.float32 for a in args):
            args = tuple(torch.float64 if a is torch.float32 else a for a in args)
        if kwargs and kwargs.get("dtype") is torch.float32:
            kwargs = kwargs | {"dtype": torch.float64}
        return func(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def in_double():
    """Gemma's norms, routers and state spaces compute in float32 inside, even in a float64 model.

    Rows would then agree to 1e-7 at best, and a small term that is missing could hide behind that rounding.
    """
    with InDouble():
        yield


@cache
def subject_of(architecture):
    return ARCHITECTURES[architecture]()


def engine_of(subject, projection):
    blocks = find_blocks(subject.model, subject.choice).blocks
    return GradientEngine(subject.model, PROJECTIONS[projection](len(blocks)), blocks)


@cache
def proved_engine(architecture):
    """Knows how each block is found; its rows are the gradients themselves."""
    subject = subject_of(architecture)
    engine = engine_of(subject, "identity")
    engine.prove(subject.batch, subject.losses, subject.example)
    return engine


@cache
def gradients_of(architecture, losses):
    """Autograd's own, [unit, number], block after block."""
    return plain_rows(proved_engine(architecture), subject_of(architecture).batch, losses)


def rows_of(engine, subject, unit):
    """The rows of one unit type, and the losses that they belong to."""
    if unit == "token loss":
        found = engine.rows(subject.batch, subject.losses, subject.example, num_examples=subject.num_examples)
        return found.rows, subject.losses
    if unit == "mean":
        return engine.rows(subject.batch, subject.mean, num_examples=subject.num_examples).rows, subject.mean
    sizes = {"num_examples": subject.num_examples, "num_positions": subject.num_positions}
    made = engine.contributions(subject.batch, subject.mean, **sizes)
    return made.rows.sum(1) + made.unplaced, subject.mean


def assert_rows(engine, subject, unit):
    rows, losses = rows_of(engine, subject, unit)
    assert_equal_rows(rows, plain_rows(engine, subject.batch, losses))


def looped(engine):
    return [engine.blocks[number].name for number in engine.route.looped]


def test_the_quick_cases_hold_every_pair():
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert {(c[first], c[second]) for c in QUICK} == {(c[first], c[second]) for c in EVERY}


@pytest.mark.parametrize(
    ("architecture", "unit", "projection"),
    [pytest.param(*c, id="-".join(c), marks=() if c in set(QUICK) else pytest.mark.slow) for c in EVERY],
)
def test_rows_are_autograds_own(architecture, unit, projection):
    subject, proved = subject_of(architecture), proved_engine(architecture)
    assert (subject.num_positions is None) == (architecture in NO_POSITIONS)
    engine = engine_of(subject, projection)
    # what was proved once, with no projection, is not proved again for each
    engine.passes.route, engine.passes.readings = proved.route, proved.passes.readings
    engine.proof.num_examples, engine.proof.open = proved.proof.num_examples, proved.proof.open
    rows, losses = rows_of(engine, subject, unit)
    full = gradients_of(architecture, losses)
    wanted = [
        p.project(full[:, c].reshape(-1, b.rows, b.columns))
        for p, b, c in zip(engine.passes.projections, engine.blocks, proved.columns, strict=True)
    ]
    assert_equal_rows(rows, torch.cat(wanted, dim=1))


COPIES: dict[str, list[str]] = {name: [] for name in ARCHITECTURES} | {
    "mamba": [  # dt_proj: the mixer uses its weight without calling it; conv1d has groups
        *("backbone.layers.N.mixer", "backbone.layers.N.mixer.conv1d", "backbone.layers.N.mixer.dt_proj"),
    ],
    "mamba2": ["backbone.layers.N.mixer", "backbone.layers.N.mixer.conv1d"],
    "rwkv": ["rwkv.blocks.N.attention", "rwkv.blocks.N.feed_forward"],
    "bert": ["cls.predictions.bias"],
    "t5": [
        "decoder.block.N.layer.N.SelfAttention.relative_attention_bias",
        "encoder.block.N.layer.N.SelfAttention.relative_attention_bias",
    ],
    "vit": ["vit.embeddings"],
    "image_net": ["1", "3", "4"],
    "volume_net": ["2", "7"],
    "plain_modules": ["attention", "attention.out_proj", "pair"],
    "mixtral": ["model.layers.N.mlp.gate"],
    "qwen3_moe": ["model.layers.N.mlp.gate"],
    "gpt_oss": ["model.layers.N.mlp.router", "model.layers.N.self_attn.sinks"],
}
"""The blocks that copies cover, with N for numbers of layers; taps cover all others."""
LOOPED = {"plain_modules": ["cell", "scale"]}
"""The blocks that only one differentiation per unit covers."""


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_each_block_is_found_by_the_way_that_is_known(architecture):
    """What a new version of transformers would send to the slow loop is noticed here."""
    engine = proved_engine(architecture)
    ways = {"copies": set(), "loop": set(), "tap": set()}
    for number, block in enumerate(engine.blocks):
        ways[engine.route.way(number)].add(re.sub(r"\.\d+(?=\.)", ".N", block.name))
    assert sorted(ways["copies"]) == COPIES[architecture]
    assert sorted(ways["loop"]) == LOOPED.get(architecture, [])
    assert ways["tap"]


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "mixtral", "qwen3_moe", "gpt_oss", "mamba", "lora"])
def test_contributions_are_each_positions_own_share(architecture):
    """Against modules that are called again at one position, with what came in and the gradient that came back."""
    subject = subject_of(architecture)
    engine = engine_of(subject, "tensor sketch")
    sizes = {"num_examples": subject.num_examples, "num_positions": subject.num_positions}
    made = engine.contributions(subject.batch, subject.mean, **sizes)
    checked = 0
    for number, wanted in shares(engine, subject).items():
        found = made.rows[:, :, engine.columns[number]]
        assert (found - wanted).norm() <= 1e-10 * wanted.norm(), engine.blocks[number].name
        assert made.unplaced[:, engine.columns[number]].norm() == 0
        checked += int(wanted.norm() > 0)
    assert checked >= 4


def shares(engine, subject):
    """For each block whose modules treat every position by itself: its shares, [example, position, dim]."""
    local = {
        number: block
        for number, block in enumerate(engine.blocks)
        if block.kind in ("linear", "head", "embedding", "experts", "norm")
        and engine.model.get_submodule(block.modules[0])
        and not block.name.endswith("dt_proj")
    }
    calls = {}

    def keep(name):
        def hook(_module, args, output):
            output.retain_grad()
            calls.setdefault(name, []).append((args, output))

        return hook

    names = {m for b in local.values() for m in b.modules}
    hooks = [engine.model.get_submodule(m).register_forward_hook(keep(m)) for m in sorted(names)]
    engine.model.requires_grad_(True)
    subject.mean(engine.model, subject.batch).sum().backward()
    for hook in hooks:
        hook.remove()
    found = {n: torch.stack([share(engine, subject, n, calls, e) for e in range(subject.num_examples)]) for n in local}
    engine.model.zero_grad()
    engine.model.requires_grad_(False)
    return found


def share(engine, subject, number, calls, example):
    """[position, dim] of one block and one example."""
    block, length = engine.blocks[number], subject.num_positions
    parameters = [engine.model.get_parameter(p) for p in block.parameters]
    rows = []
    for position in range(length):

        def one(tensor, position=position):
            if tensor.shape[:2] == (subject.num_examples, length):
                return tensor[example : example + 1, position : position + 1].detach()
            assert len(tensor) == subject.num_examples * length
            return tensor[example * length + position :][:1].detach()

        total = [torch.zeros_like(p) for p in parameters]
        for module in block.modules:
            for args, output in calls[module]:
                again = engine.model.get_submodule(module)(*(one(a) for a in args))
                parts = torch.autograd.grad(again, parameters, one(output.grad), allow_unused=True)
                total = [t if p is None else t + p for t, p in zip(total, parts, strict=True)]
        full = {n: t[None] for n, t in zip(block.parameters, total, strict=True)}
        rows.append(engine.passes.projections[number].project(block.matrix(full))[0])
    return torch.stack(rows)


@pytest.mark.parametrize("architecture", ["llama", "qwen3_moe", "mamba"])
@settings(max_examples=10, deadline=None, derandomize=True)
@given(data=st.data())
def test_shapes_padding_masks_and_splits_do_not_change_rows(architecture, data):
    engine = proved_engine(architecture)
    num_windows, length = data.draw(st.integers(1, 4)), data.draw(st.integers(2, 8))
    ids = ids_of(num_windows, length, seed=data.draw(st.integers(0, 99)))
    mask = st.sets(st.integers(1, length - 1), min_size=1)
    masks = [sorted(data.draw(mask)) for _ in range(num_windows)]

    def rows(windows, ids, losses):
        example = torch.tensor([i for i, w in enumerate(windows) for _ in masks[w]])
        position = torch.tensor([p for w in windows for p in masks[w]])
        batch = TokenBatch(ids=ids, example=example, position=position)
        return engine.rows(batch, losses, example if losses is token_losses else None, num_examples=len(windows)).rows

    everything = list(range(num_windows))
    together = rows(everything, ids, mean_losses)
    tokens = torch.split(rows(everything, ids, token_losses), [len(m) for m in masks])
    assert_equal_rows(together, torch.stack([t.mean(0) for t in tokens]))
    cut = data.draw(st.integers(0, num_windows))
    for windows in filter(None, (everything[:cut], everything[cut:])):
        needed = max(masks[w][-1] for w in windows) + 1
        padding = torch.full((len(windows), data.draw(st.integers(0, 3))), 7)
        apart = rows(windows, torch.cat([ids[windows, :needed], padding], dim=1), mean_losses)
        assert_equal_rows(apart, together[windows])


def sized(architecture, num_examples, length):
    """The same model, with a batch of another size."""
    model = subject_of(architecture).model
    made = t5(num_examples, length, length) if architecture == "t5" else causal(model, num_examples, length)
    return replace(made, model=model)


@pytest.mark.parametrize("architecture", ["gpt2", "t5", "opt", "mixtral"])
@pytest.mark.parametrize(
    "sizes",
    [
        [(3, 5), (5, 5)],
        [(5, 5), (1, 5)],
        pytest.param([(1, 5), (5, 5)], marks=pytest.mark.slow),
        pytest.param([(2, 4), (4, 2)], marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_axes_are_not_confused_where_there_are_as_many_examples_as_positions(architecture, sizes):
    subject = sized(architecture, *sizes[0])
    engine = engine_of(subject, "tensor sketch")
    for size in sizes:
        subject = sized(architecture, *size)
        for unit in ("token loss", "contributions"):
            assert_rows(engine, subject, unit)
        assert looped(engine) == []


@pytest.mark.parametrize(
    ("architecture", "layers"),
    [("gpt2", "transformer.h"), ("t5", "decoder.block"), ("opt", "model.decoder.layers"), ("mixtral", "model.layers")],
)
def test_a_layer_that_is_called_twice_has_the_sum_of_its_uses(architecture, layers):
    subject = copy.deepcopy(subject_of(architecture))
    subject.model.get_submodule(layers)[1] = subject.model.get_submodule(layers)[0]
    engine = engine_of(subject, "tensor sketch of uneven dims")
    for unit in ("token loss", "contributions"):
        assert_rows(engine, subject, unit)
    assert looped(engine) == []


@pytest.mark.parametrize("architecture", ["gpt2", "t5", "opt", "bert"])
def test_dropout_is_off(architecture):
    subject = copy.deepcopy(subject_of(architecture))
    subject.model.train()
    with torch.no_grad():
        assert not torch.equal(*(subject.losses(subject.model, subject.batch) for _ in range(2)))
    # OPT calls the function, which no module tells of; eval mode silences it too
    expected = nullcontext() if architecture == "opt" else pytest.warns(UserWarning, match="dropout layers on")
    with expected:
        engine = engine_of(subject, "tensor sketch")
    first, second = (rows_of(engine, subject, "token loss")[0] for _ in range(2))
    assert torch.equal(first, second)
    assert_rows(engine, subject, "token loss")


class PastTiny(nn.Module):
    """A weight that is used past its module, and whose gradient is a millionth of the others'."""

    def __init__(self):
        super().__init__()
        self.hidden, self.seen = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x):
        return self.seen(x) + 1e-9 * (x @ self.hidden.weight.T)


def test_a_small_block_that_no_tap_reaches_is_not_silently_zero():
    model = PastTiny().double()
    x = torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    engine = GradientEngine(model, Identity(), find_blocks(model, "all").blocks)

    def squares(model, x):
        return model(x).square().sum((1, 2))

    rows = engine.rows(x, squares, num_examples=4).rows
    assert engine.route.way(0) == "copies"
    hidden = engine.columns[0]
    assert_equal_rows(rows[:, hidden], plain_rows(engine, x, squares)[:, hidden])


def test_losses_that_mix_examples_are_refused_again_and_apart_ones_accepted_afterwards():
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    engine = GradientEngine(model, Identity(), find_blocks(model, "all").blocks)
    for _ in range(2):
        with pytest.raises(CoverageError, match="depends on another one"):
            engine.rows(x, lambda m, x: (m(x) - m(x).mean()).flatten(), num_examples=5)

    def apart(model, x):
        return model(x).flatten()

    assert_equal_rows(engine.rows(x, apart, num_examples=5).rows, plain_rows(engine, x, apart))
    assert [engine.route.way(i) for i in range(2)] == ["tap", "tap"]
