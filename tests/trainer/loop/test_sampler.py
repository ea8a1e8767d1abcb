from collections import Counter
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given

from trainer.config.dataset_options import DatasetConfig
from trainer.data.buckets import Bucket, Crop
from trainer.data.sample import Sample
from trainer.loop.sampler import Sampler


def picture(
    number: int,
    *,
    bucket: int = 128,
    repeats: int = 0,
    probability: float = 1.0,
    dataset: str = "a",
    prior: bool = False,
) -> Sample:
    config = DatasetConfig(
        id=dataset,
        instance_data_dir=str(Path("x")),
        repeats=repeats,
        probability=probability,
        is_regularisation_data=prior,
    )
    return Sample(
        dataset=dataset, key=f"{number}.png", digest=f"{number:064x}", captions=("a cat",), width_px=bucket, height_px=128,
        bucket=Bucket(width_px=bucket, height_px=128), crop=Crop(resized=(bucket, 128), box=(0, 0)), repeats=repeats,
        probability=probability, config=config,
    )  # fmt: skip


def epoch(sampler: Sampler, number: int = 0) -> list[tuple[int, ...]]:
    first = number * sampler.batches_per_epoch
    return [sampler.batch(first + i) for i in range(sampler.batches_per_epoch)]


@given(st.lists(st.sampled_from([64, 128, 192]), min_size=1, max_size=30), st.integers(1, 5), st.integers(0, 3))
def test_an_epoch_shows_every_picture_in_batches_of_one_bucket(sizes: list[int], batch: int, number: int) -> None:
    samples = [picture(i, bucket=size) for i, size in enumerate(sizes)]
    batches = epoch(Sampler(samples, batch=batch, seed=1), number)
    assert {index for several in batches for index in several} == set(range(len(samples)))
    assert all(len(several) == batch for several in batches)
    assert all(len({samples[index].bucket for index in several}) == 1 for several in batches)
    # No more repeats than fill the last batch of each bucket.
    assert len(batches) == sum(-(-count // batch) for count in Counter(sizes).values())


def test_regularisation_data_have_batches_of_their_own() -> None:
    samples = [picture(i, dataset="ab"[i % 2], prior=i % 2 == 1) for i in range(10)]
    batches = epoch(Sampler(samples, batch=3, seed=1))
    assert {index for several in batches for index in several} == set(range(10))
    assert sorted(len({samples[index].is_prior for index in several}) for several in batches) == [1] * 4


def test_batches_follow_from_the_seed_and_their_number_alone() -> None:
    samples = [picture(i) for i in range(20)]
    one, other = Sampler(samples, batch=3, seed=1), Sampler(samples, batch=3, seed=1)
    forwards = [one.batch(i) for i in range(50)]
    backwards = [other.batch(i) for i in reversed(range(50))]
    assert forwards == backwards[::-1]
    assert forwards != [Sampler(samples, batch=3, seed=2).batch(i) for i in range(50)]
    assert epoch(one, 0) != epoch(one, 1)


def test_repeats_and_probability_weigh_datasets() -> None:
    samples = [picture(i, repeats=2) for i in range(4)] + [
        picture(4 + i, probability=0.5, dataset="b") for i in range(8)
    ]
    seen = Counter(index for several in epoch(Sampler(samples, batch=1, seed=3)) for index in several)
    assert [seen[i] for i in range(4)] == [3, 3, 3, 3]
    assert sum(seen[i] for i in range(4, 12)) == 4
    drawn = {i for number in range(20) for (i,) in epoch(Sampler(samples, batch=1, seed=3), number)}
    assert drawn == set(range(12))


@pytest.mark.parametrize("count", [1, 2])
def test_a_bucket_smaller_than_a_batch_is_filled_by_repeats(count: int) -> None:
    samples = [picture(i) for i in range(count)]
    (batch,) = epoch(Sampler(samples, batch=4, seed=0))
    assert Counter(batch) == Counter([i % count for i in range(4)])
