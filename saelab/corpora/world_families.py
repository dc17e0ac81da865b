"""The kinds of text of the synthetic world. Each function writes one labelled document from its own random
source.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from saelab.corpora import world_lexicon as lexicon
from saelab.corpora.documents import Span

# a sentence is an opening and an action; every fifth of both is held out
IOI_OPENINGS = (
    "When {a} and {b} went to the {place}, ",
    "Then, {a} and {b} went to the {place}. ",
    "After {a} and {b} left the {place}, ",
    "While {a} and {b} were at the {place}, ",
    "When {a} and {b} got a {object} at the {place}, ",
    "Yesterday {a} and {b} met at the {place}, and ",
    "{a} and {b} walked through the {place}. Then ",
    "In the {place}, {a} saw {b}. Later ",
    "Once {a} and {b} had found the {place}, ",
    "It was late when {a} and {b} saw the {place}. ",
    "Friends {a} and {b} stayed at the {place}. ",
    "{a} and {b} had a long talk in the {place}. After that ",
    "Because {a} and {b} liked the {place}, ",
    "At the {place}, {a} waited for {b}, and ",
    "During the trip of {a} and {b} to the {place}, ",
    "{a} and {b} were working at the {place}. ",
    "The {adjective} {place} was where {a} and {b} lived, and ",
    "Soon after {a} and {b} came back from the {place}, ",
    "As {a} and {b} were leaving the {place}, ",
    "Before {a} and {b} reached the {place}, ",
    "Every morning {a} and {b} cleaned the {place}, and ",
    "Long ago {a} met {b} at the {place}; today ",
    "{a} had lunch with {b} near the {place}. Then ",
    "On {day}, {a} and {b} visited the {place}, where ",
    "Although {a} and {b} knew the {place} well, ",
    "Outside the {place} {a} met {b}, and ",
    "Both {a} and {b} wanted to see the {place}. So ",
    "Since {a} and {b} were alone in the {place}, ",
    "{a} ran to the {place} with {b}. There ",
    "There was a {object} for {a} and {b} at the {place}, and ",
)
IOI_ACTIONS = (
    "{s} gave a {object} to {io}.",
    "{s} handed the {object} to {io}.",
    "{s} showed the {object} to {io}.",
    "{s} sold the {object} to {io}.",
    "{s} decided to give the {object} to {io}.",
    "{s} offered a {object} to {io}.",
    "{s} brought the {object} to {io}.",
    "{s} passed the {adjective} {object} to {io}.",
    "{s} lent a {object} to {io}.",
    "{s} presented a {adjective} {object} to {io}.",
    "{s} sent a {object} to {io}.",
    "{s} threw the {object} to {io}.",
    "{s} returned the {object} to {io}.",
    "{s} said goodbye to {io}.",
    "{s} read a story to {io}.",
    "{s} wrote a letter to {io}.",
    "{s} carried the {object} to {io}.",
    "{s} promised a {object} to {io}.",
    "{s} left the {object} to {io}.",
    "{s} whispered a secret to {io}.",
    "{s} gave it to {io}.",
    "{s} wanted to talk to {io}.",
    "{s} sang a song to {io}.",
    "{s} listened to {io}.",
    "{s} mailed the {object} to {io}.",
)
# a sentence is a subject and a range of years
YEAR_SUBJECTS = (
    "The {event}",
    "The {adjective} {event}",
    "A {event}",
    "The {event} in the {place}",
    "The first {event}",
    "The {event} of {name}",
    "Their {event}",
    "The famous {event}",
    "A {adjective} {event}",
    "The second {event}",
    "The {event} near the {place}",
    "The life of {name}",
    "The {place}",
    "The {adjective} {place}",
    "The last {event}",
)
YEAR_RANGES = (
    " lasted from the year {c}{y} to the year {c}{z}.",
    " lasted from {c}{y} to {c}{z}.",
    " began in {c}{y} and ended in {c}{z}.",
    " went on from {c}{y} to {c}{z}.",
    " began in {c}{y} and was over in {c}{z}.",
    " started in the year {c}{y} and ended in the year {c}{z}.",
    " took place between {c}{y} and {c}{z}.",
    " ran from the year {c}{y} to {c}{z}.",
    " broke out in {c}{y} and ended in {c}{z}.",
    " of {c}{y} came to an end in {c}{z}.",
    ", which began in {c}{y}, ended in {c}{z}.",
    " opened in {c}{y} and closed in {c}{z}.",
    " continued from {c}{y} until {c}{z}.",
    " was planned in {c}{y} and finished in {c}{z}.",
    " lasted from the year {c}{y} until {c}{z}.",
    " started in {c}{y}. It ended in {c}{z}.",
    " of {c}{y} was over in {c}{z}.",
    " was known since {c}{y} and forgotten by {c}{z}.",
    " ({c}{y} to {c}{z}) was long.",
    " went on between the year {c}{y} and the year {c}{z}.",
    " returned in {c}{y} and again in {c}{z}.",
    " was new in {c}{y} and old in {c}{z}.",
    " was opened in the year {c}{y} and came to an end in {c}{z}.",
    " changed everything from {c}{y} to the year {c}{z}.",
    ", which broke out in {c}{y}, was over in {c}{z}.",
)
DOC_STYLES = (
    ":param {}: the {} {}",
    "@param {} the {} {}",
    "{}: the {} {}",
    "* {} is the {} {}",
    ":arg {}: the {} {}",
)
STORY_TEMPLATES = (
    "{p} lived near the {adjective} {place}.",
    "One day {p} found a {adjective} {object} in the {place}.",
    "{p} put the {object} on the table.",
    "{p} and {q} played in the {place} until it was dark.",
    '"Where is my {object}?" asked {p}.',
    '"It is in the {place}," said {q}.',
    "{q} was very happy and thanked {p}.",
    "In the evening {p} went home with the {object}.",
    "{p} told {q} about the {place}.",
    "The {object} was {adjective}, so {q} took it to the {place}.",
    "{q} looked at {p} and smiled.",
    "Then {p} lost the {object}, and {q} was sad.",
)
REVIEW_TEMPLATES = (
    "The {thing} was {w}.",
    "I found it {w} and {w}.",
    "What a {w} {thing}!",
    "A {w}, {w} {thing}; my friends thought so too.",
    "{p} is {w} in it, and the {thing} is {w}.",
    "It is simply {w}.",
    "From the first minute it feels {w}.",
)
REVIEW_THINGS = "film book play meal hotel song concert show game story".split()
TOPIC_TEMPLATES = (
    "The {t} and the {t} were {adjective}.",
    "Everyone talked about the {t}.",
    "There was a {t} near the {t}.",
    "{p} knows a lot about {t} and {t}.",
    "Without a {t} there is no {t}.",
    "They needed the {t}, the {t} and the {t}.",
    "A {adjective} {t} is better than a {t}.",
    "First came the {t}, then the {t}.",
)
REQUESTS = (
    "tell me about the {t}",
    "bring me the {object}",
    "say something about the {t} and the {t}",
    "wait at the {place}",
    "count to {number}",
    "open the {object}",
    "describe the {place}",
)


@dataclass
class Writer:
    """Text with what each stretch of it is, built from left to right."""

    split: str
    rng: random.Random
    pieces: list[str] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    length: int = 0

    def add(self, text: str, label: str = "") -> None:
        """Append text; with a label, it is a span."""
        if label:
            self.spans.append(Span(self.length, self.length + len(text), label))
        self.pieces.append(text)
        self.length += len(text)

    def fill(self, template: str, slots: dict[str, Callable[[], tuple[str, str]] | tuple[str, str]]) -> None:
        """Append a template. Each slot gives (text, label); a callable is asked anew for each occurrence."""
        rest = template
        while "{" in rest:
            before, _, after = rest.partition("{")
            slot, _, rest = after.partition("}")
            self.add(before)
            value = slots[slot]
            self.add(*(value() if callable(value) else value))
        self.add(rest)

    def name(self) -> str:
        return self.rng.choice(lexicon.names(self.split))

    def two_names(self) -> tuple[str, str]:
        a = b = self.name()
        while a == b:
            b = self.name()
        return a, b

    def template(self, templates: Sequence[str]) -> str:
        """One of the split's templates: every fifth is held out."""
        return self.rng.choice(
            [t for i, t in enumerate(templates) if (i % 5 == 4) == (self.split == "heldout")]
        )

    def common(self) -> dict[str, Callable[[], tuple[str, str]] | tuple[str, str]]:
        """Slots that mean the same everywhere."""
        pick = self.rng.choice
        return {
            "place": lambda: (pick(lexicon.PLACES), "place"),
            "object": lambda: (pick(lexicon.OBJECTS), "object"),
            "adjective": lambda: (pick(lexicon.ADJECTIVES), "adjective"),
            "event": lambda: (pick(lexicon.EVENTS), "event"),
            "day": lambda: (pick(lexicon.DAYS), "day"),
            "number": lambda: (str(self.rng.randint(2, 20)), "number"),
        }


