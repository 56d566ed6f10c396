"""Clusters of gradients on a language whose skills are known: do quanta find the skill that made each token?

A language of 50 skills (planted/language.py), a GPT-NeoX 128 wide with 3 layers trained on it here by the
demonstration's own recipe, and the answer tokens of fresh text whose loss is below 0.3 nats. Gradients are of these
losses, and of margins: the logit less the mean logit (attribution/learning/margin.py), for which the bars are. Each
description of the units is clustered by the default clusterer into as many clusters as there are skills, and compared
with the skill that made the token: adjusted Rand index, adjusted mutual information, homogeneity (1 where every cluster
is of one skill). `within target` is the adjusted mutual information among units of equal target token. Target and
previous token have as many clusters as they are.

*The tree*: for each composition (a skill made of others) how near it lies to its parts in the average-linkage tree: the
share of other skills that join it at a lower cosine than its part does, 0.5 by chance; the null draws, in place of each
part, another skill that answers with words of the same kind.

Five seeds (facts, frequencies, text and network), means ± half of the 95 % interval (Student's t).
"""

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from learned_together import LOSS, MARGIN, described, is_rival
from planted.keep import kept
from planted.language import COMPOSITIONS, SKILLS, VOCABULARY, Language, Text
from planted.statistics import half_interval
from python_model import Units, activations_of, kronecker, load, rows_of
from result import Bar, arguments, finish
from sklearn.metrics import adjusted_mutual_info_score, adjusted_rand_score, homogeneity_score
from threadpoolctl import threadpool_limits
from torch.nn.functional import cross_entropy

from quantascope.api.demo.recipe import TrainingConfig
from quantascope.api.demo.trainer import Trainer
from quantascope.api.demo.windows import Windows
from quantascope.attribution.clustering import Refined, Tree, average_linkage, refine
from quantascope.attribution.losses import token_margins
from quantascope.attribution.quanta.evidence import role_information
from quantascope.attribution.selection import thin
from quantascope.attribution.whitening import Whitener, unit_rows

WINDOW = 64
MAX_LOSS = 0.3
NUM_STEPS = 1_500
NUM_DRAWS = 1_000
RECIPE = 1
"""Raised when the language or the training changes: what is in the cache is then made again."""


def trained(seed: int, cache: Path, *, num_steps: int) -> tuple[Any, Language]:
    """The network of a seed, from the cache or trained now."""
    language = Language.draw(seed)
    folder = cache / "planted-language" / f"{RECIPE}-{num_steps}-{seed}"
    if folder.is_dir():
        return load(folder), language
    with torch.random.fork_rng(devices=[]):
        trainer = new_trainer(language, seed, num_steps=num_steps)
        for step in range(num_steps):
            trainer.step(step, step / num_steps)
    unfinished = folder.with_name(f".{folder.name}.partial")
    trainer.model.save_pretrained(unfinished)
    unfinished.replace(folder)
    return load(folder), language


def new_trainer(language: Language, seed: int, *, num_steps: int) -> Trainer:
    """Seeds torch; before the first step."""
    config = TrainingConfig(
        vocabulary_size=258, width=128, num_layers=3, num_heads=4, window_tokens=WINDOW, batch_windows=16,
        num_steps=num_steps, matrix_learning_rate=0.02, table_learning_rate=0.005, seed=seed,
    )  # fmt: skip
    train = language.text(num_steps * config.batch_windows, WINDOW + 1, seed)
    held_out = language.text(64, WINDOW + 1, 10_000 + seed)
    sizes = torch.ones(config.vocabulary_size, dtype=torch.long)
    torch.manual_seed(seed)
    return Trainer(config, Windows(train=train.ids, held_out=held_out.ids, held_out_names=[], token_bytes=sizes))


