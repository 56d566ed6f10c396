"""A language made of skills: each sentence is made by one of 50 skills, and its answer tokens can only be known by it.

Skills share their words: eighteen answer with a digit, nine with a letter, and so on, so that a token alone never says
which skill made it; they share cue words (`after`, `before`, `the`, `=`) too, several are said in two or three ways,
and lists vary in length, so that neither one neighbour nor a bag of words gives a skill away. Compositions apply one
skill to what another gives. Facts (codes, birthdays, colours) are drawn by the seed and never stated otherwise.
Sentences follow each other at random, skills are drawn with frequencies ∝ rank^−exponent, and ranks are shuffled.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

DIGITS = [str(i) for i in range(10)]
LETTERS = list("abcdefghij")
MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
DAYS = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
COLOURS = ["red", "blue", "yellow", "green", "purple", "orange", "black", "white"]
OPENING, CLOSING = ["(", "[", "{", "<"], [")", "]", "}", ">"]
NAMES = ["alice", "boris", "clara", "dinah", "edgar", "fiona", "gavin", "helen", "igor", "julia", "karim", "lotte"]
THINGS = ["kite", "boat", "lamp", "coat", "vase", "drum", "tent", "rope", "sled", "bell"]
SINGULAR = ["cat", "dog", "fox", "hen", "owl", "cow"]
PLURAL = [word + "s" for word in SINGULAR]
FUNCTION_WORDS = """
    . , : ; = + - | ? max min larger smaller of and or after before comes next two later twice double count how many
    code number let with copy say again reverse backwards first last list odd one out initial the is are was were now
    by near yesterday born in on meets day month mix makes box holds then opposite word to from sum not
