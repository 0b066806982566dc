"""Errors as OpenAI's clients expect them: a status, and a JSON object that says what is wrong."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from qformats.chatting.engine import Busy, Closed
from qformats.errors import CheckpointError, ConfigError, QFormatsError

__all__ = ["ApiError", "as_api_error"]

_KINDS = {401: "authentication_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """An answer that is an error.

    Parameters
    ----------
    status : int
        Of HTTP.
    message : str
        What is wrong, and what to do.
    param : str, optional
        The part of the request that is wrong.
    code : str, optional
        A word for programs.
    headers : dict, optional
        Of HTTP.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = headers or {}

    @property
    def body(self) -> dict[str, Any]:
        """The JSON object."""
        kind = _KINDS.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def as_api_error(error: Exception) -> ApiError:
    """An error of ours, or of a request's shape, as the client gets it; nothing is told of any other."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"] if part != "function-after")
        told = str(first["msg"]).removeprefix("Value error, ")
        return ApiError(400, f"{where}: {told}" if where else told, where or None, "invalid_value")
    if isinstance(error, Busy):
        return ApiError(429, str(error), None, "queue_full", {"Retry-After": "1"})
    if isinstance(error, Closed):
        return ApiError(503, "the server is shutting down", None, "shutting_down")
    if isinstance(error, ConfigError):
        code = "context_length_exceeded" if "model's context" in str(error) else "invalid_value"
        return ApiError(400, str(error), error.key, code)
    if isinstance(error, CheckpointError):
        return ApiError(400, str(error), "messages", "chat_template")
    if isinstance(error, QFormatsError):
        return ApiError(500, str(error), None, "unusable_model")
    return ApiError(500, f"the model failed: {type(error).__name__}", None, "model_failed")
