"""A made-up but lifelike payload for the report: the standard library's own sources as data, quanta by token rules.

Units are chosen and named by counting, and every figure that a model would give (losses, cosines, weights) is drawn
at random: this shows what the page does with a run's data, and says nothing about any model.
"""

import re
import sysconfig
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from quantascope.api.report.payload import (
    Address,
    Band,
    Contribution,
    Document,
    DocumentUse,
    Evidence,
    EvidenceRow,
    Exemplars,
    Figure,
    Fit,
    Header,
    Interfering,
    Measure,
    Measured,
    Partner,
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

_TOKEN = re.compile(r"\n *|\w+| ?[^\w\s]+| \w+| +|\t")


def make_payload(*, num_units: int = 4000, num_quanta: int = 120, num_windows: int = 400, seed: int = 0) -> Payload:
    """Build a payload; the numbers asked for are upper bounds where the sources give less."""
    random = np.random.default_rng(seed)
    documents, windows = _windows(num_windows)
    keyed = _candidates(windows, num_quanta)
    keys = sorted(keyed, key=lambda key: -len(keyed[key]))
    shares = np.array([min(len(keyed[key]), 2000 / (rank + 6)) for rank, key in enumerate(keys)])
    sizes = np.maximum(3, (shares / shares.sum() * num_units).astype(int))
    places = [
        keyed[key][i] for key, size in zip(keys, sizes, strict=True) for i in random.permutation(len(keyed[key]))[:size]
    ]
    owner = np.repeat(np.arange(len(keys)), [min(size, len(keyed[key])) for key, size in zip(keys, sizes, strict=True)])
    units = _units(np.array(places), owner, random)
    quanta = _quanta(keys, units, windows, random)
    order = np.argsort(-quanta.size)
    return Payload(
        header=_header(len(owner), len(keys)),
        facts=_facts(len(owner)),
        documents=tuple(documents),
        windows=tuple(windows),
        units=units,
        quanta=quanta,
        checkpoint_steps=_STEPS,
        evidence=_evidence(),
        together=("9 of 12 quanta come back in 80 % of 20 halves of the documents (0 of 40 branches of noise).",),
        tree=_tree(quanta.size, random),
        rank_frequency=_rank_frequency(quanta.size[order], order),
        traces=_traces(windows, units, len(keys), random),
        contributions=tuple(
            Contribution(unit=int(unit), values=random.normal(0.2, 1, 30) ** 3) for unit in quanta.exemplars[0].centre
        ),
    )


_STEPS = np.unique(np.geomspace(4, 484, 15).astype(int)) - 4


def _windows(count: int) -> tuple[list[Document], list[Window]]:
    library = Path(sysconfig.get_path("stdlib"))
    documents: list[Document] = []
    windows: list[Window] = []
    for path in sorted(library.glob("*.py")):
        tokens = _TOKEN.findall(path.read_text(encoding="utf-8", errors="replace"))
        documents.append(Document(name=f"Lib/{path.name}", labels=("standard library",)))
        offset, line = 0, 1
        for start in range(0, min(len(tokens), 6 * 256), 256):
            part = tuple(tokens[start : start + 256])
            windows.append(Window(document=len(documents) - 1, char_offset=offset, first_line=line, tokens=part))
            text = "".join(part)
            offset, line = offset + len(text), line + text.count("\n")
        if len(windows) >= count:
            break
    return documents, windows[:count]


def _candidates(windows: list[Window], count: int) -> dict[tuple[str, str], list[tuple[int, int]]]:
    """Positions by (previous token, token), the commonest pairs."""
    found: dict[tuple[str, str], list[tuple[int, int]]] = defaultdict(list)
    for number, window in enumerate(windows):
        for place in range(8, len(window.tokens)):
            found[window.tokens[place - 1], window.tokens[place]].append((number, place))
    common = sorted(found, key=lambda key: -len(found[key]))[:count]
    return {key: found[key] for key in common}


def _units(places: np.ndarray, owner: np.ndarray, random: np.random.Generator) -> Units:
    middles = random.normal(0, 6, (owner.max() + 1, 2))
    spread = random.gamma(2, 0.18, owner.max() + 1)
    positions = middles[owner] + random.normal(0, 1, (len(owner), 2)) * spread[owner, None]
    return Units(
        window=places[:, 0],
        target=places[:, 1],
        quantum=np.where(random.random(len(owner)) < 0.02, -1, owner),
        loss=np.minimum(random.gamma(1.5, 0.04, len(owner)), 0.2),
        cosine=np.clip(random.normal(0.55, 0.13, len(owner)), 0.05, 0.98),
        x=positions[:, 0],
        y=positions[:, 1],
        also=np.where(np.arange(len(owner)) % 3 == 0, (owner + 1) % (owner.max() + 1), -1),
        monogenic=np.where(np.arange(len(owner)) % 3 == 0, 0.7, 1.0),
    )


def _quanta(keys: list[tuple[str, str]], units: Units, windows: list[Window], random: np.random.Generator) -> Quanta:
    count = len(keys)
    members = [np.flatnonzero(units.quantum == quantum) for quantum in range(count)]
    members = [inside[np.argsort(-units.cosine[inside])] for inside in members]
    sizes = np.array([len(inside) for inside in members])
    start = random.uniform(3, 7, count)
    middle, pace = random.uniform(1.5, 5.5, count), random.uniform(1.2, 4, count)
    curve = start[:, None] / (1 + np.exp((np.log1p(_STEPS)[None] - middle[:, None]) * pace[:, None])) + 0.07
    layers, kinds = [f"layer {i}" for i in range(4)], ["query/key", "value", "output", "MLP in", "MLP out"]
    share = random.gamma(0.7, 1, (count, 4, 5))
    neighbours = np.argsort(random.random((count, count)), axis=1)[:, :5]
    return Quanta(
        target=tuple(token for _, token in keys),
        pattern=tuple(_pattern(inside, units, windows) for inside in members),
        distinguishing=tuple(
            (before, *_common(inside, units, windows)) for (before, _), inside in zip(keys, members, strict=True)
        ),
        phrase=tuple(
            f"{token.strip() or 'line break'} after {before.strip() or 'indentation'}" for before, token in keys
        ),
        size=sizes,
        use=sizes / max(1, sizes.sum()),
        coherence=[float(units.cosine[inside].mean()) if len(inside) else float("nan") for inside in members],
        mean_loss=[float(units.loss[inside].mean()) if len(inside) else float("nan") for inside in members],
        num_documents=[len({windows[w].document for w in units.window[inside]}) for inside in members],
        exemplars=tuple(
            Exemplars(
                centre=tuple(map(int, inside[:8])),
                edge=tuple(map(int, inside[8:][-5:])),
                counter=tuple(map(int, members[(quantum + 1) % count][:4])),
            )
            for quantum, inside in enumerate(members)
        ),
        nearest=neighbours,
        nearest_cosine=-np.sort(-random.uniform(0.05, 0.6, neighbours.shape), axis=1),
        top_documents=tuple(_top_documents(inside, units, windows) for inside in members),
        loss_curve=curve,
        address=Address(layers=tuple(layers), kinds=tuple(kinds), share=share / share.sum(axis=(1, 2), keepdims=True)),
        memorised=random.beta(1, 6, count),
        effective_dimension=(dimension := random.gamma(4, 4, count)),
        emergence_step=np.expm1(middle),
        **measures(dimension, sizes),
    )


def measures(dimension: np.ndarray, sizes: np.ndarray) -> dict[str, Any]:
    """What is measured of quanta alone, by another generator, so that what was drawn before stays as it was."""
    random = np.random.default_rng(len(sizes))
    count = len(sizes)
    other = [(quantum + 1) % count for quantum in range(count)]
    return {
        "name": tuple("Ends a <list>" if quantum == 0 else None for quantum in range(count)),
        "persistence": np.where(np.arange(count) % 4 == 3, 0.4, 0.95),
        "persistence_null": np.where(np.arange(count) == 2, np.nan, 0.15),
        "influence_low": np.full(count, 0.71),
        "influence_high": np.full(count, 1.37),
        "monogenic_null": np.full(count, 0.93),
        "memorised_null": random.beta(1, 8, count),
        "self_influence": random.gamma(2, 0.5, count),
        "monogenic": random.beta(9, 1, count),
        "dimension_low": dimension * 0.8,
        "dimension_high": np.where(np.arange(count) == 1, np.inf, dimension * 1.4),
        "dimension_null": 224.0,
        "community": np.arange(count) % 5,
        "interferes": tuple(
            (Interfering(quantum=other[quantum], cosine=-0.0231, null_low=-0.0042),) if quantum % 2 == 0 else ()
            for quantum in range(count)
        ),
        "used_with": tuple(
            (Partner(quantum=other[quantum], num_documents=7, expected=2.5),) if quantum % 3 == 0 else ()
            for quantum in range(count)
        ),
    }


def _pattern(inside: np.ndarray, units: Units, windows: list[Window]) -> tuple[str | None, ...]:
    found: list[str | None] = []
    for back in range(6, 0, -1):
        tokens = Counter(windows[units.window[u]].tokens[units.target[u] - back] for u in inside)
        token, number = tokens.most_common(1)[0] if tokens else ("", 0)
        found.append(token if number > 0.4 * len(inside) else None)
    return tuple(found)


def _common(inside: np.ndarray, units: Units, windows: list[Window]) -> list[str]:
    words = Counter(
        token
        for u in inside
        for token in windows[units.window[u]].tokens[max(0, units.target[u] - 12) : units.target[u]]
    )
    return [token for token, _ in words.most_common(12) if token.strip().isidentifier()][:4]


def _top_documents(inside: np.ndarray, units: Units, windows: list[Window]) -> tuple[DocumentUse, ...]:
    counts = Counter(windows[units.window[u]].document for u in inside)
    return tuple(DocumentUse(document=document, num_units=number) for document, number in counts.most_common(5))


def _tree(sizes: np.ndarray, random: np.random.Generator) -> Tree:
    nodes, size = list(range(len(sizes))), list(map(int, sizes))
    heights = -np.sort(-random.beta(2, 5, max(0, len(sizes) - 1)))
    left, right, merged = [], [], []
    for step in range(len(sizes) - 1):
        pair = random.choice(len(nodes), 2, replace=False)
        a, b = (nodes[i] for i in pair)
        nodes = [node for node in nodes if node not in (a, b)] + [len(sizes) + step]
        size.append(size[a] + size[b])
        left.append(a), right.append(b), merged.append(size[-1])
    persistence = np.where(np.arange(len(heights)) % 3 == 0, 0.2, 1.0)
    return Tree(left=left, right=right, cosine=heights, size=merged, persistence=persistence)


def _header(num_units: int, num_quanta: int) -> Header:
    command = "python benchmarks/evidence.py --run runs/demo"
    return Header(
        title="Skills of a small model of Python",
        model="GPT-NeoX, 192 wide, 4 layers",
        num_parameters=3_400_000,
        step=480,
        sentence=f"Python-stdlib model, 3.4 M parameters, step 480: {num_quanta} skills in {num_units:,} low-loss "
        "tokens; the ten most used cover 31 %.",
        figures=(
            Figure(
                name="Learned together",
                value="R² 0.65",
                null="null −0.20, activations 0.61",
                definition="How well the loss curve of a token is predicted by those of its five nearest rows with the "
                "same target token in other documents.",
                caveat="One model and one seed.",
                command=command,
            ),
            Figure(
                name="Same role",
                value="0.74",
                null="null 0.47, activations 0.73",
                definition="Share of tokens whose five nearest rows vote for their true syntactic role.",
                caveat="Roles come from the parser, which knows nothing of meaning.",
                command=command,
            ),
            Figure(
                name="Stable quanta",
                value="97 of 120",
                null="in 20 resamples; null 3",
                definition="Quanta that come back with Jaccard overlap of at least 0.6 in 80 % of resamples.",
                command=command,
            ),
            Figure(
                name="Rank–frequency slope",
                value="−1.08",
                null="−1.16 to −0.99; null −0.41",
                definition="Slope of log size by log rank.",
                caveat="Fitted over ranks 5 to 80 only.",
            ),
            Figure(
                name="Causal effect",
                value="+1.9 nats",
                null="other quanta +0.06",
                definition="Rise of the quantum's loss once its direction is removed from the weights.",
            ),
        ),
    )


def _facts(num_rows: int) -> RunFacts:
    return RunFacts(
        num_rows=num_rows,
        dimension=4352,
        projection="tensor sketch, 256 per map, seed 0",
        tokens_per_second=6100,
        versions={"quantascope": "0.1.0", "torch": "2.13.0", "numpy": "2.4.0"},
        fingerprints={"model": "sha256:" + "3f9a1c" * 8, "data": "sha256:" + "77b0e2" * 8},
        commands=("quantascope demo runs/demo", "quantascope report runs/demo report.html"),
        other={"Selection": "loss below 0.2 nats, no repeated three-grams"},
    )


def _evidence() -> Evidence:
    def row(name: str, first: float, second: float, plain: float, *, ours: bool = False) -> EvidenceRow:
        return EvidenceRow(
            name=name,
            first=Measured(value=first, low=first - 0.02, high=first + 0.02, null_99=0.49),
            second=Measured(value=second, low=second - 0.05, high=second + 0.04, null_99=-0.09),
            plain=plain,
            ours=ours,
        )

    return Evidence(
        sentence="The quanta tell apart what is learned together better than activations do, and are level with "
        "them on syntactic roles.",
        first=Measure(name="Same role", definition="Share of rows whose neighbours vote for the true role."),
        second=Measure(
            name="Learned together (R²)",
            definition="Explained variance of loss curves.",
            caveat="One seed.",
            command="python benchmarks/evidence.py",
        ),
        plain=Measure(name="AMI at 200", definition="Adjusted mutual information of role and cluster."),
        rows=(
            row("Gradient rows, half whitened", 0.742, 0.651, 0.35, ours=True),
            row("Gradient rows, raw", 0.724, 0.594, 0.28),
            row("Activations, best layer", 0.733, 0.606, 0.35),
            row("Previous token", 0.58, 0.33, 0.26),
            row("Target token alone", 0.53, 0.0, 0.0),
            row("Random rows", 0.47, -0.2, 0.0),
        ),
    )


def _rank_frequency(sizes: np.ndarray, quantum: np.ndarray) -> RankFrequency:
    ranks = np.arange(1, len(sizes) + 1)
    last = min(80, len(sizes))
    fitted = np.polyfit(np.log10(ranks[:last]), np.log10(np.maximum(sizes[:last], 1)), 1)
    line = 10 ** np.polyval(fitted, np.log10(ranks[4:last]))
    null = sizes.sum() / len(sizes) * (1.6 - ranks / len(sizes))
    return RankFrequency(
        sizes=sizes,
        quantum=quantum,
        fit=Fit(
            slope=fitted[0],
            low=fitted[0] - 0.08,
            high=fitted[0] + 0.08,
            intercept=fitted[1],
            first_rank=5,
            last_rank=last,
        ),
        fit_band=Band(low=line * 0.85, high=line * 1.17),
        null_band=Band(low=null * 0.75, high=null * 1.3),
        sentence=f"Sizes fall as rank to the power {_signed(fitted[0])} (95 % interval {_signed(fitted[0] - 0.08)} to "
        f"{_signed(fitted[0] + 0.08)}); the theory that the quanta are named after says −1.08.",
        alternatives="Against a log-normal the power law's log-likelihood ratio is +3.1 (p = 0.21): not decided.",
    )


def _traces(windows: list[Window], units: Units, num_quanta: int, random: np.random.Generator) -> tuple[Trace, ...]:
    def some(count: int, sign: float = 1.0) -> tuple[TraceUnit, ...]:
        chosen = random.choice(len(units.window), count, replace=False)
        scores = -np.sort(-random.uniform(0.1, 0.6, count)) * sign
        return tuple(TraceUnit(unit=int(u), score=float(s)) for u, s in zip(chosen, scores, strict=True))

    traces = []
    for number, title in enumerate(("self in a method", "the colon after else", "a closing bracket")):
        tokens = windows[min(7 * number + 3, len(windows) - 1)].tokens[40:70]
        weights = -np.sort(-random.dirichlet(np.ones(6)))
        traces.append(
            Trace(
                title=title,
                prompt=tokens[:-2],
                completion=tokens[-2:],
                contributions=random.normal(0.3, 1, len(tokens)) ** 3,
                quanta=tuple(
                    TraceQuantum(quantum=int(q), weight=w, low=max(0, w - 0.05), high=w + 0.05)
                    for q, w in zip(random.choice(num_quanta, min(6, num_quanta), replace=False), weights, strict=False)
                ),
                supporting=some(10),
                opposing=some(4, -1),
                lexical=tuple(TraceUnit(window=int(w), score=12.5 - w) for w in range(3)),
                novelty=0.31 + 0.3 * number,
                sentence="Mostly the quantum of method signatures; novelty is ordinary.",
            )
        )
    return tuple(traces)


def replaced(payload: Payload, **parts: Any) -> Payload:
    """A payload with some parts exchanged, checked anew."""
    return Payload(**{name: parts.get(name, getattr(payload, name)) for name in type(payload).model_fields})


def _signed(value: float) -> str:
    return f"{value:.2f}".replace("-", "−")
