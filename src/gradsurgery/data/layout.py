"""What the paths of a folder's images say, by a pattern."""

import re
from typing import NamedTuple

from gradsurgery.errors import ArgumentError, DataError

_FIELD = re.compile(r"\{([a-z]*)(\+?)\}|(\*\*/?|\*)")
_KNOWN = ("domain", "class", "group", "name", "id")
_FIELDS = "{domain}, {class}, {group}, {name} and {id}"


class Said(NamedTuple):
    """What a path says of its image; the group is None where it says none."""

    domain: str
    label: str
    name: str
    group: str | None = None


class Layout:
    """A pattern of paths, relative to the data set's folder, with / between folders.

    "{domain}", "{class}", "{group}", "{name}" and "{id}" stand for at least one character within a
    folder's or a file's name, "{class+}" for one or more folders; "*" for anything within a name
    and "**" for any folders. A field that occurs twice is put together with "/". A pattern with
    "(?P<domain>" and "(?P<class>" in it is a regular expression.

    alone: the domain of all images, where the pattern does not say it.

    Raises `ArgumentError` for a pattern that does not say both domain and class.

    >>> Layout("{class}_{domain}_{id}.jpg").read("dog_shop_17.jpg")
    Said(domain='shop', label='dog', name='dog_shop_17.jpg', group=None)
    >>> Layout("{domain}/{class}/{class}/{name}").read("shop/animal/dog/17.jpg").label
    'animal/dog'
    """

    def __init__(self, pattern: str, alone: str = "") -> None:
        self.pattern, self._alone = pattern, alone
        self._is_expression = "(?P<" in pattern
        both = [pattern] if self._is_expression else [self._expression("?"), self._expression("")]
        self._readings = [self._compiled(expression) for expression in both]
        fields = ("domain", "class", "name", "group")
        self._groups = {field: self._groups_of(field) for field in fields}
        for field in ("class",) if alone else ("domain", "class"):
            if not self._groups[field]:
                raise ArgumentError(
                    f"the layout {pattern!r:.200} does not say the {field}; give it {{{field}}}, "
                    "as in {domain}/{class}/{name}"
                )
        self._plain = bool(re.fullmatch(r"(\{(domain|class)\}/)+\{name\}", pattern))

    def read(self, path: str) -> Said | None:
        """What `path` says, None where it is not as the pattern; `DataError` for two readings."""
        found = [match for reading in self._readings if (match := reading.fullmatch(path))]
        if not found:
            return None
        said = [self._said(match, path) for match in found]
        ways = [(each.domain, each.label, each.group) for each in said]
        if ways[0] != ways[-1]:
            first, last = (
                f"domain {d}, class {c}{'' if g is None else f', group {g}'}"
                for d, c, g in (ways[0], ways[-1])
            )
            raise DataError(
                f"{path} can be read as {first} and as {last} by the layout {self.pattern}; make "
                "it clearer, or give a regular expression with (?P<domain>…) and (?P<class>…)"
            )
        return said[0]

    def _groups_of(self, field: str) -> list[str]:
        """The expressions' groups of a field, which are numbered where the pattern is none."""
        name = re.compile(field if self._is_expression else rf"{field}\d+")
        return [group for group in self._readings[0].groupindex if name.fullmatch(group)]

    def _said(self, match: re.Match[str], path: str) -> Said:
        domain, label, name, group = (
            "/".join(match[group] or "" for group in groups) for groups in self._groups.values()
        )
        domain = self._alone or domain
        if not domain or not label:  # a group that need not be there
            raise DataError(f"the layout {self.pattern!r:.200} finds no domain or class in {path}")
        # Where folders alone say domain and class, a name is unique in them.
        return Said(domain, label, name if self._plain else path, group or None)

    def _expression(self, lazy: str) -> str:
        """The pattern as a regular expression whose fields take all they can, or as little."""
        parts, end = [], 0
        for number, match in enumerate(_FIELD.finditer(self.pattern)):
            parts.append(self._literal(self.pattern[end : match.start()]))
            end = match.end()
            field, folders, star = match.groups()
            if star:
                kind = "[^/]*" if star == "*" else "(?:[^/]+/)*" if star == "**/" else ".*"
                parts.append(f"{kind}{lazy}")
                continue
            if field not in _KNOWN:
                raise ArgumentError(
                    f"the layout {self.pattern!r:.200} has the field {{{field}}}; fields are "
                    f"{_FIELDS}, and * for anything"
                )
            kind = "[^/]+(?:/[^/]+)*" if folders else "[^/]+"
            parts.append(f"(?P<{field}{number}>{kind}{lazy})")
        return "".join(parts) + self._literal(self.pattern[end:])

    def _literal(self, text: str) -> str:
        if lone := re.search("[{}]", text):
            raise ArgumentError(
                f"the layout {self.pattern!r:.200} has a {lone[0]} that belongs to no field; "
                f"fields are {_FIELDS}"
            )
        return re.escape(text)

    def _compiled(self, expression: str) -> re.Pattern[str]:
        try:
            return re.compile(expression)
        except (re.error, OverflowError, RecursionError) as error:
            raise ArgumentError(
                f"the layout {self.pattern!r:.200} is no regular expression: {error}"
            ) from error
