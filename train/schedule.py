"""Warmup, stable, decay: a learning rate that can be cut short anywhere (arXiv 2404.06395)."""


def wsd_factor(step: int, total: int, warmup: int, decay: int) -> float:
    """Return the learning rate of a step (from 0) as a share of the highest.

    Rises linearly over `warmup` steps, stays, and falls over the last `decay` steps by 1 − √x
    (arXiv 2405.18392, section 4), which ends near 0.
    """
    if step < warmup:
        return (step + 1) / warmup
    behind = step - (total - decay)
    if behind < 0:
        return 1.0
    return float(1.0 - ((behind + 1) / (decay + 1)) ** 0.5)
