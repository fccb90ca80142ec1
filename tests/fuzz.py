"""Requests that nobody should send, and what every answer to them must be.

The same for the application in this process and for a service over HTTP:

    python -m pytest tests/unit/test_fuzz.py tests/e2e/test_fuzz.py --fuzz-bodies 10000 -rP

A fifth of the bodies is made from the OpenAPI document by schemathesis, a tenth goes over HTTP to a real service, and
the rest is what `requests` makes. The same `--fuzz-seed` makes the same again; without these options there are few.
"""

import json
import random
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote_from_bytes, unquote_to_bytes

from jsonschema import Draft202012Validator

from deployments.core import errors
from deployments.http.app import CALLS, Call
from deployments.http.openapi import document

PROBLEM = "application/problem+json"
TIMEOUT = "X-Request-Timeout-Seconds"
MAX_BODY_BYTES = 2 * 1024 * 1024
CALLS_WITH_BODY = [call for call in CALLS if call.takes]
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW")
INTENT = {"enum": ["reasoning", "translation"]}
LABELS = {
    "original_intent": INTENT,
    "correct_intent": INTENT,
    "correct_complexity": {"enum": ["simple", "moderate", "complex"]},
    "correct_techniques": {"type": "array", "maxItems": 16, "items": {"enum": ["zero_shot", "few_shot"]}},
}
"""Which there are is the artifact's matter, not the document's: these, the shipped one and the tests' own have."""


def _labelled(document: dict[str, Any]) -> dict[str, Any]:
    """The document, with labels that make sense: random ones alone would never reach the log."""
    document["components"]["schemas"]["FeedbackRecord"]["properties"] |= LABELS
    return document


DOCUMENT = _labelled(document(CALLS, needs_key=False))


@dataclass(frozen=True)
class Request:
    """A request as it is sent: the target still quoted, the body in the pieces in which it comes."""

    method: str
    path: bytes
    query: bytes = b""
    headers: tuple[tuple[str, bytes], ...] = ()
    chunks: tuple[bytes, ...] = (b"",)

    @property
    def call(self) -> Call | None:
        """The call of the table that it is: by a path as it stands, before one with parameters."""
        taking = [call for call in CALLS if call.method == self.method and _is_path(call.path, self.unquoted)]
        return min(taking, key=lambda call: "{" in call.path, default=None)

    @property
    def unquoted(self) -> str:
        """The path as an application is given it."""
        return unquote_to_bytes(self.path).decode("utf-8", "replace")


def _is_path(template: str, path: str) -> bool:
    return re.fullmatch(re.sub(r"\\{\w+\\}", "[^/]+", re.escape(template)), path, re.DOTALL) is not None


def requests(seed: int) -> Iterator[Request]:
    """Requests without end, the same for the same seed."""
    chance = random.Random(seed)
    while True:
        call = chance.choice(CALLS_WITH_BODY if chance.random() < 0.9 else CALLS)
        yield Request(
            call.method if chance.random() < 0.95 else chance.choice(METHODS),
            _filled(chance, call.path) if chance.random() < 0.9 else _path(chance, call.path),
            _query(chance) if chance.random() < 0.2 else b"",
            tuple(_header(chance) for _ in range(chance.choice((0, 0, 1, 2, 3)))),
            _pieces(chance, chance.choice(BODIES)(chance, call)),
        )


def payload(chance: random.Random, call: Call) -> dict[str, Any]:
    """A body that the document allows, whatever its texts are."""
    schema = _schema(call)
    given = [name for name in schema["properties"] if name in schema.get("required", ()) or chance.random() < 0.3]
    return {name: _allowed(chance, schema["properties"][name]) for name in given}


def _schema(call: Call) -> Mapping[str, Any]:
    """Of the call's body; a call that takes none is sent another's."""
    name = (call.takes or CALLS_WITH_BODY[0].takes).__name__
    return DOCUMENT["components"]["schemas"][name]


def _field(chance: random.Random, call: Call) -> str:
    return chance.choice(list(_schema(call)["properties"]))


