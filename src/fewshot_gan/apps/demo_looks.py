"""What a visitor of the demo chooses for a picture, as weights of looks and in words."""

from collections.abc import Mapping, Sequence

CHOSEN, PLAIN = "Ticked looks", "No look"  # choices for one picture besides the names of looks


def weights(chosen: Sequence[str], strengths: Mapping[str, float]) -> dict[str, float]:
    """Return the weight of each chosen look: the visitor's setting, else an equal share rounded to a twentieth."""
    return {name: strengths.get(name, max(1, round(20 / len(chosen))) / 20) for name in chosen}


def look_of(choice: str, chosen: Mapping[str, float]) -> dict[str, float]:
    """Return the weights for one picture's choice: the looks chosen for all, no look, or one look alone."""
    if choice == CHOSEN:
        return dict(chosen)
    return {} if choice == PLAIN else {choice: 1.0}


def title(look: Mapping[str, float]) -> str:
    """Return a look in words, such as `sketch` or `sketch 0.5 + ink`."""
    return " + ".join(name if weight == 1 else f"{name} {weight:g}" for name, weight in look.items()) or "no look"
