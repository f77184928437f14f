"""Equality as this library promises it: of value, type, bits and order."""

import math
from typing import Any


def same(left: Any, right: Any) -> bool:
    """Say whether two values are equal in value, type, bits and order, all the way down."""
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, float):
        return left.hex() == right.hex() and math.copysign(1, left) == math.copysign(1, right)
    return bool(left == right)
