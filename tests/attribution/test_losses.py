"""Each loss is its plain per-example formula, and its rows are the plain loop's, in float64."""

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import log_softmax

from quantascope.attribution.blocks import find_blocks
from quantascope.attribution.engine import GradientEngine
from quantascope.attribution.losses import (
    ClassificationBatch,
    CompletionPairs,
    MaskedBatch,
    PreferenceBatch,
    RegressionBatch,
    SpanBatch,
    TokenBatch,
    TokenContrasts,
    classification_losses,
    completion_contrast_losses,
    custom_losses,
    diffuse_tokens,
    mask_tokens,
    masked_losses,
    mean_losses,
    preference_losses,
    regression_losses,
    span_losses,
    span_sums,
    sum_losses,
    token_contrast_losses,
    token_losses,
)
from quantascope.attribution.projection import TensorSketch
from quantascope.errors import ConfigurationError
from tests.plain_loop import assert_equal_rows, plain_rows
from tests.tiny import tiny_neox

WORDS = 50
MASK = 49
TEXTS = [[3, 9, 1, 7, 7, 4], [8, 2, 6], [5, 30, 21, 9, 14, 2, 11, 40]]
COUNTED = [(3, 4), (2,), (1, 2, 6, 7)]
"""Positions of each text that count for its loss."""
OTHERS = [[3, 9, 1, 7, 12], [8, 2, 17], [5, 30, 21, 9, 14, 2, 13, 1, 5]]
"""The same prompts (up to position 4, 2, 6) with other completions."""
PROMPTS = (4, 2, 6)


@pytest.fixture(scope="module")
def causal():
    return tiny_neox(vocab_size=WORDS, width=8, dtype="float64")