def answers(
    model: Any,  # noqa: ANN401 - transformers is untyped
    language: Language,
    seed: int,
    *,
    num_units: int,
) -> tuple[Units, np.ndarray, np.ndarray, np.ndarray]:
    """Units of fresh text, their skills, margins' gradients after K-FAC, and the share of each skill that is known."""
    text = language.text(num_units, WINDOW, 20_000 + seed)
    losses = text_losses(model, text)
    known = (text.skills >= 0) & (losses < MAX_LOSS)
    shares = np.array([_share(known[text.skills == s]) for s in range(len(SKILLS))])
    window, position = np.nonzero(known)
    chosen = thin(window, max_per_window=4, max_units=num_units)
    where = (window[chosen], position[chosen])
    ids = text.ids.numpy()
    rows, kinds, layers = rows_of(model, ids, where)
    margin_rows, _, _ = rows_of(model, ids, where, token_margins)
    factored, _, _ = rows_of(model, ids, where, token_margins, kronecker(model, ids, where, token_margins))
    units = Units(
        ids=ids, window=where[0], position=where[1], document=where[0], curves=np.zeros((len(chosen), 1)),
        rows=rows, margin_rows=margin_rows, kinds=kinds, layers=layers, activations=activations_of(model, ids, where),
    )  # fmt: skip
    return units, text.skills[where], factored[:, kinds == 0], shares


def scores(labels: np.ndarray, skills: np.ndarray, target: np.ndarray) -> dict[str, float]:
    return {
        "index": float(adjusted_rand_score(skills, labels)),
        "information": float(adjusted_mutual_info_score(skills, labels)),
        "homogeneity": float(homogeneity_score(skills, labels)),
        "within target": role_information(labels, target, skills),
        "clusters": float(len(np.unique(labels))),
    }


def joins(tree: Tree, skills: np.ndarray) -> np.ndarray:
    """Mean cosine, over pairs of units, of the merge that joins one of each skill's; [skill, skill], NaN if unseen."""
    num = len(SKILLS)
    counts = np.zeros((tree.num_leaves + len(tree.merges), num))
    counts[np.arange(len(skills)), skills] = 1
    sums = np.zeros((num, num))
    for merge, (left, right, cosine, _) in enumerate(tree.merges):
        a, b = counts[int(left)], counts[int(right)]
        sums += cosine * (np.outer(a, b) + np.outer(b, a))
        counts[tree.num_leaves + merge] = a + b
    total = counts[-1]
    pairs = np.outer(total, total) - np.diag(total)
    return np.where(pairs > 0, sums / np.maximum(pairs, 1), np.nan)


def nearness(joined: np.ndarray, seed: int, answered: np.ndarray) -> dict[str, float]:
    """How near compositions lie to their parts, and the null's mean and 95th percentile.

    `answered` is [skill, token]: which tokens each skill answers with.
    """
    names = list(SKILLS)
    pairs = [
        (names.index(whole), names.index(part), {names.index(p) for p in COMPOSITIONS[whole]})
        for whole in COMPOSITIONS
        for part in COMPOSITIONS[whole]
    ]
    pairs = [pair for pair in pairs if np.isfinite(joined[pair[0], pair[1]])]
    if not pairs:
        return {}
    rng = np.random.default_rng(seed)
    ranks, drawn = [], []
    for whole, part, parts in pairs:
        seen = [s for s in range(len(names)) if s not in {whole, *parts} and np.isfinite(joined[whole, s])]
        ranks.append(_rank(joined[whole], part, seen))
        alike = [s for s in seen if (answered[s] & answered[part]).any()] or seen
        drawn.append([_rank(joined[whole], s, [o for o in seen if o != s]) for s in rng.choice(alike, NUM_DRAWS)])
    null = np.mean(drawn, axis=0)
    return {
        "composition near parts": float(np.mean(ranks)),
        "null": float(null.mean()),
        "null 95 %": float(np.percentile(null, 95)),
        "p": float((1 + (null >= np.mean(ranks)).sum()) / (1 + NUM_DRAWS)),
        "pairs": float(len(pairs)),
    }


