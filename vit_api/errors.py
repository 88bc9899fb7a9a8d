"""Every failure a client can see: its HTTP status, its stable code and its wording.

Nothing here knows how a failure reaches the client; `routes` alone turns these into responses.
"""

from __future__ import annotations


class ViTError(Exception):
    """A failure with a status and a code that clients may rely on.

    Attributes:
        status: The HTTP status.
        code: A stable, machine-readable name; clients may switch on it.
        retry_after_s: Seconds after which another try makes sense, or None.
    """

    status = 500
    code = "internal"
    retry_after_s: int | None = None

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def about(self, what: str) -> ViTError:
        """Return the same failure as one of `what`. Of a new object: several requests may have got this one."""
        message = f"{what}: {self.message}"
        same = type(self).__new__(type(self), message)
        vars(same).update(vars(self), message=message)
        return same

    def headers(self) -> dict[str, str]:
        """Return the response's headers that belong to this failure."""
        return {} if self.retry_after_s is None else {"retry-after": str(self.retry_after_s)}


class BadRequest(ViTError):
    """The request can't be understood: multipart, JSON, base64 or a parameter is malformed."""

    status = 400
    code = "bad_request"


class BadImage(ViTError):
    """The upload looks like an image of a known format but can't be decoded: corrupt or truncated."""

    status = 400
    code = "bad_image"


class EmptyUpload(ViTError):
    """There is no image in the request, or it has no bytes."""

    status = 400
    code = "empty_upload"


class Unauthorized(ViTError):
    """The request has no key or a wrong one."""

    status = 401
    code = "unauthorized"

    def __init__(self, message: str, *, is_wrong: bool) -> None:
        super().__init__(message)
        self._is_wrong = is_wrong

    def headers(self) -> dict[str, str]:
        """Name the scheme, and whether a key was there but wrong; see RFC 6750, section 3."""
        challenge = 'Bearer realm="vit-api"'
        return {"www-authenticate": f'{challenge}, error="invalid_token"' if self._is_wrong else challenge}


class Forbidden(ViTError):
    """Nobody may do this here."""

    status = 403
    code = "forbidden"


class BodyTimeout(ViTError):
    """The request's body did not arrive in time."""

    status = 408
    code = "body_timeout"

    def headers(self) -> dict[str, str]:
        """Close the connection, as RFC 9110, section 15.5.9, suggests: the rest of the body may still come."""
        return {"connection": "close"}


class NotFound(ViTError):
    """No such path."""

    status = 404
    code = "not_found"


class MethodNotAllowed(ViTError):
    """The path exists, but not with this method."""

    status = 405
    code = "method_not_allowed"


class UploadTooLarge(ViTError):
    """The body has more bytes than the server takes."""

    status = 413
    code = "upload_too_large"

    def __init__(self, max_bytes: int) -> None:
        super().__init__(f"the upload has more than the {max_bytes / 2**20:.4g} MB that this server takes")


class ImageTooLarge(ViTError):
    """The image's header announces more pixels than the server decodes."""

    status = 413
    code = "image_too_large"


class UnsupportedImage(ViTError):
    """The upload is not an image of a format that the server reads."""

    status = 415
    code = "unsupported_image"


class UnsupportedEncoding(ViTError):
    """The body is compressed, where the server takes it as it is alone."""

    status = 415
    code = "unsupported_encoding"


class RateLimited(ViTError):
    """The client has used up what it may use in some time."""

    status = 429
    code = "rate_limited"

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class InternalError(ViTError):
    """A bug of ours; the log has the details."""


class InferenceFailed(ViTError):
    """The model failed on this image."""

    status = 500
    code = "inference_failed"


class OutOfDeviceMemory(ViTError):
    """The device has no memory left for the model's run."""

    status = 503
    code = "out_of_memory"
    retry_after_s = 5


class WorkersGone(ViTError):
    """The workers died and can't be started again; the server stops."""

    status = 503
    code = "workers_gone"
    retry_after_s = 10


class Overloaded(ViTError):
    """Every slot is taken, or the memory for uploads: the queue is full."""

    status = 503
    code = "overloaded"

    def __init__(self, message: str, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class NotReady(ViTError):
    """No worker can take images yet."""

    status = 503
    code = "not_ready"
    retry_after_s = 5


class RedisUnavailable(ViTError):
    """Redis can't be reached or refuses, where nothing can be done without it."""

    status = 503
    code = "redis_unavailable"
    retry_after_s = 5


class DeadlineExceeded(ViTError):
    """The answer did not come within the request's time limit."""

    status = 504
    code = "deadline_exceeded"
