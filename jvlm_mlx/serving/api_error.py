"""Errors as clients of the OpenAI API know them: a status and one JSON object."""

from typing import Any

from ..errors import JvlmError


class ApiError(JvlmError):
    """A request that is refused or cannot be answered.

    Args:
        status: of HTTP.
        message: one line for whoever sent the request.
        kind: the `type` of the error object.
        param: name of the parameter that is wrong, or None.
        code: an identifier that programs may test, or None.
        retry_after: seconds after which to try again; sent as a header.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(_encodable(message))
        self.status = status
        self.kind = kind
        self.param = None if param is None else _encodable(param)
        self.code = code
        self.retry_after = retry_after

    @property
    def body(self) -> dict[str, Any]:
        """The error object, which is always an object and never a text."""
        return {
            "error": {
                "message": _as_utf8(str(self)),
                "type": self.kind,
                "param": None if self.param is None else _as_utf8(self.param),
                "code": self.code,
            }
        }

    @property
    def headers(self) -> dict[str, str]:
        """Headers that belong to the status."""
        return {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}


def _as_utf8(text: str) -> str:
    """Return text that can be sent: a name in a request may have half a character."""
    return text.encode("utf-8", "backslashreplace").decode()


def invalid(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """Return the error of a request that is wrong in itself, status 400."""
    return ApiError(400, message, param=param, code=code)


def unauthorized() -> ApiError:
    """Return the error of a missing or wrong key, which are not distinguished."""
    return ApiError(
        401,
        "a valid API key is needed: send the header Authorization: Bearer KEY",
        kind="authentication_error",
        code="invalid_api_key",
    )


def unknown_model(name: str, served: str) -> ApiError:
    """Return the error of a request for another model; none is ever loaded for a request."""
    return ApiError(
        404, f"there is no model {name!r} here; this server has {served!r}",
        param="model", code="model_not_found",
    )  # fmt: skip


def too_large(message: str, param: str | None = None) -> ApiError:
    """Return the error of a body or an image beyond the server's limits."""
    return ApiError(413, message, param=param, code="request_too_large")


def busy(seconds: int) -> ApiError:
    """Return the error of a full queue."""
    return ApiError(
        429, "too many requests are waiting; try again later",
        kind="rate_limit_error", code="queue_full", retry_after=seconds,
    )  # fmt: skip


def loading(seconds: int) -> ApiError:
    """Return the error of every request while the model is being loaded."""
    return ApiError(
        503, f"Model is loading, please retry in {seconds} seconds.",
        kind="server_error", code="model_loading", retry_after=seconds,
    )  # fmt: skip


def stopping() -> ApiError:
    """Return the error of requests that a server which is shutting down does not answer."""
    return ApiError(503, "the server is stopping", kind="server_error", code="server_stopping")


def out_of_memory(seconds: int) -> ApiError:
    """Return the error of an answer that was ended since memory ran out."""
    return ApiError(
        503, "memory ran out; try again later", kind="server_error", code="out_of_memory",
        retry_after=seconds,
    )  # fmt: skip


def failed() -> ApiError:
    """Return the error of a fault of this server; what it was is in its log, not in the answer."""
    return ApiError(
        500, "the server failed to answer this request", kind="server_error", code="internal_error"
    )


def _encodable(text: str) -> str:
    """Return a text without halves of surrogate pairs, which JSON can spell and UTF-8 cannot."""
    return text.encode("utf-8", "replace").decode()
