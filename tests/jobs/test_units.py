"""Every type of unit: which units are selected, and that their rows are the gradients of what they stand for.

Without Ray: the pure steps that a worker runs, on documents whose tokens and counts are set by hand, in float64.
"""

from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from quantascope.attribution.blocks import find_blocks
from quantascope.attribution.engine import GradientEngine
from quantascope.attribution.projection import TensorSketch
from quantascope.errors import ConfigurationError
from quantascope.jobs.collecting import plan as plans
from quantascope.jobs.collecting.config import UNIT_TYPES, SelectionConfig, SetConfig
from quantascope.jobs.collecting.select import Selecting, select_units
from quantascope.jobs.collecting.unit_rows import fill_batches
from quantascope.jobs.collecting.worker import collect_block, window_losses
from quantascope.jobs.data.tokens import spans
from quantascope.storage import Run, StoredDocument
from tests.plain_loop import assert_equal_rows, plain_rows
from tests.tiny import tiny_neox

WINDOW = 8
DOCUMENTS = [
    (20, [(0, 20)], "a"),
    (11, [(3, 5), (7, 10)], "b"),
    (5, [(2, 4)], "a"),
    (1, [(0, 1)], "b"),
    (18, [(1, 3), (12, 18)], None),
    (6, [], "b"),
]
"""Number of tokens, which of them count, and the label `kind` of each document."""


@pytest.fixture(scope="module")
def engine():
    model = tiny_neox(vocab_size=50, width=8, layers=1, dtype="float64")
    return GradientEngine(model, TensorSketch(dim_per_block=8), find_blocks(model, "all").blocks)


@pytest.fixture
def run(tmp_path):
    with Run.create(tmp_path / "run", config={}) as run:
        documents = list(map(stored, range(len(DOCUMENTS)), DOCUMENTS))
        totals = run.documents.write(iter([documents[:4], documents[4:]]), label_names=("kind", "length"))
        run.documents.finish(totals, tokenizer="")
        return run


def stored(index, facts):
    length, counted, kind = facts
    counts = np.zeros(length, np.bool_)
    for first, last in counted:
        counts[first:last] = True
    return StoredDocument(
        index=index,
        row=index,
        source="here",
        user_id=str(index),
        labels={"kind": kind, "length": str(length)},
        sha256="",
        text=None,
        tokens=np.random.default_rng(index).integers(0, 50, length, np.int32),
        starts=np.arange(length, dtype=np.int32) * 3,
        ends=np.arange(length, dtype=np.int32) * 3 + 3,
        counts=counts,
    )


def select(run, unit_type, *, model=None, window=WINDOW, **options):
    config = SelectionConfig(unit_type=unit_type, **options)

    loaded = SimpleNamespace(model=model, fingerprint="x") if unit_type == "token-loss" else None
    selecting = Selecting(run, "x", config, window_tokens=window, loaded=loaded)
    units = select_units(selecting, lambda windows: window_losses(run, loaded, windows))
    selecting.done()
    return config, units


def collected(run, engine, unit_type, *, rows_per_block=100, batch_tokens=24, window=WINDOW, **options):
    """Units, rows and block norms as workers hand them in, put together from all blocks, and the tokens read."""
    config, selection = select(run, unit_type, model=engine.model, window=window, **options)
    row_set = run.new_row_set(f"{unit_type}-{rows_per_block}-{batch_tokens}-{options}".replace("/", " "))
    plan = {
        "unit_type": unit_type,
        "window_tokens": window,
        "loss": "cross-entropy, nats",
        "selection": asdict(config),
        "dim": engine.dim,
        "rows_per_block": rows_per_block,
        "batch_tokens": batch_tokens,
        "blocks": [{"name": b.name} for b in engine.blocks],
    }
    row_set.freeze(plan, selection)
    made = [collect_block(run, row_set, block, engine) for block in range(row_set.num_blocks)]
    units = pa.concat_tables([content.units for content, _ in made]).to_pylist()
    rows = torch.from_numpy(np.concatenate([content.rows for content, _ in made]))
    norms = np.concatenate([content.block_norms for content, _ in made])
    return units, rows, norms, sum(n for _, n in made)


