"""How an option of a run is declared: once, with its description and its role."""

from typing import Any, Literal

from pydantic import BaseModel, Field

Role = Literal["identity", "condition", "hyperparameter", "incidental", "place"]
"""What an option is to a comparison of runs.

identity: says which of the compared runs it is; two runs that are compared may differ in it.
incidental: what is recorded or let pass; runs that differ in nothing else are one run.
condition: of the experiment; two runs that are compared share it, and no search chooses it: in a
    grid its values are experiments apart.
hyperparameter: two runs that are compared share it, unless a search has chosen it for each.
place: where and on what the run is worked on. Every option but these decides the run's folder.
"""


def option(
    role: Role,
    description: str,
    default: Any = ...,
    *,
    free: bool = False,
    **limits: Any,
) -> Any:
    """A field with its role; of one that is `free`, no value makes a step cost more or less."""
    about: dict[str, Any] = {"role": role, "free": free}
    return Field(default, description=description, json_schema_extra=about, **limits)


def about_option(kind: type[BaseModel], name: str) -> dict[str, Any]:
    """What the field `name` was declared with: its role, and whether it is free."""
    extra = kind.model_fields[name].json_schema_extra
    return extra if isinstance(extra, dict) else {}
