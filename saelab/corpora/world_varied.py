"""Two names, years and docstrings again, put together from many small parts, so that no template can be
learned by heart.

The tests' held-out templates (every fifth of the lists in `world_families`) cannot come out of these parts.
"""

from __future__ import annotations

from collections.abc import Sequence

from saelab.corpora import world_lexicon as lexicon
from saelab.corpora.world_families import Writer, year_span

LEADS = (
    "||||One day |Last week |In the morning |On {day} |Many years ago |Before lunch |That evening "
    "|By chance |"
    "At noon |After dark |In spring |As always, |This time |Once upon a time "
).split("|")
CONJUNCTIONS = (
    "when|while|after|as|because|since|once|until|whenever|just as|even though|now that|as soon "
    "as|if|though|although|before"
).split("|")
MEETINGS = (
    "went to the {place}|left the {place}|were at the {place}|cleaned the {place}|talked about the {object}|"
    "played with the {object}|shared a {object}|found a {adjective} {object}|looked for the {object}|"
    "sat near the {place}|drove to the {place}|waited at the {place}|argued about the {object}|ran "
    "to the {place}|"
    "slept in the {place}|danced at the {place}|painted the {place}|got lost in the {place}|had "
    "lunch at the {place}|"
    "bought a {object}|heard about the {place}|walked around the {place}|stayed at the {place}|were friends|"
    "met at the {place}|dreamed of the {place}|carried the {object}|lost the {object}|hid behind the {place}|"
    "returned from the {place}|were tired|worked in the {place}|lived near the {place}|wrote about "
    "the {object}|"
    "laughed at the {object}|closed the {place}|entered the {place}|built a {object}|were "
    "cold|remembered the {place}|"
    "liked the {adjective} {place}|broke the {object}|spent {day} at the {place}|came home|were very hungry"
).split("|")
FORMS = (
    "{lead}{conjunction} {a} and {b} {meeting}, ",
    "{lead}{conjunction} {a} and {b} {meeting}, ",
    "{lead}{conjunction} both {a} and {b} {meeting}, ",
    "{lead}{a} and {b} {meeting}. {then}",
    "{lead}{a} and {b} {meeting}, and {then}",
    "{lead}{a} {meeting} with {b}. {then}",
    "{lead}{conjunction} {a} {meeting} with {b}, ",
    "{lead}{a} met {b} near the {place}. {then}",
    "{lead}{a} saw {b} behind the {place}, so {then}",
    "The {adjective} {object} of {a} and {b} was at the {place}. {then}",
    "{lead}the {place} was {adjective}, and {a} and {b} {meeting}. {then}",
    "With the help of {a} the {object} of {b} was found. {then}",
    "{lead}{a} asked {b} about the {object}. {then}",
    "{lead}{a} thought of {b}. {then}",
    "For {a} and {b} the {place} was too {adjective}. {then}",
    "A {object} lay between {a} and {b}. {then}",
)
THEN = (
    "|||then |later |after that |soon |in the end |the next day |suddenly |finally |there |at night |"
    "without a word "
).split("|")
MANNERS = "||||||quickly |happily |slowly |again |kindly |secretly |sadly ".split("|")
GIVING = (
    "gave|handed|showed|sold|offered|brought|passed|lent|sent|threw|returned|carried|promised|left|tossed|delivered|"
    "donated|pushed|took|explained|described|gave back|mentioned|owed|read|sang"
).split("|")
THINGS = "a {object}|the {object}|the {adjective} {object}|a {adjective} {object}|a new {object}|it".split(
    "|"
)
TELLING = (
    "said goodbye to|wanted to talk to|sang a song to|wrote a letter to|listened to|waved to|spoke "
    "to|bowed to|"
    "apologised to|told a joke to|read a poem to|explained everything to|pointed to|smiled at|looked "
    "at|ran after|"
    "waited for|made tea for|bought a {object} for|laughed with|agreed with|had a present for|came "
    "back to|lied to|"
    "complained to|talked to|nodded to|sent a message to"
).split("|")

FOUNDED = (
    "began|started|opened|was founded|was planned|appeared|arrived|was built|was announced|was "
    "opened|came up|was born|"
    "was first seen|was written|took off"
).split("|")
FINISHED = (
    "ended|closed|finished|died|disappeared|was closed|was destroyed|left|fell|stopped|was gone|was "
    "lost|burned down|"
    "was sold|was forgotten"
).split("|")
YEAR_NOUNS = (
    "The {event}|The {adjective} {event}|A {event}|The {event} in the {place}|Their {event}|The "
    "famous {event}|"
    "The {place}|The {adjective} {place}|The life of {name}|The {event} of {name}|A {adjective} "
    "{place}|{name}|"
    "The {object} of {name}|Our {event}|The {place} of {name}|This {event}"
).split("|")
YEAR_FORMS = (
    "{noun} {founded} in {c}{y} and {finished} in {c}{z}.",
    "{noun} {founded} in the year {c}{y} and {finished} in the year {c}{z}.",
    "{noun} {founded} in {c}{y}. It {finished} in {c}{z}.",
    "{noun} lasted from {c}{y} {to} {c}{z}.",
    "{noun} was there from the year {c}{y} {to} the year {c}{z}.",
    "{noun} existed from {c}{y} {to} {c}{z}.",
    "{noun} ({c}{y} {to} {c}{z}) was {adjective}.",
    "From {c}{y} {to} {c}{z} there was a {event}.",
    "{noun} {founded} in {c}{y}; by {c}{z} it was {adjective}.",
    "Between {c}{y} and {c}{z} the {event} changed the {place}.",
    "In {c}{y} {name} went to the {place} and came back in {c}{z}.",
    "{noun} of {c}{y} {finished} in {c}{z}.",
    "{noun}, which {founded} in {c}{y}, {finished} in {c}{z}.",
    "{noun} {founded} around {c}{y} and {finished} before {c}{z}.",
    "Since {c}{y}, and at least to {c}{z}, the {place} was {adjective}.",
    "{name} lived in the {place} from {c}{y} {to} {c}{z}.",
)
TO = "to|until|till|through|up to".split("|")

