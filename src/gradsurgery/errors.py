"""Errors a user can mend. Each message names what, where, expected, found and the cure."""


class GradsurgeryError(Exception):
    """Base of every error with a cure; the command line prints it as one line and exits 1."""


class ArgumentError(GradsurgeryError, ValueError):
    """An argument or option has a value that cannot be used."""


class DataError(GradsurgeryError):
    """A data set, an image or a split is not usable as it is."""


class WeightsError(GradsurgeryError):
    """A weights file does not fit the backbone."""


class OutputError(GradsurgeryError):
    """Something could not be written; nothing half written is left behind."""


class NonFiniteError(GradsurgeryError):
    """A loss or a gradient is NaN or infinite.

    `domain` is the position of the source domain, None where the domains were pooled; `parameter`
    the name or the position of the parameter, None where the loss itself is not finite.
    """

    def __init__(self, message: str, *, domain: int | None, parameter: str | None = None) -> None:
        super().__init__(message)
        self.domain = domain
        self.parameter = parameter


class MissingPackageError(GradsurgeryError, ImportError):
    """A package that only some features need is not installed."""