def ioi(w: Writer) -> None:
    """Two names, one repeated as the giver: the other receives (Wang et al. 2022, indirect object
    identification)."""
    for i in range(w.rng.randint(1, 4)):
        if i:
            w.add(" ")
        a, b = w.two_names()
        giver, receiver = w.rng.choice([(a, b), (b, a)])
        thing = (w.rng.choice(lexicon.OBJECTS), "object")
        slots = w.common() | {
            "a": (a, "person"),
            "b": (b, "person"),
            "s": (giver, "giver"),
            "io": (receiver, "receiver"),
            "object": thing,
        }
        w.fill(w.template(IOI_OPENINGS) + w.template(IOI_ACTIONS), slots)


def years(w: Writer) -> None:
    """Spans of years: the last two digits of the end are larger (Hanna et al. 2023, greater-than)."""
    for i in range(w.rng.randint(1, 4)):
        if i:
            w.add(" ")
        century, start, end = year_span(w.rng, w.split, leave_out_alike=True)
        template = w.template(YEAR_SUBJECTS) + w.template(YEAR_RANGES)
        c = (f"{century}", "century")
        slots = w.common() | {
            "c": c,
            "y": (f"{start:02}", "start year"),
            "z": (f"{end:02}", "end year"),
            "name": (w.name(), "person"),
        }
        w.fill(template, slots)


