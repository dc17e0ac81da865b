"""ES modules joined into one script, each in a scope of its own.

A browser loads a view from a string, and an exported page is one file: an import has no place to import from.
So each module becomes a function that is called once and returns its exports, and its imports take names out
of what the imported modules returned:

    import { h as make } from "./dom.js";        __modules["shared/card.js"] = (() => {
    export const card = () => make("p");    ->   const { h: make } = __modules["shared/dom.js"];
                                                 const card = () => make("p");
                                                 return { card };
                                                 })();

Only the top level is looked at: strings, templates, regular expressions and comments are stepped over. What
has no such form (default exports, `export *`, imports of anything but names of a module at hand) is refused.
"""

from __future__ import annotations

import functools
import posixpath
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, NoReturn

from saelab.types import ConfigError, short

MODULES = "__modules"
SKIPPED = re.compile(r"(?:\s+|//[^\n]*|/\*.*?\*/)*", re.S)
WORD = re.compile(r"[\w$#]+")
STRING = re.compile(r"""'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*\"""", re.S)
TEMPLATE = re.compile(r"(?:[^`\\$]|\\.|\$(?!\{))*(`|\$\{)", re.S)
REGEX = re.compile(r"/(?![/*])(?:[^/\\\[\n]|\\.|\[(?:[^\]\\\n]|\\.)*\])+/\w*")
MARK = re.compile(r"\+\+|--|=>|.", re.S)
# a slash after one of these begins a regular expression, after any other word it divides
BEFORE_REGEX = frozenset(
    "await case delete do else in instanceof new of return throw typeof void yield".split()
)
CLOSING = {")": "(", "]": "[", "}": "{"}


class Token(NamedTuple):
    """A piece of JavaScript that is no space and no comment."""

    text: str
    """as written, but "/" for a regular expression, and of templates "`" or, before an expression, "${" """
    start: int
    end: int
    depth: int
    """brackets around it"""


class Module(NamedTuple):
    """A module that was taken apart."""

    body: str
    """without its imports, and without the word `export`"""
    imports: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]
    """(name of the module, ((its name for it, name here), ...)), in the order of the file"""
    exports: tuple[str, ...]


def joined(entries: Mapping[str, str], read: Callable[[str], str | None]) -> str:
    """Modules and all that they import, as statements that fill `__modules`.

    Args:
        entries: Sources of the modules to begin with, by name. A name is a path with slashes, such as
            "views/mine.js": relative imports are resolved against it.
        read: The source of an imported module by its name; None where there is none.

    Returns:
        JavaScript. After it, `__modules["views/mine.js"]` holds the exports of that module.

    Raises:
        ConfigError: A module holds what cannot be joined, imports what is not there, or imports itself by
            way of others.
    """
    done: dict[str, Module] = {}

    def add(name: str, source: str, path: tuple[str, ...]) -> None:
        module = taken_apart(name, source)
        path = (*path, name)
        for other, names in module.imports:
            if other in path:
                circle = " imports ".join((*path, other))
                refuse(f"Modules must not import each other in a circle. Got {circle}. Move what both need.")
            if other not in done:
                text = entries.get(other, read(other))
                if text is None:
                    refuse(f"An imported module must be at hand. Got {other!r} in {name}. Correct the path.")
                add(other, text, path)
            _check_exported(name, other, names, done[other].exports)
        done[name] = module

    for name, source in entries.items():
        if name not in done:
            add(name, source, ())
    scopes = [_scope(name, module) for name, module in done.items()]
    return "\n".join([f"const {MODULES} = {{}};", *scopes])


@functools.lru_cache(maxsize=128)
def taken_apart(name: str, source: str) -> Module:
    """A module's imports, exports, and the rest. Raises ConfigError."""
    reader = _Reader(name, source, tokens(name, source))
    return reader.module()


def tokens(name: str, source: str) -> list[Token]:
    """The tokens of a module; good enough to tell what is code at which depth, no more.

    Raises ConfigError where a string, a comment or a bracket does not end.
    """
    found: list[Token] = []
    brackets: list[tuple[str, int]] = []
    at = 0

    def step(pattern: re.Pattern[str], what: str) -> int:
        match = pattern.match(source, at)
        if match is None:
            _refuse_at(name, source, at, f"{what} must end", "Close it, or write it in another way")
        return match.end()

    while (at := SKIPPED.match(source, at).end()) < len(source):  # type: ignore[union-attr]
        start, character, text = at, source[at], ""
        if character in "'\"":
            at = step(STRING, "A string")
        elif character == "`" or (character == "}" and brackets and brackets[-1][0] == "${"):
            if character == "}":
                brackets.pop()
            at += 1
            at = step(TEMPLATE, "A template")
            text = "`"
            if source[at - 1] == "{":
                brackets.append(("${", start))
                text = "${"
        elif source.startswith("/*", at) or (character == "/" and not _divides(found)):
            at, text = step(REGEX, "A comment or a regular expression"), "/"
        elif match := WORD.match(source, at):
            at = match.end()
        else:
            at = step(MARK, "A mark")
            if character in CLOSING:
                if not brackets or brackets.pop()[0] != CLOSING[character]:
                    _refuse_at(name, source, start, "Brackets must match", "Open what is closed")
        found.append(Token(text or source[start:at], start, at, len(brackets)))
        if character in "([{":
            brackets.append((character, start))
    if brackets:
        _refuse_at(name, source, brackets[-1][1], "Brackets must match", "Close what is open")
    return found


def refuse(message: str) -> NoReturn:
    raise ConfigError(message)


