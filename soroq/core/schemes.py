"""SCHEMES: every scheme by its name, one line each; `soroq schemes` prints this table."""

import dataclasses

from soroq.core.errors import SchemeError
from soroq.core.scheme import QuantArgs, Scheme

_INT4 = QuantArgs(bits=4, group_size=128, symmetric=False)
_INT8 = QuantArgs(bits=8, group_size=128)
_FP8_ROW = QuantArgs(dtype="float", bits=8, group_size=None)
_FP8_TILE = QuantArgs(dtype="float", bits=8, group_size=None, block=(128, 128))
_FP8_TOKEN = dataclasses.replace(_FP8_ROW, dynamic=True)
_FP8_GROUP = QuantArgs(dtype="float", bits=8, group_size=128, dynamic=True)

_PACK = "pack-quantized"
_FLOAT = "float-quantized"

SCHEMES: dict[str, Scheme] = {
    s.name: s
    for s in (
        Scheme(
            "int4",
            "the best known: channels in order, corrected targets, GPTQ, refined, distilled",
            _INT4,
            "gptq-refined",
            _PACK,
            corrected=True,
            distilled=True,
            reordered=True,
        ),
        Scheme("int4-rtn", "round to nearest; no calibration", _INT4, "rtn", _PACK),
        Scheme("int4-gptq", "GPTQ with importance-weighted ranges", _INT4, "gptq", _PACK),
        Scheme(
            "int4-awq",
            "AWQ folds and clipping, then rounding",
            _INT4,
            "clip",
            _PACK,
            folds=("awq",),
        ),
        Scheme("int4-awq-gptq", "AWQ folds, then GPTQ", _INT4, "gptq", _PACK, folds=("awq",)),
        Scheme("int8-rtn", "8-bit round to nearest; no calibration", _INT8, "rtn", _PACK),
        Scheme(
            "fp8-rtn", "float8, plain rounding; no calibration", _FP8_ROW, "rtn", _FLOAT, _FP8_TOKEN
        ),
        Scheme(
            "fp8",
            "float8 weights per row, activations per token",
            _FP8_ROW,
            "gptq-refined",
            _FLOAT,
            _FP8_TOKEN,
            corrected=True,
        ),
        Scheme(
            "fp8-static",
            "float8 weights per row, calibrated activation scale",
            _FP8_ROW,
            "gptq-refined",
            _FLOAT,
            _FP8_ROW,
            corrected=True,
        ),
        Scheme(
            "fp8-block",
            "float8 weights in 128×128 tiles, activations per 128",
            _FP8_TILE,
            "gptq-refined",
            _FLOAT,
            _FP8_GROUP,
            corrected=True,
        ),
    )
}


def get_scheme(
    name: str, *, group_size: int | None | str = "", symmetric: bool | None = None
) -> Scheme:
    """Return the scheme called `name`, with the group size and symmetry asked for.

    `group_size` is 32, 64, 128, None for the row, or '' to keep the scheme's own.
    Raises SchemeError for an unknown name or an option the scheme can't take.
    """
    if name not in SCHEMES:
        raise SchemeError(f"unknown scheme {name!r}; known: {', '.join(sorted(SCHEMES))}")
    scheme = SCHEMES[name]
    changes: dict[str, object] = {}
    if group_size != "":
        if scheme.weight.dtype == "float":
            raise SchemeError(f"{name} has no groups; drop --group-size")
        changes["group_size"] = group_size
    if symmetric is not None:
        changes["symmetric"] = symmetric
    if not changes:
        return scheme
    weight = dataclasses.replace(scheme.weight, **changes)  # type: ignore[arg-type]
    return dataclasses.replace(scheme, weight=weight)
