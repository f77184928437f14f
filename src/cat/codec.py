"""Value to JSON text and back; the path of what JSON cannot hold.

`encode` takes what `json.dumps` takes, less what would come back as something
else: NaN and infinity, keys that become the same text, and a pair of surrogate
code points, which JSON reads back as one character. Pydantic models and
dataclasses, at the top or nested, are stored as their JSON form.

pydantic is imported when the first model or `type=` is met: it costs as much
as the rest of the library together, and most plugins store plain values.
"""

import functools
import json
import math
import re
import sys
from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING, Any, NoReturn

from cat.errors import CorruptValueError, InvalidValueError, UnstorableValueError, shown

if TYPE_CHECKING:
    from pydantic import TypeAdapter, ValidationError

# json counts nesting against the caller's stack and pydantic's reader stops at
# 201 levels; well below both, so that what is saved can be read anywhere.
MAX_DEPTH = 100

_SCALARS = frozenset((str, int, float, bool, type(None)))
# An int below this has few digits; see `_check_digits` for the others.
_SMALL = 2**64

_SURROGATE_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")
_NAME = re.compile(r"[^\W\d]\w*", re.ASCII)
# A look for cycles is not needed: what is nested deeper than `MAX_DEPTH` never comes here.
_encoder = functools.partial(
    json.JSONEncoder, check_circular=False, allow_nan=False, separators=(",", ":")
)
_dumps = _encoder(ensure_ascii=False).encode
_dumps_ascii = _encoder(ensure_ascii=True).encode

_CURES = {
    "bytes": "base64.b64encode(...).decode()",
    "bytearray": "base64.b64encode(...).decode()",
    "date": ".isoformat() or a pydantic model",
    "datetime": ".isoformat() or a pydantic model",
    "time": ".isoformat() or a pydantic model",
    "timedelta": ".total_seconds() or a pydantic model",
    "Decimal": "str(...) or a pydantic model",
    "UUID": "str(...)",
    "PosixPath": "str(...)",
    "WindowsPath": "str(...)",
    "set": "sorted(...) or list(...)",
    "frozenset": "sorted(...) or list(...)",
    "generator": "list(...)",
    "dict_keys": "list(...)",
    "dict_values": "list(...)",
    "coroutine": "its result: an await is missing",
    "complex": "[x.real, x.imag]",
    "ndarray": ".tolist()",
}