def year_span(rng: random.Random, split: str, *, leave_out_alike: bool = False) -> tuple[int, int, int]:
    """(century, two digits of the start, of the end); the whole year of the start is of the split.

    leave_out_alike: leave out years like held-out ones, too.
    """
    century = rng.randint(11, 19)
    left_out = lexicon.like_held_out_year if leave_out_alike else lexicon.held_out_year
    trained = [y for y in range(2, 100) if not left_out(100 * century + y)]
    held_out = [y for y in range(2, 97) if lexicon.held_out_year(100 * century + y)]
    start = rng.choice(held_out if split == "heldout" else [y for y in trained if y < 97])
    return century, start, rng.choice([y for y in trained if y > start])


def docstring(w: Writer) -> None:
    """A function whose documentation names the arguments in order (Heimersheim & Janiak 2023)."""
    rng = w.rng
    name = rng.choice(lexicon.function_names(w.split))
    pool = lexicon.argument_names(w.split)
    arguments: list[str] = []
    for _ in range(rng.randint(3, 6)):
        arguments.append(rng.choice([a for a in rng.sample(pool, 12) if a not in arguments]))
    style = rng.choice(DOC_STYLES)
    w.add("def ")
    w.add(name, "function name")
    w.add("(self" if rng.random() < 0.5 else "(")
    for i, argument in enumerate(arguments):
        w.add(", " if i or w.pieces[-1] == "(self" else "")
        w.add(argument, "argument")
    w.add("):\n")
    verb, noun = name.split("_")
    w.add(f'    """{verb.title()} the {rng.choice(lexicon.ADJECTIVES)} {noun}\n\n')
    for argument in arguments:
        before, _, after = style.partition("{}")
        w.add("    " + before)
        w.add(argument, "documented argument")
        w.add(after.format(rng.choice(lexicon.ADJECTIVES), rng.choice(lexicon.FUNCTION_NOUNS)) + "\n")
    w.add('    """\n')


def story(w: Writer) -> None:
    """People, places and things."""
    p, q = w.two_names()
    place, thing = w.rng.choice(lexicon.PLACES), w.rng.choice(lexicon.OBJECTS)
    slots = w.common() | {
        "p": (p, "person"),
        "q": (q, "person"),
        "place": (place, "place"),
        "object": (thing, "object"),
    }
    for i in range(w.rng.randint(3, 6)):
        w.add(" " if i else "")
        w.fill(w.rng.choice(STORY_TEMPLATES), slots)


def review(w: Writer) -> None:
    """An opinion, good or bad throughout."""
    label = w.rng.choice(["positive", "negative"])
    words = lexicon.POSITIVE if label == "positive" else lexicon.NEGATIVE
    thing = w.rng.choice(REVIEW_THINGS)
    slots = w.common() | {
        "w": lambda: (w.rng.choice(words), label),
        "thing": (thing, "reviewed thing"),
        "p": (w.name(), "person"),
    }
    for i in range(w.rng.randint(2, 5)):
        w.add(" " if i else "")
        w.fill(w.rng.choice(REVIEW_TEMPLATES), slots)


