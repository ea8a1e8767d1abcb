"""The error tree. Every message names the offending value and what to do instead; HTTP statuses are mapped elsewhere.

::

    LithographError
    ├── UserError                the caller can mend it
    │   ├── PromptTooLongError
    │   ├── FlavourError         no such model, or its files are missing or broken
    │   ├── PrecisionError       this machine or model cannot do that precision
    │   ├── DeviceError          no such device here, or it cannot do what was asked
    │   ├── RecipeError          a picture whose recipe is missing or belongs to another model
    │   ├── ConfigError          a configuration is wrong
    │   ├── DataError            training data cannot be used
    │   ├── JobError             a training job cannot be run as it was asked for
    │   │   ├── UnknownJobError  none of that name
    │   │   └── JobNameTakenError  another one has that name
    │   └── AdapterError         an adapter that is damaged, or does not fit the model
    │       └── UnknownAdapterError  none of that name or version
    ├── StorageError             shared storage cannot be reached, or refuses
    │   ├── HubError             the models' hub cannot be reached
    │   ├── StorageMissingError  nothing under that key
    │   └── StorageConflictError the key is taken, or has changed since it was read
    ├── ClusterError             Kubernetes cannot be reached, or refuses
    ├── DeadlineError            the time that a request was given is over
    └── EngineError              the model ran and failed
"""


class LithographError(Exception):
    """The root: catch this to catch everything that Lithograph raises on purpose."""


class UserError(LithographError):
    """Something that the caller gave cannot be done; the message says what to give instead."""


class PromptTooLongError(UserError):
    """A prompt has more tokens than the model reads."""

    def __init__(self, *, tokens: int, max_tokens: int) -> None:
        super().__init__(f"has {tokens} tokens; the model reads at most {max_tokens}: shorten it")
        self.tokens = tokens
        self.max_tokens = max_tokens


class FlavourError(UserError):
    """The flavour names no model that can be loaded."""


class PrecisionError(UserError):
    """The precision cannot be had on this machine or with these settings."""


class DeviceError(UserError):
    """The device is not there, or cannot do what was asked of it."""


class RecipeError(UserError):
    """A picture carries no recipe, or one that this model cannot follow."""


class ConfigError(UserError):
    """A configuration has an option that is unknown, wrong, or at odds with another."""


class DataError(UserError):
    """Training data is not there, cannot be read, or has changed."""


class JobError(UserError):
    """A training job cannot be run as it was asked for."""


class UnknownJobError(JobError):
    """No training job has that name."""


class JobNameTakenError(JobError):
    """Another training job has that name."""


class AdapterError(UserError):
    """An adapter is damaged, badly named, or does not fit the model."""


class UnknownAdapterError(AdapterError):
    """No adapter has that name, or none that version."""


class StorageError(LithographError):
    """Shared storage cannot be reached, or refuses."""


class HubError(StorageError):
    """The hub that models are downloaded from cannot be reached: another try may do."""


class StorageMissingError(StorageError):
    """Nothing is stored under that key."""


class StorageConflictError(StorageError):
    """Another writer was first: the key is taken, or has changed since it was read."""


class ClusterError(LithographError):
    """Kubernetes cannot be reached, or refuses."""


class DeadlineError(LithographError):
    """The time that a request was given is over."""

    def __init__(self) -> None:
        super().__init__("timeout_seconds is over; give more time, or ask for fewer steps or pictures")


class EngineError(LithographError):
    """The model ran and did not produce a picture."""
