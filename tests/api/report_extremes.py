"""Payloads at the edges of what a report may be given: hostile texts, nothing at all, and a run without extras."""

import numpy as np

from quantascope.api.report.payload import (
    Address,
    Document,
    DocumentUse,
    Evidence,
    EvidenceRow,
    Exemplars,
    Figure,
    Header,
    Measure,
    Measured,
    Payload,
    Quanta,
    RankFrequency,
    RunFacts,
    Trace,
    TraceQuantum,
    TraceUnit,
    Tree,
    Units,
    Window,
)
from tests.api.report_fixture import make_payload, measures, replaced

HOSTILE = (
    "</script><script>window.pwned = 1</script>",
    "<img src=x onerror='window.pwned = 1'>",
    "javascript:window.pwned=1",
    "\u202etxt.exe\u2066",
    "x" * 5000,
    "",
    "\x00\x1b[31m",
    "\ud800",
    "{{ 7 * 7 }}",
    "\n\t  \u00a0\u200b\ufeff",
    "<!--",
    "__proto__",
    "é\u0301\u0301\u0301 漢字 עברית",
)


def hostile_payload() -> Payload:
    """Every text of a payload is one of HOSTILE, or holds them all."""
    count, everything = len(HOSTILE), " ".join(HOSTILE)
    zeros = np.zeros(count)
    each = np.arange(count)
    figure = dict.fromkeys(("name", "value", "null", "definition", "caveat", "command"), everything)
    measure = Measure(name=everything, definition=everything, caveat=everything, command=everything)
    measured = Measured(value=0.5, low=float("nan"), high=0.6)
    some = (*(TraceUnit(unit=unit, score=1) for unit in range(count)), TraceUnit(window=0, score=1))
    return Payload(
        header=Header(
            title=everything,
            model=everything,
            num_parameters=1,
            step=1,
            sentence=everything,
            figures=[Figure(**figure)] * 3,
        ),
        facts=RunFacts(
            num_rows=1,
            dimension=1,
            projection=everything,
            versions={text: text for text in HOSTILE},
            fingerprints={everything: everything},
            commands=HOSTILE,
            other={text: text for text in HOSTILE},
        ),
        documents=tuple(Document(name=text, labels=HOSTILE) for text in HOSTILE),
        windows=(
            Window(document=0, char_offset=0, tokens=HOSTILE),
            Window(document=3, char_offset=7, first_line=2, tokens=("a",)),
        ),
        units=Units(window=zeros, target=each, quantum=each, loss=zeros, cosine=zeros, x=each, y=zeros * np.nan),
        quanta=Quanta(
            target=HOSTILE,
            pattern=(HOSTILE, *((None, text, None) for text in HOSTILE[1:])),
            distinguishing=(HOSTILE,) * count,
            phrase=HOSTILE,
            size=each,
            use=zeros * np.nan,
            coherence=zeros,
            mean_loss=zeros * np.nan,
            num_documents=each,
            exemplars=tuple(Exemplars(centre=(unit,), edge=(unit,), counter=(0, 1, 2)) for unit in range(count)),
            nearest=np.full((count, 2), -1),
            nearest_cosine=np.zeros((count, 2)),
            top_documents=((DocumentUse(document=4, num_units=1),),) * count,
            loss_curve=np.full((count, 1), np.nan),
            address=Address(layers=HOSTILE, kinds=HOSTILE, share=np.full((count, count, count), np.nan)),
        ),
        checkpoint_steps=[0],
        evidence=Evidence(
            sentence=everything,
            first=measure,
            second=measure,
            plain=measure,
            rows=tuple(EvidenceRow(name=text, first=measured) for text in HOSTILE),
        ),
        tree=Tree(left=[0, 2], right=[1, count], cosine=[0.4, 0.6], size=[2, 3]),
        rank_frequency=RankFrequency(sizes=each[::-1], quantum=each, sentence=everything, alternatives=everything),
        traces=(
            Trace(
                title=everything,
                prompt=HOSTILE,
                completion=HOSTILE,
                contributions=np.full(2 * count, np.nan),
                quanta=(TraceQuantum(quantum=0, weight=-1, low=-2, high=0),),
                supporting=some,
                opposing=some,
                lexical=some,
                novelty=1,
                sentence=everything,
            ),
        ),
    )


def empty_payload() -> Payload:
    """A run in which nothing was found."""
    none: tuple[int, ...] = ()
    columns = dict.fromkeys(("window", "target", "quantum", "loss", "cosine", "x", "y"), none)
    quanta = dict.fromkeys(set(Quanta.model_fields) - {"address", "loss_curve"}, none)
    quanta |= dict.fromkeys(
        ("memorised", "effective_dimension", "emergence_step", "name", "dimension_null", "persistence", "monogenic")
    )
    return Payload(
        header=Header(title="An empty run", model="", num_parameters=0, sentence="Nothing was found."),
        facts=RunFacts(num_rows=0, dimension=0, projection="none"),
        documents=(),
        windows=(),
        units=Units(**columns),
        quanta=Quanta(**quanta),
        tree=Tree(left=none, right=none, cosine=none, size=none),
        rank_frequency=RankFrequency(sizes=none),
    )


NOTHING = (np.empty(0), np.empty(0))


def bare_payload() -> Payload:
    """A run without checkpoints, addresses, comparisons, tree or traces."""
    whole = make_payload(num_units=200, num_quanta=12, num_windows=30)
    unknown = ("loss_curve", "address", "memorised", "effective_dimension", "emergence_step", *measures(*NOTHING))
    known = {name: getattr(whole.quanta, name) for name in Quanta.model_fields if name not in unknown}
    left_out = dict.fromkeys(("checkpoint_steps", "evidence", "tree", "rank_frequency")) | {"together": ()}
    quanta = Quanta(**known | {"top_documents": ()})
    return replaced(whole, quanta=quanta, traces=(), contributions=(), **left_out)