@pytest.fixture(scope="module")
def bidirectional():
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(
        vocab_size=WORDS,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=32,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return BertForMaskedLM(config).double().eval()


def padded(texts, *, extra=0, value=0):
    length = max(map(len, texts)) + extra
    return torch.tensor([t + [value] * (length - len(t)) for t in texts])


def batch_of(texts, counted, **options):
    example = torch.tensor([i for i, places in enumerate(counted) for _ in places], dtype=torch.long)
    position = torch.tensor([p for places in counted for p in places], dtype=torch.long)
    return TokenBatch(ids=padded(texts, **options), example=example, position=position)


def sides(texts=TEXTS, others=OTHERS, prompts=PROMPTS, **options):
    return CompletionPairs(
        chosen=batch_of(texts, [range(p, len(t)) for t, p in zip(texts, prompts, strict=True)], **options),
        rejected=batch_of(others, [range(p, len(t)) for t, p in zip(others, prompts, strict=True)]),
    )


def plain(model, ids, position):
    """−log p of one token of one unpadded text."""
    return -log_softmax(model(input_ids=torch.tensor([ids[:position]])).logits[0, -1], dim=0)[ids[position]]


def plain_completion(model, ids, prompt):
    return sum(plain(model, ids, p) for p in range(prompt, len(ids)))


def engine_of(model):
    return GradientEngine(model, TensorSketch(dim_per_block=16), find_blocks(model, "all").blocks)


def require_rows(model, batch, losses, *, example=None, num_examples):
    """The engine's rows are those of one differentiation per unit."""
    engine = engine_of(model)
    found = engine.rows(batch, losses, example, num_examples=num_examples)
    assert found.rows.norm(dim=1).min() > 0
    assert_equal_rows(found.rows, plain_rows(engine, batch, losses))


def require_same_alone(model, losses, whole, *alone):
    """An example's loss and row are the same by itself as in a batch with longer padding."""
    engine = engine_of(model)
    together = engine.rows(whole, losses, num_examples=len(alone))
    for number, batch in enumerate(alone):
        single = engine.rows(batch, losses, num_examples=1)
        torch.testing.assert_close(single.losses[0], together.losses[number], rtol=1e-12, atol=1e-14)
        assert_equal_rows(single.rows, together.rows[number : number + 1])


def require_values(found, wanted):
    torch.testing.assert_close(
        found, torch.stack([torch.as_tensor(w, dtype=torch.float64) for w in wanted]), rtol=1e-12, atol=0
    )


@pytest.mark.parametrize("extra", [0, 5])
def test_next_token_losses_by_token_mean_and_sum(causal, extra):
    batch = batch_of(TEXTS, COUNTED, extra=extra, value=13)
    wanted = [[plain(causal, t, p) for p in places] for t, places in zip(TEXTS, COUNTED, strict=True)]
    require_values(token_losses(causal, batch), [w for part in wanted for w in part])
    require_values(mean_losses(causal, batch), [sum(w) / len(w) for w in wanted])
    require_values(sum_losses(causal, batch), [sum(w) for w in wanted])


def test_rows_of_next_token_losses(causal):
    batch = batch_of(TEXTS, COUNTED)
    require_rows(causal, batch, token_losses, example=batch.example, num_examples=3)
    require_rows(causal, batch, mean_losses, num_examples=3)
    require_rows(causal, batch, sum_losses, num_examples=3)
    alone = [batch_of([t], [places]) for t, places in zip(TEXTS, COUNTED, strict=True)]
    require_same_alone(causal, mean_losses, batch_of(TEXTS, COUNTED, extra=3, value=13), *alone)


def test_an_example_without_counted_tokens_has_no_loss(causal):
    batch = batch_of(TEXTS, [(), (2,), ()])
    assert mean_losses(causal, batch).detach().nonzero().flatten().tolist() == [1]
    assert sum_losses(causal, batch).detach().nonzero().flatten().tolist() == [1]


def test_several_spans_of_an_example_are_several_units(causal):
    tokens = batch_of(TEXTS, [(1, 2, 4), (2,), (1, 2, 5, 6, 7)])
    unit = torch.tensor([3, 3, 0, 1, 2, 2, 4, 4, 4])
    batch = SpanBatch(tokens=tokens, unit=unit, example=torch.tensor([0, 1, 2, 0, 2]))
    places = [(0, (4,)), (1, (2,)), (2, (1, 2)), (0, (1, 2)), (2, (5, 6, 7))]
    wanted = [[plain(causal, TEXTS[e], p) for p in positions] for e, positions in places]
    require_values(span_sums(causal, batch), [sum(w) for w in wanted])
    require_values(span_losses(causal, batch), [sum(w) / len(w) for w in wanted])
    for losses in (span_losses, span_sums):
        require_rows(causal, batch, losses, example=batch.example, num_examples=3)


def test_one_token_over_another_is_the_difference_of_logits(causal):
    batch = TokenContrasts(
        ids=padded(TEXTS, value=13),
        example=torch.tensor([0, 2, 2]),
        position=torch.tensor([6, 8, 2]),
        chosen=torch.tensor([4, 1, 2]),
        rejected=torch.tensor([7, 0, 9]),
    )
    wanted = [
        plain(causal, [*TEXTS[e][:p], a], p) - plain(causal, [*TEXTS[e][:p], b], p)
        for e, p, a, b in ((0, 6, 4, 7), (2, 8, 1, 0), (2, 2, 2, 9))
    ]
    require_values(token_contrast_losses(causal, batch), wanted)
    require_rows(causal, batch, token_contrast_losses, example=batch.example, num_examples=3)


def test_one_completion_over_another_is_one_unit(causal):
    wanted = [
        plain_completion(causal, a, p) - plain_completion(causal, b, p)
        for a, b, p in zip(TEXTS, OTHERS, PROMPTS, strict=True)
    ]
    require_values(completion_contrast_losses(causal, sides(extra=4)), wanted)
    require_rows(causal, sides(), completion_contrast_losses, num_examples=3)
    alone = [sides([a], [b], [p]) for a, b, p in zip(TEXTS, OTHERS, PROMPTS, strict=True)]
    require_same_alone(causal, completion_contrast_losses, sides(extra=4, value=13), *alone)


def test_a_contrast_of_single_tokens_is_the_same_either_way(causal):
    pairs = sides([[3, 9, 4]], [[3, 9, 7]], [2])
    single = TokenContrasts(
        ids=torch.tensor([[3, 9]]),
        example=torch.tensor([0]),
        position=torch.tensor([2]),
        chosen=torch.tensor([4]),
        rejected=torch.tensor([7]),
    )
    engine = engine_of(causal)
    assert_equal_rows(
        engine.rows(pairs, completion_contrast_losses).rows, engine.rows(single, token_contrast_losses).rows
    )
    with pytest.raises(ConfigurationError, match="give pairs"):
        CompletionPairs(chosen=pairs.chosen, rejected=sides().rejected)


def test_contributions_to_a_contrast_add_up(causal):
    pairs = sides(extra=1)
    made = engine_of(causal).contributions(pairs, completion_contrast_losses, num_examples=3, num_positions=9)
    whole = engine_of(causal).rows(pairs, completion_contrast_losses, num_examples=3)
    assert_equal_rows(made.rows.sum(1) + made.unplaced, whole.rows)


def preferences(pairs, beta=0.3):
    return PreferenceBatch(
        pairs=pairs,
        reference_chosen=torch.tensor([-9.0, -4.5, -8.0])[: len(pairs.chosen.ids)],
        reference_rejected=torch.tensor([-4.0, -4.0, -12.0])[: len(pairs.chosen.ids)],
        beta=beta,
    )


def test_preferences_are_equation_7_of_rafailov(causal):
    batch = preferences(sides(extra=2))
    wanted = []
    for a, b, p, ref_a, ref_b in zip(TEXTS, OTHERS, PROMPTS, (-9, -4.5, -8), (-4, -4, -12), strict=True):
        margin = -plain_completion(causal, a, p).item() - ref_a - (-plain_completion(causal, b, p).item() - ref_b)
        wanted.append(-math.log(1 / (1 + math.exp(-0.3 * margin))))
    require_values(preference_losses(causal, batch), wanted)
    require_rows(causal, batch, preference_losses, num_examples=3)
    require_same_alone(causal, preference_losses, batch, preferences(sides(TEXTS[:1], OTHERS[:1], PROMPTS[:1])))
    with pytest.raises(ConfigurationError, match="beta is 0"):
        preferences(sides(), beta=0.0)


def hidden(maker, texts, keys, *, extra=0, **options):
    """A masked batch in which a text's first token may not be hidden."""
    ids = padded(texts, extra=extra)
    lengths = torch.tensor([len(t) for t in texts])
    attention = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
    counts = attention.bool() & (torch.arange(ids.shape[1]) > 0)
    return maker(ids, counts, keys, mask_id=MASK, attention=attention, **options)


LONG = [[(7 * i + j) % 48 for i in range(20)] for j in range(3)]
KEYS = ["a", "b", "c"]
MAKERS = [
    lambda texts, keys, **o: hidden(mask_tokens, texts, keys, vocab_size=WORDS, share=0.4, **o),
    lambda texts, keys, **o: hidden(diffuse_tokens, texts, keys, **o),
    lambda texts, keys, **o: hidden(diffuse_tokens, texts, keys, reduction="sum", seed=3, **o),
]


@pytest.mark.parametrize("make", MAKERS, ids=["bert", "diffusion", "diffusion sum"])
def test_masked_losses_are_weighted_sums_and_their_rows_the_loops(bidirectional, make):
    texts = [LONG[0], LONG[1][:9], LONG[2][:15]]
    batch = make(texts, KEYS, extra=2)
    wanted = [0.0, 0.0, 0.0]
    for e, p, target, weight in zip(batch.example, batch.position, batch.target, batch.weight, strict=True):
        seen = batch.ids[e, : len(texts[e])]
        logits = bidirectional(input_ids=seen[None]).logits[0, p]
        assert target == texts[e][p]
        wanted[e] = wanted[e] - weight * log_softmax(logits, dim=0)[target]
    require_values(masked_losses(bidirectional, batch), wanted)
    require_rows(bidirectional, batch, masked_losses, num_examples=3)
    require_same_alone(bidirectional, masked_losses, batch, *(make([t], [k]) for t, k in zip(texts, KEYS, strict=True)))


@pytest.mark.parametrize("make", MAKERS, ids=["bert", "diffusion", "diffusion sum"])
def test_what_is_hidden_depends_on_the_examples_id_and_the_seed_alone(make):
    batch = make(LONG, KEYS, extra=7)
    turned = make(LONG[::-1], KEYS[::-1])
    for number in range(3):
        one, other = batch.example == number, turned.example == 2 - number
        assert batch.ids[number, :20].tolist() == turned.ids[2 - number].tolist()
        assert batch.position[one].tolist() == turned.position[other].tolist()
        assert batch.weight[one].tolist() == turned.weight[other].tolist()
    twins = make([LONG[0], LONG[0]], ["a", "other"])
    assert twins.ids[0].tolist() != twins.ids[1].tolist()
    assert (batch.position > 0).all()
    assert (batch.ids[:, 20:] == 0).all()


def test_bert_hides_a_share_and_turns_most_of_it_into_the_mask():
    ids = torch.full((300, 40), 7)
    batch = mask_tokens(ids, torch.ones_like(ids).bool(), [str(i) for i in range(300)], mask_id=MASK, vocab_size=WORDS)
    assert torch.bincount(batch.example).tolist() == [6] * 300  # 15 % of 40, always
    seen = batch.ids[batch.example, batch.position]
    assert (seen == MASK).double().mean() == pytest.approx(0.8 + 0.1 / WORDS, abs=0.03)
    assert (seen == 7).double().mean() == pytest.approx(0.1 + 0.1 / WORDS, abs=0.03)
    assert (ids == 7).all()
    short = mask_tokens(ids[:2, :2], torch.tensor([[True, False], [False, False]]), ["x", "y"], mask_id=1, vocab_size=9)
    assert (short.example.tolist(), short.weight.tolist()) == ([0], [1.0])
    with pytest.raises(ConfigurationError, match="share is 0"):
        mask_tokens(ids, ids.bool(), [], mask_id=1, vocab_size=9, share=0.0)


def test_diffusion_hides_each_token_with_probability_t_and_weighs_by_its_inverse():
    """Over many draws of t the weights of hidden tokens average to one per token: the loss is unbiased."""
    ids = torch.full((2000, 30), 7)
    keys = [str(i) for i in range(2000)]
    batch = diffuse_tokens(ids, torch.ones_like(ids).bool(), keys, mask_id=MASK, reduction="sum")
    hidden_share = torch.bincount(batch.example, minlength=2000).double() / 30
    assert hidden_share.mean() == pytest.approx(0.5, abs=0.02)
    assert hidden_share.std() == pytest.approx(math.sqrt(1 / 12 + 1 / 6 / 30), abs=0.02)
    assert batch.weight.min() >= 1
    assert batch.weight.sum() / ids.numel() == pytest.approx(1, abs=0.03)
    assert (batch.ids == MASK).sum() == len(batch.position)
    mean = diffuse_tokens(ids, torch.ones_like(ids).bool(), keys, mask_id=MASK)
    torch.testing.assert_close(mean.weight * 30, batch.weight)


def test_nothing_hidden_is_no_loss(bidirectional):
    none = torch.zeros(0, dtype=torch.long)
    batch = MaskedBatch(
        ids=torch.ones(2, 4, dtype=torch.long),
        attention=torch.ones(2, 4, dtype=torch.long),
        example=none,
        position=none,
        target=none,
        weight=none.double(),
    )
    assert masked_losses(bidirectional, batch).tolist() == [0, 0]


class Net(nn.Module):
    """Two arguments in, a tensor out."""

    def __init__(self, outputs):
        super().__init__()
        torch.manual_seed(1)
        self.first, self.last = nn.Linear(5, 6), nn.Linear(6, outputs)

    def forward(self, x, scale):
        return self.last(torch.tanh(self.first(x)) * scale[:, None])


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(2)
    return {"x": torch.randn(4, 5, generator=generator).double(), "scale": torch.arange(1.0, 5).double()}


def test_classification_of_any_module_that_gives_logits(inputs):
    model, labels = Net(3).double(), torch.tensor([2, 0, 1, 1])
    wanted = [-log_softmax(model(x[None], s[None])[0], 0)[y] for x, s, y in zip(*inputs.values(), labels, strict=True)]
    for given in (inputs, tuple(inputs.values())):
        batch = ClassificationBatch(inputs=given, labels=labels)
        require_values(classification_losses(model, batch), wanted)
    require_rows(model, batch, classification_losses, num_examples=4)
    with pytest.raises(ConfigurationError, match=r"shape \[4, 3\] for 2 labels"):
        classification_losses(model, ClassificationBatch(inputs=inputs, labels=labels[:2]))


def test_classification_of_a_model_with_an_output_object():
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=WORDS, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, num_labels=3
    )
    model = BertForSequenceClassification(config).double().eval()
    attention = (padded(TEXTS, value=-1) >= 0).long()
    batch = ClassificationBatch(
        inputs={"input_ids": padded(TEXTS), "attention_mask": attention}, labels=torch.tensor([0, 2, 1])
    )
    alone = [model(input_ids=torch.tensor([t])).logits[0] for t in TEXTS]
    require_values(
        classification_losses(model, batch),
        [-log_softmax(a, 0)[y] for a, y in zip(alone, batch.labels, strict=True)],
    )
    require_rows(model, batch, classification_losses, num_examples=3)


