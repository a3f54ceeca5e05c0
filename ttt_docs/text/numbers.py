"""English number words."""

from __future__ import annotations

_UNITS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
_TENS = {
    ten: 10 * i
    for i, ten in enumerate(("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"), 2)
}
#: "zero" to "ninety-nine" -> its value.
NUMBER_WORDS = (
    {word: i for i, word in enumerate(_UNITS)}
    | _TENS
    | {f"{ten}-{_UNITS[i]}": value + i for ten, value in _TENS.items() for i in range(1, 10)}
)
