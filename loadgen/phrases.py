"""What generated prompts are made of: templates with gaps, and the tables of them by kind of task."""

import random
import string
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Template:
    """A piece of text with gaps; each of `parts` is a literal, or the words of which one stands there.

    A filling is one word, so the number of `words` is known beforehand.
    """

    words: int
    parts: tuple[str | tuple[str, ...], ...]

    @classmethod
    def of(cls, text: str) -> "Template":
        """Parse `{slot}` gaps; `{name}` and `{low}`, the coined name as it is and in lower case, stay for `fill`."""
        parts: list[str | tuple[str, ...]] = []
        for literal, slot, _, _ in string.Formatter().parse(text):
            parts.append(literal)
            if slot in NAME_SLOTS:
                parts.append(f"{{{slot}}}")
            elif slot:
                parts.append(tuple(SLOTS[slot].split()))
        return cls(len(text.split()), tuple(parts))

    def fill(self, rng: random.Random, name: str) -> str:
        """The text, its gaps filled at random and with the name."""
        text = "".join([part if isinstance(part, str) else any_of(rng, part) for part in self.parts])
        return text.replace("{name}", name).replace("{low}", name.lower())


@dataclass(frozen=True, slots=True)
class Paste:
    """Material pasted below a task: `leads` introduce it, `head` opens it, `lines` follow until it is long enough."""

    leads: tuple[Template, ...]
    head: tuple[Template, ...]
    lines: tuple[Template, ...]
    joints: tuple[str, ...]
    in_order: bool


@dataclass(frozen=True, slots=True)
class Task:
    """A kind of prompt; `cores` by rising length, `wishes` by their number of words."""

    cores: tuple[Template, ...]
    wishes: dict[int, tuple[Template, ...]]
    pastes: tuple[Paste, ...]


def any_of(rng: random.Random, options: Sequence[T]) -> T:
    """One of the options, each as likely."""
    return options[int(rng.random() * len(options))]


def _by_length(texts: str, separator: str = "\n") -> tuple[Template, ...]:
    """Templates from a table, the short ones first."""
    return tuple(sorted(map(Template.of, texts.strip("\n").split(separator)), key=by_words))


def _task(cores: str, wishes: str, *pastes: Paste) -> Task:
    lengths: dict[int, list[Template]] = {}
    for wish in (*_by_length(_WISHES), *_by_length(wishes)):
        lengths.setdefault(wish.words, []).append(wish)
    return Task(_by_length(cores), {words: tuple(each) for words, each in lengths.items()}, pastes)


def _pasted(
    leads: str,
    lines: tuple[Template, ...],
    *,
    head: tuple[str, ...] = (),
    joints: tuple[str, ...] = ("\n",),
    in_order: bool = False,
) -> Paste:
    return Paste(_by_length(leads), tuple(map(Template.of, head)), lines, joints, in_order)


by_words = attrgetter("words")

