"""Arbitrary configurations, dataloader files, captions and tables: one of our errors at worst."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st
from pydantic import ValidationError

from longcat.errors import LithographError
from longcat.model.shape import GRID_PX
from longcat.validation import problems_of
from studio.training.form import as_file, as_typed, fields, read_file, read_form
from tests.fuzz.cases import check_error, sweep, try_all
from tests.fuzz.values.options import DATASET, DATASET_VALUES, OBJECTS, OPTIONS, SIZES
from tests.fuzz.values.pictures import png
from tests.fuzz.values.strange import (
    ODD_VALUES,
    TEXTS,
    UNICODE,
    VALUES,
    broken,
    changed,
    json_bytes,
)
from trainer.config.dataset_options import DatasetConfig
from trainer.config.options import TrainConfig
from trainer.config.reading.assignments import parse_assignments
from trainer.config.reading.file import load_config, read_prompts
from trainer.config.reading.text_encoding import decode_text
from trainer.config.settings import public_options
from trainer.data.buckets import bucket_choices
from trainer.data.captions.compose import tag_orders, with_trigger_words
from trainer.data.captions.language import detect_language
from trainer.data.scan import scan
from trainer.data.scanning.options import PromptLimit, ScanOptions
from trainer.loop.continuation import continue_with, recorded_options

NAMED = st.sampled_from(sorted(TrainConfig.model_fields))


def use(config: TrainConfig) -> None:
    """Compute everything that a training derives from its configuration before it loads anything."""
    public_options(config)
    recorded = recorded_options(config, processes=1)
    assert continue_with(config, recorded, processes=1, step=10) == (config, [])
    for dataset in config.datasets:
        resolution = {"resolution": config.resolution, "resolution_type": config.resolution_type}
        bucket_choices(dataset, **resolution, alignment_px=config.aspect_bucket_alignment)
        assert dataset.uri


def told(error: LithographError) -> None:
    """Check that a problem's sentences can be filled in, are short, and can be sent to a page."""
    assert len(str(error)) < 20_000
    for problem in error.problems:
        json.dumps(problem.to_json())


