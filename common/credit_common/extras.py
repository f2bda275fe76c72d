"""Libraries that only some commands need: the extras of pyproject.toml."""


def install(extra: str) -> str:
    """What to type for an extra; from a clone, since no index need have this project."""
    return f"pip install '.[{extra}]' in a clone of this project"