NAME_SLOTS = ("name", "low")
SLOTS = {
    "topic": "inflation migration recycling encryption vaccination erosion photosynthesis taxation caching insulation "
    "archaeology nutrition gravity irrigation sleep jealousy copyright tourism automation forestry democracy glaciers "
    "pensions batteries chess football opera beekeeping bread malaria satellites poverty handwriting electricity noise "
    "privacy concrete friendship fasting whales",
    "field": "biology chemistry economics history law medicine physics geology linguistics philosophy marketing "
    "finance robotics astronomy ecology psychology nursing architecture",
    "audience": "beginners children managers engineers students nurses tourists teachers investors lawyers parents "
    "retirees journalists farmers volunteers customers",
    "job": "nurse baker pilot teacher plumber surgeon clerk sailor translator farmer journalist carpenter",
    "tone": "formal friendly humorous dramatic poetic dry neutral nostalgic playful solemn cheerful polite",
    "mood": "lonely excited tired nervous proud hopeless relieved restless homesick calm confused grateful",
    "format": "table list paragraph letter memo diagram poster newsletter checklist timeline",
    "code": "Python Rust Go Java JavaScript TypeScript Kotlin Ruby Swift C++ Bash Scala Perl Haskell",
    "does": "parses sorts validates merges streams compresses counts filters encrypts uploads groups renames",
    "verb": "load parse sort merge check count filter group save send trim split",
    "noun": "orders tickets users rows events invoices prices tokens pages images files jobs",
    "column": "status country price owner size kind email score region total",
    "records": "invoices orders tickets readings logs sessions payments shipments reviews transcripts bookings "
    "contracts recipes receipts",
    "algorithm": "cache parser scheduler queue tokenizer compressor router allocator",
    "part": "worker api gateway scheduler indexer mailer proxy billing",
    "level": "INFO INFO INFO WARN ERROR DEBUG",
    "error": "TimeoutError KeyError ConnectionResetError MemoryError NullPointerException SegmentationFault "
    "PermissionError UnicodeDecodeError StackOverflowError IndexError",
    "system": "Windows Linux macOS Android Debian Fedora iOS",
    "metric": "turnover churn conversion rainfall occupancy downtime demand attendance output profit traffic waste",
    "quantity": "pressure humidity speed weight temperature distance voltage brightness depth loudness acidity",
    "unit": "month region product weekday quarter city store channel",
    "device": "pump sensor router telescope engine thermostat printer drone lift camera scanner boiler",
    "thing": "lighthouse garden clock violin river market bridge orchard ferry library mirror kite lantern",
    "goods": "bread fuel paper timber coffee steel rent medicine",
    "substance": "plastic lead asbestos mercury diesel tobacco",
    "animal": "cat parrot horse tortoise dog rabbit goat hamster",
    "tongue": "French Spanish German Italian Portuguese Dutch Polish Turkish Korean Swedish Greek Hindi Arabic Czech",
    "city": "Lisbon Oslo Nairobi Osaka Lima Quito Dublin Hanoi Vienna Toronto Cairo Tallinn Bergen Chicago Perth Kyoto",
    "town": "Porto Leeds Graz Bruges Cusco Aarhus Split Bologna Ghent Tampere Girona Basel",
    "person": "Anna Tom Priya Yusuf Elena Marco Aisha Jonas Mei Carlos Ingrid Kwame Sofia Piotr Noor Hugo Leila Sam",
    "friend": "Oskar Ruth Dmitri Fatima Lucy Hamza Greta Victor Chloe Ivan Esther Paul",
    "weekday": "Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
    "n": " ".join(map(str, range(2, 13))),
    "big": " ".join(map(str, range(103, 9900, 37))),
    "pct": " ".join(map(str, range(3, 98))),
    "ms": " ".join(map(str, range(2, 4000, 13))),
    "year": " ".join(map(str, range(1952, 2026))),
    "date": " ".join(f"2025-{month:02}-{day:02}" for month in range(1, 13) for day in range(1, 29, 3)),
    "clock": " ".join(f"{hour:02}:{minute:02}" for hour in range(24) for minute in range(0, 60, 7)),
}
"""What may fill a gap: single words."""

SHORT = {
    1: _by_length("{name}"),
    2: _by_length("""
Explain {name}
Summarise {name}
Translate {name}
Debug {low}
Analyse {name}
What's {name}?
Hello, {name}!
Plan {name}
"""),
    3: _by_length("""
What is {name}?
Where is {name}?
Fix {low} {error}
Describe {name} briefly
{name} in {tongue}?
Poem about {name}
Compare {name} {records}
{code} for {name}
"""),
    4: _by_length("""
Tell me about {name}
Translate {name} into {tongue}
How old is {name}?
Write the {name} {algorithm}
{name} {metric} by {unit}
Write about {name}, {tone}
Why is {name} {mood}?
Plan {name} for {weekday}
"""),
    5: _by_length("""
Tell {audience} what {name} is
Summarise {name} in {n} words
Write a {tone} {name} poem
What does {name} cost today?
Fix the {error} in {low}
Translate the {name} {format}, please
I miss {name} so much
Plot {name} {metric} by {unit}
"""),
    6: _by_length("""
How does {name} change our {topic}?
Explain {name} {field} to the {audience}
Write a {code} client for {name}
Why is the {name} {device} slow?
Plan {n} quiet days in {name}
Summarise the {name} {records} for me
What is {name} called in {tongue}?
My {animal} {name} will not eat
"""),
}
"""Prompts too short to be put together."""

