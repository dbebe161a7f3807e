"""The errors soroq raises on purpose.

A `SoroqError` is something its user can mend: the command line prints its one line and exits with
`exit_code`, without a traceback. Its text says what was given, what is allowed and what to do,
module name first. Anything else that escapes is a bug of ours and keeps its traceback.
"""


class SoroqError(Exception):
    """What the user gave can't be worked with; the message says what to do instead."""

    exit_code = 2


class SchemeError(SoroqError):
    """An unknown scheme, or options that contradict each other or a layer's shape."""


class CheckpointError(SoroqError):
    """A model on disk that is missing, truncated, unreadable or of an unsupported kind."""


class CalibrationError(SoroqError):
    """Calibration text that is missing, too short or not in the language it claims to be in."""


class CheckError(SoroqError):
    """Evaluation text, items or gates that can't be read or don't fit the models."""


class NumericsError(SoroqError):
    """NaN or infinity in a weight, a statistic or a result; the message names the tensor."""


class OutputError(SoroqError):
    """An output place that can't be written: not empty, or on a disk that is too small."""


class BackendError(SoroqError):
    """Another quantizer that isn't installed, failed, or left a result of another kind."""


class KernelError(SoroqError):
    """No kernel, compiler or device for what was asked."""
