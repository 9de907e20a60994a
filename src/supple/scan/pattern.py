"""The patterns by which peft's configuration names modules, matched in time linear in the name.

peft matches ``re.match(r"(.*\\.)?(KEY)$", module)``. A file may hold any key, and Python's engine goes back and forth
over some of them for ever, also over harmless looking ones such as ``(.*)*x``. Here all ways through a pattern are
followed at once (Thompson 1968, Regular expression search algorithm), which finds the same matches.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import TypeAlias

from supple.errors import InputError

#: characters of all keys together that are more than names
LONGEST = 2000
DEEPEST = 20  # brackets within brackets
_NAME = re.compile(r"[\w.\-]*", re.ASCII)
#: what stands for one character: an escape, a class, or itself
_ONE = re.compile(r"\\[^A-Za-z0-9]|\\[dDwWsS]|\[\^?[\w.\-]+\]|[^\\\[\](){}*+?|^$]")

#: None is an edge without a character to the places ``ways`` away; "^" and "$" hold at the ends alone
Step: TypeAlias = tuple[Callable[[str], object] | str | None, tuple[int, ...]]
Steps: TypeAlias = list[Step]


def first_hit(keys: Iterable[str], module: str) -> str | None:
    """The first key that peft would take for this module.

    Raises:
        InputError: a key with more in it than names, ``. * + ? ^ $``, classes, alternatives and brackets.

    >>> first_hit(["q_proj", "layers.[01]"], "model.layers.1"), first_hit(["proj"], "q_proj")
    ('layers.[01]', None)
    """
    keys = list(keys)
    length = sum(len(k) for k in keys if not _NAME.fullmatch(k))
    if length > LONGEST:
        raise InputError(
            "these patterns of modules are too long to be matched", found=f"{length} characters",
            do=f"name the modules, or keep patterns within {LONGEST} characters in all",
        )  # fmt: skip
    return next((k for k in keys if _hits(k, module)), None)


def _hits(key: str, module: str) -> bool:
    if not _NAME.fullmatch(key):
        return _run(_compiled(key), module)
    start = len(module) - len(key)
    if start < 0 or (start > 0 and module[start - 1] != "."):
        return False
    return all(k in (m, ".") for k, m in zip(key, module[start:], strict=True))


@lru_cache(maxsize=256)
def _compiled(key: str) -> Steps:
    """``(.*\\.)?(KEY)`` as steps."""
    parser = _Parser(key)
    steps = parser.alternatives(0)
    if parser.at < len(key):
        raise parser.refusal()
    return _optional([*_starred([(_one("."), (1,))]), (_one(r"\."), (1,))]) + steps


def _run(steps: Steps, text: str) -> bool:
    """Whether some way through the steps takes the whole text."""
    live = _follow(steps, {0}, 0, len(text))
    for at, letter in enumerate(text, 1):
        taken = set()
        for place in live:
            if place < len(steps):
                test, _ = steps[place]
                if callable(test) and test(letter):
                    taken.add(place + 1)
        live = _follow(steps, taken, at, len(text))
        if not live:
            return False
    return len(steps) in live


def _follow(steps: Steps, places: set[int], at: int, length: int) -> set[int]:
    """The places that can be reached from these without taking a character."""
    seen, waiting = set(places), list(places)
    while waiting:
        place = waiting.pop()
        if place == len(steps):
            continue
        test, ways = steps[place]
        if test is None or (test == "^" and at == 0) or (test == "$" and at == length):
            fresh = {place + way for way in ways} - seen
            seen |= fresh
            waiting += fresh
    return seen


def _one(token: str) -> Callable[[str], object]:
    return re.compile(token).fullmatch


def _optional(body: Steps) -> Steps:
    return [(None, (1, len(body) + 1)), *body]


def _starred(body: Steps) -> Steps:
    return [(None, (1, len(body) + 2)), *body, (None, (-len(body) - 1,))]


class _Parser:
    """A key from left to right; each method returns the steps of what it read."""

    def __init__(self, key: str) -> None:
        self.key, self.at = key, 0

    def alternatives(self, depth: int) -> Steps:
        if depth > DEEPEST:
            raise self.refusal()
        options = [self._sequence(depth)]
        while self._take("|"):
            options.append(self._sequence(depth))
        steps = options.pop()
        for option in reversed(options):
            steps = [(None, (1, len(option) + 2)), *option, (None, (len(steps) + 1,)), *steps]
        return steps

    def _sequence(self, depth: int) -> Steps:
        steps: Steps = []
        while self.at < len(self.key) and self.key[self.at] not in "|)":
            anchor = self._take("^") or self._take("$")
            steps += [(anchor, (1,))] if anchor else self._repeated(self._atom(depth))
        return steps

    def _repeated(self, body: Steps) -> Steps:
        sign = self._take("*") or self._take("+") or self._take("?")
        if not sign:
            return body
        self._take("?")  # shortest first: the same matches
        if sign == "+":
            return [*body, (None, (-len(body), 1))]
        return _starred(body) if sign == "*" else _optional(body)

    def _atom(self, depth: int) -> Steps:
        if self._take("("):
            self._take("?:")
            steps = self.alternatives(depth + 1)
            if not self._take(")"):
                raise self.refusal()
            return steps
        found = _ONE.match(self.key, self.at)
        if found is None:
            raise self.refusal()
        try:
            test = _one(found[0])
        except re.error as error:
            raise self.refusal() from error
        self.at = found.end()
        return [(test, (1,))]

    def _take(self, sign: str) -> str:
        if not self.key.startswith(sign, self.at):
            return ""
        self.at += len(sign)
        return sign

    def refusal(self) -> InputError:
        return InputError(
            "this pattern of modules is not matched", found=f"{self.key[:80]!r}, from character {self.at}",
            do=r"keep to names, . * + ? ^ $ \d \w [a-z] (a|b)",
        )  # fmt: skip
