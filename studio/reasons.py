"""What trainer and service say, which is English, in a reader's language: ``reasons.LANGUAGE.json``.

It holds sentences by their English form: the sentence with ``{}`` where its values stand. What has no form there is shown
in English. A test holds the forms to the source, and every reason for which a file of a dataset is dropped to a form.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

_FOLDER = Path(__file__).parent


class Reasons:
    """The sentences of one language."""

    def __init__(self, forms: Mapping[str, str]) -> None:
        self.forms = forms
        most_said_first = sorted(forms, key=lambda form: len(form.replace("{}", "")), reverse=True)
        self._patterns = [(_pattern(form), forms[form]) for form in most_said_first]
        self._named = [
            (re.compile(f"(.+?:?) {_pattern(form).pattern}", re.DOTALL), forms[form])
            for form in most_said_first
            if not form.startswith("{}")
        ]

    def retell(self, said: str) -> str | None:
        """A sentence, or one that goes on from a name, as in ``cat.png is empty``; None if it has no form here."""
        return self._whole(said) or self._of_name(said)

    def _whole(self, said: str) -> str | None:
        for pattern, form in self._patterns:
            if match := pattern.fullmatch(said):
                return self._filled(form, match.groups())
        return None

    def _of_name(self, said: str) -> str | None:
        for pattern, form in self._named:
            if match := pattern.fullmatch(said):
                name, *values = match.groups()
                return f"{name.removesuffix(':')}：{self._filled(form, values)}"
        return None

    def _filled(self, form: str, values: Sequence[str]) -> str:
        """With values, some of which are sentences themselves."""
        return form.format(*(self._whole(value) or value for value in values))


def load_reasons(code: str) -> Reasons:
    """Of a language; none for English."""
    path = _FOLDER / f"reasons.{code}.json"
    return Reasons(json.loads(path.read_text(encoding="utf-8")) if path.exists() else {})


def _pattern(form: str) -> re.Pattern[str]:
    return re.compile("(.*?)".join(map(re.escape, form.split("{}"))), re.DOTALL)