def loss_of(run, model, document, first, targets, *, mean=True):
    """The loss of some tokens of a document, read from `first` on, without any padding."""
    ids = torch.from_numpy(run.documents[document].tokens.astype(np.int64))
    logits = model(input_ids=ids[None, first : max(targets) + 1]).logits[0]
    places = torch.tensor(targets)
    return cross_entropy(logits[places - first - 1], ids[places], reduction="mean" if mean else "sum")


def require_losses(run, engine, units, rows, wanted, *, mean=True):
    """The units' losses and rows are those of (document, first token read, tokens that count)."""

    def losses(model, _):
        return torch.stack([loss_of(run, model, *unit, mean=mean) for unit in wanted])

    assert_equal_rows(rows, plain_rows(engine, None, losses))
    found = [u["loss"] for u in units]
    np.testing.assert_allclose(found, losses(engine.model, None).detach(), rtol=1e-6)


WINDOWS = [
    (0, 0, [*range(1, 8)]),
    (0, 8, [*range(9, 16)]),
    (0, 16, [17, 18, 19]),
    (1, 0, [3, 4, 7]),
    (1, 8, [9]),
    (2, 0, [2, 3]),
    (4, 0, [1, 2]),
    (4, 8, [12, 13, 14, 15]),
    (4, 16, [17]),
]
"""Document, first token, and the tokens that have a loss: every window of eight tokens in which one counts."""


def ends(units):
    return [(u["document"], u["first_token"], u["last_token"]) for u in units]


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_windows(run, engine, reduction):
    units, rows, norms, num_tokens = collected(run, engine, "window", loss_reduction=reduction)
    assert ends(units) == [(d, f, min(f + 8, DOCUMENTS[d][0]) - 1) for d, f, _ in WINDOWS]
    require_losses(run, engine, units, rows, WINDOWS, mean=reduction == "mean")
    assert num_tokens == 20 + 11 + 5 + 18
    np.testing.assert_allclose((norms.astype(np.float64) ** 2).sum(1), rows.norm(dim=1) ** 2, rtol=1e-5)


def test_token_losses_are_the_same_in_any_reduction(run, engine):
    options = {"max_loss": 100.0, "max_per_window": 2}
    units, rows, _, _ = collected(run, engine, "token-loss", **options)
    wanted = [(u["document"], u["first_token"], [u["last_token"]]) for u in units]
    assert len(wanted) == 16  # nine windows, two of which have one token that counts
    require_losses(run, engine, units, rows, wanted)
    _, summed, _, _ = collected(run, engine, "token-loss", rows_per_block=99, loss_reduction="sum", **options)
    assert torch.equal(summed, rows)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_documents_are_cut_at_the_context_and_the_cut_is_counted(run, engine, reduction):
    units, rows, _, num_tokens = collected(run, engine, "document", loss_reduction=reduction)
    assert ends(units) == [(0, 0, 7), (1, 0, 7), (2, 0, 4), (4, 0, 7)]
    assert [u["cut_tokens"] for u in units] == [12, 3, 0, 10]
    assert [(u["text_start"], u["text_end"]) for u in units] == [(0, 24), (0, 24), (0, 15), (0, 24)]
    wanted = [(0, 0, [*range(1, 8)]), (1, 0, [3, 4, 7]), (2, 0, [2, 3]), (4, 0, [1, 2])]
    require_losses(run, engine, units, rows, wanted, mean=reduction == "mean")
    assert num_tokens == 8 + 8 + 5 + 8


