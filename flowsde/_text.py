"""Text of files and of others for messages: of bounded length, and without control characters."""

from collections.abc import Collection, Iterable

_NAME, _LINE, _ITEMS = 200, 600, 10
"""Most characters of a name and of a line, and most items of a list."""


def shown(text: object, limit: int = _NAME) -> str:
    r"""`str(text)` of at most `limit` characters, safe to print.

    What `str.isprintable` calls unprintable (control characters, which a terminal obeys, line
    breaks, marks that change the direction of a text, lone surrogates) is written as in a string
    literal, "\x1b". A longer text loses its middle: keys differ at their ends.
    """
    text = str(text)
    # Whatever follows is as long as the limit, not as the text.
    whole = _escaped(text) if len(text) <= limit else None
    if whole is not None and len(whole) <= limit:
        return whole
    tail = (limit - 3) // 3
    head = limit - 3 - tail
    begin, end = _escaped(text[:limit]), _escaped(text[-limit:])
    return f"{begin[:head]}...{end[len(end) - tail :]}"


def _escaped(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )


def names(texts: Collection[object], most: int = _ITEMS) -> str:
    """The first of several names: "a, b and 7 more"."""
    first = [shown(text) for text, _ in zip(texts, range(most), strict=False)]
    more = len(texts) - len(first)
    return ", ".join(first) + (f" and {more} more" if more else "")


def listed(problems: Iterable[object], title: str, most: int = _ITEMS) -> str:
    """Problems as one message: the title, the first of them a line each, how many more."""
    lines: list[str] = []
    count = 0
    for count, problem in enumerate(problems, 1):
        if count <= most:
            lines.append(shown(problem, _LINE))
    more = [f"... and {count - most} more"] if count > most else []
    return "\n".join([f"{title}:", *lines, *more])
