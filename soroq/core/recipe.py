"""Recipe: one run's decisions, resolved; it stands in the manifest and decides the bytes."""

import dataclasses
import fnmatch
import json
from dataclasses import dataclass, field
from typing import Any

from soroq.core.errors import SchemeError
from soroq.core.scheme import QuantArgs, Scheme
from soroq.core.schemes import get_scheme


@dataclass(frozen=True)
class Recipe:
    """A scheme with its exceptions.

    overrides: (glob on module names, scheme or None to leave the module alone), first match wins.
    embed: numbers of the tied embedding and head, None to keep them as they are.
    distill_epochs, distill_rate: passes over the calibration text, and the learning rate of the
    relative change of a scale, when the scheme is distilled.
    """

    scheme: Scheme
    overrides: tuple[tuple[str, Scheme | None], ...] = ()
    embed: QuantArgs | None = None
    damp_ratio: float = 0.01
    target_ridge: float = 1.0
    distill_epochs: float = 1.0
    distill_rate: float = 5e-4
    seed: int = 0
    n_samples: int = 128
    seq_len: int = 512
    bos_weight: float = 1.0
    mix: tuple[tuple[str, float], ...] = field(default=(("tg", 0.7), ("en", 0.3)))

    def scheme_for(self, module: str) -> Scheme | None:
        """Return the scheme of a module's weight, None when it stays as it is."""
        for pattern, scheme in self.overrides:
            if fnmatch.fnmatchcase(module, pattern):
                return scheme
        return self.scheme

    def to_json(self) -> str:
        """Return the recipe as JSON with sorted keys: equal recipes give equal text."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True, indent=2)


def recipe_from_json(text: str) -> Recipe:
    """Invert `Recipe.to_json`. Raises SchemeError when a field is missing or unknown."""
    try:
        raw = json.loads(text)
        return Recipe(
            scheme=_scheme(raw["scheme"]),
            overrides=tuple((p, _scheme(s) if s else None) for p, s in raw["overrides"]),
            embed=_args(raw["embed"]),
            damp_ratio=float(raw["damp_ratio"]),
            target_ridge=float(raw["target_ridge"]),
            distill_epochs=float(raw["distill_epochs"]),
            distill_rate=float(raw["distill_rate"]),
            seed=int(raw["seed"]),
            n_samples=int(raw["n_samples"]),
            seq_len=int(raw["seq_len"]),
            bos_weight=float(raw["bos_weight"]),
            mix=tuple((str(k), float(v)) for k, v in raw["mix"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise SchemeError(f"not a recipe: {error!r}") from error


def _args(raw: dict[str, Any] | None) -> QuantArgs | None:
    if raw is None:
        return None
    block = tuple(raw["block"]) if raw["block"] else None
    return QuantArgs(**{**raw, "block": block})


def _scheme(raw: dict[str, Any]) -> Scheme:
    weight = _args(raw["weight"])
    assert weight is not None
    return Scheme(
        **{
            **raw,
            "weight": weight,
            "activation": _args(raw["activation"]),
            "folds": tuple(raw["folds"]),
        }
    )


def parse_override(text: str) -> tuple[str, Scheme | None]:
    """Parse `'glob:what'`, where what is a scheme name, int4, int8, fp8 or skip.

    Raises SchemeError when the colon or the name is wrong.
    """
    pattern, colon, what = text.rpartition(":")
    if not colon or not pattern:
        raise SchemeError(
            f"override {text!r} is not 'module glob:scheme', e.g. 'model.layers.0.*:int8'"
        )
    if what == "skip":
        return pattern, None
    return pattern, get_scheme({"int8": "int8-rtn"}.get(what, what))
