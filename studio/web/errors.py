"""Errors of the studio's pages: the part of the error tree that no other package raises.

English templates stand where an error is raised, as in every package; ``locales/zh/errors`` holds the Chinese ones.
``studio.web.error_pages`` alone maps codes to HTTP statuses.
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
    """The request is not allowed to change this resource."""

    code = "forbidden"


class WrongHostError(LithographError):
    """The request's Host header names another host."""

    code = "wrong_host"


class TooLargeError(LithographError):
    """The request's body is over the limit."""

    code = "too_large"


class FormError(UserError):
    """Fields of a form are wrong; each problem names its field."""

    code = "invalid_form"


class ConfigFileError(ConfigError):
    """An uploaded file is not a valid configuration."""

    code = "invalid_config_file"


class ImportRefusedError(UserError):
    """An uploaded adapter was not imported."""

    code = "import_refused"


class ImportTimeoutError(LithographError):
    """An import took too long."""

    code = "import_timeout"


class HttpError(LithographError):
    """The web framework rejects the request, as for an unsupported method."""

    code = "http_error"
    status = 400


class UnforeseenError(LithographError):
    """A defect of the studio."""

    code = "internal_error"