def measure(seed: int, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """All figures of one seed, by description."""
    cache = Path(options.cache).expanduser()
    model, language = trained(seed, cache, num_steps=100 if options.quick else options.steps)
    units, skills, factored, shares = answers(model, language, seed, num_units=300 if options.quick else options.units)
    num_skills = len(np.unique(skills))
    answered = np.zeros((len(SKILLS), len(VOCABULARY)), dtype=bool)
    answered[skills, units.target] = True
    found: dict[str, dict[str, float]] = {
        "(units)": {
            "units": float(len(skills)),
            "skills": float(num_skills),
            "share known": float(np.nanmean(shares)),
            "share of skills that share a target": _share_of_sharing(answered),
        }
    }
    geometries = described(units) | {
        "gradient of margins, K-FAC": unit_rows(factored),
        "gradient of margins, K-FAC, half whitened": Whitener.fit(factored).apply(factored),
    }
    for name, rows in geometries.items():
        tree = average_linkage(rows)
        found[name] = scores(refine(rows, tree.cut(num_skills)), skills, units.target)
        if name in (LOSS, MARGIN) or is_rival(name):
            found[name] |= nearness(joins(tree, skills), seed, answered)
        if name == MARGIN:
            alone = Refined().cluster(rows, units.document).assignments
            found[f"{MARGIN}, number unknown"] = scores(alone, skills, units.target)
    for name, values in (("target token", units.target), ("previous token", units.previous)):
        found[name] = scores(values, skills, units.target)
    print(f"seed {seed}: {found[MARGIN]}", flush=True)
    return found


def bars_of(found: list[dict[str, dict[str, float]]]) -> list[Bar]:
    bars = []
    for column in ("index", "homogeneity"):
        rivals = [n for n in found[0] if is_rival(n) and column in found[0][n]]
        best = max(rivals, key=lambda name: np.mean([f[name][column] for f in found]))
        gains = np.array([f[MARGIN][column] - f[best][column] for f in found])
        low = float(gains.mean() - (half_interval(gains) if len(gains) > 1 else 0))
        bars.append(Bar(name=f"{column}: gradients of margins less {best}", value=low, limit=0.0, holds=low > 0))
    near = np.array([f[MARGIN].get("composition near parts", np.nan) for f in found])
    null = np.array([f[MARGIN].get("null", np.nan) for f in found])
    low = float((near - null).mean() - (half_interval(near - null) if len(near) > 1 else 0))
    return [*bars, Bar(name="compositions near their parts, less the null", value=low, limit=0.0, holds=low > 0)]


def main() -> None:
    parser = arguments("Clusters of gradients on a language of known skills.")
    parser.add_argument("--cache", default="~/.cache/quantascope", help="where trained networks are kept")
    parser.add_argument("--seeds", type=int, help="languages; the default is 5, or 1 with --quick")
    parser.add_argument("--steps", type=int, default=NUM_STEPS, help="of training, 1,024 tokens each")
    parser.add_argument("--units", type=int, default=1_500)
    parser.add_argument("--again", action="store_true", help="measure again what the cache has figures of")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    num_seeds = options.seeds or (1 if options.quick else 5)
    found = []
    with threadpool_limits(options.threads):
        for seed in range(options.seed, options.seed + num_seeds):
            name = f"figures-{RECIPE}-{options.steps}-{options.units}-{seed}{'-quick' if options.quick else ''}.json"
            path = Path(options.cache).expanduser() / "planted-language" / name
            found.append(kept(path, partial(measure, seed, options), again=options.again))
    rows = []
    for name in found[0]:
        row: dict[str, object] = {"rows": name}
        for column in found[0][name]:
            values = np.array([f[name][column] for f in found if column in f[name]])
            row |= {column: float(values.mean()), f"{column} ±": half_interval(values)}
        rows.append(row)
    columns = ["rows", "index", "index ±", "information", "homogeneity", "within target", "clusters"]
    finish("planted_language", [*columns, "composition near parts", "null", "p"], rows, bars_of(found), options)


@torch.no_grad()
def text_losses(model: Any, text: Text) -> np.ndarray:  # noqa: ANN401 - transformers is untyped
    """[window, position]; infinite at the first position."""
    parts = []
    for ids in torch.split(text.ids, 64):
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
        losses = cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        parts.append(losses.view(len(ids), -1).numpy())
    return np.pad(np.concatenate(parts), ((0, 0), (1, 0)), constant_values=np.inf)


def _rank(joined: np.ndarray, part: int, others: list[int]) -> float:
    """Share of the others that join at a lower cosine, ties half."""
    values = joined[others]
    return float(((values < joined[part]) + (values == joined[part]) / 2).mean())


def _share(known: np.ndarray) -> float:
    return float(known.mean()) if len(known) else float("nan")


def _share_of_sharing(answered: np.ndarray) -> float:
    """Share of the skills seen that answer with a token that another skill answers with too."""
    seen = answered.any(axis=1)
    return float((answered & (answered.sum(axis=0) > 1)).any(axis=1)[seen].mean())


if __name__ == "__main__":
    main()
