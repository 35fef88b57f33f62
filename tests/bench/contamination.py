"""How much planted contamination is found, by kind and by measure, and what is flagged in the clean training set?

    python -m tests.bench.contamination --train FILE --test FILE [--ngram N --overlap X --near X] [--encoder MODEL]

Plants every evaluation question, changed in one way, into the training set and looks for it, and prints the share
found. Beside our measures stand the rules of GPT-3 (a 13-gram in common, arXiv 2005.14165, appendix C) and Tülu 3
(8-grams that cover half of the question, arXiv 2411.15124). Then every clean training question that is flagged.
`--encoder` is a sentence-transformers model, for the cosine.
"""

from __future__ import annotations

import argparse
import random
import re
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from llmdistill.config import Decontaminate
from llmdistill.curate.contamination import EvaluationSet, contaminated
from llmdistill.curate.tokens import tokens
from llmdistill.rows import PROMPT_NAMES, first_present, read_rows

Change = Callable[[str, random.Random], str]
Find = Callable[[list[str], list[str]], list[bool]]

NAMES = "Amara Bjorn Chidi Dalia Emre Farid Greta Hana Imani Jovan Kofi Lena Mateus Nadia Otis Priya Rosa Sven".split()
NO_NAMES = set(
    "January February March April May June July August September October November December Monday Tuesday Wednesday "
    "Thursday Friday Saturday Sunday".split()
)
SYNONYMS = {
    "bought": "purchased",
    "buys": "purchases",
    "buy": "purchase",
    "gave": "handed",
    "gives": "hands",
    "got": "received",
    "gets": "receives",
    "made": "prepared",
    "makes": "prepares",
    "wants": "would like",
    "needs": "requires",
    "need": "require",
    "has": "owns",
    "had": "owned",
    "went": "travelled",
    "decided": "chose",
    "each": "every single",
    "total": "overall",
    "altogether": "in all",
    "friends": "pals",
    "children": "kids",
    "kids": "children",
    "money": "cash",
    "house": "home",
    "store": "shop",
    "shop": "store",
    "big": "large",
    "large": "big",
    "small": "little",
    "gift": "present",
    "paid": "spent",
    "pay": "spend",
    "pays": "spends",
    "earns": "makes",
    "earn": "make",
    "uses": "takes",
    "then": "afterwards",
    "also": "as well",
    "start": "beginning",
    "begins": "starts",
    "left": "remaining",
    "mom": "mother",
    "dad": "father",
    "every": "each",
    "while": "whereas",
    "if": "supposing",
    "after": "following",
    "per": "for each",
    "only": "just",
    "more": "additional",
    "costs": "is priced at",
    "cost": "price",
    "does": "did",
    "will": "is going to",
    "how": "tell me how",
    "what": "say what",
}
PUNCTUATION = {
    ",": "，",
    ".": "。",
    "?": "？",
    "!": "！",
    ":": "：",
    ";": "；",
    '"': "”",
    "'": "’",
    "-": "—",
    "(": "（",
    ")": "）",
}


def verbatim(question: str, rng: random.Random) -> str:
    """As it stands."""
    return question


def punctuation(question: str, rng: random.Random) -> str:
    """Full-width and curly marks, without the spaces after them; numbers keep theirs."""
    marks = re.sub(r"(?<!\d)[,.?!:;\"'()-]|[,.?!:;\"'()-](?!\d)", lambda mark: PUNCTUATION[mark[0]], question)
    return re.sub("([，。？！：；]) ", r"\1", marks)


def sloppy(question: str, rng: random.Random) -> str:
    """Lower case, no punctuation but in numbers, more spaces."""
    return re.sub(r"(?<!\d)[,.?!:;\"'](?!\d)|[,.?!](?=\s|$)", "", question).lower().replace(" ", "  ")


