"""Objects of other packages by name: `package.module:Name`, or an installed package's entry point.

Whatever has a name here (rule, objective, data source, backbone, launcher, logger) can be code of
somebody else. Only what trains calls `load_object`, with a name from its own command line or from a
plan it was told to run. The other functions import nothing, so that reading a record never runs
what the record names.
"""

import inspect
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from functools import cache
from hashlib import sha256
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points, packages_distributions, version
from pathlib import Path
from types import FrameType
from typing import Any, Literal, NamedTuple

from gradsurgery.errors import ArgumentError, one_line

Kind = Literal["rule", "objective", "source", "backbone", "launcher", "logger"]

_WORD = r"[^\W\d]\w*"
_DOOR = re.compile(rf"{_WORD}(\.{_WORD})*:{_WORD}(\.{_WORD})*")


def is_door(name: str) -> bool:
    """Whether `name` has the form `package.module:Name`; nothing is looked up.

    >>> is_door("mypackage.rules:MyRule"), is_door("agr-sum"), is_door("C:/photos")
    (True, False, False)
    """
    return _DOOR.fullmatch(name) is not None


def entry_names(kind: Kind) -> list[str]:
    """The short names that installed packages register in the group `gradsurgery.<kind>s`."""
    return sorted(_entries(kind))


def entry_place(name: str, kind: Kind) -> str:
    """The `package.module:Name` that the entry point `name` stands for; imports nothing."""
    return _entries(kind)[name].value.partition("[")[0].strip()


def load_object(name: str, kind: Kind, *, fits: Callable[[Any], bool], expected: str) -> Any:
    """Import the object that `name` stands for.

    name: `package.module:Name`, or an entry point's name.
    kind: what it is used as.
    fits: whether an object has the right shape.
    expected: that shape in words, e.g. "a subclass of gradsurgery.Objective".

    Raises `ArgumentError` where it cannot be imported or has another shape.

    >>> load_object("statistics:mean", "rule", fits=callable, expected="a function").__name__
    'mean'
    """
    entry = _entries(kind).get(name)
    path = name if entry is None else entry_place(name, kind)
    where = f"the {kind} {name!r}" if entry is None else f"the {kind} {name!r} ({path})"
    if not is_door(path):
        registered = ", ".join(entry_names(kind)) or "none"
        raise ArgumentError(
            f"unknown {kind} {name!r}; give package.module:Name, or the entry point of an "
            f"installed package (there are: {registered})"
        )
    module_name, _, attributes = path.partition(":")
    found: Any = _module(module_name, where)
    for attribute in attributes.split("."):
        found = _attribute(found, attribute, where, module_name)
    provenance(found)  # as the file is now, when it was imported
    if not fits(found):
        raise ArgumentError(f"{where} is {_shape(found)}; expected {expected}")
    _loaded[name] = _Loaded(where, module_name, attributes)
    return found


class _Loaded(NamedTuple):
    """What a name stands for, in words, and where it was found."""

    where: str
    module: str
    attributes: str


_loaded: dict[str, _Loaded] = {}


def fault_of(error: BaseException) -> str | None:
    """What to say where code that was loaded here fails, or ends the program; None without any.

    It is named where the error has passed through it or its package; elsewhere all that was loaded
    is, which may have given something of another shape than was expected.
    """
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    if not _loaded or not frames:
        return None

    def nearness(loaded: _Loaded, frame: FrameType) -> int:
        module: str = frame.f_globals.get("__name__", "")
        if module != loaded.module:
            return int(module.partition(".")[0] == loaded.module.partition(".")[0])
        within = f"{frame.f_code.co_qualname}.".startswith(f"{loaded.attributes}.")
        return 3 if within else 2

    near, position, where = max(
        (nearness(loaded, frame), position, loaded.where)
        for loaded in _loaded.values()
        for position, frame in enumerate(frames)
    )
    if not near:
        position, where = -1, " or ".join(loaded.where for loaded in _loaded.values())
    place = traceback.extract_tb(error.__traceback__)[position]
    kind = "" if isinstance(error, SystemExit) else f"{type(error).__name__}: "
    cure = "mend it" if near else "it may give what is not expected of it"
    return f"{where} fails: {kind}{one_line(error)} (at {place.filename}:{place.lineno}); {cure}"