def _scope(name: str, module: Module) -> str:
    """The function that a module becomes."""
    taken = []
    for other, names in module.imports:
        pairs = ", ".join(theirs if theirs == own else f"{theirs}: {own}" for theirs, own in names)
        taken.append(f'const {{ {pairs} }} = {MODULES}["{other}"];')
    returned = f"return {{ {', '.join(module.exports)} }};"
    lines = [f'{MODULES}["{name}"] = (() => {{', *taken, module.body.strip("\n"), returned, "})();"]
    return "\n".join(lines)


def _check_exported(name: str, other: str, names: Sequence[tuple[str, str]], exports: Sequence[str]) -> None:
    for theirs, _ in names:
        if theirs not in exports:
            there = ", ".join(exports) or "nothing"
            refuse(
                f"An imported name must be exported by its module. Got {theirs!r} in {name}. "
                f"Import what {other} exports: {there}."
            )


def _divides(before: list[Token]) -> bool:
    """Whether a slash after these tokens divides."""
    if not before:
        return False
    last = before[-1].text
    if WORD.fullmatch(last):
        return last not in BEFORE_REGEX
    return last in (")", "]", "}", "++", "--", "`", "/") or last[0] in "'\""


def _refuse_at(name: str, source: str, at: int, rule: str, remedy: str) -> NoReturn:
    line = source.count("\n", 0, at) + 1
    text = source.split("\n")[line - 1].strip()
    refuse(f"{rule}. Got {short(text)} in {name}, line {line}. {remedy}.")


class _Reader:
    """Goes through the tokens of a module at depth 0."""

    def __init__(self, name: str, source: str, found: list[Token]) -> None:
        self.name, self.source, self.found = name, source, found
        self.at = 0

    def module(self) -> Module:
        imports, exports, removed = [], [], []
        while self.at < len(self.found):
            token, after_dot = self.found[self.at], self.at > 0 and self.found[self.at - 1].text == "."
            if token.text == MODULES:
                self.refuse(f"{MODULES} must be left to the page", "Use another name")
            elif token.text == "import" and not after_dot:
                if (found := self.imported()) is not None:
                    imports.append(found)
                    removed.append((token.start, self.found[self.at - 1].end))
            elif token.text == "export" and not token.depth and not after_dot:
                removed.append((token.start, self.found[self.at + 1].start if self.left() > 1 else token.end))
                exports.append(self.exported())
            elif token.text == "await" and not token.depth:
                self.refuse("await must be inside a function", "Put braces around it")
            else:
                self.at += 1
        body, start = [], 0
        for begin, end in removed:
            body.append(self.source[start:begin])
            start = end
        body.append(self.source[start:])
        return Module("".join(body), tuple(imports), tuple(exports))

    def imported(self) -> tuple[str, tuple[tuple[str, str], ...]] | None:
        """An import statement; None for a mere key or name that is called import."""
        following = self.text(1)
        if self.found[self.at].depth or following in ("(", "."):
            if following in ("(", "."):
                self.refuse("A module must be imported at the top", 'Write import { name } from "./file.js"')
            self.at += 1
            return None
        remedy = 'Write import { name } from "../shared/file.js"'
        if following != "{":
            self.refuse("An import must be by name", remedy)
        start = self.at
        self.at += 2
        names = []
        while self.text(0) != "}":
            theirs = own = self.word(remedy)
            if self.text(0) == "as":
                self.at += 1
                own = self.word(remedy)
            names.append((theirs, own))
            if self.text(0) == ",":
                self.at += 1
            elif self.text(0) != "}":
                self.refuse("An import must be by name", remedy, start)
        path = self.text(2)
        if self.text(1) != "from" or path[:1] not in ("'", '"'):
            self.refuse("An import must be by name", remedy, start)
        if not path[1:].startswith(("./", "../")) or "\\" in path:
            self.refuse("An import must be of a relative path", remedy, start)
        name = posixpath.normpath(posixpath.join(posixpath.dirname(self.name), path[1:-1]))
        self.at += 3
        if self.text(0) == ";":
            self.at += 1
        elif self.text(0) in ("with", "assert"):
            self.refuse("An import must have no attributes", remedy, start)
        return name, tuple(names)

    def exported(self) -> str:
        """The name that an export statement declares; goes on behind it."""
        start = self.at
        remedy = "Write export before const NAME =, function NAME, async function NAME or class NAME"
        self.at += 1
        kind = self.text(0)
        if kind == "async" and self.text(1) == "function":
            self.at += 1
        elif kind not in ("const", "function", "class"):
            self.refuse("An export must be of a declaration", remedy, start)
        self.at += 1
        if self.text(0) == "*":
            self.at += 1
        name = self.word(remedy)
        if kind == "const":
            if self.text(0) != "=":
                self.refuse("An exported const must be one name", remedy, start)
            rest = (token for token in self.found[self.at :] if not token.depth)
            if next((t.text for t in rest if t.text in (",", ";")), ";") == ",":
                self.refuse("An exported const must be one name", "Write one export for each", start)
        return name

    def left(self) -> int:
        return len(self.found) - self.at

    def text(self, ahead: int) -> str:
        return self.found[self.at + ahead].text if self.left() > ahead else ""

    def word(self, remedy: str) -> str:
        """A name, gone past."""
        found = self.text(0)
        if not WORD.fullmatch(found) or found[0].isdigit():
            self.refuse(
                "What is imported or exported must have a name", remedy, min(self.at, len(self.found) - 1)
            )
        self.at += 1
        return found

    def refuse(self, rule: str, remedy: str, at: int | None = None) -> NoReturn:
        token = self.found[self.at if at is None else at]
        _refuse_at(self.name, self.source, token.start, rule, remedy)