def names(question: str, rng: random.Random) -> str:
    """Every name another one."""
    found = [word for word in re.findall(r"\b[A-Z][a-z]+\b", question) if word not in NO_NAMES | COMMON]
    others = dict(zip(dict.fromkeys(found), rng.sample(NAMES, len(NAMES)), strict=False))
    return re.sub(r"\b[A-Z][a-z]+\b", lambda word: others.get(word[0], word[0]), question)


def synonyms(question: str, rng: random.Random) -> str:
    """Common words replaced wherever there is another."""
    return re.sub(r"\b[a-z]+\b", lambda word: SYNONYMS.get(word[0], word[0]), question)


def order(question: str, rng: random.Random) -> str:
    """What is asked comes first, and the clauses of the other sentences change places."""
    *facts, asked = re.split(r"(?<=[.?!])\s+", question.strip())
    return " ".join([asked, *(_clauses(fact) for fact in facts)])


def _clauses(sentence: str) -> str:
    """`A, and B.` becomes `B, and A.`."""
    parts = re.fullmatch(r"(.{15,}?)(, and | and then |, but |, so )(.{15,}?)([.?!])", sentence)
    return f"{parts[3]}{parts[2]}{parts[1]}{parts[4]}" if parts else sentence


def reworded(question: str, rng: random.Random) -> str:
    """Names, common words and order at once."""
    return order(synonyms(names(question, rng), rng), rng)


INSIDE = "Here are three exercises from my homework. First: {} Second: {} Third: {} Solve only the last one, please."

KINDS: dict[str, Change] = {
    "verbatim": verbatim,
    "translated punctuation": punctuation,
    "case, spacing": sloppy,
    "names swapped": names,
    "common words replaced": synonyms,
    "clause order": order,
    "all three": reworded,
}
COMMON: set[str] = set()
"""Words that stand at the beginning of a sentence and are no names."""


def read(path: Path) -> list[str]:
    """The questions of a file."""
    return [str(first_present(row, None, PROMPT_NAMES)) for _, row in read_rows(path, 10**7)]


def planted(train: list[str], test: list[str]) -> dict[str, tuple[list[str], list[str]]]:
    """(questions, replies) of each kind of contamination, one for each evaluation question."""
    rng = random.Random(0)
    kinds = {kind: ([change(text, rng) for text in test], [""] * len(test)) for kind, change in KINDS.items()}
    longer = [INSIDE.format(rng.choice(train), text, rng.choice(train)) for text in test]
    kinds["inside a longer text"] = (longer, [""] * len(test))
    asked = [f"{text} (exercise {number})" for number, text in enumerate(rng.choices(train, k=len(test)))]
    kinds["inside a reply"] = (asked, [f"A similar one: {text} That is solved alike." for text in test])
    return kinds


def rule(test: list[str], ngram: int, share: float) -> Find:
    """Published rules over words: flagged when n-grams in common cover more than `share` of an evaluation question."""
    posting: dict[tuple[str, ...], list[tuple[int, int]]] = {}
    sizes = []
    for number, text in enumerate(test):
        words = tokens(text)
        sizes.append(len(words))
        for place in range(len(words) - ngram + 1):
            posting.setdefault(tuple(words[place : place + ngram]), []).append((number, place))

    def is_flagged(text: str) -> bool:
        words = tokens(text)
        covered: dict[int, set[int]] = {}
        for place in range(len(words) - ngram + 1):
            for number, at in posting.get(tuple(words[place : place + ngram]), ()):
                covered.setdefault(number, set()).update(range(at, at + ngram))
        return any(len(places) > share * sizes[number] for number, places in covered.items())

    return lambda questions, replies: [
        is_flagged(question) or is_flagged(reply) for question, reply in zip(questions, replies, strict=True)
    ]


def ours(test: list[str], settings: Decontaminate) -> Find:
    """Whether each record is flagged."""
    sets = [EvaluationSet("test", test, [str(number) for number in range(1, len(test) + 1)])]
    return lambda questions, replies: [bool(found) for found in contaminated(questions, replies, sets, settings)]