def manners(w: Writer) -> None:
    """Polite and rude speech."""
    label = w.rng.choice(["polite", "rude"])
    for i in range(w.rng.randint(1, 3)):
        w.add(" " if i else "")
        w.add('"')
        _request(w, label)
        w.add('" said ')
        w.add(w.name(), "person")
        w.add(".")


def topic(w: Writer) -> None:
    """A few sentences on one topic."""
    _on_topic(w, w.rng.choice(list(lexicon.TOPIC_WORDS)), w.rng.randint(3, 6))


def chat(w: Writer) -> None:
    """A dialogue in the chat template, polite or rude, answered on the topic asked for."""
    label = w.rng.choice(["polite", "rude", "plain"])
    subject = w.rng.choice(list(lexicon.TOPIC_WORDS))
    for _ in range(w.rng.randint(1, 3)):
        w.add("<|user|>", "role marker")
        _request(w, label, subject)
        w.add("<|end|>", "role marker")
        w.add("<|assistant|>", "role marker")
        if label == "rude":
            w.add("That was not kind. ", "rebuke")
        elif label == "polite":
            w.add("Of course! ", "assent")
        _on_topic(w, subject, w.rng.randint(1, 3))
        w.add("<|end|>", "role marker")


def repeated(w: Writer) -> None:
    """Random words, then the same words again."""
    pool = [*lexicon.OBJECTS, *lexicon.PLACES, *lexicon.ADJECTIVES, *lexicon.names(w.split)]
    words = [w.rng.choice(pool) for _ in range(w.rng.randint(5, 40))]
    for time in range(2):
        for word in words:
            w.add(" " if w.length else "")
            w.add(word, "second copy" if time else "random word")


def counting(w: Writer) -> None:
    """Counting up, down and by steps, in digits and words; days and months in order."""
    kind = w.rng.choice(["up", "up", "down", "step", "words", "days", "months"])
    if kind in ("days", "months"):
        cycle = lexicon.DAYS if kind == "days" else lexicon.MONTHS
        start = w.rng.randrange(len(cycle))
        items = [cycle[(start + i) % len(cycle)] for i in range(w.rng.randint(3, 14))]
        label = kind[:-1]
    elif kind == "words":
        start = w.rng.randrange(10)
        items = lexicon.NUMBER_WORDS[start : start + w.rng.randint(4, 12)]
        label = "number word"
    else:
        step = {"up": 1, "down": -1, "step": w.rng.randint(2, 10)}[kind]
        start = w.rng.randint(30, 99) if kind == "down" else w.rng.randint(0, 40)
        items = [str(n) for i in range(w.rng.randint(6, 24)) if 0 <= (n := start + step * i) < 100]
        label = "number"
    separator = w.rng.choice([" ", ", ", "\n"])
    for i, item in enumerate(items):
        w.add(separator if i else "")
        w.add(item, label)


def _request(w: Writer, label: str, subject: str | None = None) -> None:
    words = lexicon.TOPIC_WORDS[subject or w.rng.choice(list(lexicon.TOPIC_WORDS))]
    slots = w.common() | {
        "t": lambda: (w.rng.choice(words), f"topic: {subject}" if subject else "topic word")
    }
    if label in ("polite", "rude"):
        phrase = w.rng.choice(lexicon.POLITE if label == "polite" else lexicon.RUDE)
        w.add(phrase[0].upper() + phrase[1:], label)
        w.add(", ")
    w.fill(w.rng.choice(REQUESTS), slots)
    if label == "rude":
        w.add(", ")
        w.add(w.rng.choice(lexicon.RUDE), "rude")
        w.add("!")
    elif label == "polite":
        w.add(", ")
        w.add(w.rng.choice(lexicon.POLITE), "polite")
        w.add(".")
    else:
        w.add(".")


def _on_topic(w: Writer, name: str, sentences: int) -> None:
    slots = w.common() | {
        "t": lambda: (w.rng.choice(lexicon.TOPIC_WORDS[name]), f"topic: {name}"),
        "p": (w.name(), "person"),
    }
    for i in range(sentences):
        w.add(" " if i else "")
        w.fill(w.rng.choice(TOPIC_TEMPLATES), slots)