INTRODUCTIONS = _by_length("""
I work as a {job} in {city}.
I am preparing a talk for {audience}.
This is about {topic}, not about {field}.
We run {name} with {big} customers in {city}.
My colleague {friend} asked me about {topic} yesterday.
I studied {field} and now teach {audience}.
{person} joined the {name} project in {year}.
You are an expert in {field} and {topic}.
Background: {name} has {n} offices, one of them in {town}.
My {tongue} is poor, so please bear with me.
""")

_WISHES = """
Be concise.
Stay neutral.
No jargon.
Cite sources.
Be {tone}.
No tables.
Keep it short.
Use plain language.
Give one example.
Write for {audience}.
Explain every step.
Mention the risks.
No introduction, please.
Add a short title.
Keep the tone {tone}.
My readers are {audience}.
Do not mention {topic}.
Answer as a {format}.
Name {n} possible objections.
Keep it under {big} words.
I work in {field} myself.
The deadline is {weekday} morning.
Start with the main point.
Explain it to curious {audience}.
Compare it with {topic} briefly.
Assume the reader knows some {field}.
Please check the numbers from {year}.
It will be read by {audience}.
Think it through step by step.
Add a {format} at the end.
Say which parts you only guessed.
We have {n} people and little time.
I tried {n} times and gave up.
If something is unclear, ask me first.
The result goes to {audience} in {city}.
Leave out everything that happened before {year}.
{friend} says {topic} matters more than {field}.
My manager {person} wants it by next {weekday}.
Put the answer first and the reasons below.
Last time the answer was far too {tone}.
Please avoid technical terms that {audience} would miss.
End with {n} questions that {audience} may ask.
It must still be correct in {n} years.
I already know the basics of {topic} and {field}.
Show me {n} alternatives and say which is best.
It should also work for {audience} outside of {city}.
Treat {topic} and {quantity} as two separate questions, please.
{person} thinks otherwise, so give arguments for both sides.
We will present it to {audience} in {city} on {weekday}.
Please keep the structure that we agreed on in {year}.
Do not repeat what every article about {topic} already says.
If you need data, assume {big} users and {n} regions.
Write it so that {friend} can forward it to {audience}.
The last version had {big} words, too much for our {audience}.
Please write it in British English and keep {tongue} names unchanged.
Tell me first whether you know enough about {topic} to help.
Imagine that {person} from {town} reads it on a small screen.
I have asked {friend} and {person} before, and neither of them knew.
Please do not apologise, do not flatter me, and do not invent {records}.
If {topic} plays a part in it, say so in one sentence.
It is for a course in {field} that {audience} take in {city}.
"""
"""What people add to any task: at least a few of each length from 2 to 12 words."""

_ARTICLE = _by_length("""
The council of {name} approved a new plan for {topic} in {year}.
According to {person}, who teaches {field} in {city}, the effect was larger than expected.
Among the first to notice the change were {audience} from {town}.
Critics point out that {metric} rose by only {pct} percent in {n} years.
A survey of {big} {audience} found that {pct} percent had heard of it.
Since {year}, the region has spent more on {topic} than on {goods}.
Nobody had expected the {thing} to last beyond {year}.
The first {device} was installed near {city} and served for {n} years.
By then {quantity} had fallen to a level last seen in {year}.
Local {audience} held meetings, wrote letters and collected {big} signatures.
The report describes {n} phases, each with its own budget and its own goals.
In the second phase the team compared {quantity} with {metric} across {n} districts.
What looked like a problem of {topic} turned out to be one of {field}.
Supporters argue that {field} alone cannot explain why {topic} matters here.
A later audit put the cost at {big} thousand, most of it for staff.
{person} remembers the mood as {mood}, with long queues and little sleep.
Similar projects in {city} and {town} had failed within {n} months.
The archive holds {big} letters, of which {pct} have been read so far.
Even so, {pct} percent of those asked would do it again.
Researchers measured {quantity} every {n} hours and published the raw data.
For {audience} the question is less about {topic} than about trust.
It took {n} attempts before the {device} worked without supervision.
None of this was planned when {friend} first came to {city} in {year}.
The next decision is due on {weekday}, and few people expect a surprise.
Whether this holds for larger towns remains an open question in {field}.
Transport, housing and {topic} were discussed in that order.
Prices for {goods} doubled, while wages grew by {pct} percent.
The old {thing} was moved indoors and can be visited on {weekday}.
"We are {mood}, but we will go on," said {friend}, a {job}.
That is why {tongue} is spoken in parts of {town} to this day.
Two years later the {job} sold the {thing} and moved to {town}.
It is a {tone} book, and at {big} pages it is not a short one.
""")