@pytest.mark.heavy
def test_no_configuration_raises_another_exception(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "config.json"
    accepted = 0

    def check(content: bytes) -> None:
        nonlocal accepted
        path.write_bytes(content)
        try:
            use(load_config(path, {})[0])
            accepted += 1
        except LithographError as error:
            check_error(error)

    check(json.dumps(OPTIONS).encode())
    try_all("configurations", check, json_bytes(OBJECTS), cases=120)
    assert accepted > 1


@pytest.mark.heavy
def test_every_option_is_given_every_odd_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.json").write_text("{}")

    def check(content: dict[str, Any]) -> None:
        (tmp_path / "config.json").write_text(json.dumps(content))
        try:
            use(load_config(tmp_path / "config.json", {})[0])
        except LithographError as error:
            check_error(error)

    others = {key: value for key, value in OPTIONS.items() if key != "instance_data_dir"}
    sweep("options", check, [OPTIONS | {name: value} for name in TrainConfig.model_fields for value in ODD_VALUES])
    datasets = [DATASET | {name: value} for name in DatasetConfig.model_fields for value in ODD_VALUES]
    sweep("dataset fields", check, [others | {"data_backend_config": [dataset]} for dataset in datasets])


def test_no_dataloader_file_raises_another_exception(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "datasets.json"
    options = {key: value for key, value in OPTIONS.items() if key != "instance_data_dir"}

    def check(content: bytes) -> None:
        path.write_bytes(content)
        try:
            use(load_config(None, {**options, "data_backend_config": str(path)})[0])
        except LithographError as error:
            check_error(error)

    check(json.dumps([DATASET]).encode())
    try_all("dataloader files", check, json_bytes(st.lists(changed(DATASET, DATASET_VALUES), max_size=2)), cases=80)


def test_no_prompt_library_raises_another_exception(tmp_path: Path) -> None:
    def check(content: bytes) -> None:
        (tmp_path / "prompts.json").write_bytes(content)
        try:
            assert all(isinstance(prompt, str) for prompt in read_prompts(tmp_path / "prompts.json"))
        except LithographError as error:
            check_error(error)

    try_all(
        "prompt libraries", check, json_bytes(st.dictionaries(TEXTS, st.one_of(TEXTS, VALUES), max_size=3)), cases=80
    )


def test_no_command_line_raises_another_exception() -> None:
    arguments = st.one_of(
        TEXTS,
        st.tuples(st.sampled_from(["", "--"]), NAMED, st.sampled_from(["", "="]), TEXTS).map("".join),
        st.just("--resolution"),
    )

    def check(given: list[str]) -> None:
        try:
            load_config(
                None, {name: value for name, value in parse_assignments(given).items() if name != "data_backend_config"}
            )
        except LithographError as error:
            check_error(error)

    try_all("command lines", check, st.lists(arguments, max_size=4), cases=80)


def test_no_form_and_no_imported_file_raises_another_exception() -> None:
    typed = st.dictionaries(
        st.sampled_from(sorted(fields())), st.one_of(UNICODE, SIZES.map(str), st.just("on")), max_size=4
    )

    def check_form(values: dict[str, str]) -> None:
        reading = read_form(values)
        for text in as_typed(reading.options).values():
            assert isinstance(text, str)
        try:
            again = read_file(as_file(reading.options))
        except LithographError as error:
            check_error(error)
            assert reading.config is None  # a refused form may hold a character that no file has
        else:
            assert reading.config is None or again.config == reading.config

    def check_file(content: bytes) -> None:
        try:
            reading = read_file(content.decode("utf-8", "replace"))
            as_typed(reading.options)
            as_file(reading.options)
        except LithographError as error:
            check_error(error)

    try_all("training forms", check_form, typed, cases=80)
    try_all("imported files", check_file, json_bytes(OBJECTS), cases=80)


def test_no_dataset_option_raises_another_exception() -> None:
    def check(given: dict[str, Any]) -> None:
        try:
            DatasetConfig.model_validate(given)
        except ValidationError as error:
            for problem in problems_of(error, DatasetConfig):
                json.dumps(problem.to_json())

    try_all("dataset options", check, changed(DATASET, DATASET_VALUES), cases=80)


def caption_files(strategy: str) -> st.SearchStrategy[bytes]:
    """Return contents of the caption file that a dataset of this strategy reads."""
    rows = st.fixed_dictionaries({"filename": st.one_of(st.just("a.png"), TEXTS), "caption": st.one_of(TEXTS, VALUES)})
    match strategy:
        case "json":
            return json_bytes(st.one_of(st.fixed_dictionaries({"caption": st.one_of(TEXTS, VALUES)}), VALUES))
        case "jsonl":
            return st.lists(json_bytes(rows), max_size=3).map(b"\n".join)
        case "json-table":
            return json_bytes(st.one_of(st.lists(rows, max_size=3), st.dictionaries(TEXTS, VALUES, max_size=3)))
        case "csv":
            return broken(
                st.lists(
                    st.tuples(st.one_of(st.just("a.png"), TEXTS), TEXTS, st.sampled_from([",", "\t", ";", '"', "\0"])),
                    max_size=3,
                ).map(
                    lambda lines: (
                        b"filename,caption\n" + b"\n".join(f"{a}{c}{b}".encode("utf-8", "replace") for a, b, c in lines)
                    )
                )
            )
        case _:
            return st.one_of(
                broken(st.just("一只猫, a cat".encode())), TEXTS.map(lambda t: t.encode("utf-8", "surrogatepass"))
            )


@pytest.mark.parametrize("strategy", ["textfile", "json", "jsonl", "csv", "json-table", "filename"])
def test_no_caption_file_stops_a_scan(tmp_path: Path, strategy: str) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(png())
    name = {"textfile": "a.txt", "json": "a.json", "jsonl": "x.jsonl", "csv": "x.csv", "json-table": "x.json"}.get(
        strategy, "c.txt"
    )
    config = DatasetConfig(
        id="cats", instance_data_dir=str(tmp_path), caption_strategy=strategy.removesuffix("-table"),
        caption_file=name if strategy == "json-table" else None, trigger_words=("ink",), shuffle_tags=True,
    )  # fmt: skip
    options = ScanOptions(
        resolution=(64.0,),
        resolution_type="pixel_area",
        alignment_px=GRID_PX,
        prompt_limit=lambda: PromptLimit(max_tokens=512, count=len),
    )

    def check(content: bytes) -> None:
        (tmp_path / name).write_bytes(content)
        try:
            found = scan((config,), options, index_file=tmp_path / ".index", allow_empty=True)
        except LithographError as error:
            check_error(error)
            return
        for sample in found.samples:
            assert all(caption.encode("utf-8") for caption in sample.captions)
        assert len(found.hash) == 64
        for dropped in found.dropped:
            json.dumps(dropped.problem.to_json())

    try_all(f"captions: {strategy}", check, caption_files(strategy), cases=40)


def test_no_caption_raises_another_exception() -> None:
    def check(text: str, word: str) -> None:
        detect_language(text)
        assert tag_orders(text, keep=1)
        with_trigger_words(text, (word,))

    def check_bytes(content: bytes) -> None:
        try:
            decode_text(content)
        except LithographError as error:
            check_error(error)

    tags = st.lists(UNICODE, max_size=12).map(", ".join)
    try_all("captions", check, st.one_of(tags, UNICODE), UNICODE, cases=80)
    encoded = UNICODE.flatmap(
        lambda t: st.sampled_from(["utf-8", "utf-16", "gb18030", "utf-32", "big5"]).map(
            lambda e: t.encode(e, "replace")
        )
    )
    try_all("encodings of captions", check_bytes, st.one_of(broken(encoded), st.binary(max_size=60)), cases=80)
