"""Instructions on words and dates, written in bytes."""

import datetime
import random
import re
import string
from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple

import purestep as ps

LETTERS = 4  # of a word
FIRST_DAY, DAYS = datetime.date(1900, 1, 1), 73_000
TASKS: dict[str, Callable[[str], str]] = {
    "Upper": str.upper,
    "Swap": lambda word: word[LETTERS // 2 :] + word[: LETTERS // 2],
    "Spell": "-".join,
    "Date": lambda date: ".".join(reversed(date.split("-"))),
}


class Bytes:
    """A tokenizer of UTF-8 bytes. A newline ends a text.

    >>> Bytes().encode("né"), Bytes().decode([110, 195, 169, 195])
    ([110, 195, 169], 'né�')
    """

    eos_token_id = 10
    vocab_size = 256

    def encode(self, text: str) -> list[int]:
        """Return the bytes of a text."""
        return list(text.encode())

    def decode(self, tokens: Iterable[int]) -> str:
        """Return the text of bytes; bytes that are not UTF-8 are replaced."""
        return bytes(tokens).decode(errors="replace")


class Lessons(NamedTuple):
    """Examples to learn, and the instructions that measure the model, each task in one batch."""

    learnt: ps.data.LengthBuckets
    unseen: dict[str, list["Instruction"]]
    batches: dict[str, ps.types.Batch]


class Instruction(NamedTuple):
    """A task, what it is done to, and the answer."""

    task: str
    given: str
    answer: str

    @property
    def prompt(self) -> str:
        """The text before the answer.

        >>> Instruction("Upper", "word", "WORD").prompt
        'Upper: word -> '
        """
        return f"{self.task}: {self.given} -> "

    @property
    def record(self) -> dict[str, str]:
        """The record that `ps.data.tokenize_records` reads."""
        return {"prompt": self.prompt, "completion": self.answer}


def instructions(
    words: Iterable[str], train: int, test: int, seed: int
) -> tuple[dict[str, list[Instruction]], dict[str, list[Instruction]]]:
    """Return instructions to learn and others to measure, by task.

    Those to measure are on words of the list, those to learn on made-up words that are not in it. A date is
    in one of the two only.

    Args:
        words: words of `LETTERS` letters, at least `test` of them.
        train: the number to learn, of each task; made-up words that are in the list are left out.
        test: the number to measure, of each task; at least 1.
        seed: decides the choice.

    >>> learnt, unseen = instructions(["that", "when"], train=1, test=1, seed=0)
    >>> [each[0].answer for each in learnt.values()], [each[0].answer for each in unseen.values()]
    (['VTKG', 'hmku', 'n-h-t-q', '12.02.2091'], ['WHEN', 'atth', 'w-h-e-n', '27.09.1952'])
    """
    draw, known = random.Random(seed), sorted(set(words))
    learnt: dict[str, list[Instruction]] = {}
    unseen: dict[str, list[Instruction]] = {}
    for task, answer in TASKS.items():
        if task == "Date":
            days = draw.sample(range(DAYS), train + test)
            given = [(FIRST_DAY + datetime.timedelta(day)).isoformat() for day in days]
        else:
            made_up = ("".join(draw.choices(string.ascii_lowercase, k=LETTERS)) for _ in range(train))
            given = [word for word in made_up if word not in known] + draw.sample(known, test)
        both = [Instruction(task, each, answer(each)) for each in given]
        learnt[task], unseen[task] = both[:-test], both[-test:]
    return learnt, unseen


def words_of(text: str) -> list[str]:
    """Return the different words of `LETTERS` small letters in a text, sorted.

    >>> words_of("when that Word is a when")
    ['that', 'when']
    """
    return sorted(set(re.findall(rf"\b[a-z]{{{LETTERS}}}\b", text)))


def prepared(
    text: str, words: Iterable[str], counts: tuple[int, int], rows: int, replayed: float, seed: int
) -> Lessons:
    """Return instructions as examples whose prompts are masked, with pieces of a text among them.

    Args:
        text: the text; all of a piece is learnt.
        words: as in `instructions`.
        counts: the number of instructions of each task to learn and to measure.
        rows: of a batch to learn.
        replayed: the number of pieces for each instruction.
        seed: decides the instructions, the pieces and the order.

    >>> found = prepared("any text " * 9, ["that", "when"], (20, 2), rows=8, replayed=0.1, seed=0)
    >>> found.learnt.shapes, found.batches["Upper"]["weights"].sum(axis=1)  # "WHEN", and a newline
    ([(8, 30)], array([5, 5], dtype=float32))
    """
    learnt, unseen = instructions(words, *counts, seed)
    records = [each.record for of_task in learnt.values() for each in of_task]
    longest = max(len("".join(record.values())) for record in records) + 1
    draw = random.Random(seed)
    starts = (draw.randrange(len(text) - longest) for _ in range(round(replayed * len(records))))
    pieces = [{"text": text[start : start + longest]} for start in starts]
    read = partial(ps.data.tokenize_records, tokenizer=Bytes())
    whole = read(pieces, end_token=None, context=longest, long="truncate").examples if pieces else []

    def batches(examples: list[ps.data.Example], rows: int) -> ps.data.LengthBuckets:
        return ps.data.LengthBuckets(examples, rows * (longest - 1), max_shapes=1, seed=seed)

    measured = {
        task: batches(read([each.record for each in of_task]).examples, len(of_task)).at(0)
        for task, of_task in unseen.items()
    }
    return Lessons(batches([*read(records).examples, *whole], rows), unseen, measured)