def _allowed(chance: random.Random, schema: Mapping[str, Any]) -> Any:
    if "anyOf" in schema:
        return _allowed(chance, chance.choice(schema["anyOf"]))
    if "enum" in schema:
        return chance.choice(schema["enum"])
    match schema["type"]:
        case "array":
            return [_allowed(chance, schema["items"]) for _ in range(chance.randint(1, 3))]
        case "string":
            return "2026-11-27T09:00:00.5+01:00" if schema.get("format") == "date-time" else _string(chance)
    return {"null": None, "boolean": chance.random() < 0.5}.get(schema["type"], chance.random())


CHARACTERS: tuple[Callable[[random.Random], str], ...] = (
    lambda chance: chr(chance.randrange(32, 127)),
    lambda chance: chr(chance.randrange(0x20)),
    lambda chance: chance.choice("\0\x7f\u200b\u202e\u2028\ufeff\ufffe\uffff\u0300"),
    lambda chance: chr(chance.randrange(0xD800, 0xE000)),
    lambda chance: chr(chance.randrange(0x110000)),
)


def _string(chance: random.Random) -> str:
    length = chance.choice((0, 1, 1, 5, 20, 20, 128, 129))
    if chance.random() < 0.03:
        length = chance.choice((4999, 5000, 5001, 20_000))
    characters = CHARACTERS[0] if chance.random() < 0.6 else chance.choice(CHARACTERS)
    return "".join(characters(chance) for _ in range(min(length, 200))).ljust(length, "x")


NUMBERS = (
    "0",
    "-0",
    "-1",
    "1e400",
    "-1e-400",
    "1E+9999999",
    "NaN",
    "Infinity",
    "0.5",
    "9" * 400,
    "1" + "0" * 5000,
    "01",
)
CONSTANTS = (None, True, False, 0, -1, 0.5, 2**53, 2**64, -(2**63) - 1, 1e308, "", [], {})


def _value(chance: random.Random, depth: int = 3) -> Any:
    if depth == 0 or chance.random() < 0.4:
        return chance.choice(CONSTANTS)
    if chance.random() < 0.4:
        return _string(chance)
    values = [_value(chance, depth - 1) for _ in range(chance.randrange(4))]
    return values if chance.random() < 0.5 else {_string(chance): value for value in values}


def _dumped(chance: random.Random, value: object) -> bytes:
    """As JSON, in which a lone surrogate is an escape or bytes that are no UTF-8."""
    return json.dumps(value, ensure_ascii=chance.random() < 0.5).encode("utf-8", "surrogatepass")


def _right(chance: random.Random, call: Call) -> bytes:
    return _dumped(chance, payload(chance, call))


def _wrong_type(chance: random.Random, call: Call) -> bytes:
    wrong = {_field(chance, call): _value(chance) for _ in range(chance.randint(1, 3))}
    return _dumped(chance, payload(chance, call) | wrong | {_string(chance): _value(chance)})


def _missing(chance: random.Random, call: Call) -> bytes:
    body = payload(chance, call)
    return _dumped(chance, {name: value for name, value in body.items() if chance.random() < 0.5})


def _any_json(chance: random.Random, _call: Call) -> bytes:
    return _dumped(chance, _value(chance))


def _odd_number(chance: random.Random, call: Call) -> bytes:
    body = payload(chance, call) | {_field(chance, call): "@"}
    return _dumped(chance, body).replace(b'"@"', chance.choice(NUMBERS).encode())


def _cut(chance: random.Random, call: Call) -> bytes:
    body = _right(chance, call)
    return body[: chance.randrange(len(body))]


def _changed(chance: random.Random, call: Call) -> bytes:
    body = bytearray(_right(chance, call))
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(body))
        body[at : at + chance.randrange(3)] = chance.randbytes(chance.randrange(1, 3))
    return bytes(body)


def _noise(chance: random.Random, _call: Call) -> bytes:
    return chance.randbytes(chance.choice((0, 1, 10, 1000)))