class Scores(nn.Module):
    """Neither a tensor nor logits."""

    def forward(self, x):
        return {"scores": x}


def test_a_model_without_logits_is_refused():
    batch = ClassificationBatch(inputs=(torch.ones(2, 3),), labels=torch.tensor([0, 1]))
    with pytest.raises(ConfigurationError, match=r"returned dict; .*custom"):
        classification_losses(Scores(), batch)


@pytest.mark.parametrize(("outputs", "shape"), [(1, (4,)), (1, (4, 1)), (3, (4, 3))])
def test_regression_is_half_the_squared_error(inputs, outputs, shape):
    model = Net(outputs).double()
    batch = RegressionBatch(inputs=inputs, targets=torch.linspace(-1, 1, math.prod(shape)).double().reshape(shape))
    made = [model(x[None], s[None])[0] for x, s in zip(*inputs.values(), strict=True)]
    wanted = [0.5 * ((m - t.reshape(-1)) ** 2).sum() for m, t in zip(made, batch.targets, strict=True)]
    require_values(regression_losses(model, batch), wanted)
    require_rows(model, batch, regression_losses, num_examples=4)
    with pytest.raises(ConfigurationError, match=r"the targets are \[4, 2\]"):
        regression_losses(model, RegressionBatch(inputs=inputs, targets=torch.zeros(4, 2)))


def test_any_function_is_a_loss_if_it_gives_one_number_per_unit(inputs):
    model = Net(3).double()

    def margins(model, batch):
        return model(**batch).topk(2).values @ torch.tensor([-1.0, 1.0]).double()

    require_rows(model, inputs, custom_losses(margins), num_examples=4)
    for wrong, found in (
        (lambda m, b: m(**b).sum(), r"float64 \[\]"),
        (lambda m, b: m(**b), r"float64 \[4, 3\]"),
        (lambda m, b: m(**b).argmax(1), "int64"),
        (lambda m, b: 1.0, "float;"),
    ):
        with pytest.raises(ConfigurationError, match=found):
            custom_losses(wrong)(model, inputs)