_LOG = _by_length("""
{date} {clock} {level} {low}-{part} request {big} finished in {ms} ms
{date} {clock} {level} {low}-{part} retry {n} after {error}
{date} {clock} {level} {low}-{part} connection to 10.0.{n}.{pct} refused
{date} {clock} {level} scheduler queue depth {big} above the limit of {pct}
{date} {clock} {level} worker {n} wrote {big} {records} in {ms} ms
{date} {clock} {level} cache hit ratio {pct} percent over {n} min
{date} {clock} {level} disk usage at {pct} percent on volume {n}
{date} {clock} {level} {error} while it {does} {records}
{date} {clock} {level} user {big} logged in from {city}
{date} {clock} {level} health check of {part} took {ms} ms
{date} {clock} {level} restarting {part}, attempt {n}
{date} {clock} {level} certificate for {low}.example expires in {pct} days
""")

_CODE = _by_length(
    """
def {verb}_{noun}(rows, limit={n}):
    result = []
    for row in rows:
        if row["{column}"] > limit:
            result.append(row)
    return result
===
def {verb}_{column}(path):
    with open(path) as lines:
        return [json.loads(line)["{column}"] for line in lines]
===
class {name}:
    def __init__(self, {noun}, timeout={ms}):
        self.{noun} = {noun}
        self.timeout = timeout
===
@app.get("/{low}/{noun}")
def {verb}_{noun}(limit: int = {pct}):
    return db.query("SELECT {column} FROM {noun}").fetch(limit)
===
async function {verb}(id) {{
  const reply = await fetch(`/{noun}/${{id}}`);
  if (!reply.ok) throw new Error("{error}");
  return reply.json();
}}
===
SELECT {column}, COUNT(*) AS total
FROM {noun}
WHERE {column} > {big}
GROUP BY {column};
===
try:
    {verb}_{noun}({big})
except {error}:
    retry(after={ms})
===
# TODO: {friend} wants {verb} to accept {noun}
===
for i in range({pct}):
    total += {noun}[i].{column} * {n}
===
print("{verb} {noun}:", total)
===
const {noun} = rows.filter(row => row.{column} !== {big});
===
assert {verb}([{n}, {pct}]) == {big}
""".strip("\n"),
    "\n===\n",
)

_CHAT = _by_length("""
{person}: Did you see the {name} {records} from {weekday}?
{person}: I would rather talk about {topic} first.
{person}: No, {clock} is too early for me.
{person}: The {device} in {town} is broken again, that makes {n} times.
{person}: Then let us ask {friend}, who knows about {field}.
{person}: My train leaves at {clock}, can we hurry?
{person}: We spent {big} on {goods} last month alone.
{person}: To be honest, I feel {mood} about the whole thing.
{person}: That was {friend}, not me!
{person}: {pct} percent sounds high, where does it come from?
{person}: Agreed. I will write it down and send it to the {audience}.
{person}: Fine by me.
{person}: Could somebody explain {topic} to me in two sentences?
{person}: They moved the meeting to {weekday} at {clock}.
{person}: Sorry, my microphone was off.
{person}: In {year} we tried exactly that, and {metric} went down.
""")