def test_a_document_whose_completion_is_cut_off_wholly_stays_with_a_gradient_of_zero(tmp_path, engine):
    with Run.create(tmp_path / "run", config={}) as run:
        documents = [stored(0, (20, [(15, 18)], "a")), stored(1, (4, [(2, 4)], "a"))]
        run.documents.finish(run.documents.write(iter([documents]), label_names=("kind",)), tokenizer="")
    for batch_tokens in (8, 24):  # by itself, then beside the other
        units, rows, _, _ = collected(run, engine, "document", batch_tokens=batch_tokens)
        assert [u["cut_tokens"] for u in units] == [12, 0]
        assert units[0]["loss"] == 0
        assert (rows.norm(dim=1) > 0).tolist() == [False, True]


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_each_completion_of_a_document_is_a_span_that_reads_what_precedes_it(run, engine, reduction):
    """Those beyond the context lose the beginning of what precedes them, and at last their own beginning."""
    units, rows, _, _ = collected(run, engine, "span", loss_reduction=reduction)
    wanted = [
        (0, 12, [*range(13, 20)]),
        (1, 0, [3, 4]),
        (1, 2, [7, 8, 9]),
        (2, 0, [2, 3]),
        (4, 0, [1, 2]),
        (4, 10, [*range(12, 18)]),
    ]
    assert ends(units) == [(d, f, t[-1]) for d, f, t in wanted]
    assert [u["cut_tokens"] for u in units] == [12, 0, 0, 0, 0, 0]
    assert [(u["text_start"], u["text_end"]) for u in units] == [(3 * t[0], 3 * t[-1] + 3) for *_, t in wanted]
    require_losses(run, engine, units, rows, wanted, mean=reduction == "mean")


def test_spans_of_one_context_share_a_forward_pass(run, engine, monkeypatch):
    calls = []
    plain = engine.rows
    monkeypatch.setattr(engine, "rows", lambda *a, **k: calls.append(len(a[2])) or plain(*a, **k))
    units, rows, _, _ = collected(run, engine, "span", window=20, batch_tokens=200)
    assert calls == [1, 2, 2, 1]  # the two spans of a context together; contexts of other lengths would be padding
    wanted = [
        (0, 0, [*range(1, 20)]),
        (1, 0, [3, 4]),
        (1, 0, [7, 8, 9]),
        (2, 0, [2, 3]),
        (4, 0, [1, 2]),
        (4, 0, [*range(12, 18)]),
    ]
    require_losses(run, engine, units, rows, wanted)


@pytest.mark.parametrize("options", [{}, {"max_per_window": 2}, {"loss_reduction": "sum"}])
def test_contributions_and_the_rest_of_a_window_add_up_to_its_row(run, engine, options):
    units, rows, _, _ = collected(run, engine, "token-contribution", **options)
    reduction = {"loss_reduction": options.get("loss_reduction", "mean")}
    whole, wanted, _, _ = collected(run, engine, "window", **reduction)
    assert sum(u["rest"] for u in units) == len(whole)
    for number, window in enumerate(whole):
        own = [i for i, u in enumerate(units) if ends([u])[0][:2] == ends([window])[0][:2]]
        assert_equal_rows(rows[own].sum(0)[None], wanted[number : number + 1])
        assert [units[i]["rest"] for i in own] == [False] * (len(own) - 1) + [True]
        assert ends([units[own[-1]]]) == ends([window])
        assert {units[i]["loss"] for i in own} == {window["loss"]}
        places = [units[i]["last_token"] for i in own[:-1]]
        reached = WINDOWS[number][2][-1]
        if "max_per_window" in options:
            assert len(places) == min(2, reached - window["first_token"])
        else:
            assert places == [*range(window["first_token"], reached)]
            assert rows[own[-1]].norm() == 0  # every parameter of this model has positions


def test_a_contribution_is_its_positions_share(run, engine):
    """The share of a token is the derivative by copies of the weights that act at its position alone."""
    units, rows, _, _ = collected(run, engine, "token-contribution")
    embedding = engine.model.get_input_embeddings()
    name = next(i for i, b in enumerate(engine.blocks) if "embed_in" in b.name)
    for place, unit in enumerate(units[:7]):
        ids = torch.from_numpy(run.documents[0].tokens[:8].astype(np.int64))
        inputs = embedding(ids)[None].detach().requires_grad_()
        loss = cross_entropy(engine.model(inputs_embeds=inputs).logits[0, :-1], ids[1:])
        gradient = torch.autograd.grad(loss, inputs)[0][0, place]
        full = torch.zeros_like(embedding.weight).index_add(0, ids[place : place + 1], gradient[None])
        wanted = engine.passes.projections[name].project(full[None])
        assert_equal_rows(rows[place][None, engine.columns[name]], wanted)
        assert unit["last_token"] == place
        assert unit["text_start"] == 3 * place


