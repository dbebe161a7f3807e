"""What a format can't hold: raised by `encode`, and asked for before anything is read."""

from soroq.core.errors import SoroqError


class FormatError(SoroqError):
    """A weight that can't be represented in a format; the message names the module and why."""