def _nested(chance: random.Random, call: Call) -> bytes:
    depth = chance.choice((10, 200, 1000, 100_000))
    opening, closing = chance.choice(((b"[", b"]"), (b'{"a":', b"}"), (b'{"text":', b"}"), (b'[{"texts":[', b"]}]")))
    return opening * depth + b"1" + closing * chance.choice((0, depth))


def _twice(chance: random.Random, call: Call) -> bytes:
    return _right(chance, call)[:-1] + b"," + _right(chance, call)[1:]


def _encoded(chance: random.Random, call: Call) -> bytes:
    encoding = chance.choice(("utf-8-sig", "utf-16", "utf-32-le", "utf-7"))
    return _right(chance, call).decode("utf-8", "replace").encode(encoding)


def _many(chance: random.Random, _call: Call) -> bytes:
    item = chance.choice((b'"a"', b"1", b"[]", b'""', b"{}"))
    return b'{"texts":[' + b",".join([item] * chance.choice((100, 101, 1001, 50_000))) + b"]}"


def _large(chance: random.Random, call: Call) -> bytes:
    """Near or over its limit, now and then: what is sent is mostly small."""
    if chance.random() < 0.9:
        return _right(chance, call)
    return _right(chance, call).ljust(MAX_BODY_BYTES * chance.choice((1, 4)) + chance.randrange(-1, 2), b" ")


BODIES: tuple[Callable[[random.Random, Call], bytes], ...] = (
    _right, _wrong_type, _missing, _any_json, _odd_number, _cut, _changed, _noise, _nested, _twice, _encoded, _many,
    _large,
)  # fmt: skip


def _pieces(chance: random.Random, body: bytes) -> tuple[bytes, ...]:
    """The body whole, or cut anywhere, empty pieces among them."""
    if chance.random() < 0.7:
        return (body,)
    cuts = sorted(chance.randrange(len(body) + 1) for _ in range(chance.randint(1, 4)))
    return tuple(body[start:end] for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True))


def _quoted(chance: random.Random, length: int) -> bytes:
    return quote_from_bytes(chance.randbytes(length)).encode()


def _filled(chance: random.Random, template: str) -> bytes:
    """The path, with something in the place of its parameters."""
    ids = ("1-0", "0-0", "1795799163755-0", "x", "-", "9" * 400, "%00", "%FF", _quoted(chance, 20).decode())
    return re.sub(r"{\w+}", lambda _: chance.choice(ids), template).encode()


def _path(chance: random.Random, path: str) -> bytes:
    odd = (
        path + "/", path.upper(), path.replace("/", "//"), path + "%00", path + "%2F..%2F", path.replace("i", "%69"),
        path + "/1-0/approve", "/docs", "/docs/swagger-ui.css", "/docs/../docs", "/", path + "/" + "a" * 3000,
    )  # fmt: skip
    return chance.choice(odd).encode() if chance.random() < 0.7 else b"/" + _quoted(chance, chance.randrange(200))


def _query(chance: random.Random) -> bytes:
    names = (b"scores", b"limit", b"after", b"state", b"days", _quoted(chance, 3))
    values = (b"", b"true", b"1", b"-1", b"1e9", b"%00", b"%ff%fe", b"9" * 400, _quoted(chance, chance.randrange(50)))
    pairs = [chance.choice(names) + b"=" + chance.choice(values) for _ in range(chance.randint(1, 5))]
    return chance.choice((b"&", b"&&", b";", b"?")).join(pairs)


