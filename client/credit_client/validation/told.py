"""How figures of a model report are written."""


def percent(share: float | None) -> str:
    """A share in percent; empty where there is none.

    >>> percent(0.1234), percent(None)
    ('12.34%', '')
    """
    return "" if share is None else f"{100 * share:.2f}%"


def four(number: float | None) -> str:
    """A figure to four decimals; empty where there is none."""
    return "" if number is None else f"{number:.4f}"


def signed(number: float | None) -> str:
    """A difference to four decimals."""
    return "" if number is None else f"{number:+.4f}"


def plural(count: int, noun: str) -> str:
    """A count with its noun.

    >>> plural(1, "user"), plural(1200, "user")
    ('1 user', '1,200 users')
    """
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def money(loss: float | None, exposure: float) -> str:
    """A loss of a user to the same decimals throughout a table; empty where there is none.

    >>> money(0.03389, 1.0), money(1234.5678, 20000.0)
    ('0.0339', '1,234.57')
    """
    if loss is None:
        return ""
    return f"{loss:,.2f}" if exposure >= 100 else f"{loss:,.4f}"