def test_at_most_so_many_contributions_keep_whole_windows(run):
    _, every = select(run, "token-contribution")
    for limit in (1, 3, 8, 20, 40, 1000):
        _, kept = select(run, "token-contribution", max_units=limit)
        assert len(kept) <= limit
        windows = {(u["document"], u["first_token"]) for u in kept.to_pylist()}
        assert sum(kept["rest"].to_pylist()) == len(windows)
        if limit >= 8:  # the longest window has seven positions and a rest
            assert [u for u in ends(every.to_pylist()) if u[:2] in windows] == ends(kept.to_pylist())
        else:
            assert len(kept) == limit
    assert len(kept) == len(every)


GROUPS = {"a": WINDOWS[:3] + WINDOWS[5:6], "b": WINDOWS[3:5], None: WINDOWS[6:]}


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_groups_hold_all_windows_of_a_labels_value(run, engine, reduction):
    units, rows, norms, num_tokens = collected(run, engine, "group", group_by="kind", loss_reduction=reduction)
    assert [u["label_kind"] for u in units] == list(GROUPS)
    assert [u["num_windows"] for u in units] == [4, 2, 3]
    assert [u["num_tokens"] for u in units] == [19, 4, 7]
    assert [u["label_length"] for u in units] == [None, "11", "18"]  # what a group's documents agree on
    assert ends(units) == [(0, 0, 7), (1, 0, 7), (4, 0, 7)]

    def losses(model, _):
        sums = [sum(loss_of(run, model, *w, mean=False) for w in windows) for windows in GROUPS.values()]
        counts = [19, 4, 7] if reduction == "mean" else [1, 1, 1]
        return torch.stack([s / n for s, n in zip(sums, counts, strict=True)])

    assert_equal_rows(rows, plain_rows(engine, None, losses))
    np.testing.assert_allclose([u["loss"] for u in units], losses(engine.model, None).detach(), rtol=1e-6)
    np.testing.assert_allclose((norms.astype(np.float64) ** 2).sum(1), rows.norm(dim=1) ** 2, rtol=1e-5)
    assert num_tokens == 20 + 11 + 5 + 18


@pytest.mark.parametrize("unit_type", UNIT_TYPES)
def test_rows_do_not_depend_on_how_units_are_cut_into_blocks_and_batches(run, engine, unit_type):
    options = {"max_loss": 100.0, "max_per_window": 3} | ({"group_by": "kind"} if unit_type == "group" else {})
    units, rows, _, _ = collected(run, engine, unit_type, **options)
    for rows_per_block, batch_tokens in ((5, 8), (100, 500)):
        again, others, _, _ = collected(
            run, engine, unit_type, rows_per_block=rows_per_block, batch_tokens=batch_tokens, **options
        )
        assert ends(again) == ends(units)
        torch.testing.assert_close(others, rows, rtol=0, atol=1e-12 * float(rows.norm(dim=1).max()))


@pytest.mark.parametrize("unit_type", UNIT_TYPES)
def test_a_selection_is_the_same_every_time_and_bounded(run, engine, unit_type):
    options = {"max_loss": 100.0} | ({"group_by": "kind"} if unit_type == "group" else {})
    _, first = select(run, unit_type, model=engine.model, **options)
    _, second = select(run, unit_type, model=engine.model, **options)
    if unit_type != "token-loss":
        assert np.isnan(np.asarray(first["loss"])).all()
        first, second = (t.set_column(6, "loss", t["unit"]) for t in (first, second))  # NaN equals nothing
    assert first.equals(second)
    assert first.column_names[:7] == [
        *("unit", "document", "first_token", "last_token", "text_start", "text_end", "loss")
    ]
    assert first.column_names[-2:] == ["label_kind", "label_length"]
    assert first["unit"].to_pylist() == list(range(len(first)))
    _, few = select(run, unit_type, model=engine.model, max_units=2, **options)
    assert 0 < len(few) <= 2