SECONDS = (
    b"0",
    b"-1",
    b"nan",
    b"inf",
    b"1e309",
    b"1_0",
    b"0x10",
    b"\xb2",
    b"5",
    b" 5 ",
    b"1e-300",
    b"9" * 400,
    b"",
    b"5,5",
)
HEADERS: Mapping[str, tuple[bytes, ...]] = {
    TIMEOUT: SECONDS,
    "Cache-Control": (b"no-store", b"no-cache", b"NO-CACHE , no-store", b"max-age=", b",,,", b"=", b'no-cache="a"'),
    "Idempotency-Key": (b"", b"k" * 255, b"k" * 256, b"\xff\x80", b"{}", b" ", b"%00"),
    "Content-Type": (b"", b"text/plain", b"application/json; charset=utf-16", b"multipart/form-data", b"\xff"),
    "Content-Encoding": (b"gzip", b"br, br"),
    "Authorization": (b"", b"Bearer", b"Bearer ", b"Bearer ig_a_b", b"Basic Og==", b"Bearer \xff", b"Bearer ig__"),
    "Accept": (b"", b"text/html", b"*/*;q=\xff"),
    "X-Request-ID": (b"", b"\xff", b"a" * 5000, b"%0a", b'{"a":1}'),
    "Host": (b"", b"[", b"[::1", b"a/b?c", b"a:b:c", b"\xff", b"a@b", b"http://a"),
    "Cookie": (b"", b"a=b; " * 100),
    "Range": (b"bytes=0-", b"bytes=9-1"),
    "Expect": (b"nothing",),
    "Forwarded": (b"for=_x",),
}  # fmt: skip


def _header(chance: random.Random) -> tuple[str, bytes]:
    name = chance.choice(list(HEADERS))
    if chance.random() < 0.8:
        return name, chance.choice(HEADERS[name])
    printable = [byte for byte in range(0x20, 0x100) if byte != 0x7F]
    return name, bytes(chance.choices(printable, k=chance.randrange(100)))


@dataclass(frozen=True)
class Answer:
    """What came back; the names of headers are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def media_type(self) -> str:
        return self.headers.get("content-type", "").partition(";")[0]


KNOWN = {
    (error.status, error.slug)
    for error in vars(errors).values()
    if isinstance(error, type) and issubclass(error, errors.IntentGraphError)
}
"""Each documented error: its status and its type."""


def complaints(request: Request, answer: Answer) -> Iterator[str]:
    """What is wrong with an answer: nothing, mostly."""
    if answer.status >= 500 and not _ran_out_of_time(request, answer):
        yield "it is the service's failure"
    if request.method == "HEAD":
        return  # nothing of what would tell more comes with it
    if answer.status >= 400:
        yield from _unlike_a_problem(answer)
    if request.call:
        yield from _undocumented(request.call, answer)
    elif answer.status not in (200, 404, 405):
        yield "no such path has this status"


def _ran_out_of_time(request: Request, answer: Answer) -> bool:
    """Whether the caller asked for less time than an answer takes: the one 503 that is right."""
    asked = any(name == TIMEOUT for name, _ in request.headers)
    return asked and answer.status == 503 and json.loads(answer.body)["type"] == "deadline-exceeded"


def _unlike_a_problem(answer: Answer) -> Iterator[str]:
    if answer.media_type != PROBLEM:
        yield f"it is no problem, but {answer.media_type!r}"
        return
    problem = json.loads(answer.body)
    yield from SCHEMAS.unlike("Problem", problem)
    if (answer.status, problem["type"]) not in KNOWN or problem["status"] != answer.status:
        yield "its type is not documented for its status"
    if answer.status in (429, 503) and not answer.headers.get("retry-after", "").isdecimal():
        yield "it does not say when to come again"


def _undocumented(call: Call, answer: Answer) -> Iterator[str]:
    responses = DOCUMENT["paths"][call.path][call.method.lower()]["responses"]
    content = responses.get(str(answer.status), {"content": {}}).get("content", {answer.media_type: {}})
    if answer.media_type not in content:
        yield f"the document has no {answer.media_type!r} with status {answer.status}"
    elif schema := content[answer.media_type].get("schema"):
        yield from SCHEMAS.unlike(schema["$ref"].rpartition("/")[2], json.loads(answer.body))


@dataclass
class Schemas:
    """The document's schemas, each made ready once."""

    _validators: dict[str, Draft202012Validator] = field(default_factory=dict)

    def unlike(self, name: str, value: object) -> Iterator[str]:
        """Where a value is not what the schema says."""
        if name not in self._validators:
            schema = {"$ref": f"#/components/schemas/{name}", "components": DOCUMENT["components"]}
            self._validators[name] = Draft202012Validator(schema)
        for error in self._validators[name].iter_errors(value):
            yield f"{name}: {error.json_path} {error.message}"


SCHEMAS = Schemas()
