"""Values made at random: whatever JSON holds comes back, and `json` itself agrees.

`CAT_TEST_EXAMPLES` is the number of examples in all, 2,000 by default. Half of
them go through a real store and its file; the rest through the codec alone,
which is where a value could change.
"""

import asyncio
import json
import os
import re
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cat import codec, store
from cat.errors import UnstorableValueError
from equality import same

# Read at import: the `home` fixture takes every CAT_ variable away.
EXAMPLES = int(os.environ.get("CAT_TEST_EXAMPLES", "2000"))
LIMIT = 16 * 1024 * 1024
MOST_DIGITS = 4300

SURROGATE_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")


def examples(share: float) -> settings:
    """Return the settings for a test that has this share of all the examples."""
    return settings(
        max_examples=max(1, int(EXAMPLES * share)),
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def passed(value: Any) -> Any:
    """Return what becomes of `value` in the codec."""
    text, size = codec.encode(value, LIMIT)
    assert size == len(text.encode())
    return codec.decode(text, str, "here")


def no_pair(text: str) -> bool:
    """Say whether no two surrogates in `text` make a pair, which the codec refuses."""
    return not SURROGATE_PAIR.search(text)


# All of Unicode, lone surrogates too.
TEXTS = st.text(st.characters(exclude_categories=())).filter(no_pair)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
HUGE = st.builds(
    lambda sign, digits, tail: sign * (10 ** (digits - 1) + tail),
    st.sampled_from([1, -1]),
    st.integers(20, MOST_DIGITS),
    st.integers(0, 10**18),
)
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), HUGE, FLOATS, TEXTS)
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner), max_leaves=15
)
# Keys and tuples as Python has them and JSON does not.
KEYS = st.one_of(TEXTS, st.integers(-3, 3), st.booleans(), st.none(), FLOATS, st.just("1"))
PYTHON = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner), st.lists(inner).map(tuple), st.dictionaries(KEYS, inner)
    ),
    max_leaves=15,
)


def test_any_json_through_a_store() -> None:
    """Whatever JSON holds is loaded from the file as it was saved: value, type, bits, order."""
    with asyncio.Runner() as runner:

        @examples(0.5)
        @given(JSON)
        def check(value: Any) -> None:
            async def there_and_back() -> Any:
                assert await store.save("k", value) is value
                return await store.load("k")

            assert same(runner.run(there_and_back()), value)

        check()


@examples(0.2)
@given(PYTHON)
def test_the_codec_agrees_with_json(value: Any) -> None:
    """What is accepted becomes what `json` makes of it; what `json` would lose is refused."""
    pairs: list[int] = []

    def count(items: list[tuple[str, Any]]) -> dict[str, Any]:
        pairs.append(len(items) - len(dict(items)))
        return dict(items)

    expected = json.loads(json.dumps(value), object_pairs_hook=count)
    if any(pairs):
        try:
            passed(value)
        except UnstorableValueError as error:
            assert "two keys" in str(error)  # noqa: PT017  # the other outcome is refused below
        else:
            raise AssertionError(value)
    else:
        assert same(passed(value), expected)


@examples(0.1)
@given(TEXTS)
def test_any_text_through_the_codec(text: str) -> None:
    """Text comes back character by character, as a value and as a key."""
    assert same(passed([text, {text: text}]), [text, {text: text}])


@examples(0.1)
@given(FLOATS)
def test_any_float_through_the_codec(number: float) -> None:
    """A finite float comes back to the bit, alone and with `type=float`."""
    assert same(passed(number), number)
    text, _ = codec.encode(number, LIMIT)
    assert same(codec.decode_as(float, text, str, "here"), number)


@examples(0.05)
@given(HUGE | st.integers())
def test_any_int_through_the_codec(number: int) -> None:
    """An int of up to 4,300 digits comes back exactly, alone and with `type=int`."""
    assert same(passed(number), number)
    text, _ = codec.encode(number, LIMIT)
    assert same(codec.decode_as(int, text, str, "here"), number)


@examples(0.05)
@given(st.text(st.characters(exclude_categories=())))
def test_any_text_is_stored_or_refused(text: str) -> None:
    """There is no third way: text comes back the same, or raises for its pair of surrogates."""
    try:
        assert same(passed(text), text)
    except UnstorableValueError:
        assert not no_pair(text)
