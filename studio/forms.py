"""Reading what a form sent: each field as what it should be, and everything that is wrong at once."""

from collections.abc import Sequence

from starlette.datastructures import FormData

from studio.page_error import PageError, Problem


def text_of(form: FormData, name: str) -> str:
    """A field's text; empty if it is not there, or is a file."""
    value = form.get(name, "")
    return value.strip() if isinstance(value, str) else ""


class FormReader:
    """Reads fields and gathers problems; ``check`` raises them all."""

    def __init__(self, form: FormData) -> None:
        self._form = form
        self.problems: list[Problem] = []

    def text(self, name: str, *, is_required: bool = False, longest: int = 20_000) -> str:
        """Text of at most ``longest`` characters."""
        text = text_of(self._form, name)
        if is_required and not text:
            self.refuse(name, "error.missing")
        if len(text) > longest:
            self.refuse(name, "error.long", value=len(text), most=longest)
        return text

    def whole(self, name: str, *, least: int, most: int, multiple_of: int = 1) -> int | None:
        """A whole number; None if the field is empty."""
        if not (text := text_of(self._form, name)):
            return None
        try:
            number = int(text)
        except ValueError:
            self.refuse(name, "error.whole", value=text)
            return None
        if not least <= number <= most:
            self.refuse(name, "error.range", value=number, least=least, most=most)
            return None
        if number % multiple_of:
            self.refuse(name, "error.multiple", value=number, of=multiple_of)
            return None
        return number

    def number(self, name: str, *, least: float, most: float) -> float | None:
        """A number; None if the field is empty."""
        if not (text := text_of(self._form, name)):
            return None
        try:
            number = float(text)
        except ValueError:
            number = float("nan")
        if not least <= number <= most:
            self.refuse(name, "error.range", value=text, least=f"{least:g}", most=f"{most:g}")
            return None
        return number

    def choice(self, name: str, choices: Sequence[str]) -> str:
        """One of several."""
        if (text := text_of(self._form, name)) not in choices:
            self.refuse(name, "error.choice", value=text, choices=", ".join(choices))
        return text

    def refuse(self, name: str, key: str, **values: object) -> None:
        """Say that a field is wrong."""
        self.problems.append(Problem(field=name, key=key, values=values))

    def check(self) -> None:
        """Raise ``PageError`` if any field was wrong."""
        if self.problems:
            raise PageError("error.form", problems=tuple(self.problems))