def test_what_cannot_be_selected_says_why(run, tmp_path):
    with pytest.raises(ConfigurationError, match="labels kind, length"):
        select(run, "group", group_by="colour")
    for options in ({"unit_type": "group"}, {"unit_type": "window", "group_by": "kind"}):
        with pytest.raises(ConfigurationError, match="go together"):
            SelectionConfig(**options)
    with pytest.raises(ConfigurationError, match="accepted are mean, sum"):
        SelectionConfig(loss_reduction="median")
    with pytest.raises(ConfigurationError, match="token-contribution, group"):
        SelectionConfig(unit_type="sentence")
    with Run.create(tmp_path / "other", config={}) as other:
        document = stored(0, (6, [(0, 1)], "a"))
        other.documents.finish(other.documents.write(iter([[document]]), label_names=("kind",)), tokenizer="")
    for unit_type in ("window", "document", "span", "token-contribution"):
        with pytest.raises(ConfigurationError, match="no units"):
            select(other, unit_type)


def test_documents_and_spans_read_the_whole_context_and_windows_at_most_1024():
    def length(unit_type, context, **options):
        loaded = SimpleNamespace(facts=SimpleNamespace(context_tokens=context))
        config = SetConfig(selection=SelectionConfig(unit_type=unit_type, **options))
        return plans.window_tokens(config, loaded)

    assert [length(u, 4096) for u in ("window", "document", "span", "token-contribution")] == [1024, 4096, 4096, 1024]
    assert [length(u, None) for u in ("window", "document")] == [1024, 1024]
    assert length("document", 4096, window_tokens=100) == 100


def test_a_group_is_a_piece_of_work_and_a_window_gives_many_contributions(engine):
    loaded = SimpleNamespace(model=SimpleNamespace(parameters=lambda: [torch.zeros(10**6)]))
    found = [plans._rows_per_block(engine, loaded, 1000, "cpu", unit_type=u) for u in ("group", "window")]
    assert found == [1, 100]
    assert plans._rows_per_block(engine, loaded, 1000, "cpu", unit_type="token-contribution") > 1000


@pytest.mark.parametrize(
    ("options", "num_units", "seconds"),
    [
        ({"unit_type": "window"}, 100, 100),
        ({"unit_type": "token-loss", "max_units": 10}, 10, 10 + 50),
        ({"unit_type": "token-contribution"}, 1000, 100),
        ({"unit_type": "token-contribution", "max_per_window": 4}, 500, 100),
        ({"unit_type": "token-contribution", "max_units": 200}, 200, 20),
        ({"unit_type": "group", "group_by": "kind", "scan_tokens": 500}, 50, 50),
        ({"unit_type": "span", "scan_tokens": 500}, 100, 100),
    ],
)
def test_an_estimate_counts_rows_and_the_passes_that_give_them(options, num_units, seconds, monkeypatch):
    plan = {"window_tokens": 10, "dim": 8, "blocks": [], "batch_tokens": 10}
    monkeypatch.setattr(plans, "make_plan", lambda *_: plan)
    monkeypatch.setattr(plans, "_time_batch", lambda *_, **__: 1.0)
    config = SetConfig(selection=SelectionConfig(**options))
    found = plans.estimate(config, None, num_tokens=1000, num_workers=1)
    assert (found.num_units, found.seconds) == (num_units, seconds)


@pytest.mark.parametrize(
    ("counts", "found"),
    [([], []), ([0, 0], []), ([1], [(0, 1)]), ([1, 1, 0, 1], [(0, 2), (3, 4)]), ([0, 1, 1, 0], [(1, 3)])],
)
def test_spans_are_the_runs_of_tokens_that_count(counts, found):
    assert spans(np.array(counts, np.bool_)) == found


@given(st.lists(st.integers(1, 2_000), min_size=1, max_size=200), st.sampled_from([64, 512, 16_384]))
def test_batches_hold_every_text_once_and_hardly_any_padding(lengths, batch_tokens):
    lengths = np.array(lengths)
    batches = list(fill_batches(lengths, batch_tokens))
    assert sorted(np.concatenate([chosen for chosen, _ in batches]).tolist()) == list(range(len(lengths)))
    for chosen, longest in batches:
        assert longest == lengths[chosen].max()
        assert len(chosen) == 1 or longest * len(chosen) <= batch_tokens
        assert lengths[chosen].sum() >= 0.95 * longest * len(chosen)
