"""Captions by a vision-language model, made in the background, a dataset at a time. No torch."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

from longcat.errors import JobError, LithographError
from longcat.problem import Problem
from studio.datasets.bulk import CaptionHistory
from studio.datasets.captions import caption_file
from studio.datasets.datasets import Dataset
from trainer.data.captioning.endpoint import CaptionEndpoint, EndpointSettings
from trainer.data.captioning.folder import caption_folder
from trainer.data.captioning.text import TEMPLATE, CaptionLanguage

_MOST_PROBLEMS = 20


@dataclass(frozen=True, kw_only=True)
class CaptioningProgress:
    """Progress with one dataset."""

    is_over: bool = False
    captioned: int = 0
    failed: int = 0
    problems: tuple[Problem, ...] = field(default=())
    """The first reasons for failures, each with its file."""


class Describer:
    """Asks the configured endpoint for the captions that are missing."""

    def __init__(self, settings: EndpointSettings | None) -> None:
        """``settings``: None where no endpoint is configured."""
        self._settings = settings
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="describe")
        self._lock = threading.Lock()
        self._states: dict[Path, CaptioningProgress] = {}
        self._is_closing = threading.Event()

    @property
    def is_configured(self) -> bool:
        """Return True if there is a model to ask."""
        return self._settings is not None

    def close(self) -> None:
        """Stop after the pictures that are being asked about; the others stay without captions."""
        self._is_closing.set()
        self._pool.shutdown(cancel_futures=True)

    def state(self, dataset: Dataset) -> CaptioningProgress | None:
        """Return the progress; None if captioning has not begun."""
        return self._states.get(dataset.folder)

    def begin(self, dataset: Dataset, languages: tuple[CaptionLanguage, ...], history: CaptionHistory) -> None:
        """Caption the pictures that have no caption. Raises ``JobError`` if it runs already, or nothing is configured."""
        if (settings := self._settings) is None:
            raise JobError(
                "captioning_not_configured", "no vision-language model is configured",
                remedy="start the studio with --caption-endpoint and --caption-model",
            )  # fmt: skip
        with self._lock:
            if (state := self.state(dataset)) is not None and not state.is_over:
                raise JobError("captioning_runs", "the pictures are being captioned already", remedy="wait for the end")
            self._states[dataset.folder] = CaptioningProgress()
        note = history.recording("describe", settings.model)
        self._pool.submit(self._run, dataset, languages, settings, note)

    def _run(
        self,
        dataset: Dataset,
        languages: tuple[CaptionLanguage, ...],
        settings: EndpointSettings,
        note: Callable[[Path], None],
    ) -> None:
        folder = dataset.folder
        try:
            with (
                closing(CaptionEndpoint(settings)) as endpoint,
                closing(caption_folder(folder, endpoint.describe, languages=languages, template=TEMPLATE)) as pictures,
            ):
                for one in pictures:
                    if one.captions:
                        note(caption_file(folder / one.key))
                    self._count(
                        folder,
                        captioned=bool(one.captions),
                        problem=one.problem and one.problem.within(field="file", value=one.key),
                    )
                    if self._is_closing.is_set():
                        break
        except LithographError as error:
            self._count(folder, captioned=False, problem=error.problems[0])
        finally:
            self._states[folder] = replace(self._states[folder], is_over=True)

    def _count(self, folder: Path, *, captioned: bool, problem: Problem | None) -> None:
        state = self._states[folder]
        problems = state.problems if problem is None else (*state.problems, problem)[:_MOST_PROBLEMS]
        self._states[folder] = replace(
            state, captioned=state.captioned + captioned, failed=state.failed + (problem is not None), problems=problems
        )
