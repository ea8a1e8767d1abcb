"""Errors of the studio's own pages: the part of the error tree that no other package raises.

Templates are English and stand where an error is raised, as everywhere; ``locales/zh/errors`` holds the Chinese. The HTTP
status follows from an error's code in ``studio.web.error_pages`` alone.
"""

from longcat.errors import ConfigError, LithographError, UserError


class MissingPageError(LithographError):
    """A page, a picture or a generation does not exist."""

    code = "not_found"


class PageNotFoundError(MissingPageError):
    """Nothing is served at the address."""

    def __init__(self) -> None:
        super().__init__("page_not_found", "nothing is here")


class PictureNotFoundError(MissingPageError):
    """The gallery, a dataset or an adapter has no such picture."""

    def __init__(self) -> None:
        super().__init__("picture_not_found", "the picture does not exist; it may have been deleted")


class LoginRequiredError(LithographError):
    """The request carries neither the token nor a valid cookie."""

    code = "unauthorized"


class TooManyAttemptsError(LithographError):
    """An address has given too many wrong tokens at once."""

    code = "too_many_attempts"


class ChangeForbiddenError(LithographError):
    """The request is not allowed to change what it names."""

    code = "forbidden"


class WrongHostError(LithographError):
    """The request names a host that this studio does not answer to."""

    code = "wrong_host"


class TooLargeError(LithographError):
    """The request's body is over the limit."""

    code = "too_large"


class FormError(UserError):
    """Fields of a form are wrong; each problem names its field."""

    code = "invalid_form"


class ConfigFileError(ConfigError):
    """An uploaded file is no configuration."""

    code = "invalid_config_file"


class ImportRefusedError(UserError):
    """An uploaded adapter was not imported."""

    code = "import_refused"


class ImportTimeoutError(LithographError):
    """An import took too long."""

    code = "import_timeout"


class HttpError(LithographError):
    """The web framework refuses the request, as for a method that a path does not have."""

    code = "http_error"
    status = 400


class UnforeseenError(LithographError):
    """A defect of the studio."""

    code = "internal_error"