def cosine(test: list[str], model: str, threshold: float) -> Find:
    """Whether the cosine of the embeddings reaches the threshold."""
    from sentence_transformers import SentenceTransformer

    encoder = SentenceTransformer(model, device="cpu")
    known: dict[str, np.ndarray] = {}

    def embed(texts: list[str]) -> np.ndarray:
        new = [text for text in dict.fromkeys(texts) if text not in known]
        known.update(zip(new, encoder.encode(new, normalize_embeddings=True), strict=True))
        return np.stack([known[text] for text in texts])

    others = embed(test)
    sets = [EvaluationSet("test", test, [""] * len(test))]
    settings = Decontaminate(near=None, overlap=None, similarity=threshold)

    def find(questions: list[str], replies: list[str]) -> list[bool]:
        return [bool(found) for found in contaminated(questions, replies, sets, settings, (embed(questions), [others]))]

    return find


def show(title: str, find: Find, train: list[str], kinds: dict[str, tuple[list[str], list[str]]]) -> None:
    """One row of the table."""
    blank = [""] * len(train)
    begun = time.perf_counter()
    flagged = sum(find(train, blank))
    seconds = time.perf_counter() - begun
    cells = []
    for questions, replies in kinds.values():
        found = find(train + questions, blank + replies)[len(train) :]
        cells.append(f"{sum(found) / len(found):.1%}")
    print("|", " | ".join([title, *cells, f"{flagged}", f"{seconds:.1f}"]), "|", flush=True)


def list_flagged(train: list[str], test: list[str], settings: Decontaminate) -> None:
    """The clean training questions that are flagged, with the question that each resembles."""
    sets = [EvaluationSet("test", test, [str(number) for number in range(1, len(test) + 1)])]
    for row, found in enumerate(contaminated(train, [""] * len(train), sets, settings), 1):
        if found:
            print(f"\ntrain {row}, test {found.where}: {found.measure} {found.value:.2f}: {found.span!r}")
            print(f"  train: {train[row - 1]}\n  test:  {found.question}")


def main() -> None:
    """Print the tables."""
    usual = Decontaminate()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--ngram", type=int, default=usual.ngram)
    parser.add_argument("--overlap", type=float, default=usual.overlap)
    parser.add_argument("--near", type=float, default=usual.near)
    parser.add_argument("--encoder")
    parser.add_argument("--similarity", type=float, nargs="*", default=[0.8, 0.85, 0.9])
    parser.add_argument("--sweep", action="store_true", help="try other settings")
    options = parser.parse_args()
    train, test = read(options.train), read(options.test)
    lower = {word for text in train + test for word in re.findall(r"\b[a-z]+\b", text)}
    COMMON.update(word.capitalize() for word in lower)
    kinds = planted(train, test)
    print(f"| flagged by | {' | '.join(kinds)} | clean training questions | seconds |")
    print("|---" * (len(kinds) + 3) + "|")
    show("GPT-3: a 13-gram", rule(test, 13, 0.0), train, kinds)
    show("Tülu 3: half in 8-grams", rule(test, 8, 0.5), train, kinds)
    settings = Decontaminate(near=options.near, overlap=options.overlap, ngram=options.ngram)
    tried = [settings.model_copy(update={"near": None}), settings.model_copy(update={"overlap": None}), settings]
    if options.sweep:
        tried = [Decontaminate(near=None, ngram=n, overlap=x) for n in (4, 5, 6, 8, 10) for x in (0.3, 0.4, 0.5, 0.6)]
        tried += [Decontaminate(near=x, overlap=None) for x in (0.4, 0.5, 0.6, 0.7, 0.8)]
    for each in tried:
        parts = [f"overlap {each.overlap} ({each.ngram})"] * (each.overlap is not None)
        show(" or ".join(parts + [f"near {each.near}"] * (each.near is not None)), ours(test, each), train, kinds)
    for threshold in options.similarity if options.encoder else ():
        show(f"similarity {threshold}", cosine(test, options.encoder, threshold), train, kinds)
    list_flagged(train, test, settings)


if __name__ == "__main__":
    main()