def provenance(found: Any) -> dict[str, str | None]:
    """Where a class, a function or an instance of a class comes from, for records.

    Gives "object", the "module:Name" that `load_object` takes; "package", the installed package, or
    the module where none was installed; "version" of the package, None where it states none;
    "sha256" of the file that it is written in, as it was when it was first asked for since the
    module was imported.

    >>> from gradsurgery.errors import DataError
    >>> provenance(DataError)["object"]
    'gradsurgery.errors:DataError'
    """
    kind = found if hasattr(found, "__qualname__") else type(found)
    module = getattr(kind, "__module__", None) or "builtins"
    top = module.partition(".")[0]
    where = f"{module}:{kind.__qualname__}"
    digest = _digest_of(module)
    about = {"object": where, "package": top, "version": None, "sha256": digest}
    for distribution in _distributions().get(top, ()):
        return about | {"package": distribution, "version": version(distribution)}
    stated = getattr(sys.modules.get(top), "__version__", None)
    return about | {"version": stated if isinstance(stated, str) else None}


def changed_code(objects: Iterable[Mapping[str, str | None]]) -> list[str]:
    """Those of the objects of a record whose file is another now; imports nothing.

    One whose module is not imported, or whose file is not known, is not among them.
    """
    then: dict[str, set[str | None]] = {}
    for each in objects:
        then.setdefault(str(each["object"]), set()).add(each.get("sha256"))
    now = {name: _digest_of(name.partition(":")[0]) for name in then}
    known = [name for name in then if now[name] and None not in then[name]]
    return [name for name in known if now[name] not in then[name]]


def _digest_of(name: str) -> str | None:
    """The sha256 of the file of the module `name`, as it was when the module was asked about.

    A module that was imported again (importlib.reload, %autoreload) has another spec.
    """
    module = sys.modules.get(name)
    path, spec = getattr(module, "__file__", None), getattr(module, "__spec__", None)
    if not path:
        return None
    known = _digests.get(name)
    if known is None or known.module is not module or known.spec is not spec:
        try:
            digest = sha256(Path(path).read_bytes()).hexdigest()
        except OSError:  # it is in an archive, or gone
            digest = None
        _digests[name] = known = _Digest(module, spec, digest)
    return known.sha256


class _Digest(NamedTuple):
    """The digest of a module's file, and what was imported from it."""

    module: Any
    spec: Any
    sha256: str | None


_digests: dict[str, _Digest] = {}


@cache
def _distributions() -> dict[str, list[str]]:
    return dict(packages_distributions())


@cache
def _entries(kind: Kind) -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=f"gradsurgery.{kind}s")}


def _module(name: str, where: str) -> Any:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise ArgumentError(
                f"{where}: importing {name} needs the module {error.name}, which is not installed; "
                "install it"
            ) from error
        cure = "install the package, or add the folder that holds it to the environment variable "
        cure += "PYTHONPATH"
        first = Path(name.partition(".")[0])
        if name.endswith(".py"):
            cure = f"leave .py out of its name, as {name.removesuffix('.py')}:Name"
        elif error.name == first.name and (first.is_dir() or first.with_suffix(".py").is_file()):
            cure = "it is in this folder, which Python searches after export PYTHONPATH=."
        raise ArgumentError(f"{where}: there is no module {error.name}; {cure}") from error
    except (Exception, SystemExit) as error:
        raise ArgumentError(
            f"{where}: importing {name} fails with {type(error).__name__}: {one_line(error)}; "
            "mend the module"
        ) from error


def _attribute(holder: Any, name: str, where: str, module: str) -> Any:
    try:
        return getattr(holder, name)
    except Exception as error:  # a module may answer for its names by itself
        public = [n for n in dir(holder) if not n.startswith("_")]
        close = get_close_matches(name, public) or public[:10]
        hint = f"there is {', '.join(close)}" if close else "it is empty"
        raise ArgumentError(f"{where}: {module} has no {name}; {hint}") from error


def _shape(found: Any) -> str:
    if inspect.isclass(found):
        bases = ", ".join(base.__name__ for base in found.__bases__)
        lacks = ", ".join(sorted(getattr(found, "__abstractmethods__", ())))
        return f"the class {found.__qualname__}({bases}){lacks and f' without {lacks}'}"
    if inspect.ismodule(found):
        return f"the module {found.__name__}"
    if inspect.isroutine(found):
        return f"the function {found.__qualname__}"
    return f"of type {type(found).__qualname__}"