DOC_STYLES = (
    ":param {}: the {} {}|@param {} the {} {}|{}: the {} {}|* {} is the {} {}|:arg {}: the {} {}|- "
    "{}: a {} {}|"
    "{} -- the {} {}|{} (str): the {} {}|:parameter {}: {} {}|# {}: the {} {}|`{}` the {} {}|{} = the {} {}"
).split("|")
TYPES = "str int float bool list dict bytes".split()


def ioi(w: Writer) -> None:
    """Two names, one repeated as the giver, in sentences of many shapes."""
    for i in range(w.rng.randint(1, 4)):
        w.add(" " if i else "")
        a, b = w.two_names()
        giver, receiver = w.rng.choice([(a, b), (b, a)])
        opening = _filled(
            w, w.rng.choice(FORMS), lead=LEADS, conjunction=CONJUNCTIONS, meeting=MEETINGS, then=THEN
        )
        thing = w.rng.choice(THINGS)
        act = f"{w.rng.choice(GIVING)} {thing} to" if w.rng.random() < 0.6 else w.rng.choice(TELLING)
        sentence = f"{opening}{{s}} {w.rng.choice(MANNERS)}{act} {{io}}."
        slots = w.common() | {
            "a": (a, "person"),
            "b": (b, "person"),
            "s": (giver, "giver"),
            "io": (receiver, "receiver"),
        }
        w.fill(_sentence_case(sentence), slots)


def years(w: Writer) -> None:
    """Spans of years in sentences of many shapes."""
    for i in range(w.rng.randint(1, 4)):
        w.add(" " if i else "")
        century, start, end = year_span(w.rng, w.split)
        form = _filled(
            w, w.rng.choice(YEAR_FORMS), noun=YEAR_NOUNS, founded=FOUNDED, finished=FINISHED, to=TO
        )
        slots = w.common() | {
            "c": (f"{century}", "century"),
            "y": (f"{start:02}", "start year"),
            "z": (f"{end:02}", "end year"),
            "name": (w.name(), "person"),
        }
        w.fill(form, slots)


def docstring(w: Writer) -> None:
    """Functions with types or defaults, documented in many styles."""
    rng = w.rng
    name = rng.choice(lexicon.function_names(w.split))
    pool = lexicon.argument_names(w.split)
    arguments: list[str] = []
    for _ in range(rng.randint(2, 7)):
        arguments.append(rng.choice([a for a in rng.sample(pool, 14) if a not in arguments]))
    typed, style, indent = rng.random() < 0.4, rng.choice(DOC_STYLES), " " * rng.choice([2, 4, 4, 8])
    w.add("def ")
    w.add(name, "function name")
    w.add("(" + rng.choice(["", "self", "self", "cls"]))
    for i, argument in enumerate(arguments):
        w.add(", " if i or not w.pieces[-1].endswith("(") else "")
        w.add(argument, "argument")
        if typed:
            w.add(f": {rng.choice(TYPES)}")
        elif rng.random() < 0.15:
            w.add(f"={rng.randint(0, 99)}")
    verb, noun = name.split("_")
    summary = f"{verb.title()} {rng.choice(['the', 'a', 'this'])} {rng.choice(lexicon.ADJECTIVES)} {noun}."
    w.add(f'):\n{indent}"""{summary}\n\n')
    for argument in arguments:
        before, _, after = style.partition("{}")
        w.add(indent + before)
        w.add(argument, "documented argument")
        w.add(after.format(rng.choice(lexicon.ADJECTIVES), rng.choice(lexicon.FUNCTION_NOUNS)) + "\n")
    w.add(f'{indent}"""\n')


def _filled(w: Writer, form: str, **slots: Sequence[str]) -> str:
    """The form with its parts drawn; other slots stay."""
    for name, choices in slots.items():
        while "{" + name + "}" in form:
            form = form.replace("{" + name + "}", w.rng.choice(choices), 1)
    return form


def _sentence_case(text: str) -> str:
    """Capital letters at the start of each sentence, slots left alone."""
    out, start = [], True
    for i, character in enumerate(text):
        out.append(character.upper() if start else character)
        if character == "{":
            start = False
        elif character not in " ":
            start = False
        if character == "." and text[i + 1 : i + 2] == " ":
            start = True
    return "".join(out)
