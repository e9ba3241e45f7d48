"""A seeded slot grammar: prompts with checkable constraints, and answers to them.

The embedded policy and judge learn from what this module writes, and the embedded prompts are
drawn from it. Every function takes a ``random.Random`` and nothing else that varies, so a seed
says everything.

The one thing that makes it useful for preference data: :func:`write_answer` writes an answer that
meets exactly the constraints it is told to meet and misses the others, each miss in one of several
natural ways (another word, a full stop, one sentence too many, ...). What an answer really meets
is decided by :mod:`prefloop.labelers.scorers.constraints` and by nothing here.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from prefloop.labelers.scorers.constraints import satisfied

Constraint = dict[str, Any]


def _split(text: str, separator: str | None = None) -> tuple[str, ...]:
    return tuple(text.split(separator))


# The lexicon ------------------------------------------------------------------------------------

ANIMALS = _split(
    "fox owl bear wolf heron otter badger rabbit turtle crow goat horse tiger whale seal penguin "
    "camel donkey lizard hedgehog squirrel raven beetle swan moth dragon cat dog mouse parrot"
)
PEOPLE = _split(
    "baker sailor painter farmer doctor teacher pilot tailor gardener fisherman poet singer king "
    "queen wizard nurse carpenter astronaut detective librarian dancer juggler miner postman "
    "shepherd chef robot knight pirate barber"
)
PLACES = _split(
    "harbor forest castle village desert island market library garden museum station lighthouse "
    "kitchen valley theater bakery school barn workshop temple"
)
NOUNS = _split(
    "lantern bridge candle river mirror basket ladder pillow violin compass blanket kettle "
    "hammer feather window bottle ribbon button pebble needle bucket carpet wagon anchor "
    "rocket piano teapot helmet saddle puzzle ticket letter pencil pocket sandwich pumpkin "
    "melon pepper cookie muffin turnip cherry peach walnut acorn mushroom bamboo cactus tulip "
    "daisy lemon carrot cabbage pancake noodle biscuit umbrella suitcase backpack jacket "
    "sweater mitten slipper scarf necklace bracelet crown medal trophy drum trumpet whistle "
    "flute banjo bell clock lamp shelf drawer cupboard table stool bench fence gate tower "
    "tunnel cave meadow pond waterfall mountain volcano planet comet cloud rainbow shadow "
    "snowflake map coin box key book boat kite rope hat cake net stone flag ring shell spoon "
    "broom brush wheel sled tent stove"
)
ADJECTIVES = _split(
    "old little brave clever gentle quiet happy sleepy hungry lonely golden silver purple scarlet "
    "crooked wooden broken shiny dusty tiny giant ancient curious patient cheerful grumpy nervous "
    "proud humble famous secret frozen velvet rusty bright strange simple polite careful stubborn"
)
MOODS = _split(
    "tired happy sad hungry angry sleepy ready busy alone glad late afraid surprised lost safe calm"
)
KEY_ADJECTIVES = ADJECTIVES[10:]  # the first ten are too common to be worth asking for
STARTERS = _split(
    "Yesterday Once Today Maybe Somewhere Suddenly Tonight Sometimes Perhaps Finally Soon Luckily"
)
AVOIDABLE = ("very", "and", "old", "little", "with", "then")

_TAKES = _split(
    "carried found painted borrowed polished dropped watched guarded followed admired remembered "
    "hid repaired shared lost kept wanted noticed sold loved missed sketched bought cleaned"
)
_GOES = _split(
    "slept beside|waited near|walked past|danced around|rested under|sang behind|hurried toward|"
    "climbed over|dreamed about|sat next to|laughed at|stopped at|played with|talked about|"
    "ran toward|stood by|worried about|looked for|tripped over|lived near",
    "|",
)
_HOLDS = _split(
    "held hid kept offered sheltered needed displayed treasured lost welcomed borrowed had"
)
_STANDS = _split("stood beside|slept under|waited behind|glowed near|shone above|rested below", "|")
_WHEN = _split(
    "at dawn|at noon|at midnight|in the morning|in the evening|in winter|in spring|last summer|"
    "after the storm|before breakfast|during the party|in the rain|under the moon|all day",
    "|",
)
_WHERE = _split(
    "in the {place}|near the {place}|outside the {place}|by the {noun}|behind the {noun}|"
    "with a {noun}|without a {noun}|under the {noun}",
    "|",
)
_NUMBERED = _split(
    "for {n} hours|at {n} o'clock|for {n} days|in {n} minutes|about {n} times|in room {n}|"
    "with {n} friends|for {n} coins|on day {n}",
    "|",
)
_LATER = _split(
    "{p} felt {mood}|{p} never forgot the {noun}|{p} was very {mood}|{p} had a {adj} {noun} too|"
    "{p} told nobody about the {noun}|{p} laughed and went home|{p} gave the {noun} to a {agent}|"
    "{p} needed a {adj} {noun}|{p} waited for the {agent}|{p} fell asleep near the {noun}|"
    "the {noun} was {adj}|the {noun} was very {adj}|nobody else saw the {noun}|"
    "then {p} looked at the {noun}|then a {agent} came with a {noun}|everyone loved the {noun}|"
    "a {adj} {agent} {takes} the {noun}|the {agent} {takes} it with a {noun}",
    "|",
)
_QUESTIONS = _split(
    "why did the {s} {take} a {noun}|where did the {s} {take} the {noun}|"
    "when will the {s} {take} a {noun}|how did the {s} {take} the {adj} {noun}|"
    "did the {s} {take} a {noun} or a {noun2}|is the {s} {mood} about the {noun}|"
    "does the {s} have a {adj} {noun}|what did the {s} do with the {noun}|"
    "would a {s} trade a {noun} for a {noun2}|who gave the {s} a {noun}|"
    "can a {s} be very {mood}|has the {adj} {s} seen the {noun}",
    "|",
)
_TAKE = _split("find want keep carry need hide paint lose borrow sell buy love")
_PLURALS = _split("maps coins keys books boats hats cakes stones flags rings shells spoons")
_TITLES = _split(
    "the {s} and the {noun}|a {s} with a {noun}|the {adj} {s}|how the {s} lost a {noun}|"
    "the {noun} of the {s}|the {s} in the {place}|a {noun} for the {s}|the {adj} {noun}|"
    "the {s} and the {adj} {noun}",
    "|",
)

# Prompts ----------------------------------------------------------------------------------------

_NUMBER_WORDS = {1: "one", 2: "two", 3: "three", 4: "four"}

_ASKS: dict[str, tuple[str, ...]] = {
    "one": (
        "Write one sentence about {s}.",
        "Describe {s} in one sentence.",
        "In exactly one sentence, tell me about {s}.",
        "Give me a single sentence about {s}.",
        "I need one sentence on {s}.",
        "Invent a one sentence story about {s}.",
        "What could {s} be doing? Answer with one sentence.",
        "Make up a sentence about {s}, just one.",
    ),
    "several": (
        "Write {n} sentences about {s}.",
        "Tell a story about {s} in {n} sentences.",
        "Describe {s} in exactly {n} sentences.",
        "I would like {n} sentences on {s}.",
        "Give me {n} short sentences about {s}.",
        "What happened to {s}? Use {n} sentences.",
    ),
    "question": (
        "Ask a question about {s}.",
        "Write a question that somebody could ask about {s}.",
        "Think of one question about {s}.",
        "What would you like to know about {s}? Write it as a question.",
        "Give me a question for a quiz about {s}.",
    ),
    "list": (
        "List {n} things that {s} might have.",
        "Name {n} things for {s} as a list with dashes.",
        "What should {s} pack? Give {n} bullet points.",
        "Make a list of {n} gifts for {s}.",
        "Write {n} bullet points with things near {s}.",
    ),
    "title": (
        "Give a title for a story about {s} in double angle brackets.",
        "Invent a book title about {s} and wrap it in double angle brackets.",
        "What is a good title for a film about {s}? Put it in double angle brackets.",
        "Name a song about {s}. Write the title in double angle brackets.",
    ),
    "free": (
        "Tell me something about {s}.",
        "Write a caption for a picture of {s}.",
        "Write a short text about {s}.",
        "Say something about {s}.",
        "What do you know about {s}?",
        "Make a joke about {s}.",
        "Write a message about {s}.",
        "Begin a story about {s}.",
    ),
}

_SAYS: dict[str, tuple[str, ...]] = {
    "includes_word": (
        "Use the word {x}.",
        "Include the word {x}.",
        "The word {x} has to appear.",
        "Mention the word {x} somewhere.",
        "It must contain the word {x}.",
        "Do not forget the word {x}.",
        "Work in the word {x}.",
    ),
    "excludes_word": (
        "Do not use the word {x}.",
        "Avoid the word {x}.",
        "Leave out the word {x}.",
        "The word {x} is forbidden.",
        "Never say the word {x}.",
    ),
    "ends_with": (
        "End with an exclamation mark.",
        "Finish with an exclamation mark.",
        "The last character must be an exclamation mark.",
        "Close it with an exclamation mark.",
        "Make it end in an exclamation mark.",
    ),
    "starts_with": (
        "Start with the word {x}.",
        "Begin with the word {x}.",
        "The first word must be {x}.",
        "Let it start with {x}.",
        "Open with the word {x}.",
    ),
    "all_lowercase": (
        "Use only lowercase letters.",
        "Write everything in lowercase.",
        "Do not use capital letters.",
        "No capitals please.",
        "All letters must be lowercase.",
    ),
    "no_comma": (
        "Do not use commas.",
        "Use no comma.",
        "Avoid commas.",
        "There must be no comma in it.",
        "Write it without any commas.",
    ),
    "contains_number": (
        "Include a number in digits.",
        "Use at least one digit.",
        "Put a number in it, written with digits.",
        "Mention a number as digits.",
        "It needs a number in digits.",
    ),
    "word_max": (
        "Use at most {x} words.",
        "Stay within {x} words.",
        "No more than {x} words.",
        "Keep it to {x} words or fewer.",
        "Do not write more than {x} words.",
    ),
    "word_min": (
        "Use at least {x} words.",
        "Write {x} words or more.",
        "It should have at least {x} words.",
        "No fewer than {x} words.",
        "Make it {x} words long or longer.",
    ),
    "highlighted": (
        "Highlight one word with *asterisks*.",
        "Put one word between asterisks.",
        "Mark an important word with *asterisks*.",
        "Highlight a word in Markdown like *this*.",
    ),
}

_OPENERS = (
    "Please help me.",
    "This is for a children's book.",
    "I am learning to write.",
    "Here is a small task.",
    "My class needs an example.",
    "It is for a birthday card.",
    "Let us play a game.",
    "I have a request.",
)

_EXTRAS: dict[str, tuple[str, ...]] = {
    "one": _split(
        "includes_word ends_with starts_with all_lowercase no_comma contains_number word_max "
        "word_min highlighted excludes_word"
    ),
    "several": _split(
        "includes_word ends_with starts_with all_lowercase no_comma contains_number highlighted "
        "excludes_word"
    ),
    "question": _split(
        "includes_word all_lowercase contains_number word_max highlighted excludes_word"
    ),
    "list": _split("includes_word all_lowercase no_comma contains_number excludes_word"),
    "title": _split("includes_word word_max all_lowercase contains_number"),
    "free": _split(
        "includes_word ends_with starts_with all_lowercase no_comma contains_number word_max "
        "word_min highlighted excludes_word"
    ),
}
_KINDS: tuple[str, ...] = (
    ("one",) * 7
    + ("several",) * 4
    + ("question",) * 3
    + ("list",) * 3
    + ("title",) * 2
    + ("free",) * 4
)
_EXCLUDES = {
    "starts_with": {"all_lowercase"},
    "all_lowercase": {"starts_with"},
    "word_max": {"word_min"},
    "word_min": {"word_max"},
}


@dataclass(frozen=True)
class Task:
    """A prompt, what it is about, and the constraints that it states."""

    kind: str
    subject: str
    prompt: str
    constraints: tuple[Constraint, ...]


def write_task(rng: random.Random) -> Task:
    """Draw a prompt with two or three constraints (now and then four) that can all be met."""
    while True:
        task = _draw_task(rng)
        if write_answer(rng, task) is not None:
            return task


def _draw_task(rng: random.Random) -> Task:
    kind = rng.choice(_KINDS)
    subject = rng.choice(rng.choice((ANIMALS, PEOPLE, PLACES)))
    base, number = _base_constraint(rng, kind)
    wanted = rng.choices((2, 3, 4), (5, 6, 1))[0] - (base is not None)
    extras: list[tuple[str, Constraint, str]] = []
    while len(extras) < wanted:
        # The word to use is what most prompts ask for.
        name = "includes_word" if rng.random() < 0.3 else rng.choice(_EXTRAS[kind])
        taken = {extra[0] for extra in extras}
        if name in taken or _EXCLUDES.get(name, set()) & taken:
            continue
        constraint, word = _extra_constraint(rng, name, kind)
        if word != subject:
            extras.append((name, constraint, word))
    article = rng.choice(("a", "a", "the"))
    ask = rng.choice(_ASKS[kind]).format(s=_with_article(article, subject), n=number)
    says = [rng.choice(_SAYS[name]).format(x=word) for name, _, word in extras]
    parts = [ask, *says]
    if rng.random() < 0.15 and not ask.startswith("What"):
        parts = [*says[:1], ask, *says[1:]]  # a rule first, then the request
    if rng.random() < 0.15:
        parts.insert(0, rng.choice(_OPENERS))
    constraints = ([base] if base else []) + [extra[1] for extra in extras]
    return Task(kind, subject, " ".join(parts), tuple(constraints))


def _base_constraint(rng: random.Random, kind: str) -> tuple[Constraint | None, str]:
    """What the kind of task itself demands, and the number word its prompt shows."""
    if kind == "one":
        return {"type": "sentence_count", "exact": 1}, ""
    if kind == "several":
        count = rng.choice((2, 2, 3))
        return {"type": "sentence_count", "exact": count}, _NUMBER_WORDS[count]
    if kind == "question":
        return {"type": "question"}, ""
    if kind == "list":
        count = rng.choice((2, 3, 3, 4))
        return {"type": "bullet_count", "exact": count}, _NUMBER_WORDS[count]
    if kind == "title":
        return {"type": "title_in_double_angle_brackets"}, ""
    return None, ""


def _extra_constraint(rng: random.Random, name: str, kind: str) -> tuple[Constraint, str]:
    """A constraint of the kind ``name`` and the word or number its phrasing shows."""
    if name == "includes_word":
        word = rng.choice(NOUNS if rng.random() < 0.8 else KEY_ADJECTIVES)
        return {"type": name, "word": word}, word
    if name == "excludes_word":
        word = rng.choice(AVOIDABLE)
        return {"type": name, "word": word}, word
    if name == "starts_with":
        word = rng.choice(STARTERS)
        return {"type": name, "prefix": word}, word
    if name == "ends_with":
        return {"type": name, "suffix": "!"}, "!"
    if name == "word_max":
        limit = rng.randint(4, 6) if kind == "title" else rng.randint(8, 12)
        return {"type": "word_count", "max": limit}, str(limit)
    if name == "word_min":
        limit = rng.randint(10, 14)
        return {"type": "word_count", "min": limit}, str(limit)
    return {"type": name}, ""


# Answers ----------------------------------------------------------------------------------------


@dataclass
class _Plan:
    """What an answer shall look like; the constraints and their wanted outcome decide it."""

    sentences: int = 1
    bullets: int = 3
    form: str = "prose"  # or "question", "list", "title"
    starter: str = ""
    end: str = "."
    lowercase: bool = False
    comma: bool = False
    number: bool = False
    highlight: bool = False
    brackets: bool = True
    extras: int = 1
    words: list[str] = field(default_factory=list)
    banned: set[str] = field(default_factory=set)


_TRIES = 60
"""Draws until an answer comes out as wanted; three are enough for most."""


def write_answer(rng: random.Random, task: Task, met: Sequence[bool] | None = None) -> str | None:
    """An answer to ``task`` that meets exactly the constraints flagged in ``met``.

    Meets all of them where ``met`` is left out. Returns ``None`` where no such answer was found,
    which is rare: some combinations exclude each other.
    """
    wanted = [True] * len(task.constraints) if met is None else list(met)
    for _ in range(_TRIES):
        text = _realize(rng, task, _make_plan(rng, task, wanted))
        if satisfied(task.constraints, text) == wanted:
            return text
    return None


def write_exercise(rng: random.Random) -> tuple[str, str]:
    """A prompt and its answer that train nothing but copying a word out of the prompt.

    Small transformers learn that late from whole answers, where one word in fifteen is a copy.
    """
    if rng.random() < 0.5:
        words = " ".join(rng.sample(NOUNS + KEY_ADJECTIVES, rng.randint(2, 5)))
        return f"Repeat {words}", f"Repeat {words}"
    while True:
        task = _draw_task(rng)
        for item in task.constraints:
            if item["type"] == "includes_word":
                return f"Which word has to appear? {task.prompt}", f"the {item['word']}"


def write_sloppy_answer(rng: random.Random, task: Task, miss: float) -> str:
    """An answer that misses each constraint with probability ``miss``, independently."""
    while True:
        answer = write_answer(rng, task, [rng.random() >= miss for _ in task.constraints])
        if answer is not None:
            return answer


def _make_plan(rng: random.Random, task: Task, wanted: Sequence[bool]) -> _Plan:
    plan = _Plan(
        form={"question": "question", "list": "list", "title": "title"}.get(task.kind, "prose"),
        sentences=rng.choice((1, 1, 1, 2)) if task.kind == "free" else 1,
        end="." if rng.random() < 0.9 else "!",
        comma=rng.random() < 0.25,
        number=rng.random() < 0.1,
        extras=rng.choice((0, 0, 1, 1, 2)),
        starter=rng.choice(STARTERS) if rng.random() < 0.1 else "",
    )
    if task.kind == "free" and rng.random() < 0.15:
        plan.sentences += rng.choice((1, 2))  # answers that go on for longer than they need to
    for constraint, met in zip(task.constraints, wanted, strict=True):
        _shape(rng, plan, constraint, met)
    return plan


def _shape(rng: random.Random, plan: _Plan, constraint: Constraint, met: bool) -> None:
    """Change ``plan`` so that the answer meets ``constraint``, or misses it in some natural way."""
    match constraint["type"]:
        case "includes_word" | "excludes_word" as name:
            if met == (name == "includes_word"):
                plan.words.append(constraint["word"])
            else:
                plan.banned.add(constraint["word"])
        case "sentence_count":
            count = constraint["exact"]
            wrong = (2, 2, 3) if count == 1 else (count - 1, count + 1, count + 1, count + 2)
            plan.sentences = count if met else rng.choice(wrong)
        case "bullet_count":
            count = constraint["exact"]
            plan.bullets = count if met else max(1, count + rng.choice((-1, 1, 1, 2)))
            if not met and rng.random() < 0.3:
                plan.form = "prose"
        case "question":
            plan.end = "?" if met else "."
            if not met and rng.random() < 0.7:
                plan.form = "prose"
        case "title_in_double_angle_brackets":
            plan.brackets = met
        case "starts_with":
            wrong_start = rng.choice(("", "", rng.choice(STARTERS)))
            plan.starter = constraint["prefix"] if met else wrong_start
        case "ends_with":
            wrong_end = "." if rng.random() < 0.85 else ""
            plan.end = constraint["suffix"] if met else wrong_end
        case "word_count":
            short = met == ("max" in constraint)
            longer = (1, 2) if plan.form == "title" else (2, 2, 3)
            plan.extras = rng.choice((0, 0, 1) if short else longer)
        case "all_lowercase":
            plan.lowercase = met
        case "no_comma":
            plan.comma = not met
        case "contains_number":
            plan.number = met
        case "highlighted":
            plan.highlight = met
        case other:
            raise ValueError(f"this grammar has no constraint {other!r}")


CONSTRAINT_TYPES = (
    "includes_word",
    "excludes_word",
    "sentence_count",
    "bullet_count",
    "question",
    "title_in_double_angle_brackets",
    "starts_with",
    "ends_with",
    "word_count",
    "all_lowercase",
    "no_comma",
    "contains_number",
    "highlighted",
)
"""The types of constraint that prompts of this grammar state."""


class _Writer:
    """Writes the parts of one answer; hands out the words that have to occur."""

    def __init__(self, rng: random.Random, task: Task, plan: _Plan) -> None:
        self.rng = rng
        self.plan = plan
        self.subject = task.subject
        self.pronoun = rng.choice(("he", "she")) if task.subject in PEOPLE else "it"
        self.is_place = task.subject in PLACES
        self.nouns = [word for word in plan.words if word in _NOUN_SET]
        self.adjectives = [word for word in plan.words if word in _ADJECTIVE_SET]
        self.others = [
            word for word in plan.words if word in AVOIDABLE and word not in _ADJECTIVE_SET
        ]
        self.last_noun = ""

    def noun(self) -> str:
        """The next noun that has to occur, else now and then the last one, else any."""
        if self.nouns:
            self.last_noun = self.nouns.pop()
        else:
            self.last_noun = self._pick(NOUNS)
        return self.last_noun

    def adjective(self) -> str:
        """The next adjective that has to occur, else any."""
        return self.adjectives.pop() if self.adjectives else self._pick(ADJECTIVES)

    def mood(self) -> str:
        """How somebody may feel."""
        return self._pick(MOODS)

    def _pick(self, words: Sequence[str]) -> str:
        while True:
            word = self.rng.choice(words)
            if word not in self.plan.banned and word != self.subject:
                return word

    def fill(self, template: str) -> str:
        """Fill the slots of ``template`` from left to right and repair its articles."""
        words = []
        for word in template.split():
            words.append(_SLOTS[word](self) if word in _SLOTS else word)
        return _repair_articles(" ".join(words))

    def thing(self) -> str:
        """An object: an article, perhaps an adjective, a noun."""
        article = self.rng.choice(("the", "a"))
        described = self.adjectives or self.rng.random() < 0.3
        very = "very " if "very" in self.others or (described and self.rng.random() < 0.1) else ""
        if very and "very" in self.others:
            self.others.remove("very")
        adjective = f"{very}{self.adjective()} " if described or very else ""
        return _repair_articles(f"{article} {adjective}{self.noun()}")

    def main_sentence(self) -> str:
        """A sentence about the subject, without its full stop."""
        rng, plan = self.rng, self.plan
        adjective = f"{self.adjective()} " if rng.random() < 0.35 else ""
        text = _repair_articles(f"{rng.choice(('the', 'the', 'a'))} {adjective}{self.subject}")
        if rng.random() < (0.75 if self.is_place else 0.6):
            text += f" {rng.choice(_HOLDS if self.is_place else _TAKES)} {self.thing()}"
        else:
            text += f" {rng.choice(_STANDS if self.is_place else _GOES)} {self.thing()}"
        comma = plan.comma
        before = not plan.starter and rng.random() < 0.35
        if plan.starter:
            text = plan.starter + ("," if comma and rng.random() < 0.6 else "") + " " + text
        elif before:
            text = rng.choice(_WHEN) + ("," if comma else "") + " " + text
        if plan.number:
            text += " " + rng.choice(_NUMBERED).format(n=rng.randint(2, 20))
        choices = [self._where, self._and, self._because]
        if not before:
            choices.append(self._when)
        picked = rng.sample(choices, min(plan.extras, len(choices)))
        # A clause comes after the phrases that belong to the main one.
        for part in sorted(picked, key=lambda part: part in (self._and, self._because)):
            text += " " + part()
        if comma and "," not in text:
            text += f", but {self.pronoun} was {self.mood()}"
        for word in self.others:
            text += {
                "and": f" and {self.pronoun} was {self.mood()}",
                "with": f" with a {self.adjective()} {self.noun()}",
                "then": f" and then {self.pronoun} went home",
                "very": f" and was very {self.mood()}",
            }[word]
        self.others = []
        plan.starter, plan.number, plan.comma = "", False, comma and rng.random() < 0.3
        return _repair_articles(text)

    def _where(self) -> str:
        return self.fill(self.rng.choice(_WHERE))

    def _when(self) -> str:
        return self.rng.choice(_WHEN)

    def _and(self) -> str:
        verb = self.rng.choice(_HOLDS if self.is_place else _TAKES)
        return f"and {verb} {self.thing()}"

    def _because(self) -> str:
        link = self.rng.choice(("because", "while", "until"))
        if self.rng.random() < 0.5 and not self.nouns:
            return f"{link} {self.pronoun} was {self.mood()}"
        return f"{link} the {self.noun()} was {self.adjective()}"

    def later_sentence(self) -> str:
        """A sentence that follows another one."""
        if self.nouns or self.others or self.plan.number or self.plan.starter:
            return self.main_sentence()
        return self.fill(self.rng.choice(_LATER))

    def question(self) -> str:
        """A question about the subject, without its question mark."""
        text = self.fill(self.rng.choice(_QUESTIONS))
        if self.plan.number:
            text += " " + self.rng.choice(_NUMBERED).format(n=self.rng.randint(2, 20))
        for _ in range(self.plan.extras):
            text += " " + self.rng.choice((self._where, self._when))()
        return text + "".join(
            {
                "and": f" and a {self.noun()}",
                "with": f" with a {self.noun()}",
                "then": " and then go home",
                "very": " on a very long day",
            }[word]
            for word in self.others
        )

    def bullets(self) -> str:
        """A list of things."""
        rng, plan = self.rng, self.plan
        items = []
        for _ in range(plan.bullets):
            items.append(self.thing())
        for word in self.others:
            items[-1] += {
                "and": f" and a {self.noun()}",
                "with": f" with a {self.noun()}",
                "then": " and then some rest",
                "very": " in a very big box",
            }[word]
        if plan.comma:
            items[rng.randrange(len(items))] += f", {self.adjective()} and {self.adjective()}"
        if plan.number:
            item = f"{rng.randint(2, 20)} {rng.choice(_PLURALS)}"
            # Not in place of an item with a word that has to occur.
            free = [i for i, text in enumerate(items) if not set(text.split()) & set(plan.words)]
            if free:
                items[rng.choice(free)] = item
        rng.shuffle(items)
        return "\n".join(f"- {_capitalized(item)}" for item in items)

    def title(self) -> str:
        """A title, in sentence case."""
        text = self.fill(self.rng.choice(_TITLES))
        if self.plan.number:
            text += self.rng.choice(
                (" on day {n}", ", part {n}", " number {n}", " at {n} o'clock")
            ).format(n=self.rng.randint(2, 20))
        for _ in range(self.plan.extras if self.rng.random() < 0.7 else 0):
            text += " " + self.rng.choice((self._where, self._when))()
        return text


_NOUN_SET = frozenset(NOUNS)
_ADJECTIVE_SET = frozenset(ADJECTIVES)
_SLOTS: dict[str, Callable[[_Writer], str]] = {
    "{s}": lambda w: w.subject,
    "{p}": lambda w: w.pronoun,
    "{noun}": _Writer.noun,
    "{noun2}": _Writer.noun,
    "{adj}": _Writer.adjective,
    "{mood}": _Writer.mood,
    "{agent}": lambda w: w._pick(PEOPLE + ANIMALS),
    "{place}": lambda w: w._pick(PLACES),
    "{takes}": lambda w: w.rng.choice(_TAKES),
    "{take}": lambda w: w.rng.choice(_TAKE),
}


def _realize(rng: random.Random, task: Task, plan: _Plan) -> str:
    writer = _Writer(rng, task, plan)
    if plan.form == "list":
        text = writer.bullets()
    elif plan.form == "title":
        text = _capitalized(writer.title())
        text = (
            f"<<{text}>>"
            if plan.brackets
            else rng.choice((text, f"<{text}>", f"The title is {text}."))
        )
    elif plan.form == "question":
        text = _capitalized(writer.question()) + plan.end
    else:
        sentences = [writer.main_sentence()]
        sentences += [writer.later_sentence() for _ in range(plan.sentences - 1)]
        text = ". ".join(_capitalized(sentence) for sentence in sentences) + plan.end
    if plan.highlight:
        text = _highlight(rng, text)
    return text.lower() if plan.lowercase else text


def _highlight(rng: random.Random, text: str) -> str:
    """Put asterisks around one of the longer words."""
    words = text.split(" ")
    long = [i for i, word in enumerate(words) if word.isalpha() and len(word) > 3]
    if long:
        index = rng.choice(long)
        words[index] = f"*{words[index]}*"
    return " ".join(words)


def _with_article(article: str, word: str) -> str:
    return _repair_articles(f"{article} {word}")


def _repair_articles(text: str) -> str:
    words = text.split(" ")
    for index, word in enumerate(words[:-1]):
        if word in ("a", "an"):
            words[index] = "an" if words[index + 1][:1] in "aeiou" else "a"
    return " ".join(words)


def _capitalized(text: str) -> str:
    return text[:1].upper() + text[1:]
