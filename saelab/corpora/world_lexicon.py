"""Words of the synthetic world, and the rule by which some of them are held out from training."""

from __future__ import annotations

import zlib
from functools import cache

# first names are an onset and an ending, so that a held-out name is new while its pieces are not
ONSETS = (
    "Al Bar Bel Cal Car Cor Dal Dan Del Dor El Fal Fer Gal Gar Hal Har Ir Jan Jor Kal Kar Lan Lor "
    "Mal Mar Mel Mir "
    "Nor Or Pal Per Ral Ros San Sel Tal Tar Val Wil Zan"
).split()
ENDINGS = (
    "a an ard ben bert da den dra en essa ia ica ien in ina is la lan len lia lin lo mar mir mond na "
    "nor o on ra ric "
    "rin ro sa son ta ton us vin wen"
).split()
SHORT_NAMES = (
    "Mary John Anna Tom Kate Paul Lucy Mark Emma Jack Rosa Dan Alice Ben Sara Max Nina Leo Julia Sam "
    "Clara Hugo Ella "
    "Finn Ida Karl Lena Oscar Ruth Simon Tina Victor Wendy Adam Bella Carl Diana Eric Fiona George "
    "Hanna Ivan Jane "
    "Kevin Laura Martin Nora Otto Paula Quinn Rita Steve Tara Ursula Vera Will"
).split()

PLACES = (
    "market school garden park station library kitchen office museum beach forest harbour bakery "
    "church theatre hospital "
    "castle bridge river village square hotel farm airport cellar tower shop restaurant stadium zoo "
    "cinema temple "
    "workshop island mountain valley"
).split()
OBJECTS = (
    "book basket ring drink letter ball key lamp map bag cup hat coat clock knife rope bottle flower "
    "apple cake coin box "
    "pencil picture shirt stone ticket toy umbrella violin wheel necklace bracelet blanket candle "
    "drum bone computer "
    "kiss present"
).split()
ADJECTIVES = (
    "old new small big red blue green little round heavy light quiet bright strange empty long short".split()
)
POSITIVE = (
    "wonderful brilliant delightful charming superb lovely excellent touching marvellous funny "
    "clever beautiful "
    "fantastic great perfect moving splendid warm"
).split()
NEGATIVE = (
    "terrible boring awful dreadful clumsy dull horrible tedious pathetic ugly stupid weak lazy "
    "messy disappointing bad "
    "ridiculous cold"
).split()
POLITE = (
    "please|thank you|thank you very much|if you do not mind|kindly|would you be so kind|I am "
    "grateful|excuse me|"
    "with pleasure|pardon me"
).split("|")
# mild and invented on purpose
RUDE = (
    "you grumblehead|you soggy muffin|shut your trap|you clotpole|get lost|you mudbrain|what a "
    "nitwit|you smellfungus|"
    "buzz off|you dunderwhelp"
).split("|")

TOPICS = {
    "sea": "ship wave sailor captain tide anchor coast whale sail storm deck reef",
    "cooking": "soup oven salt pepper recipe flour butter pan onion sauce boil bake",
    "music": "song piano guitar melody rhythm concert singer chord band tune violin choir",
    "space": "planet star rocket moon comet orbit galaxy astronaut telescope meteor sun gravity",
    "medicine": "doctor nurse fever pill patient cough surgery vaccine bandage clinic pulse wound",
    "sport": "goal team match coach race score player tennis medal runner whistle referee",
    "money": "bank price market debt loan budget profit tax salary invest bill cash",
    "weather": "rain snow cloud wind thunder sunshine fog frost lightning storm drizzle heat",
    "animals": "dog cat horse rabbit sheep wolf eagle mouse tiger goat fox bear",
    "law": "judge court lawyer trial verdict crime witness jury prison appeal evidence guilty",
    "computers": "code program file server keyboard screen bug network memory software data password",
    "farming": "wheat tractor harvest barn seed plough field cow corn milk fence soil",
}
TOPIC_WORDS = {topic: tuple(words.split()) for topic, words in TOPICS.items()}

ARG_WORDS = (
    "path name size count index mode file user data key value level width height depth start end "
    "step limit offset "
    "color title label state option target source length format scale rate total items order group "
    "token buffer"
).split()
ARG_HEADS = (
    "max min new old file user data key base last first input output row page node cache text load time"
).split()
FUNCTION_VERBS = (
    "load save make find read write check build parse merge sort copy send open update remove".split()
)
FUNCTION_NOUNS = (
    "table image report tree record list graph matrix message page index frame model batch".split()
)
EVENTS = (
    "war siege voyage festival famine reign dispute drought project expedition rebellion truce "
    "plague strike trial "
    "occupation search campaign construction age"
).split()
NUMBER_WORDS = (
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen "
    "eighteen nineteen twenty"
).split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()


def held_out(word: str) -> bool:
    """Whether a name, an argument name or a function name is kept from training: CRC-32 of its
    UTF-8, modulo 5, is 0."""
    return zlib.crc32(word.encode()) % 5 == 0


def held_out_year(year: int) -> bool:
    """Whether a year is kept from training: it leaves 8 when divided by 15. Its century is not, and its last
    two digits occur in other centuries."""
    return year % 15 == 8


def like_held_out_year(year: int) -> bool:
    """Whether its last two digits are those of a held-out year, in whatever century. Natural text and the
    spans of the basic families do without these years."""
    return year % 5 == 3


@cache
def names(split: str) -> tuple[str, ...]:
    """First names of a split, "train" or "heldout". Only composed names are held out; short ones "
    "count three times."""
    composed = dict.fromkeys(onset + ending for onset in ONSETS for ending in ENDINGS)
    if split == "heldout":
        return tuple(n for n in composed if held_out(n))
    return (*SHORT_NAMES * 3, *(n for n in composed if not held_out(n) and n not in SHORT_NAMES))


@cache
def argument_names(split: str) -> tuple[str, ...]:
    """Names of function arguments. Only pairs of words are held out; single words count six times."""
    pairs = [f"{head}_{word}" for head in ARG_HEADS for word in ARG_WORDS if head != word]
    if split == "heldout":
        return tuple(n for n in pairs if held_out(n))
    return (*ARG_WORDS * 6, *(n for n in pairs if not held_out(n)))


@cache
def function_names(split: str) -> tuple[str, ...]:
    """Names of functions: a verb and a noun."""
    every = [f"{verb}_{noun}" for verb in FUNCTION_VERBS for noun in FUNCTION_NOUNS]
    return tuple(n for n in every if held_out(n) == (split == "heldout"))


@cache
def forbidden_words() -> frozenset[str]:
    """Every held-out word, for keeping them out of natural text."""
    return frozenset([*names("heldout"), *argument_names("heldout"), *function_names("heldout")])
