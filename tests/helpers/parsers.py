"""A command's parser made once in a process, as a user's process makes it.

Tests give hundreds of command lines, and for each tyro makes the parser of the class of options
anew, which is most of its work.
"""

from typing import Any

import tyro


def keep() -> None:
    """Let tyro keep them; one that makes them by another function is only slower."""
    module = getattr(tyro, "_parsers", None)
    owner = getattr(module, "ParserSpecification", None)
    make = getattr(owner, "from_callable_or_type", None)
    if make is None:
        return
    made: dict[Any, Any] = {}

    def once(f: Any, *rest: Any, **how: Any) -> Any:
        # Groups of options are made for the class that they are in.
        alone = not rest and not how.get("parent_classes", True)
        if not alone or how["default_instance"] is not tyro.MISSING_NONPROP:
            return make(f, *rest, **how)
        if f not in made:
            made[f] = make(f, **how)
        return made[f]

    owner.from_callable_or_type = staticmethod(once)
