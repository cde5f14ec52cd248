"""Kubernetes resource quantities ("500m", "2Gi"), exactly: no floats.

Syntax: apimachinery's resource.Quantity: a decimal number with an optional suffix,
which is binary (Ki Mi Gi Ti Pi Ei), decimal (n u m, none, k M G T P E) or an exponent
(e3, E3).
"""

from __future__ import annotations

import math
import re
from fractions import Fraction

from vmdriver.errors import InvalidRequest
from vmdriver.model.spec import Resources

_QUANTITY = re.compile(
    r"([+-]?)(\d+(?:\.\d*)?|\.\d+)"
    r"(?:(Ki|Mi|Gi|Ti|Pi|Ei|n|u|m|k|M|G|T|P|E)|[eE]([+-]?\d{1,3}))?"
)
_BINARY = {
    unit: Fraction(1024**power)
    for power, unit in enumerate(("Ki", "Mi", "Gi", "Ti", "Pi", "Ei"), 1)
}
_DECIMAL = {
    "n": Fraction(1, 10**9),
    "u": Fraction(1, 10**6),
    "m": Fraction(1, 1000),
    "k": Fraction(10**3),
    "M": Fraction(10**6),
    "G": Fraction(10**9),
    "T": Fraction(10**12),
    "P": Fraction(10**15),
    "E": Fraction(10**18),
}
_MIB = 1024 * 1024


def parse_quantity(text: str, field: str) -> Fraction:
    """The exact value of a quantity, or InvalidRequest that names the field. Must be
    above zero.
    """
    match = _QUANTITY.fullmatch(text) if len(text) <= 64 and text.isascii() else None
    if match is None:
        raise InvalidRequest(
            field, f"{text[:64]!r} is not a quantity such as 2, 500m, 1.5 or 2Gi"
        )
    sign, number, suffix, exponent = match.groups()
    value = Fraction(number)
    if suffix:
        value *= _BINARY.get(suffix) or _DECIMAL[suffix]
    if exponent:
        value *= Fraction(10) ** int(exponent)
    if sign == "-" or value == 0:
        raise InvalidRequest(field, f"{text!r} must be greater than zero")
    return value


def millicpus(text: str, field: str) -> int:
    """CPU time in thousandths of a CPU, rounded up.

    >>> millicpus("1.5", "cpu"), millicpus("100u", "cpu")
    (1500, 1)
    """
    return math.ceil(parse_quantity(text, field) * 1000)


def mebibytes(text: str, field: str) -> int:
    """Memory in MiB, rounded up.

    >>> mebibytes("2Gi", "memory"), mebibytes("1G", "memory")
    (2048, 954)
    """
    return math.ceil(parse_quantity(text, field) / _MIB)


def parse_resources(
    cpu_request: str, cpu_limit: str, memory_request: str, memory_limit: str
) -> Resources:
    """Kubernetes quantities to what the machine gets: the limit, or else the request."""
    path = "template.resources"
    cpu = [
        (f"{path}.cpu_{kind}", text)
        for kind, text in (("request", cpu_request), ("limit", cpu_limit))
        if text
    ]
    memory = [
        (f"{path}.memory_{kind}", text)
        for kind, text in (("request", memory_request), ("limit", memory_limit))
        if text
    ]
    cpu_values = [millicpus(text, field) for field, text in cpu]
    memory_values = [mebibytes(text, field) for field, text in memory]
    if len(cpu_values) == 2 and cpu_values[0] > cpu_values[1]:
        raise InvalidRequest(cpu[0][0], f"{cpu_request} is above cpu_limit {cpu_limit}")
    if len(memory_values) == 2 and memory_values[0] > memory_values[1]:
        raise InvalidRequest(
            memory[0][0], f"{memory_request} is above memory_limit {memory_limit}"
        )
    return Resources(
        cpu_millis=cpu_values[-1] if cpu_values else None,
        memory_mib=memory_values[-1] if memory_values else None,
    )