_MAIL = _by_length("""
Thank you for your call on {weekday}.
Your order of {big} {records} left our store in {city} at {clock}.
We are sorry that the {device} arrived broken.
Please send it back within {n} days, and we will pay the postage.
{friend} from our office in {town} will write to you about the {goods}.
The contract with {name} ends in {year} and can be renewed once.
If you are {mood} with the offer, we can lower the price by {pct} percent.
Our {audience} would like to visit the {thing} on {weekday}.
As agreed, the {job} comes at {clock} and needs about {n} hours.
Let us know whether {tongue} or English suits you better.
Kindly bring the {format} that we sent you on {date}.
I have enclosed the {records} and a short note about {topic}.
There is one more thing: {person} has left the company.
We look forward to meeting your {animal}, too.
""")

_TABLE = _by_length("| {city} | {year} | {big} | {pct} % |\n| {town} | {year} | {big} | {pct} % |")
_CSV = _by_length("{date}, {records}, {big}, {pct}.{n}\n{date}, {goods}, {big}, {pct}.{n}")

_PARAGRAPHS = (" ", " ", " ", "\n\n")
_TEXT = _pasted(
    "Text:\nHere is the text:\nThis is the article:\nFrom the {name} newsletter:", _ARTICLE, joints=_PARAGRAPHS
)
_NOTES = _pasted("My notes so far:\nBackground:\nWhat we know about {name}:", _ARTICLE, joints=("\n",))
_LOGS = _pasted("The log says:\nHere is the log:\nOutput of {low}:", _LOG, in_order=True)
_SOURCE = _pasted("Here is the code:\nThe file {low}.py:\nWhat I have so far:", _CODE, joints=("\n\n",))
_TALK = _pasted("Transcript:\nThis is the chat:\nFrom our group:", _CHAT)
_LETTER = _pasted("The mail reads:\nThis is what I got:", _MAIL, head=("Dear {person},",), joints=(" ", " ", "\n"))
_FIGURES = _pasted("The figures:\nHere is the table:", _TABLE, head=("| place | year | {metric} | share |",))
_EXPORT = _pasted("The export:\nHere are the rows:", _CSV, head=("date, what, amount, {metric}",))

