"""Plain torch twins of the kernels: the meaning of each operation, on any device."""

from soroq.kernels.problem import Problem


def can_run(problem: Problem) -> str:
    """Return '': plain torch runs every problem."""
    return ""