"""
_ANSWERS = [*DIGITS, *LETTERS, *MONTHS, *DAYS, *COLOURS, *OPENING, *CLOSING]
_OTHERS = [*NAMES, *THINGS, *SINGULAR, *PLURAL, *FUNCTION_WORDS.split()]
VOCABULARY = list(dict.fromkeys(["<end>", *_ANSWERS, *_OTHERS]))
IDS = {word: i for i, word in enumerate(VOCABULARY)}

COMPOSITIONS: dict[str, tuple[str, ...]] = {
    "successor of a sum": ("successor", "sum"),
    "double of the larger": ("double", "larger"),
    "sum with a code": ("code of a name", "sum"),
    "successor of a code": ("successor", "code of a name"),
    "month after a birthday": ("next month", "month of birth"),
    "month before a birthday": ("month before", "month of birth"),
    "day after a meeting": ("next day", "day of meeting"),
    "letter after the last": ("next letter", "last of a list"),
    "letter after the first": ("next letter", "first of a list"),
    "opposite of a thing's colour": ("opposite colour", "colour of a thing"),
}
"""Skills that are made of others, each with its parts."""

_MIXES = {
    ("red", "blue"): "purple",
    ("red", "yellow"): "orange",
    ("blue", "yellow"): "green",
    ("black", "white"): "blue",
}
_OPPOSITES = dict(zip(COLOURS, ["green", "orange", "purple", "red", "yellow", "blue", "white", "black"], strict=True))

Sentence = tuple[str, str]
"""What is given, and what the skill answers; words apart by spaces."""


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """The facts of one language."""

    code: dict[str, int]
    birth: dict[str, int]
    """Month of each name, from 0."""
    meeting: dict[str, int]
    colour: dict[str, str]
    initial: dict[str, str]

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "World":
        def of(names: list[str], count: int) -> dict[str, int]:
            return dict(zip(names, rng.integers(0, count, len(names)).tolist(), strict=True))

        return cls(
            code=of(NAMES, 10),
            birth=of(NAMES, 12),
            meeting=of(NAMES, 7),
            colour={thing: COLOURS[i] for thing, i in of(THINGS, 8).items()},
            initial={name: LETTERS[i] for name, i in of(NAMES, 10).items()},
        )


Maker = Callable[[np.random.Generator, World], Sentence]


def _skills() -> dict[str, Maker]:
    """Every skill by name."""
    made: dict[str, Maker] = {}

    def skill(name: str) -> Callable[[Maker], Maker]:
        def keep(maker: Maker) -> Maker:
            made[name] = maker
            return maker

        return keep

    _digit_skills(skill)
    _calendar_skills(skill)
    _letter_skills(skill)
    _word_skills(skill)
    return made


def _pick(rng: np.random.Generator, values: list[str]) -> str:
    return values[int(rng.integers(len(values)))]


def _digits(rng: np.random.Generator, count: int) -> list[int]:
    return rng.integers(0, 10, count).tolist()


def _letters(rng: np.random.Generator, least: int, most: int) -> list[str]:
    return [LETTERS[i] for i in rng.integers(0, 10, int(rng.integers(least, most + 1)))]


def _digit_skills(skill: Callable[[str], Callable[[Maker], Maker]]) -> None:
    def plain(name: str, ways: list[str], answer: Callable[[int, int], int], *, distinct: bool = False) -> None:
        def make(rng: np.random.Generator, world: World) -> Sentence:
            del world
            a, b = rng.permutation(10)[:2].tolist() if distinct else _digits(rng, 2)
            return _pick(rng, ways).format(a=a, b=b), str(answer(a, b) % 10)

        skill(name)(make)

    plain("sum", ["{a} + {b} =", "sum of {a} and {b} is"], lambda a, b: a + b)
    plain("difference", ["{a} - {b} =", "from {a} not {b} is"], lambda a, b: a - b)
    plain("larger", ["max of {a} and {b} is", "larger {a} or {b} ="], max, distinct=True)
    plain("smaller", ["min of {a} and {b} is", "smaller {a} or {b} ="], min, distinct=True)
    plain("successor", ["after {a} comes", "next to {a} is"], lambda a, b: a + 1)
    plain("predecessor", ["before {a} comes", "by {a} and not after is"], lambda a, b: a - 1)
    plain("double", ["twice {a} =", "double of {a} is"], lambda a, b: 2 * a)
    plain("successor of a sum", ["after {a} + {b} comes", "next to sum of {a} and {b} is"], lambda a, b: a + b + 1)
    plain(
        "double of the larger",
        ["twice max of {a} and {b} =", "double of larger {a} or {b} is"],
        lambda a, b: 2 * max(a, b),
        distinct=True,
    )

    @skill("digits in order")
    def _(rng: np.random.Generator, world: World) -> Sentence:
        start, length = int(rng.integers(10)), int(rng.integers(2, 5))
        return " ".join(DIGITS[(start + i) % 10] for i in range(length)), DIGITS[(start + length) % 10]

    @skill("counting letters")
    def _(rng: np.random.Generator, world: World) -> Sentence:
        count = int(rng.integers(1, 7))
        return f"{_pick(rng, ['count', 'how many'])} {' '.join([_pick(rng, LETTERS)] * count)} :", str(count)

    @skill("recalling a variable")
    def _(rng: np.random.Generator, world: World) -> Sentence:
        (name, other), (a, b) = rng.permutation(LETTERS)[:2].tolist(), _digits(rng, 2)
        return f"let {name} = {a} , {other} = {b} ; {name} =", str(a)

    def of_code(name: str, ways: list[str], answer: Callable[[int, int], int]) -> None:
        def make(rng: np.random.Generator, world: World) -> Sentence:
            person, b = _pick(rng, NAMES), int(rng.integers(10))
            return _pick(rng, ways).format(name=person, b=b), str(answer(world.code[person], b) % 10)

        skill(name)(make)

    of_code("code of a name", ["code of {name} is", "{name} with code"], lambda a, b: a)
    of_code("sum with a code", ["code of {name} + {b} =", "sum of code of {name} and {b} is"], lambda a, b: a + b)
    of_code("successor of a code", ["after code of {name} comes", "next to code of {name} is"], lambda a, b: a + 1)

    @skill("number of a month")
    def _(rng: np.random.Generator, world: World) -> Sentence:
        month = int(rng.integers(9))
        return _pick(rng, ["number of {m} is", "month {m} :"]).format(m=MONTHS[month]), str(month + 1)

    @skill("number of a day")
    def _(rng: np.random.Generator, world: World) -> Sentence:
        day = int(rng.integers(7))
        return _pick(rng, ["number of {d} is", "day {d} :"]).format(d=DAYS[day]), str(day + 1)

    @skill("last digit again")
    def _(rng: np.random.Generator, world: World) -> Sentence:
        digits = _digits(rng, int(rng.integers(2, 5)))
        return f"{_pick(rng, ['say', 'list'])} {' '.join(map(str, digits))} , again", str(digits[-1])


def _calendar_skills(skill: Callable[[str], Callable[[Maker], Maker]]) -> None:
    def cycle(name: str, ways: list[str], words: list[str], shift: int) -> None:
        def make(rng: np.random.Generator, world: World) -> Sentence:
            index = int(rng.integers(len(words)))
            return _pick(rng, ways).format(w=words[index]), words[(index + shift) % len(words)]

        skill(name)(make)

    def sequence(name: str, words: list[str]) -> None:
        def make(rng: np.random.Generator, world: World) -> Sentence:
            start, length = int(rng.integers(len(words))), int(rng.integers(2, 5))
            given = [words[(start + i) % len(words)] for i in range(length)]
            return " ".join(given), words[(start + length) % len(words)]

        skill(name)(make)

    def fact(name: str, ways: list[str], which: str, words: list[str], shift: int) -> None:
        def make(rng: np.random.Generator, world: World) -> Sentence:
            person = _pick(rng, NAMES)
            return _pick(rng, ways).format(n=person), words[(getattr(world, which)[person] + shift) % len(words)]

        skill(name)(make)

    cycle("next month", ["after {w} comes", "next to {w} is"], MONTHS, 1)
    cycle("month before", ["before {w} comes", "by {w} and not after is"], MONTHS, -1)
    cycle("month after next", ["two after {w} comes", "two later {w} :"], MONTHS, 2)
    sequence("months in order", MONTHS)
    fact("month of birth", ["{n} was born in", "month of {n} is"], "birth", MONTHS, 0)
    fact("month after a birthday", ["{n} was born before", "after month of {n} comes"], "birth", MONTHS, 1)
    fact("month before a birthday", ["{n} was born after", "before month of {n} comes"], "birth", MONTHS, -1)
    cycle("next day", ["after {w} comes", "next to {w} is"], DAYS, 1)
    cycle("day before", ["before {w} comes", "by {w} and not after is"], DAYS, -1)
    sequence("days in order", DAYS)
    fact("day of meeting", ["{n} meets on", "day of {n} is"], "meeting", DAYS, 0)
    fact("day after a meeting", ["{n} meets before", "after day of {n} comes"], "meeting", DAYS, 1)


def _letter_skills(skill: Callable[[str], Callable[[Maker], Maker]]) -> None:
    def of_list(name: str, ways: list[str], answer: Callable[[list[str]], str], least: int = 2, most: int = 4) -> None:
        def make(rng: np.random.Generator, world: World) -> Sentence:
            letters = _letters(rng, least, most)
            return _pick(rng, ways).format(l=" ".join(letters)), answer(letters)

        skill(name)(make)

    def after(letter: str) -> str:
        return LETTERS[(LETTERS.index(letter) + 1) % 10]

    of_list("copying", ["copy {l} :", "say {l} again :"], lambda ls: " ".join(ls))
    of_list("reversing", ["reverse {l} :", "{l} backwards :"], lambda ls: " ".join(ls[::-1]))
    of_list("first of a list", ["first of {l} :", "list {l} , first :"], lambda ls: ls[0])
    of_list("last of a list", ["last of {l} :", "list {l} , last :"], lambda ls: ls[-1])
    of_list("next letter", ["after {l} comes", "next to {l} is"], lambda ls: after(ls[0]), 1, 1)
    of_list("letter after the last", ["after last of {l} comes", "list {l} , next to last :"], lambda ls: after(ls[-1]))
    of_list(
        "letter after the first", ["after first of {l} comes", "list {l} , next to first :"], lambda ls: after(ls[0])
    )

    @skill("odd one out")
    def _(rng: np.random.Generator, world: World) -> Sentence:
        common, odd = rng.permutation(LETTERS)[:2].tolist()
        letters = [common] * int(rng.integers(2, 5))
        letters.insert(int(rng.integers(len(letters) + 1)), odd)
        return f"{_pick(rng, ['odd one', 'one out'])} {' '.join(letters)} :", odd

    @skill("initial of a name")
    def _(rng: np.random.Generator, world: World) -> Sentence:
        name = _pick(rng, NAMES)
        return _pick(rng, ["initial of {n} is", "{n} , first :"]).format(n=name), world.initial[name]


def _word_skills(skill: Callable[[str], Callable[[Maker], Maker]]) -> None:
    @skill("closing a bracket")
    def _(rng: np.random.Generator, world: World) -> Sentence:
        kind = int(rng.integers(4))
        return f"{OPENING[kind]} {' '.join(_letters(rng, 1, 4))} ;", CLOSING[kind]

    @skill("closing brackets in brackets")
    def _(rng: np.random.Generator, world: World) -> Sentence:
        kinds = rng.integers(0, 4, int(rng.integers(2, 4))).tolist()
        return f"{' '.join(OPENING[k] for k in kinds)} |", " ".join(CLOSING[k] for k in kinds[::-1])

    def agreement(name: str, ways: list[str], singular: str, plural: str, *, both: bool = False) -> None:
        def make(rng: np.random.Generator, world: World) -> Sentence:
            many = both or bool(rng.integers(2))
            noun = _pick(rng, PLURAL if many and not both else SINGULAR)
            other = _pick(rng, SINGULAR if both or rng.integers(2) else PLURAL)
            return _pick(rng, ways).format(n=noun, o=other), plural if many else singular

        skill(name)(make)

    agreement("agreement", ["the {n}", "now the {n}"], "is", "are")
    agreement("agreement across a noun", ["the {n} near the {o}", "the {n} by the {o}"], "is", "are")
    agreement("agreement in the past", ["yesterday the {n}", "before now the {n}"], "was", "were")
    agreement("past agreement across a noun", ["yesterday the {n} near the {o}"], "was", "were")

    @skill("mixing colours")
    def _(rng: np.random.Generator, world: World) -> Sentence:
        pair = list(_MIXES)[int(rng.integers(len(_MIXES)))]
        a, b = pair if rng.integers(2) else pair[::-1]
        return _pick(rng, ["{a} and {b} makes", "mix {a} with {b} :"]).format(a=a, b=b), _MIXES[pair]

    @skill("opposite colour")
    def _(rng: np.random.Generator, world: World) -> Sentence:
        colour = _pick(rng, COLOURS)
        return _pick(rng, ["opposite of {c} is", "not {c} then"]).format(c=colour), _OPPOSITES[colour]

    @skill("colour of a thing")
    def _(rng: np.random.Generator, world: World) -> Sentence:
        thing = _pick(rng, THINGS)
        return _pick(rng, ["the {t} is", "{t} :"]).format(t=thing), world.colour[thing]

    @skill("opposite of a thing's colour")
    def _(rng: np.random.Generator, world: World) -> Sentence:
        thing = _pick(rng, THINGS)
        ways = ["opposite of the {t} is", "the {t} is not"]
        return _pick(rng, ways).format(t=thing), _OPPOSITES[world.colour[thing]]

    @skill("recalling a colour")
    def _(rng: np.random.Generator, world: World) -> Sentence:
        (thing, other), colours = rng.permutation(THINGS)[:2].tolist(), rng.permutation(COLOURS)[:2].tolist()
        return f"box {thing} holds {colours[0]} , box {other} holds {colours[1]} ; box {thing} holds", colours[0]


SKILLS: dict[str, Maker] = _skills()


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """Windows of the language."""

    ids: torch.Tensor
    """[window, position], int64."""
    skills: np.ndarray
    """[window, position], the skill that made the token, in the order of SKILLS; −1 for what is given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Language:
    """The facts, and how often each skill is used."""

    world: World
    frequencies: np.ndarray
    """[skill], sums to 1."""
    names: list[str] = field(default_factory=lambda: list(SKILLS))

    @classmethod
    def draw(cls, seed: int, *, exponent: float = 1.0) -> "Language":
        """Facts and ranks by the seed; frequencies ∝ rank^−exponent."""
        rng = np.random.default_rng(seed)
        world = World.draw(rng)
        ranks = rng.permutation(len(SKILLS)) + 1
        weights = ranks.astype(np.float64) ** -exponent
        return cls(world=world, frequencies=weights / weights.sum())

    def text(self, num_windows: int, length: int, seed: int) -> Text:
        """Windows of `length` tokens, each a run of whole sentences cut off at its end."""
        rng = np.random.default_rng(seed)
        makers = list(SKILLS.values())
        ids = np.zeros((num_windows, length), np.int64)
        skills = np.full((num_windows, length), -1, np.int64)
        for window in range(num_windows):
            words, marks = ["<end>"], [-1]
            while len(words) < length:
                skill = int(rng.choice(len(makers), p=self.frequencies))
                given, answer = (part.split() for part in makers[skill](rng, self.world))
                words += [*given, *answer, "."]
                marks += [*([-1] * len(given)), *([skill] * len(answer)), -1]
            ids[window] = [IDS[word] for word in words[:length]]
            skills[window] = marks[:length]
        return Text(ids=torch.from_numpy(ids), skills=skills)