TASKS = (
    _task(
        """
How does the {name} {device} measure {quantity}?
Why did {name} ban {substance} in {year}?
Who founded {name} and when did its {thing} become famous?
What is the difference between {name} and ordinary {topic}?
Which {field} textbook explains the {name} effect best?
What does the {name} principle say about {topic}?
Where is {name} and which language do people speak there?
Is the {name} method still used in {field} today?
When was the {name} bridge in {city} built and by whom?
How many people live in {name} near {city}?
""",
        "Quote the source.\nI need facts, not opinions.\nThe encyclopedia says nothing about it.",
        _TEXT,
        _TALK,
    ),
    _task(
        """
Describe the {thing} of {name} at dawn.
Write a {tone} poem about {thing} and {name}.
Tell a {tone} story about {person} leaving {name}.
Write {tone} song lyrics about winter nights in {name}.
Invent a myth explaining the {thing} of {name}.
Write a dialogue between {person} and a {animal} called {name}.
Draft the opening chapter of a {tone} novel set in {name}.
Write a limerick about a {job} from {name}.
Compose a {tone} wedding speech for {person} and {name}.
""",
        "Make it rhyme.\nLet {friend} be the narrator.\nAvoid worn metaphors.\nThe {thing} must appear twice.",
        _NOTES,
        _LETTER,
    ),
    _task(
        """
Implement the {name} {algorithm} in modern {code}.
Write a {code} function that {does} {records} for {name}.
Create a {code} class that reads {name} {records}.
Show me a regular expression for {name} {records}.
Write a SQL query that counts {records} per {unit} in {name}.
Add unit tests for the {name} module in {code}.
Build a small command line tool called {low} in {code}.
Generate a {code} script that {does} {records} from the {name} API.
""",
        "Use only the standard library.\nAdd type hints.\nAdd tests.\nRaise an error on empty input.\n"
        "It must handle {big} {records} a second.\nIt runs on {system} with {n} cores.",
        _SOURCE,
    ),
    _task(
        """
Analyse the {metric} of {name} by {unit}.
Find outliers in the {name} {records} below.
Which {unit} of {name} had the highest {metric}?
Compare the {metric} of {name} before and after {year}.
Compute mean and median {metric} for {name} in {year}.
Is the drop in {name} {metric} statistically significant?
What trends do the {name} numbers show for {metric}?
Correlate {metric} with {quantity} in the {name} survey.
""",
        "Round to {n} digits.\nDraw a chart.\nIgnore rows without {metric}.\nState the confidence interval, too.",
        _FIGURES,
        _EXPORT,
    ),
    _task(
        """
Explain why {name} would lower its {metric}.
Compare two explanations for the {name} {quantity} anomaly.
Prove that the {name} sequence is bounded by {n}.
A train leaves {name} at {clock}, when does it arrive?
Is it rational for {name} to accept a {pct} percent risk?
Which assumption does the {name} argument about {topic} rest on?
Solve the {name} puzzle with {n} coins and one scale.
Should {name} invest in {topic} or repay its debt first?
{name} has {n} boxes of {pct} pens, how many remain?
If {name} is older than {person}, can {friend} be youngest?
""",
        "Show your reasoning.\nNo formulas.\nCheck the result with a second method.\nState every assumption you make.",
        _NOTES,
        _FIGURES,
    ),
    _task(
        """
Condense the {name} {records} into one paragraph.
Summarise the {name} report in {n} bullet points.
Give me the key points of {weekday}'s {name} meeting.
Shorten this {name} press release to {n} sentences.
What are the main findings of the {name} {topic} study?
Write an abstract for the {name} paper on {topic}.
Summarise what {name} said about {topic} in {year}.
""",
        "Keep the numbers.\nUse {n} sentences.\nDo not add anything new.\nName who is responsible for what.",
        _TEXT,
        _TALK,
        _LETTER,
    ),
    _task(
        """
Translate this letter from {name} into {tongue}.
How do you say welcome to {name} in {tongue}?
Translate the {name} menu from {tongue} to English.
Put the following {name} announcement into {tone} {tongue}.
Translate "the train to {name} leaves at {clock}" into {tongue}.
Give a {tone} {tongue} version of the {name} slogan.
Correct my {tongue} translation of the {name} manual.
""",
        "Keep the formatting.\nUse informal {tongue}.\nLeave proper names as they are.\nA literal version is best.",
        _LETTER,
        _TEXT,
    ),
    _task(
        """
My {animal} {name} says hello to you.
Hi, I am {name}, how was your day?
I just moved to {name} and feel {mood}.
I feel {mood} after my first week at {name}.
My friend {name} has stopped answering me, any thoughts?
Good morning! Can we talk about {name} and {topic}?
What would you do on a rainy {weekday} in {name}?
Thanks for helping me with the {name} {format} on {weekday}.
Do you like {name} as a name for my {animal}?
""",
        "Just chat with me.\nHow are you?\nI could not sleep at all.\nSometimes I think {friend} is right.",
        _TALK,
        _LETTER,
    ),
    _task(
        """
Organise the {name} conference for {big} guests.
Plan a {n} day trip from {city} to {name}.
Create a launch checklist for the {name} {device}.
Draft a {n} week study plan for the {name} exam.
Break the {name} {part} migration into tasks with owners.
Schedule the renovation of {name} over {n} months.
Outline a marketing campaign for {name} in {city}.
Help me prepare the move to {name} in spring.
""",
        "The budget is {big}.\nAdd buffers.\n{weekday} is not possible.\nWe are {n} people, two of them children.",
        _NOTES,
        _LETTER,
    ),
    _task(
        """
My {name} {device} stops after {n} tries.
Why does {low} raise {error} when it {does} {records}?
How do I fix {error} in the {name} service?
The {name} build fails on {system} since yesterday.
{name} drops connections every {n} seconds, what should I check?
Users of {name} cannot log in on {system} since {weekday}.
Debug why {name} uses {pct} percent of the CPU.
My {code} job {name} hangs while it {does} {records}.
""",
        "Restarting helps briefly.\nIt worked on {weekday}.\nNothing changed.\nThe error appears {n} times an hour.",
        _LOGS,
        _SOURCE,
    ),
)