class _Unstorable(Exception):  # noqa: N818  # never leaves this module
    """What is wrong, and the steps that lead to it, innermost first.

    `deepest` is the value at which the limit of nesting was reached.
    """

    def __init__(self, reason: str, *, deep: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.deep = deep
        self.steps: list[object] = []
        self.containers: set[int] = set()

    def leaves(self, container: object, step: object) -> None:
        """Note on the way out that `container` held what is wrong at `step`."""
        self.steps.append(step)
        if self.deep and id(container) in self.containers:
            self.reason = "contains itself, which JSON cannot hold; break the cycle"
            self.steps.clear()
        self.containers.add(id(container))


def encode(value: object, max_bytes: int) -> tuple[str, int]:
    """Return `value` as JSON text, and the bytes of that text in UTF-8.

    Raises `UnstorableValueError` naming the path of what JSON cannot hold, or
    the size if it is more than `max_bytes`.
    """
    try:
        text, size = _quickly_written(value) or _written(_plain(value, 0))
    except _Unstorable as fault:
        raise UnstorableValueError(_path(reversed(fault.steps)), fault.reason) from None
    except RecursionError:
        raise UnstorableValueError(
            "$", "cannot be encoded so deep in the call stack; save it from a shallower function"
        ) from None
    if size > max_bytes:
        raise UnstorableValueError(
            "$",
            f"has {size:,} bytes of JSON and the limit is {max_bytes:,} (CAT_MAX_VALUE_BYTES); "
            "split it over several keys, or keep a file in .folder",
        )
    return text, size


def decode(text: str, at: Callable[[str], str], key: str) -> Any:
    """Return a fresh value for `text`; `at(key)` is called to name the entry in a message.

    Raises `CorruptValueError`.
    """
    try:
        value, end = _scan(text, 0)
        if end == len(text):
            return value
    except (ValueError, StopIteration, RecursionError):
        pass  # seen to below
    try:
        return _decoder.decode(text)
    except ValueError:
        pass  # and raise outside: the cause holds the text, which must not reach a log
    except RecursionError:
        if _depth(text) <= MAX_DEPTH:
            raise  # the caller's stack is too deep, not the value
    raise CorruptValueError(at(key))


def decode_as(wanted: Any, text: str, at: Callable[[str], str], key: str) -> Any:
    """Return `text` as a value of type `wanted`, checked by pydantic in strict JSON mode.

    Raises `InvalidValueError`, with paths but no values, or `CorruptValueError`.
    """
    from pydantic import ValidationError  # noqa: PLC0415  # see the module's docstring

    adapter = adapter_of(wanted)
    if "NaN" in text or "Infinity" in text:  # pydantic would read them, and they are not JSON
        decode(text, at, key)
    try:
        return adapter.validate_json(text, strict=True)
    except ValidationError as error:
        problems = _problems(error)
    value = decode(text, at, key)
    if problems[0][1] == "json_invalid":
        # Lone surrogates, which pydantic's reader of JSON refuses.
        try:
            return adapter.validate_python(value, strict=True)
        except ValidationError as error:
            problems = _problems(error)
    raise InvalidValueError(at(key), _name_of(wanted), problems)


def adapter_of(wanted: Any) -> "TypeAdapter[Any]":
    """Return pydantic's adapter for a type; building one costs a thousand times its use.

    Raises pydantic's own error for what is not a type that it knows.
    """
    # Two unions are equal in any order, and pydantic tries the first one first.
    spelled = "" if isinstance(wanted, type) else repr(wanted)
    try:
        return _cached_adapter(wanted, spelled)
    except TypeError:  # a type that has no hash: Annotated[int, []]
        return _cached_adapter.__wrapped__(wanted, spelled)


def is_model(value: object) -> bool:
    """Tell whether it is an instance of a pydantic model or a dataclass."""
    import dataclasses  # noqa: PLC0415  # 1 ms, for those who store or edit what is not plain

    kind = type(value)
    return hasattr(kind, "__pydantic_serializer__") or dataclasses.is_dataclass(kind)


def _problems(error: "ValidationError") -> list[tuple[str, str]]:
    found = error.errors(include_url=False, include_context=False, include_input=False)
    return [(_path(problem["loc"]), problem["type"]) for problem in found]


def _quickly_written(value: object) -> tuple[str, int] | None:
    """Return what `encode` does, if no more than a glance shows that this is right."""
    try:
        return _written(value) if _is_plain(value, 0) else None
    except (ValueError, TypeError):  # NaN, a class without a hash: `_plain` tells where
        return None


def _is_plain(value: Any, depth: int) -> bool:
    """Tell whether json takes all types in it as they are; two thirds of the time of `_plain`."""
    kind = type(value)
    if kind is dict:
        for key in value:
            if type(key) is not str:
                return False
        items = value.values()
    elif kind is list or kind is tuple:
        items = value
    else:
        return kind in _SCALARS
    if depth == MAX_DEPTH:
        return False
    for item in items:
        if type(item) not in _SCALARS and not _is_plain(item, depth + 1):
            return False
    return True


def _written(plain: object) -> tuple[str, int]:
    # Counters are the values that change most, and json makes an encoder for each.
    text = int.__repr__(plain) if type(plain) is int else _dumps(plain)
    if text.isascii():
        return text, len(text)
    try:
        return text, len(text.encode())
    except UnicodeEncodeError:  # lone surrogates: SQLite takes them as escapes only
        if _SURROGATE_PAIR.search(text):
            raise
        text = _dumps_ascii(plain)
        return text, len(text)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(name)  # NaN and infinity are not JSON, though json reads them


_decoder = json.JSONDecoder(parse_constant=_refuse_constant)
# What `decode` calls, between two looks for space, which take a third of its time.
_scan = _decoder.scan_once  # type: ignore[attr-defined]  # not in typeshed


def _plain(value: Any, depth: int) -> Any:  # noqa: C901, PLR0911  # one for each kind of value
    """Return `value` made of what JSON has, the same object where that is so already."""
    kind = type(value)
    if kind is str:
        if not value.isascii() and _SURROGATE_PAIR.search(value):
            raise _Unstorable(
                "holds a pair of surrogate code points, which JSON reads back as one character; "
                "store .encode('utf-16', 'surrogatepass').decode('utf-16')"
            )
        return value
    if kind is int:
        if not -_SMALL < value < _SMALL:
            _check_digits(value)
        return value
    if kind is float:
        if not math.isfinite(value):
            raise _Unstorable(f"is {value}, which JSON cannot hold; store None or a str")
        return value
    if value is None or kind is bool:
        return value
    if depth == MAX_DEPTH and not isinstance(value, str | int | float):
        raise _Unstorable(f"is nested deeper than {MAX_DEPTH} levels; flatten it", deep=True)
    if kind is dict:
        return _plain_dict(value, depth + 1)
    if kind is list or kind is tuple:
        return _plain_list(value, depth + 1)
    return _plain_other(value, kind, depth)


def _plain_list(value: Any, depth: int, whole: Any = None) -> Any:
    index = 0
    changed = None
    try:
        for index, item in enumerate(value):
            kind = type(item)
            if (kind is str and item.isascii()) or (kind is int and -_SMALL < item < _SMALL):
                continue  # most are such, and a call for each would double the cost
            plain = _plain(item, depth)
            if plain is not item:
                changed = changed or list(value)
                changed[index] = plain
    except _Unstorable as fault:
        fault.leaves(value if whole is None else whole, index)
        raise
    return value if changed is None else changed


def _plain_dict(value: Any, depth: int, whole: Any = None) -> Any:
    key: object = None
    changed = None
    named = True
    try:
        for key, item in value.items():
            if type(key) is not str or not key.isascii():
                named = named and type(key) is str
                _check_name(key)
            kind = type(item)
            if (kind is str and item.isascii()) or (kind is int and -_SMALL < item < _SMALL):
                continue
            plain = _plain(item, depth)
            if plain is not item:
                changed = changed or dict(value)
                changed[key] = plain
    except _Unstorable as fault:
        fault.leaves(value if whole is None else whole, key)
        raise
    if not named:
        _check_collisions(value)
    return value if changed is None else changed


def _plain_other(value: Any, kind: type, depth: int) -> Any:
    """Return the JSON form of what is not exactly a JSON type, or raise."""
    form = _json_form(value, kind)
    if form is not value:
        return _plain(form, depth)
    # Subclasses of the JSON types (an IntEnum, a named tuple, a defaultdict),
    # as json.dumps takes them.
    if isinstance(value, str):
        return _plain(str.__str__(value), depth)
    if isinstance(value, int):
        return _plain(int.__index__(value), depth)
    if isinstance(value, float):
        return _plain(float.__pos__(value), depth)
    if isinstance(value, dict):
        return _plain_dict(dict(value), depth + 1, value)
    if isinstance(value, list | tuple):
        return _plain_list(list(value), depth + 1, value)
    default = ".value" if isinstance(value, Enum) else "a dict of its fields, or a pydantic model"
    cure = _CURES.get(kind.__name__, default)
    article = "an" if kind.__name__.startswith(tuple("AEIOaeio")) else "a"
    raise _Unstorable(f"is {article} {kind.__name__}, which JSON cannot hold; store {cure}")


def _json_form(value: Any, kind: type) -> Any:
    """Return the JSON form of a pydantic model or a dataclass, else `value` itself."""
    if not is_model(value):
        return value
    try:
        # by_alias and round_trip: the form that the same class reads back.
        form, bare = (
            adapter_of(kind).dump_python(
                value, mode=mode, by_alias=True, round_trip=True, warnings="error"
            )
            for mode in ("json", "python")
        )
    except Exception as error:  # noqa: BLE001  # a field's own serializer may raise anything
        # The cause quotes the value: it must not reach a log.
        reason = f"is a {kind.__name__} without a JSON form ({type(error).__name__})"
    else:
        _check_kept(form, bare)
        return form
    raise _Unstorable(f"{reason}; check its fields against their types, or store a dict")


def _check_kept(form: Any, bare: Any) -> None:
    """Refuse what pydantic drops in silence from fields of any kind."""
    if form is None and isinstance(bare, float):
        _plain(float(bare), 0)
    elif hasattr(bare, "get_secret_value") and form != bare.get_secret_value():
        raise _Unstorable("holds a secret that pydantic writes as asterisks; store it as a str")
    elif isinstance(form, dict) and isinstance(bare, dict):
        if len(form) != len(bare):
            raise _Unstorable(
                "has two keys that JSON writes alike; one would be lost: use str keys"
            )
        for kept, given in zip(form.values(), bare.values(), strict=True):
            _check_kept(kept, given)
    elif isinstance(form, list) and isinstance(bare, list | tuple) and len(form) == len(bare):
        for kept, given in zip(form, bare, strict=True):
            _check_kept(kept, given)


@functools.lru_cache(maxsize=1024)
def _cached_adapter(wanted: Any, _spelled: str) -> "TypeAdapter[Any]":
    from pydantic import TypeAdapter  # noqa: PLC0415  # see the module's docstring

    return TypeAdapter(wanted)


def _check_digits(value: int) -> None:
    # A cheap test first: 2,000 bits are at most 603 digits, and the limit is never below 640.
    limit = sys.get_int_max_str_digits() if value.bit_length() > 2_000 else 0
    if limit and abs(value) >= 10**limit:
        raise _Unstorable(f"has more than {limit:,} digits, Python's own limit; store hex(...)")


def _check_name(key: object) -> None:
    """Refuse a dict key that `json` would refuse, or not bring back."""
    if isinstance(key, str):
        _plain(str.__str__(key), 0)
    elif isinstance(key, float):
        _plain(float(key), 0)
    elif isinstance(key, int):
        _plain(int(key), 0)
    elif key is not None:
        raise _Unstorable(
            f"has a key of type {type(key).__name__}, which JSON cannot hold; use a str"
        )


def _check_collisions(value: dict[Any, Any]) -> None:
    names: set[str] = set()
    for key in value:
        name = str.__str__(key) if isinstance(key, str) else _dumps(key)
        if name in names:
            raise _Unstorable(
                f"has two keys that JSON both writes as {shown(name)}; one would be lost: "
                "use str keys"
            )
        names.add(name)


def _path(steps: Any) -> str:
    """Return steps as `$.stops[2].at`, ASCII and cut."""
    text = "$"
    for step in steps:
        if isinstance(step, str):
            name = str.__str__(step)
            text += f".{name}" if _NAME.fullmatch(name) else f"[{name!a}]"
        elif isinstance(step, int) and step.bit_length() > 2_000:
            text += "[int]"
        elif step is None or isinstance(step, int | float):
            text += f"[{step!a}]"
        else:
            text += f"[{type(step).__name__}]"
    return text if len(text) <= 80 else f"{text[:38]}...{text[-38:]}"


def _depth(text: str) -> int:
    """Return how deep the brackets of a JSON text are nested."""
    deepest = depth = 0
    for bracket in re.findall(r'"(?:[^"\\]|\\.)*"|[\[\]{}]', text):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(bracket, 0)
        deepest = max(deepest, depth)
    return deepest


def _name_of(wanted: Any) -> str:
    """Name a type for a message: a class by its name, `list[int]` and the like as written."""
    name = None if hasattr(wanted, "__origin__") else getattr(wanted, "__name__", None)
    return shown(name or str(wanted)).strip("'\"")
