"""The one exception that speaks to a person."""


class UserError(ValueError):
    """Bad input, in one line: what is wrong, where, and what is allowed.

    The command line prints the line and ends with status 2; from Python it is an ordinary `ValueError`.
    """


def require(holds: bool, name: str, value: object, allowed: str) -> None:
    """Refuse a value, naming the field and what is allowed."""
    if not holds:
        raise UserError(f"{name} = {value}: allowed is {allowed}")
