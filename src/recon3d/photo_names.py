"""What a user may call a photo: its name, its file name, or its number in the order of all."""

import re
from collections.abc import Callable, Sequence
from pathlib import PurePosixPath


def name_lookup(names: Sequence[str], n_numbered: int | None = None) -> Callable[[str], list[str]]:
    """Return a function from what a user wrote to the names of the photos it may mean.

    A name comes before a file name, and that before a number from 0.

    Args:
        names: all photos as the user gave them, in natural order, also those that are left out.
        n_numbered: how many of them numbers count; None is all.
    """
    numbered = names[:n_numbered]
    of_base: dict[str, list[str]] = {}
    for name in names:
        of_base.setdefault(PurePosixPath(name).name, []).append(name)
    whole = set(names)

    def lookup(text: str) -> list[str]:
        if text in whole:
            return [text]
        if text in of_base:
            return of_base[text]
        is_number = re.fullmatch(r"[0-9]{1,9}", text) is not None
        return [numbered[int(text)]] if is_number and int(text) < len(numbered) else []

    return lookup
